//! flannel's dialect: its configuration, its leases in etcd, its annotations in Kubernetes, its files and its flags, to and from
//! the model.
//!
//! [`NetConf`] is `net-conf.json`; [`Attributes`] is what a node says of itself, in etcd under a [`SubnetKey`] and in Kubernetes as
//! [`annotations`]; [`Layout`] is all that stands under one prefix of etcd, flannel's keys and loden's beside them;
//! [`SubnetEnv`] is what the CNI plugin reads; [`Flanneld`] is flanneld's command line.

pub mod annotations;
mod announced;
mod error;
mod flags;
mod json;
pub mod layout;
mod lease;
mod net_conf;
mod subnet_env;
mod subnet_key;

pub use announced::{Announced, Vtep, WireguardPeer};
pub use error::FlannelError;
pub use flags::{Flanneld, Secret};
pub use layout::Layout;
pub use lease::{Attributes, node_name, node_uid};
pub use net_conf::{NetConf, pool_name};
pub use subnet_env::SubnetEnv;
pub use subnet_key::SubnetKey;
