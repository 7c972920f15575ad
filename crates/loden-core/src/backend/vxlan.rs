//! VXLAN, routed: per peer one route, one ARP entry, one FDB entry. No flooding, no learning. The shape in which the pods of all hosts
//! are on one segment is [`segment`]'s.
//!
//! With [`Control::Miss`](crate::model::Control) the pool is one route instead, out of the device, and the kernel asks for each address
//! in it when somebody first sends to it; the answer is an ARP entry of its own with the VTEP that has the block. The kernel asks by
//! itself (`app_solicit`) since a route out of the device makes it look for the neighbour: the device need not report misses, so that
//! it is the same one under either control, and changing that loses nothing. The FDB entry stays one a peer.
//!
//! The gateway of a peer's routes is, in IPv4, the network address of its lowest block, which its VTEP device bears (in IPv6
//! the link-local address of its VTEP): the ARP entry
//! turns it into the VTEP's Ethernet address, the FDB entry turns that into the host's address. One device for each family
//! of the underlay; either carries both families of pods.

use std::net::IpAddr;

use super::underlays::{common, own_first, underlays};
use super::{Backend, Context, engine, host_gw, mtu_inside, segment};
use crate::config::ConfigError;
use crate::desired::Wishes;
use crate::kernel::link::{Link, LinkKind, Port, Vxlan};
use crate::kernel::{DeviceSysctl, Key, LINK_GROUP, Object, Via, default_priority};
use crate::model::{BackendConfig, Block, Control, Family, IfName, Mac, Node, Prefix, Receive, Vni, VxlanConfig};
use crate::view::View;

/// How often the kernel asks for a neighbour before it gives up, a second apart.
const ASKS: i64 = 3;
/// How much it holds for a neighbour that it asks for, in bytes of its own: what a fast sender sends until the answer is there.
const HELD: i64 = 1 << 20;

impl Backend for VxlanConfig {
    /// Ethernet 14, VXLAN 8, UDP 8, and the outer IP header: 20 or 40.
    fn overhead(&self, underlay: Family) -> u32 {
        if underlay == Family::V4 { 50 } else { 70 }
    }

    fn mtu(&self, cx: &Context<'_>) -> Result<u32, ConfigError> {
        let overhead = self.underlays(cx).into_iter().map(|(family, _)| self.overhead(family)).max().unwrap_or(50);
        mtu_inside(cx, "vxlan", self.mtu, overhead)
    }

    fn receives(&self, cx: &Context<'_>) -> Vec<Receive> {
        self.underlays(cx)
            .into_iter()
            .map(|(underlay, _)| {
                let mac = self.vtep_mac(cx, underlay);
                Receive::Vxlan { vni: self.vni, underlay, mac, port: self.port, bridged: self.bridged }
            })
            .collect()
    }

    fn host(&self, cx: &Context<'_>, out: &mut Wishes) {
        let mtu_underlay = self.mtu.unwrap_or(cx.underlay.mtu);
        for (underlay, local) in self.underlays(cx) {
            let Some(dev) = self.device(cx, underlay) else { continue };
            let vxlan = Vxlan {
                vni: self.vni,
                underlay: Some(cx.underlay.ifname),
                local: Some(local),
                port: self.port,
                learning: self.control == Control::Learn,
                gbp: self.gbp,
                group: segment::group(cx, self, underlay),
                reports_misses: false,
                most_entries: if self.control == Control::Learn { segment::MOST_ENTRIES } else { 0 },
            };
            let link = Link {
                kind: LinkKind::Vxlan(vxlan),
                mtu: mtu_underlay.saturating_sub(self.overhead(underlay)),
                mac: Some(self.vtep_mac(cx, underlay)),
                up: true,
                master: self.bridged.then(|| cx.view.bridge_of(self)),
                // Two devices of one segment must not hand each other what they take in.
                port: Port { isolated: self.bridged, ..Port::default() },
                group: LINK_GROUP,
            };
            out.want(Key::Link(dev), Object::Link(Box::new(link)), "VTEP device");
            for (sysctl, value) in
                [(DeviceSysctl::AcceptRa, 0), (DeviceSysctl::AcceptDad, 0), (DeviceSysctl::RpFilter, 2)]
            {
                out.want(Key::DeviceSysctl(dev, sysctl), Object::Sysctl(value), "VTEP device");
            }
            if self.asks() {
                asks_the_agent(dev, cx.pool.cidr.family(), out);
            }
            // The host's own packets into the overlay need a source there, on whichever device they leave.
            if let Some(block) = cx.view.own_blocks_in(cx.pool).next().filter(|_| !self.bridged) {
                let addr = block.cidr.network();
                let net = Prefix::host(addr).ipnet();
                out.want(Key::Address(dev, net), Object::Address { ours: true }, "VTEP address");
            }
        }
        if self.bridged {
            segment::host(cx, self, out);
            return;
        }
        if let Some(dev) = self.way_of_pool(cx) {
            engine::route_of_pool(cx, dev, out);
        }
    }

