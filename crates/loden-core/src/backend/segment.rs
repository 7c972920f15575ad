//! VXLAN over an extended bridge: the device is a port of the bridge for pods, so that the pods of all hosts are on one segment. Where a
//! pod is, bridges and devices learn from the packets that come (RFC 7348 section 4).
//!
//! The pool is one on-link route of the bridge here, as in the pods: nothing is kept for a peer but, where there is no multicast
//! group, an entry by which it gets a copy of what is flooded. A peer that is not on the segment yet has routes to its blocks, which
//! are longer.

use std::net::IpAddr;

use super::Context;
use crate::desired::Wishes;
use crate::kernel::{DeviceSysctl, Key, Object, Via, default_priority};
use crate::model::{Control, Family, Node, VxlanConfig};

/// How many entries a device learns at most: what a pod with ever new Ethernet addresses can make other hosts keep. What is not
/// learned is flooded. How long one is kept is the kernel's choice.
pub(super) const MOST_ENTRIES: u32 = 16_384;

/// The families in the order in which a segment looks for an underlay: those with a group first. All pools of the segment have the same, or
/// each frame that is flooded would go twice.
pub(super) fn order(config: &VxlanConfig) -> [Family; 2] {
    let is_v6_first = config.group.v4.is_none() && config.group.v6.is_some();
    if is_v6_first { [Family::V6, Family::V4] } else { [Family::V4, Family::V6] }
}

/// The family of the underlay that the segment is on, if all hosts have it.
fn common(cx: &Context<'_>, config: &VxlanConfig) -> Option<Family> {
    let has = |family: &Family| cx.underlay.addresses.get(*family).is_some();
    let first = order(config).into_iter().find(|family| has(family) || cx.view.some_peer_has(*family));
    first.filter(|family| has(family) && !cx.view.some_peer_lacks(*family))
}

/// The families of the underlay that the segment is on, with this host's address: the first that there is if all hosts have it, else all.
pub(super) fn underlays(cx: &Context<'_>, config: &VxlanConfig) -> Vec<(Family, IpAddr)> {
    let (own, common) = (cx.underlay.addresses, common(cx, config));
    let all = order(config).into_iter().filter(|family| common.is_none_or(|common| common == *family));
    all.filter_map(|family| own.get(family).map(|addr| (family, addr))).collect()
}

/// The multicast group that frames of unknown destination go to. With two underlays a host would get them twice: then each host is sent a
/// copy by the one that it has.
pub(super) fn group(cx: &Context<'_>, config: &VxlanConfig, underlay: Family) -> Option<IpAddr> {
    config.group.get(underlay).filter(|_| config.bridged && common(cx, config) == Some(underlay))
}

/// What the host needs once besides the device.
pub(super) fn host(cx: &Context<'_>, config: &VxlanConfig, out: &mut Wishes) {
    let bridge = cx.view.bridge_of(config);
    let key = Key::Route(cx.pool.cidr, default_priority(cx.pool.cidr.family()));
    out.want(key, Object::Route(Via::Link(bridge)), "the pool is on the segment");
    // A peer that is on the segment may still be sent to by another way.
    out.want(Key::DeviceSysctl(bridge, DeviceSysctl::RpFilter), Object::Sysctl(2), "bridge for pods");
}

/// Lets a peer get a copy of what is flooded, whatever this host's own packets to it take: its pods do not know of that.
pub(super) fn admit(cx: &Context<'_>, config: &VxlanConfig, peer: &Node, out: &mut Wishes) {
    if config.control != Control::Learn {
        return;
    }
    let Ok((dev, _, vtep)) = config.vtep_of(cx, peer) else { return };
    // While anything is being changed not all are members of the same group.
    let is_settled = cx.view.active_backends(cx.pool).len() == 1;
    if group(cx, config, Family::of(vtep)).is_none() || !is_settled {
        out.want(Key::Flood(dev, vtep), Object::Flood, "is sent what is flooded");
    }
}
