//! Pools, the blocks that are cut from them, and the backend that carries their traffic.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{IfName, NodeName, NodeUid, PerFamily, PoolName, Prefix, Vni};

/// A range of pod addresses, cut into blocks of one size that nodes claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// All its addresses.
    pub cidr: Prefix,
    /// The prefix length of a block.
    pub block_len: u8,
    /// The lowest block that is claimed; `None`: the pool's first (flannel's `SubnetMin`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_block: Option<Prefix>,
    /// The highest block that is claimed; `None`: the pool's last (flannel's `SubnetMax`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_block: Option<Prefix>,
    /// How packets between its blocks travel.
    pub backend: BackendConfig,
    /// Whether packets from the pool to the outside take the host's address.
    pub nat_outgoing: bool,
    /// Labels that a node must have to claim a block; empty: every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Keys that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

impl Pool {
    /// The lowest and the highest block that nodes claim; `None` when blocks of that length do not fit into the pool.
    #[must_use]
    pub fn block_bounds(&self) -> Option<(Prefix, Prefix)> {
        let last = self.cidr.count_subnets(self.block_len) - 1;
        let first = self.first_block.or_else(|| self.cidr.nth_subnet(self.block_len, 0))?;
        let last = self.last_block.or_else(|| self.cidr.nth_subnet(self.block_len, last))?;
        let fits = |block: Prefix| block.len() == self.block_len && self.cidr.covers(block);
        (fits(first) && fits(last)).then_some((first, last))
    }
}

/// The backend of a pool, with its options.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum BackendConfig {
    /// VXLAN, routed: one route, one ARP and one FDB entry a peer.
    Vxlan(VxlanConfig),
    /// Plain routes to the peer's address; all nodes on one segment.
    HostGw(HostGwConfig),
    /// Bare packets in UDP, by an engine in the agent: flannel's wire.
    Udp(UdpConfig),
    /// IP in IP (RFC 2003), by the kernel where it can, else by the same engine.
    Ipip(IpipConfig),
}

impl BackendConfig {
    /// Its options, if it puts the pods of all hosts on one segment.
    #[must_use]
    pub fn segment(&self) -> Option<&VxlanConfig> {
        match self {
            Self::Vxlan(config) => Some(config).filter(|config| config.bridged),
            _ => None,
        }
    }

    /// The name as configuration has it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw(_) => "host-gw",
            Self::Udp(_) => "udp",
            Self::Ipip(_) => "ipip",
        }
    }
}

/// Options of the VXLAN backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VxlanConfig {
    /// The network's identifier; default 1.
    pub vni: Vni,
    /// UDP port; default 8472, as flannel's and older kernels' (IANA gave 4789).
    pub port: u16,
    /// The MTU of the external interface, in bytes, when the detected one is not to be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The group policy extension (draft-smith-vxlan-group-policy).
    #[serde(default)]
    pub gbp: bool,
    /// Whether peers on the same segment are reached by plain routes.
    #[serde(default)]
    pub direct_routing: bool,
    /// How a host comes to know behind which other a pod is.
    #[serde(default, skip_serializing_if = "Control::is_static")]
    pub control: Control,
    /// Whether the pods of all hosts are on one segment: the bridge for pods is extended over the device, and a pod's prefix is the
    /// pool's. Learning asks for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bridged: bool,
    /// The multicast groups, by the family of the underlay, to which frames go whose destination is not known; where there is none
    /// they are sent to each host.
    #[serde(default, skip_serializing_if = "PerFamily::is_empty")]
    pub group: PerFamily<IpAddr>,
    /// The bridge that is extended; `None`: the node's own for pods. Each network of a tenant has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<IfName>,
}

/// How a VXLAN device comes to know where frames go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// All entries are there before the first packet.
    #[default]
    Static,
    /// What is not known is flooded, and the device learns from what comes (RFC 7348 section 4).
    Learn,
    /// The kernel reports what it misses, and the agent answers.
    Miss,
}

impl VxlanConfig {
    /// Whether the kernel asks the agent for neighbours on the device: all of the network is routed out of it, and each address in it
    /// has an entry of its own, as soon as somebody sends to it.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.control == Control::Miss && !self.bridged
    }
}

impl Control {
    fn is_static(&self) -> bool {
        *self == Self::Static
    }
}

impl Default for VxlanConfig {
    fn default() -> Self {
        let vni = Vni::try_from(1).unwrap_or_else(|_| unreachable!("1 is a VNI"));
        Self {
            vni,
            port: 8472,
            mtu: None,
            gbp: false,
            direct_routing: false,
            control: Control::Static,
            bridged: false,
            group: PerFamily::default(),
            bridge: None,
        }
    }
}

/// Options of host-gw: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostGwConfig {}

/// Options of the UDP backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UdpConfig {
    /// UDP port; default 8285, as flannel's.
    pub port: u16,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { port: 8285 }
    }
}

/// Options of the IPIP backend.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpipConfig {
    /// Whether peers on the same segment are reached by plain routes (Calico's `CrossSubnet`).
    #[serde(default)]
    pub direct_routing: bool,
}

/// A block: a part of a pool that one node owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Its addresses.
    pub cidr: Prefix,
    /// The pool that it was cut from.
    pub pool: PoolName,
    /// The node that hands out its addresses.
    pub owner: NodeName,
    /// The identity of that node: a namesake is another owner.
    pub owner_uid: NodeUid,
}
