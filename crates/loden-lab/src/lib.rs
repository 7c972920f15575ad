//! Labs: a whole cluster on one machine, to learn on, to demonstrate with, and to test in.
//!
//! Hosts are network namespaces on an underlay that the lab makes as well; each runs a real `lodend`; pods are attached by
//! executing the real `loden-cni` as a container runtime would; [`probe`] sends real packets. No other program is needed.

pub mod agent;
pub mod error;
pub mod http;
pub mod lab;
pub mod pod;
pub mod probe;
pub mod soak;
pub mod topology;

mod underlay;

pub use error::LabError;
pub use lab::{Binaries, Lab};
pub use topology::Topology;
