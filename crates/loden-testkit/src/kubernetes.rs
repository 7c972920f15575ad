//! A double of the Kubernetes API server, held against the schemas and roles that are shipped.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a double that meets what it did not expect is to fail the test"
)]

mod cluster;
mod double;
mod roles;
mod schema;
mod wire;

pub use cluster::{Cluster, Event, Part, Refusal};
pub use double::{Double, Faults, Log};
pub use roles::Role;
pub use schema::{Schemas, file, objects};
