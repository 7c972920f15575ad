//! A node: where its underlay is, what it can take in, what it still sends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BackendConfig, Family, Mac, NodeName, NodeUid, PoolName, Vni};

/// One optional value for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub struct PerFamily<T> {
    /// The value for IPv4.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub v4: Option<T>,
    /// The value for IPv6.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub v6: Option<T>,
}

impl<T> Default for PerFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T: Copy> PerFamily<T> {
    /// The family's value.
    #[must_use]
    pub fn get(&self, family: Family) -> Option<T> {
        if family == Family::V4 { self.v4 } else { self.v6 }
    }

    /// Sets the family's value.
    pub fn set(&mut self, family: Family, value: T) {
        *(if family == Family::V4 { &mut self.v4 } else { &mut self.v6 }) = Some(value);
    }

    /// The values that there are, with their families, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, T)> + '_ {
        Family::ALL.into_iter().filter_map(|family| self.get(family).map(|value| (family, value)))
    }

    /// Whether neither family has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// What a node's kernel is ready to take in from its peers. Published only once it is there, so that no peer sends
/// into a void while a backend is being switched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Receive {
    /// A VTEP.
    Vxlan {
        /// Its network.
        vni: Vni,
        /// The family of the outer header.
        underlay: Family,
        /// The VTEP device's Ethernet address.
        mac: Mac,
        /// The UDP port it listens on.
        port: u16,
        /// Whether what comes in is on one segment with its pods: its bridge is extended over the device.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        bridged: bool,
    },
    /// Plain routed packets for its blocks.
    HostGw,
    /// Bare packets in UDP.
    Udp {
        /// The family of the outer header.
        underlay: Family,
        /// The port it listens on.
        port: u16,
        /// Whether it takes in many packets at once. flannel's proxy has a small buffer and drops what comes in a burst.
        #[serde(default)]
        bursts: bool,
    },
    /// IPv4 in IPv4.
    Ipip,
}

/// A node as the datastore holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its identity, which fences its blocks.
    pub uid: NodeUid,
    /// The addresses at which peers reach it.
    #[serde(default)]
    pub underlay: PerFamily<IpAddr>,
    /// Where peers reach it instead, as an operator says (flannel's `public-ip-overwrite`: a node behind NAT).
    #[serde(default, skip_serializing_if = "PerFamily::is_empty")]
    pub public: PerFamily<IpAddr>,
    /// Which of its own addresses an operator wants it to serve at (flannel's `node-public-ip`).
    #[serde(default, skip_serializing_if = "PerFamily::is_empty")]
    pub asked: PerFamily<IpAddr>,
    /// Labels, for pools' node selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it is ready to take in.
    #[serde(default)]
    pub receives: Vec<Receive>,
    /// The backends that it now sends with, pool by pool. A peer keeps the receiving side of a backend for as long as
    /// anybody sends with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sends: BTreeMap<PoolName, BTreeSet<BackendConfig>>,
    /// Keys that this version does not know, kept for the newer node that wrote them.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

impl Node {
    /// A node of which nothing is known but who it is.
    #[must_use]
    pub fn named(name: NodeName, uid: NodeUid) -> Self {
        Self {
            name,
            uid,
            underlay: PerFamily::default(),
            public: PerFamily::default(),
            asked: PerFamily::default(),
            labels: BTreeMap::new(),
            receives: Vec::new(),
            sends: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// Every address that its packets may come from, lowest first: one that it is asked to serve at, too, which it may send from before
    /// its record says so.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        [self.underlay, self.public, self.asked].iter().flat_map(PerFamily::iter).map(|(_, addr)| addr).collect()
    }

    /// The address at which peers reach it.
    #[must_use]
    pub fn reached_at(&self, family: Family) -> Option<IpAddr> {
        self.public.get(family).or(self.underlay.get(family))
    }
}
