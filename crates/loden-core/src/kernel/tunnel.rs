//! Tunnels that the agent runs itself, on TUN devices: objects like the kernel's, though no kernel holds them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::model::{Family, NodeName, PerFamily, Prefix};

/// An engine on a TUN device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// How packets look outside.
    pub wire: Wire,
    /// This host's addresses outside.
    pub local: PerFamily<IpAddr>,
    /// The largest packet inside, in bytes.
    pub mtu: u32,
    /// This host's blocks: where packets that come in may go.
    pub own: BTreeSet<Prefix>,
}

/// How a tunnel's packets look outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// The bare packet in UDP.
    Udp {
        /// The port that it listens on.
        port: u16,
    },
    /// IP protocol 4 (RFC 2003).
    Ipip,
}

impl Wire {
    /// Whether outer headers may be of the family.
    #[must_use]
    pub fn has_outer(self, family: Family) -> bool {
        matches!(self, Self::Udp { .. }) || family == Family::V4
    }
}

/// What an engine knows of the host that owns a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its name, for counters.
    pub node: NodeName,
    /// Where its packets come from: those with a source in its block and another outside are dropped.
    pub from: Vec<IpAddr>,
    /// Where packets to its block go; `None`: nowhere by this tunnel.
    pub to: Option<Destination>,
}

/// Where packets to a block go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Destination {
    /// The host's address outside.
    pub addr: IpAddr,
    /// Its UDP port; 0 where the wire has none.
    pub port: u16,
    /// Whether it takes in as many packets at once as one send holds.
    pub bursts: bool,
}

impl Tunnel {
    /// The tunnel that does for two pools.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (family, addr) in other.local.iter() {
            self.local.set(family, addr);
        }
        self.mtu = self.mtu.min(other.mtu);
        self.own.extend(&other.own);
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wire {
            Wire::Udp { port } => write!(f, "UDP port {port}")?,
            Wire::Ipip => write!(f, "IP protocol 4")?,
        }
        self.local.iter().try_for_each(|(_, addr)| write!(f, " local {addr}"))?;
        write!(f, " mtu {}", self.mtu)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            Some(to) if to.port != 0 => write!(f, "to {} port {}", to.addr, to.port)?,
            Some(to) => write!(f, "to {}", to.addr)?,
            None => write!(f, "nothing sent")?,
        }
        let from: Vec<String> = self.from.iter().map(ToString::to_string).collect();
        write!(f, ", taken in from {}", from.join(" "))
    }
}
