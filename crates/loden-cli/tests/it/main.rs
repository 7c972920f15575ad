//! The commands that need no agent, as they are typed.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

mod store;
