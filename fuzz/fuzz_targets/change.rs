//! See `laws::change`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| laws::change(bytes));
