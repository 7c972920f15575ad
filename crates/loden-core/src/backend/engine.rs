//! What the backends have in common whose packets an engine in the agent carries: a TUN device, the engine on it, and whose
//! packets it takes in.

use super::Context;
use crate::desired::Wishes;
use crate::kernel::link::{Link, LinkKind, Port};
use crate::kernel::tunnel::{Destination, Peer, Tunnel, Wire};
use crate::kernel::{DeviceSysctl, Key, LINK_GROUP, Object, Via, default_priority};
use crate::model::{Block, IfName, Node, PerFamily, Prefix};

/// The TUN device, its engine, and the route of the whole pool.
pub(super) fn host(cx: &Context<'_>, dev: IfName, wire: Wire, mtu: u32, out: &mut Wishes) {
    device(cx, dev, LinkKind::Tun, mtu, out);
    out.want(Key::DeviceSysctl(dev, DeviceSysctl::AcceptLocal), Object::Sysctl(1), "answers of the tunnel engine");
    // All that there are, whichever this pool's packets go by: an engine is not started anew when a pool of the other family comes or goes.
    let mut local = PerFamily::default();
    let of_wire = cx.underlay.addresses.iter().filter(|(family, _)| wire.has_outer(*family));
    of_wire.for_each(|(family, addr)| local.set(family, addr));
    let own = cx.view.own_blocks_in(cx.pool).map(|block| block.cidr).collect();
    out.want(Key::Tunnel(dev), Object::Tunnel(Box::new(Tunnel { wire, local, mtu, own })), "tunnel engine");
    if is_whole(cx) {
        route_of_pool(cx, dev, out);
    }
}

/// One route for all peers.
pub(super) fn route_of_pool(cx: &Context<'_>, dev: IfName, out: &mut Wishes) {
    let key = Key::Route(cx.pool.cidr, default_priority(cx.pool.cidr.family()));
    out.want(key, Object::Route(Via::Link(dev)), "route to the pool");
}

/// A tunnel's device. The host's own packets into the overlay need a source there, on whichever device they leave.
pub(super) fn device(cx: &Context<'_>, dev: IfName, kind: LinkKind, mtu: u32, out: &mut Wishes) {
    let link = Link { kind, mtu, mac: None, up: true, master: None, port: Port::default(), group: LINK_GROUP };
    out.want(Key::Link(dev), Object::Link(Box::new(link)), "tunnel device");
    for (sysctl, value) in [(DeviceSysctl::AcceptRa, 0), (DeviceSysctl::RpFilter, 2)] {
        out.want(Key::DeviceSysctl(dev, sysctl), Object::Sysctl(value), "tunnel device");
    }
    if let Some(block) = cx.view.own_blocks_in(cx.pool).next() {
        let net = Prefix::host(block.cidr.network()).ipnet();
        out.want(Key::Address(dev, net), Object::Address { ours: true }, "address in the overlay");
    }
}

/// Routes to a peer's blocks, unless the pool's own leads there.
pub(super) fn routes(cx: &Context<'_>, dev: IfName, blocks: &[&Block], out: &mut Wishes) {
    if !is_whole(cx) {
        routes_of_blocks(dev, blocks, out);
    }
}

/// Routes to a peer's blocks.
pub(super) fn routes_of_blocks(dev: IfName, blocks: &[&Block], out: &mut Wishes) {
    for block in blocks {
        let key = Key::Route(block.cidr, default_priority(block.cidr.family()));
        out.want(key, Object::Route(Via::Link(dev)), "route to a block");
    }
}

/// What the engine is told of a peer: from where it may send with which addresses inside, and where its packets go.
pub(super) fn admit(dev: IfName, peer: &Node, to: Option<Destination>, blocks: &[&Block], out: &mut Wishes) {
    let from: Vec<_> = peer.addresses().into_iter().collect();
    for block in blocks {
        let known = Peer { node: peer.name.clone(), from: from.clone(), to };
        out.want(Key::TunnelPeer(dev, block.cidr), Object::TunnelPeer(Box::new(known)), "peer of the tunnel");
    }
}

/// Whether all of the pool's packets go by the one backend, so that one route does for all peers.
pub(super) fn is_whole(cx: &Context<'_>) -> bool {
    cx.view.active_backends(cx.pool).len() == 1
}
