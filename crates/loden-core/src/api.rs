//! What the agent answers on its local socket: the stable form that programs read (`-o json`) and people are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{IfName, NodeName, PoolName, Prefix};
use crate::offload::By;
use crate::underlay::Underlay;
use crate::view::Problem;

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This node's name.
    pub node: NodeName,
    /// The agent's version.
    pub version: String,
    /// Milliseconds since the agent started.
    pub uptime_ms: u64,
    /// Whether pods can be served; what `/readyz` says.
    pub ready: bool,
    /// Why not, and anything else that is not as it should be.
    pub problems: Vec<Problem>,
    /// The external interface.
    pub underlay: Option<Underlay>,
    /// MTU for pods, in bytes.
    pub mtu_pod: Option<u32>,
    /// The pools in force, with the health of their backends.
    pub pools: Vec<PoolStatus>,
    /// This node's blocks.
    pub blocks: Vec<BlockStatus>,
    /// The other nodes.
    pub peers: Vec<PeerStatus>,
    /// The tunnels whose packets do not go by the kernel alone, or by a device that not every kernel has.
    #[serde(default)]
    pub tunnels: Vec<TunnelStatus>,
    /// What the kernel asks for; left out where no pool has it ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misses: Option<MissStatus>,
    /// Who computes the checksums of packets inside the kernel's own tunnels; none when that is not tested.
    #[serde(default)]
    pub checksums: Vec<ChecksumStatus>,
    /// The kernel's side.
    pub kernel: KernelStatus,
    /// The datastore's side.
    pub store: StoreStatus,
}

/// Neighbours that the kernel asks for (VXLAN under the control `miss`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissStatus {
    /// Answers that are in the kernel.
    pub flows: usize,
    /// How many may be on a device.
    pub most_flows: usize,
    /// Questions since the agent started.
    pub asked: u64,
    /// Questions a second over the last ten.
    pub per_second: u64,
    /// Those that had no answer: no peer that is reached has the address.
    pub unanswered: u64,
    /// Questions over the bounded rate: the kernel asks again.
    pub held_back: u64,
    /// Packets that were refused before the kernel asked, since no node has a block with their address.
    pub refused: u64,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Its name.
    pub name: PoolName,
    /// Its addresses.
    pub cidr: Prefix,
    /// Its backend, with what tells it apart (`vxlan vni 1 port 8472`).
    pub backend: String,
    /// Backends that still serve it because some peer sends with them.
    pub lingering: Vec<String>,
    /// Peers reached, of those that own a block of it.
    pub peers_reached: usize,
    /// Peers that own a block of it.
    pub peers: usize,
    /// Whether all is well with it here.
    pub healthy: bool,
    /// The causes, if not.
    pub causes: Vec<String>,
}

/// A block of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockStatus {
    /// Its addresses.
    pub cidr: Prefix,
    /// Its pool.
    pub pool: PoolName,
    /// Addresses that pods have.
    pub used: u64,
    /// Addresses that pods can have (at most 65,536 are counted).
    pub capacity: u64,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name.
    pub node: NodeName,
    /// Where it is.
    pub addresses: Vec<IpAddr>,
    /// Its blocks.
    pub blocks: Vec<Prefix>,
    /// Whether its agent has lately shown a sign of life. A silent peer keeps its routes.
    pub alive: bool,
    /// Kernel objects that reach it.
    pub objects: usize,
    /// How many of them are not in the kernel as they should be.
    pub missing: usize,
    /// Why it is not reached, or not as it should be.
    pub problems: Vec<String>,
}

/// A tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// Its device.
    pub device: IfName,
    /// How its packets look outside.
    pub wire: String,
    /// Who carries them.
    pub by: String,
    /// What the kernel does not do for it, with what that costs.
    pub lacks: Vec<String>,
    /// What was carried for each peer since it was started.
    pub peers: Vec<TunnelPeerStatus>,
    /// What was dropped that no peer has to do with, by cause.
    pub dropped: BTreeMap<String, u64>,
}

