//! Tests of the pure core over its public face: golden plans, properties, tables.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

mod config;
mod dhcp;
mod faults;
mod flannel;
mod flannel_layout;
#[path = "../../../../fuzz/src/lib.rs"]
mod fuzzed;
mod golden;
mod hostile;
mod lies;
mod offload;
mod order;
mod picture;
mod pools;
mod sim;
mod switch;
mod takeover;
mod translate;
mod underlay;
