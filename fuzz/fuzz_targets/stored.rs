//! What is stored under `/run/loden`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| loden_fuzz::stored(data));
