//! Results of other plugins.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| loden_fuzz::prev_result(data));
