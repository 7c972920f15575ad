//! What can be wrong with what flannel's dialect says.

use std::net::IpAddr;

use crate::config::ConfigError;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlannelError {
    /// A text that is no JSON.
    #[error("it is no JSON that flannel reads: {0}")]
    Json(String),
    /// A key of JSON, or several together.
    #[error(transparent)]
    Key(#[from] ConfigError),
    /// A backend that loden does not carry.
    #[error(
        "the backend is {name:?}, which loden does not have: set `Backend` to one of type {}",
        crate::config::cluster::kinds()
    )]
    Backend {
        /// Its name in lower case.
        name: String,
    },
    /// Pools that net-conf.json has no words for.
    #[error("net-conf.json cannot say what pool {pool} is: {why}")]
    Unsayable {
        /// The pool.
        pool: String,
        /// What there are no words for, and what to do.
        why: String,
    },
    /// A key that is no subnet's.
    #[error("{given:?} is no subnet's key such as 10.5.34.0-24 or 10.5.34.0-24&fc00:0:0:1::-64: {cause}")]
    SubnetKey {
        /// Without the prefix.
        given: String,
        /// What is wrong.
        cause: String,
    },
    /// A lease that does not say where its node is.
    #[error("it has no `PublicIP`: whose it is cannot be said")]
    NoPublicIp,
    /// A lease of another backend than the pool's.
    #[error("{} is served by the backend {theirs:?}, the pool's is {ours:?}: its blocks cannot be reached until both are alike", .at.map_or_else(|| "the node".to_owned(), |at| at.to_string()))]
    OtherBackend {
        /// The node's address.
        at: Option<IpAddr>,
        /// Its backend; `udp` is what flannel leaves empty.
        theirs: String,
        /// The pool's.
        ours: &'static str,
    },
    /// A command line that flanneld would refuse, too.
    #[error("{0}")]
    Usage(String),
}
