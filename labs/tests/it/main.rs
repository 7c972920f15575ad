//! What holds on the real kernel, with the real programs, under real packets. Needs root and the built programs.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

mod bandwidth;
mod blocks;
mod dhcp;
mod docs;
mod drift;
mod etcd;
mod frames;
mod guard;
mod install;
mod kill;
mod learn;
mod macvlan;
mod miss;
mod offload;
mod outage;
mod passage;
mod refuse;
mod renumber;
mod routed;
mod rules;
mod runtimes;
mod shapes;
mod soak;
mod support;
mod switch;
mod takeover;
mod terms;
mod tunnel;
mod walk;
mod walk_udp;
