//! See `laws::ranges`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| laws::ranges(bytes));
