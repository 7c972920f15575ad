//! The Container Network Interface, specification 0.1.0 to 1.1.0: what comes in, what goes out, and the errors between.

mod config;
mod conflist;
mod draft;
mod environment;
mod error;
pub mod flannel;
mod foreign;
mod keys;
mod lease;
mod node_file;
mod result;
mod role;
mod version;

pub use config::{
    AskedIp, AttachConf, BridgeConf, DhcpConf, IpamConf, IpamSource, MacvlanConf, MakeConf, NetConf, TuningConf, tuning,
};
pub use conflist::{Conflist, PROGRAM};
pub use draft::{HostFacts, Master, bridge_of, demand, draft, given};
pub use environment::{Environment, Verb};
pub use error::{CniError, Code};
pub use foreign::{foreign, host_links, passed_on};
pub use lease::lease_request;
pub use node_file::{NodeBlock, NodeFile};
pub use result::{Interface, IpConfig, Route, Success, dns_of_resolv_conf};
pub use role::Role;
pub use version::Version;
