//! Packets of the tunnel that are put together.
#![no_main]

#[path = "../src/tunnel.rs"]
#[allow(dead_code, reason = "each target calls one of its functions")]
mod tunnel;

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel::coalesce(data));