    /// Whatever this host sends to the peer with: another control may have it use the same device.
    fn admit(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) {
        if self.bridged {
            segment::admit(cx, self, peer, out);
        } else if self.asks() && self.vtep_of(cx, peer).is_ok() {
            for block in blocks {
                out.want(Key::KnownBlock(block.cidr), Object::KnownBlock, "may be asked for");
            }
        }
    }

    fn answer(&self, cx: &Context<'_>, peer: &Node, (dev, addr): (IfName, IpAddr), out: &mut Wishes) {
        if let Ok((its, mac, _)) = self.vtep_of(cx, peer)
            && self.asks()
            && its == dev
        {
            out.want(Key::Neighbour(dev, addr), Object::Neighbour(mac), "answer");
        }
    }

    fn peer(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) -> Result<(), String> {
        if self.direct_routing && host_gw::onlink_gateway(cx, peer).is_some() {
            host_gw::direct(cx, peer, blocks, out);
            return Ok(());
        }
        let (dev, mac, vtep) = self.vtep_of(cx, peer)?;
        // Its pods are on the segment, whose route is the host's.
        if self.bridged {
            return Ok(());
        }
        if self.asks() {
            out.want(Key::Fdb(dev, mac), Object::Fdb(vtep), "FDB entry of the VTEP");
            if self.way_of_pool(cx) != Some(dev) {
                engine::routes_of_blocks(dev, blocks, out);
            }
            return Ok(());
        }
        let Some(gateway) = blocks.first().map(|block| gateway(block, mac)) else { return Ok(()) };
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
    /// The families of the underlay that it needs a device for, with this host's address.
    fn underlays(&self, cx: &Context<'_>) -> Vec<(Family, IpAddr)> {
        if self.bridged { segment::underlays(cx, self) } else { underlays(cx).collect() }
    }

    /// The families in the order in which it looks for an underlay.
    fn order(&self, cx: &Context<'_>) -> [Family; 2] {
        if self.bridged { segment::order(self) } else { own_first(cx) }
    }

    /// The device that the whole pool is routed out of, if it is.
    fn way_of_pool(&self, cx: &Context<'_>) -> Option<IfName> {
        let (first, _) = underlays(cx).next().filter(|_| self.asks() && engine::is_whole(cx))?;
        self.device(cx, first)
    }

    /// The device for an underlay family: flannel's name, so that a node can change hands in place. A device listens on one
    /// port and cannot be given another, so while the port is being changed both exist, and the new one has a spare name:
    /// it keeps that for as long as this node's record names its VTEP by it.
    fn device(&self, cx: &Context<'_>, underlay: Family) -> Option<IfName> {
        let mut is_plain_promised = false;
        for vtep in cx.view.promises().iter().filter(|vtep| (vtep.vni, vtep.underlay) == (self.vni, underlay)) {
            if vtep.port == self.port {
                return vtep.device;
            }
            is_plain_promised |= vtep.is_named && vtep.device == plain_name(self.vni, underlay);
        }
        let is_pools_own = match &cx.pool.backend {
            BackendConfig::Vxlan(own) => own.vni != self.vni || own.port == self.port,
            _ => true,
        };
        if is_plain_promised || !is_pools_own {
            spare_name(self.vni, self.port, underlay)
        } else {
            plain_name(self.vni, underlay)
        }
    }

    fn vtep_mac(&self, cx: &Context<'_>, underlay: Family) -> Mac {
        self.device(cx, underlay).map_or(Mac([0; 6]), |dev| cx.view.local.mac_of(dev))
    }

    /// Over which of our devices the peer's VTEP is reached, its Ethernet address, and where it is: over the underlay of
    /// the pool's own family if both sides have it, else over the other.
    pub(super) fn vtep_of(&self, cx: &Context<'_>, peer: &Node) -> Result<(IfName, Mac, IpAddr), String> {
        let end_at = |family| {
            let mac = peer.receives.iter().find_map(|receive| match receive {
                Receive::Vxlan { vni, underlay, mac, port, bridged }
                    if (*vni, *underlay, *port, *bridged) == (self.vni, family, self.port, self.bridged) =>
                {
                    Some(*mac)
                }
                _ => None,
            });
            let is_ours = self.underlays(cx).iter().any(|(ours, _)| *ours == family);
            Some((self.device(cx, family).filter(|_| is_ours)?, mac?))
        };
        let ((dev, mac), addr) = common(cx, self.order(cx), peer, &format!("VNI {}", self.vni), end_at)?;
        Ok((dev, mac, addr))
    }
}

/// The devices on which the kernel asks the agent for a pool's addresses.
pub(crate) fn asking_devices(cx: &Context<'_>) -> Vec<IfName> {
    let asking = cx.view.active_backends(cx.pool).into_iter().filter_map(|backend| match backend {
        BackendConfig::Vxlan(vxlan) if vxlan.asks() => Some(vxlan),
        _ => None,
    });
    asking.flat_map(|vxlan| underlays(cx).filter_map(|(family, _)| vxlan.device(cx, family))).collect()
}

/// How the kernel asks the agent, and nobody else. What waits for an answer is held: an agent that starts anew takes a moment.
fn asks_the_agent(dev: IfName, family: Family, out: &mut Wishes) {
    let sysctls = [
        (DeviceSysctl::AppSolicit(family), ASKS),
        (DeviceSysctl::McastSolicit(family), 0),
        (DeviceSysctl::Held(family), HELD),
    ];
    for (sysctl, value) in sysctls {
        out.want(Key::DeviceSysctl(dev, sysctl), Object::Sysctl(value), "asks the agent for neighbours");
    }
}

/// A VTEP that this node's record names, so that peers send to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Its network's identifier.
    pub vni: Vni,
    /// The family of its outer packets.
    pub underlay: Family,
    /// Its UDP port.
    pub port: u16,
    /// The device that it is.
    pub device: Option<IfName>,
    /// Whether the record names it by that device's address.
    pub is_named: bool,
}

