//! VXLAN, routed: per peer one route, one ARP entry, one FDB entry. No flooding, no learning.
//!
//! The gateway of a peer's routes is the network address of its lowest block, which its VTEP device bears: the ARP entry
//! turns it into the VTEP's Ethernet address, the FDB entry turns that into the host's address. One device for each family
//! of the underlay; either carries both families of pods.

use std::net::IpAddr;

use super::{Backend, Context, host_gw, mtu_inside};
use crate::config::ConfigError;
use crate::desired::Wishes;
use crate::kernel::link::{Link, LinkKind, Vxlan};
use crate::kernel::{DeviceSysctl, Key, LINK_GROUP, Object, Via, default_priority};
use crate::model::{Block, Family, IfName, Mac, Node, Receive, Vni, VxlanConfig};

impl Backend for VxlanConfig {
    /// Ethernet 14, VXLAN 8, UDP 8, and the outer IP header: 20 or 40.
    fn overhead(&self, underlay: Family) -> u32 {
        if underlay == Family::V4 { 50 } else { 70 }
    }

    fn mtu(&self, cx: &Context<'_>) -> Result<u32, ConfigError> {
        let overhead = underlays(cx).into_iter().map(|(family, _)| self.overhead(family)).max().unwrap_or(50);
        mtu_inside(cx, self.mtu.unwrap_or(cx.underlay.mtu), overhead)
    }

    fn receives(&self, cx: &Context<'_>) -> Vec<Receive> {
        underlays(cx)
            .into_iter()
            .map(|(underlay, _)| {
                let mac = vtep_mac(cx, self.vni, underlay);
                Receive::Vxlan { vni: self.vni, underlay, mac, port: self.port }
            })
            .collect()
    }

    fn host(&self, cx: &Context<'_>, out: &mut Wishes) {
        let mtu_underlay = self.mtu.unwrap_or(cx.underlay.mtu);
        for (n, (underlay, local)) in underlays(cx).into_iter().enumerate() {
            let Some(dev) = device(self.vni, underlay) else { continue };
            let vxlan = Vxlan {
                vni: self.vni,
                underlay: Some(cx.underlay.ifname),
                local: Some(local),
                port: self.port,
                learning: false,
                gbp: self.gbp,
            };
            let link = Link {
                kind: LinkKind::Vxlan(vxlan),
                mtu: mtu_underlay.saturating_sub(self.overhead(underlay)),
                mac: Some(vtep_mac(cx, self.vni, underlay)),
                up: true,
                master: None,
                group: LINK_GROUP,
            };
            out.want(Key::Link(dev), Object::Link(Box::new(link)), "VTEP device");
            for (sysctl, value) in
                [(DeviceSysctl::AcceptRa, 0), (DeviceSysctl::AcceptDad, 0), (DeviceSysctl::RpFilter, 2)]
            {
                out.want(Key::DeviceSysctl(dev, sysctl), Object::Sysctl(value), "VTEP device");
            }
            // The host's own packets into the overlay need a source there; only the first device gives it.
            if n == 0
                && let Some(block) = cx.view.own_blocks_in(cx.pool).next()
            {
                let addr = block.cidr.network();
                let net = crate::model::Prefix::host(addr).ipnet();
                out.want(Key::Address(dev, net), Object::Address { ours: true }, "VTEP address");
            }
        }
    }

    fn peer(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) -> Result<(), String> {
        if self.direct_routing && host_gw::onlink_gateway(cx, peer).is_some() {
            host_gw::direct(cx, peer, blocks, out);
            return Ok(());
        }
        let (dev, mac, vtep) = self.vtep_of(cx, peer)?;
        let Some(gateway) = blocks.first().map(|block| block.cidr.network()) else { return Ok(()) };
        out.want(Key::Neighbour(dev, gateway), Object::Neighbour(mac), "ARP entry of the VTEP");
        out.want(Key::Fdb(dev, mac), Object::Fdb(vtep), "FDB entry of the VTEP");
        out.want(Key::Nexthop(dev, gateway), Object::Nexthop, "VTEP");
        for block in blocks {
            let key = Key::Route(block.cidr, default_priority(block.cidr.family()));
            out.want(key, Object::Route(Via::Nexthop(dev, gateway)), "route to a block");
        }
        Ok(())
    }
}

impl VxlanConfig {
    /// Over which of our devices the peer's VTEP is reached, its Ethernet address, and where it is: over the underlay of
    /// the pool's own family if both sides have it, else over the other.
    fn vtep_of(&self, cx: &Context<'_>, peer: &Node) -> Result<(IfName, Mac, IpAddr), String> {
        let own = underlays(cx);
        let family = cx.pool.cidr.family();
        for underlay in [family, family.other()] {
            let vtep = peer.receives.iter().find_map(|receive| match receive {
                Receive::Vxlan { vni, underlay: u, mac, port }
                    if (*vni, *u, *port) == (self.vni, underlay, self.port) =>
                {
                    Some(*mac)
                }
                _ => None,
            });
            let ours = own.iter().any(|(u, _)| *u == underlay);
            if let (true, Some(mac), Some(addr), Some(dev)) =
                (ours, vtep, peer.underlay.get(underlay), device(self.vni, underlay))
            {
                return Ok((dev, mac, addr));
            }
        }
        let families = |list: Vec<Family>| match list.as_slice() {
            [] => "no address".to_owned(),
            list => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
        };
        Err(format!(
            "no common underlay for VNI {}: this host has {}, the peer {}",
            self.vni,
            families(cx.underlay.addresses.iter().map(|(family, _)| family).collect()),
            families(peer.underlay.iter().map(|(family, _)| family).collect()),
        ))
    }
}

/// The underlay families that a pool needs devices for, with this host's address; the one for its own traffic first. The
/// second is there only when some peer lacks the first.
fn underlays(cx: &Context<'_>) -> Vec<(Family, IpAddr)> {
    let own = cx.underlay.addresses;
    let family = cx.pool.cidr.family();
    let first = if own.get(family).is_some() { family } else { family.other() };
    let second = if cx.view.some_peer_lacks(first) { Some(first.other()) } else { None };
    [Some(first), second].into_iter().flatten().filter_map(|f| own.get(f).map(|addr| (f, addr))).collect()
}

/// flannel's names, so that a node can change hands in place.
fn device(vni: Vni, underlay: Family) -> Option<IfName> {
    let name = match underlay {
        Family::V4 => format!("flannel.{vni}"),
        // Eight digits of VNI leave no room for flannel's own form (15 characters): the dash goes first.
        Family::V6 if vni.get() < 100_000 => format!("flannel-v6.{vni}"),
        Family::V6 => format!("fl6.{vni}"),
    };
    IfName::new(&name).ok()
}

fn vtep_mac(cx: &Context<'_>, vni: Vni, underlay: Family) -> Mac {
    let device = device(vni, underlay).map(|dev| dev.to_string()).unwrap_or_default();
    Mac::derived(&[cx.view.local.uid.as_str(), &device])
}
