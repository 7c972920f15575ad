//! The reconciler on the fake kernel: restarts, drift, faults at every step.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

mod blocks;
mod cluster;
mod deaf;
mod double;
mod face;
mod journal;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod ledger;
mod misses;
mod outage;
mod race;
mod reconcile;
mod takeover;
