//! The plugin, executed as a runtime does, on a host of its own: a namespace with the bridge that the agent would make.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

mod addresses;
#[cfg(feature = "fault-points")]
mod agent;
mod bridges;
mod chained;
mod delegates;
mod disks;
mod faults;
mod former;
mod host;
mod install;
mod kills;
mod macvlan;
mod pipes;
#[cfg(feature = "fault-points")]
mod points;
mod ports;
mod reference;
mod roles;
mod routed;
mod senders;
mod small_disk;
mod status;
mod verbs;
mod vlans;
mod wire;
