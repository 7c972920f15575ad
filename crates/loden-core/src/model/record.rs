//! What a datastore holds: records under keys, each with the revision that wrote it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Block, Node, NodeName, NodeUid, Pool, PoolName, Prefix};

/// The sorts of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A pool.
    Pool,
    /// A node.
    Node,
    /// A block.
    Block,
    /// A sign of life.
    Lease,
}

/// A record's name in the datastore; its text form is `kind/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// A pool by name.
    Pool(PoolName),
    /// A node by name.
    Node(NodeName),
    /// A block by its prefix.
    Block(Prefix),
    /// The sign of life of the agent on a node.
    Lease(NodeName),
}

impl Key {
    /// The record's sort.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pool(_) => Kind::Pool,
            Self::Node(_) => Kind::Node,
            Self::Block(_) => Kind::Block,
            Self::Lease(_) => Kind::Lease,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "pool/{name}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Block(cidr) => write!(f, "block/{cidr}"),
            Self::Lease(name) => write!(f, "lease/{name}"),
        }
    }
}

/// The sign of life of the agent that serves a node. It ends when the store has not heard of it for its time to live;
/// nothing in the kernel ever hangs on it (a peer that is silent keeps its routes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The node.
    pub node: NodeName,
    /// The identity of the agent's host: a second host of the same name cannot take the lease.
    pub uid: NodeUid,
    /// Which start of the agent this is, so that a second agent on the same host is told apart.
    pub instance: String,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// A pool.
    Pool(Pool),
    /// A node.
    Node(Node),
    /// A block.
    Block(Block),
    /// A sign of life.
    Lease(Lease),
}

impl Record {
    /// The key that the record stands under.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Pool(pool) => Key::Pool(pool.name.clone()),
            Self::Node(node) => Key::Node(node.name.clone()),
            Self::Block(block) => Key::Block(block.cidr),
            Self::Lease(lease) => Key::Lease(lease.node.clone()),
        }
    }
}

/// A record with its place in the store's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// The store's revision that first wrote it.
    pub created: u64,
    /// The store's revision that last wrote it.
    pub revision: u64,
}
