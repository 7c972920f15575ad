//! The tunnel: what goes in comes out, whatever is made of it on the way; and on the real kernel, in namespaces of its own (needs root).

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

#[path = "../../../../fuzz/src/tunnel.rs"]
mod fuzz;

mod any;
mod coalesce;
mod hostile;
mod interop;
#[cfg(feature = "ipip-device")]
mod kernel_ipip;
mod live;
mod outbound;
mod router;
mod support;
