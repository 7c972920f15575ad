//! `/run/loden/node.json`: what the plugin has to know of its node. The agent writes it once the kernel holds what pods need.

use std::collections::BTreeSet;
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
    /// The whole pool, where the pods of all hosts are on one segment: a pod's address has its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<Prefix>,
    /// The bridge for its pods, where it is another than the node's; the agent has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<IfName>,
    /// Until when it is lent to the node, in milliseconds since boot; no address is taken from it then. `None`: for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
}

impl NodeFile {
    /// The bridges for pods.
    #[must_use]
    pub fn bridges(&self) -> BTreeSet<IfName> {
        self.blocks.iter().filter_map(|block| block.bridge).chain([self.bridge]).collect()
    }

    /// The blocks that a network takes addresses from: of the pools that it names, else of all those whose pods are on the node's
    /// bridge.
    pub fn blocks_of<'a>(&'a self, pools: &'a [PoolName]) -> impl Iterator<Item = &'a NodeBlock> {
        let is_its = move |block: &&NodeBlock| match pools {
            [] => block.bridge.is_none(),
            pools => pools.contains(&block.pool),
        };
        self.blocks.iter().filter(is_its)
    }

    /// Whether an address may be taken from a block at a time in milliseconds since boot.
    #[must_use]
    pub fn serves(&self, block: Prefix, now_ms: u64) -> bool {
        self.blocks.iter().any(|there| there.cidr == block && there.until_ms.is_none_or(|until| now_ms < until))
    }
}
