//! The configuration on the plugin's input.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| loden_fuzz::stdin(data));