/// What a tunnel has carried for a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelPeerStatus {
    /// The peer.
    pub node: NodeName,
    /// What was sent to it.
    pub sent: Carried,
    /// What was taken in from it.
    pub received: Carried,
    /// What was dropped, by cause.
    pub dropped: BTreeMap<String, u64>,
}

/// Who computes the checksums of what a device sends, inside its tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChecksumStatus {
    /// The device.
    pub device: IfName,
    /// Who: the network card, or the host because what the card makes of it is wrong. `None`: the kernel refuses to be told.
    pub by: Option<By>,
    /// The peer by which it was found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_with: Option<NodeName>,
    /// The same for people.
    pub text: String,
}

/// Packets, and their bytes without the outer headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// How many.
    pub packets: u64,
    /// How long they were together.
    pub bytes: u64,
}

/// The kernel's side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelStatus {
    /// Objects that are wanted.
    pub wanted: usize,
    /// Objects that are not as wanted now.
    pub pending: usize,
    /// Changes written since the agent started, by sort. A start on a kernel that is right writes nothing.
    pub writes: BTreeMap<String, u64>,
    /// Objects made again after something else had changed them, by sort.
    pub repairs: BTreeMap<String, u64>,
    /// Steps that the kernel refused in the last round.
    pub failing: Vec<Failing>,
    /// Rounds of reconciling since the agent started.
    pub rounds: u64,
    /// Microseconds that the last round took.
    pub last_round_us: u64,
    /// Who guards the nftables table (`owned` or why not).
    pub nft_ownership: String,
}

/// A step that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failing {
    /// The object.
    pub object: String,
    /// The kernel's own words.
    pub cause: String,
    /// Who wants it.
    pub why: String,
}

/// The datastore's side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    /// Where it is.
    pub url: String,
    /// Whether it answers.
    pub up: bool,
    /// The last revision seen.
    pub revision: u64,
    /// Its last error, while it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where the view that the kernel follows is from; `None` as long as there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<ViewOrigin>,
}

/// Where a view is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ViewOrigin {
    /// The datastore has said it since the agent started.
    Store,
    /// The datastore has not answered since: it is what it said before, kept on disk.
    Disk,
}

/// `POST /v1/ipam/wish`: the plugin has found no free address. Answered when `node.json` has a further block, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockWish {
    /// The pools that it looked in.
    pub pools: BTreeSet<PoolName>,
    /// The blocks that it knew of.
    pub blocks: BTreeSet<Prefix>,
}

impl BlockWish {
    /// How long the agent looks for a further block before it answers that there is none. CNI sets no deadline, and runtimes give
    /// minutes; a claim takes milliseconds when the datastore is well.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// Whether a problem's subject is one of the pools.
    #[must_use]
    pub fn is_about(&self, subject: &str) -> bool {
        let pool = subject.strip_prefix("pool ");
        pool.is_some_and(|pool| self.pools.iter().any(|name| name.as_str() == pool))
    }
}

/// Something that happened, `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Counts up from 1 since the agent started.
    pub seq: u64,
    /// Milliseconds after the agent's start.
    pub at_ms: u64,
    /// What sort of thing: `repair`, `apply`, `error`, `view`.
    pub sort: String,
    /// The object.
    pub object: String,
    /// What happened to it.
    pub text: String,
}

/// `GET /v1/plan`: what a reconcile would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanReply {
    /// How many steps; 0: the kernel is as wanted.
    pub steps: usize,
    /// What is wanted and refused.
    pub refused: usize,
    /// The dry run for people.
    pub text: String,
}

/// `GET /v1/ipam`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipam {
    /// This node's blocks.
    pub blocks: Vec<BlockStatus>,
    /// Addresses in use.
    pub addresses: Vec<AddressInUse>,
}

/// An address that a pod has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressInUse {
    /// The address.
    pub address: IpAddr,
    /// Whose: network/container/interface.
    pub attachment: String,
    /// The pod's name, if the runtime gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The host's end of its veth pair, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_side: Option<String>,
}