/// The VTEPs that this node's record names, or is to name. Kept by the view: all peers' objects hang on them.
pub(crate) fn promises(view: &View) -> Vec<Promise> {
    let promise = |receive: &Receive| {
        let Receive::Vxlan { vni, underlay, mac, port, .. } = *receive else { return None };
        let is_its = |dev: &IfName| view.local.mac_of(*dev) == mac;
        let plain = plain_name(vni, underlay);
        let named = plain.filter(is_its).or_else(|| spare_name(vni, port, underlay).filter(is_its));
        Some(Promise { vni, underlay, port, device: named.or(plain), is_named: named.is_some() })
    };
    let mut promises: Vec<_> = view.own_receives().filter_map(promise).collect();
    promises.dedup();
    promises
}

fn plain_name(vni: Vni, underlay: Family) -> Option<IfName> {
    let name = match underlay {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 if vni.get() < 10_000 => format!("flannel-v6.{vni}"),
        // More digits leave no room for flannel's own form: a name has at most 15 characters.
        Family::V6 => format!("fl6.{vni}"),
    };
    IfName::new(&name).ok()
}

/// The name beside [`plain_name`], VNI and port in hexadecimal: with 24 and 16 bits it is never over 15 characters.
fn spare_name(vni: Vni, port: u16, underlay: Family) -> Option<IfName> {
    let family = if underlay == Family::V4 { 4 } else { 6 };
    IfName::new(&format!("vx{family}-{:x}-{port:x}", vni.get())).ok()
}

/// What a peer's routes lead to. An IPv6 gateway on a link must not be reached by another (`ip6_route_check_nh_onlink`,
/// net/ipv6/route.c), and the block's own address is, as long as the block is routed elsewhere: so it is a link-local one.
fn gateway(block: &Block, vtep: Mac) -> IpAddr {
    match block.cidr.family() {
        Family::V4 => block.cidr.network(),
        Family::V6 => vtep.link_local().into(),
    }
}
