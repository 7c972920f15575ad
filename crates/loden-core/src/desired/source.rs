//! Where a wish comes from: for people who ask why an object is there, and for thinking over only what changed.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::model::{AttachmentKey, IfName, NodeName, PoolName};

/// What in the view an object comes from. When it changes, only its objects are thought over again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// This host itself: its devices, sysctls, rules.
    Local,
    /// A peer.
    Peer(NodeName),
    /// A pod here.
    Attachment(AttachmentKey),
    /// An address that the kernel has asked for on a device.
    Flow(IfName, IpAddr),
}

/// Where a wish comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// What in the view it comes from.
    pub source: Source,
    /// The pool that it serves, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

/// Why an object is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// Where the wish comes from: one for all that a source wants for a pool.
    #[serde(flatten)]
    pub origin: Arc<Origin>,
    /// What the object does, in a few words.
    pub role: &'static str,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.role)?;
        match &self.origin.source {
            Source::Local => {}
            Source::Peer(node) => write!(f, " of node {node}")?,
            Source::Attachment(key) => write!(f, " of attachment {key}")?,
            Source::Flow(dev, addr) => write!(f, " for {addr} on {dev}")?,
        }
        if let Some(pool) = &self.origin.pool {
            write!(f, ", pool {pool}")?;
        }
        Ok(())
    }
}
