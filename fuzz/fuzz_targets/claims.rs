//! See `laws::claims`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| laws::claims(bytes));
