//! The driver on the real kernel: each test in a network namespace of its own. Needs root (or root in a user namespace).

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod abilities;
mod datagram;
mod deaf;
mod dump;
mod foreign;
mod former;
mod hostile;
#[cfg(feature = "ipip-device")]
mod kernel_ipip;
mod ledger;
mod lock;
mod monitor;
mod objects;
mod peers;
mod qdisc;
mod refusals;
mod support;
mod tun;
mod underlay;
