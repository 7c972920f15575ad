//! The agent of a node, as a library: `main.rs` only starts it.
//!
//! Two sides that never wait for each other. The kernel's side ([`worker`], a thread of its own) owns the reconciler
//! ([`reconcile`]); the services' side (tokio, one thread) follows the datastore ([`cluster`]), serves the API ([`api`]).
//! Messages go to the kernel's side by its inbox, what it has reached comes back by a watch.

pub mod api;
pub mod blocks;
pub mod claim;
pub mod cluster;
pub mod dhcp;
pub mod error;
pub mod events;
pub mod flanneld;
pub mod host;
pub mod identity;
pub mod journal;
pub mod ledger;
pub mod metrics;
pub mod misses;
pub mod offload;
pub mod reconcile;
pub mod status;
pub mod subnet_file;
pub mod tunnels;
pub mod underlay;
pub mod worker;

pub use error::AgentError;
