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
    /// Until when it is lent to the node, in milliseconds since boot; no address is taken from it then. `None`: for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
}

impl NodeFile {
    /// Whether an address may be taken from a block at a time in milliseconds since boot.
    #[must_use]
    pub fn serves(&self, block: Prefix, now_ms: u64) -> bool {
        self.blocks.iter().any(|there| there.cidr == block && there.until_ms.is_none_or(|until| now_ms < until))
    }
}
