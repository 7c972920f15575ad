//! Frames of the tunnel's device.
#![no_main]

#[path = "../src/tunnel.rs"]
#[allow(dead_code, reason = "each target calls one of its functions")]
mod tunnel;

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel::split(data));
