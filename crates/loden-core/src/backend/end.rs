//! The ends of tunnels here: what each takes in, and which device it is. A device that peers may still send to is not removed.

use std::collections::{BTreeMap, BTreeSet};

use super::{ipip, udp};
use crate::kernel::link::{Link, LinkKind};
use crate::model::{BackendConfig, IfName, Receive, Vni};
use crate::view::View;

/// What a tunnel's end takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunnelEnd {
    /// VXLAN of this network to this UDP port.
    Vxlan(Vni, u16),
    /// Bare packets to this UDP port.
    Udp(u16),
    /// IPv4 in IPv4.
    Ipip,
}

impl TunnelEnd {
    /// What a node says that it takes in by a tunnel.
    #[must_use]
    pub fn of(receive: &Receive) -> Option<Self> {
        match *receive {
            Receive::Vxlan { vni, port, .. } => Some(Self::Vxlan(vni, port)),
            Receive::Udp { port, .. } => Some(Self::Udp(port)),
            Receive::Ipip => Some(Self::Ipip),
            Receive::HostGw => None,
        }
    }

    /// What a backend's tunnel takes in, if it has one.
    #[must_use]
    pub fn of_backend(backend: &BackendConfig) -> Option<Self> {
        match backend {
            BackendConfig::Vxlan(vxlan) => Some(Self::Vxlan(vxlan.vni, vxlan.port)),
            BackendConfig::Udp(udp) => Some(Self::Udp(udp.port)),
            BackendConfig::Ipip(_) => Some(Self::Ipip),
            BackendConfig::HostGw(_) => None,
        }
    }

    /// What the device takes in, if it is a tunnel's.
    #[must_use]
    pub fn of_device(dev: IfName, link: &Link) -> Option<Self> {
        match &link.kind {
            LinkKind::Vxlan(vxlan) => Some(Self::Vxlan(vxlan.vni, vxlan.port)),
            LinkKind::Tun | LinkKind::Ipip(_) if ipip::device() == Some(dev) => Some(Self::Ipip),
            LinkKind::Tun => udp::port_of(dev).map(Self::Udp),
            _ => None,
        }
    }
}

/// The devices that this node's record names, or is to name.
pub(crate) fn promised(view: &View) -> BTreeMap<IfName, TunnelEnd> {
    let vteps = view.promises().iter().filter(|vtep| vtep.is_named);
    let vteps = vteps.filter_map(|vtep| Some((vtep.device?, TunnelEnd::Vxlan(vtep.vni, vtep.port))));
    let others = view.own_receives().filter_map(TunnelEnd::of).filter_map(|end| match end {
        TunnelEnd::Vxlan(..) => None,
        TunnelEnd::Udp(port) => Some((udp::device(port)?, end)),
        TunnelEnd::Ipip => Some((ipip::device()?, end)),
    });
    vteps.chain(others).collect()
}

/// The devices that this node's record names, or is to name, as ports of an extended bridge.
pub(crate) fn promised_segments(view: &View) -> BTreeSet<IfName> {
    let is_bridged = |end: TunnelEnd| {
        let mut all = view.own_receives();
        all.any(|receive| {
            matches!(receive, Receive::Vxlan { bridged: true, .. }) && TunnelEnd::of(receive) == Some(end)
        })
    };
    let named = view.promises().iter().filter(|vtep| is_bridged(TunnelEnd::Vxlan(vtep.vni, vtep.port)));
    named.filter_map(|vtep| vtep.device).collect()
}
