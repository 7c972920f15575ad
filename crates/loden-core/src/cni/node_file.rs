//! `/run/loden/node.json`: what the plugin has to know of its node. The agent writes it once the kernel holds what pods need.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{IfName, NodeName, PoolName, Prefix};

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// The node.
    pub node: NodeName,
    /// The bridge for pods; the agent has made it.
    pub bridge: IfName,
    /// MTU for pods, in bytes.
    pub mtu_pod: u32,
    /// The node's blocks, in the order in which they are used.
    pub blocks: Vec<NodeBlock>,
}

/// A block of the node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeBlock {
    /// Its addresses.
    pub cidr: Prefix,
    /// The address that the bridge bears.
    pub gateway: IpAddr,
    /// The pool that it was cut from.
    pub pool: PoolName,
}
