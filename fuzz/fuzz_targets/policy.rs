//! See `laws::policy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| laws::policy(bytes));
