//! See `laws::path`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| laws::path(bytes));
