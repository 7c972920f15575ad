//! What flannel writes: net-conf.json, leases, annotations, subnet.env, flags.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| loden_fuzz::flannel(data));
