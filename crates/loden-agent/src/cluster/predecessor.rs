//! What served this host before: a flannel node, which its datastore knows by nothing but its address, or a former installation
//! under this node's name. This node takes its place: first it says what that one has said, then it takes its blocks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_core::dialect::flannel;
use loden_core::model::{Block, Entry, Key, Node, NodeName, NodeUid, Prefix, Record};

use super::{Cluster, Outward};

/// The nodes of flannel's, any of which may turn out to be this host once its address is known.
#[derive(Debug, Default)]
pub(super) struct Flannels {
    nodes: BTreeMap<NodeName, Node>,
    blocks: BTreeMap<NodeName, BTreeMap<Prefix, (Block, u64)>>,
    owners: BTreeMap<Prefix, NodeName>,
}

impl Flannels {
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn note(&mut self, entry: &Entry) {
        let is_flannels = |uid: &NodeUid| *uid == flannel::node_uid();
        match &entry.record {
            Record::Node(node) if is_flannels(&node.uid) => drop(self.nodes.insert(node.name.clone(), node.clone())),
            Record::Block(block) => {
                self.forget(&Key::Block(block.cidr));
                if is_flannels(&block.owner_uid) {
                    self.owners.insert(block.cidr, block.owner.clone());
                    let blocks = self.blocks.entry(block.owner.clone()).or_default();
                    blocks.insert(block.cidr, (block.clone(), entry.revision));
                }
            }
            Record::Node(_) | Record::Pool(_) | Record::Lease(_) => {}
        }
    }

    pub(super) fn forget(&mut self, key: &Key) {
        match key {
            Key::Node(name) => drop(self.nodes.remove(name)),
            Key::Block(cidr) => {
                if let Some(owner) = self.owners.remove(cidr)
                    && let Some(blocks) = self.blocks.get_mut(&owner)
                {
                    blocks.remove(cidr);
                    if blocks.is_empty() {
                        self.blocks.remove(&owner);
                    }
                }
            }
            Key::Pool(_) | Key::Lease(_) => {}
        }
    }
}

impl Cluster {
    /// The record of who served this host before, while this node has none of its own.
    pub(super) fn predecessor(&self, outward: &Outward) -> Option<&Node> {
        match &self.own_node {
            Some((node, _)) if node.uid == self.identity.uid => None,
            Some((node, _)) => Some(node),
            None => self.flannels.nodes.get(&flannels_name(outward)?),
        }
    }

    /// Blocks that are to become this node's own: of a former host of its name, and of the flannel node at its address.
    pub(super) fn inheritance(&self, outward: &Outward) -> Vec<(Block, u64)> {
        let former = self.own_blocks.values().filter(|(block, _)| block.owner_uid != self.identity.uid);
        let name = flannels_name(outward);
        let flannels = name.and_then(|name| self.flannels.blocks.get(&name)).into_iter().flat_map(BTreeMap::values);
        former.chain(flannels).cloned().collect()
    }
}

/// How flannel's datastore would name this host: by its IPv4 address.
fn flannels_name(outward: &Outward) -> Option<NodeName> {
    match outward.underlay?.v4? {
        IpAddr::V4(addr) => Some(flannel::node_name(addr)),
        IpAddr::V6(_) => None,
    }
}
