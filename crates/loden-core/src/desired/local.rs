//! From the view to the wishes of each source: this host itself, a peer, a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Source, Wishes};
use crate::attach;
use crate::backend::{Context, TunnelEnd, describe, promised, promised_segments, reach};
use crate::kernel::link::{Bridge, Link, LinkKind, Port};
use crate::kernel::{DeviceSysctl, Key, LINK_GROUP, Object, Via, default_priority};
use crate::model::{
    Attach, Attachment, AttachmentKey, Block, Family, IfName, NodeName, Pool, PoolName, Prefix, Receive,
};
use crate::view::{Problem, View};
use crate::{guard, masquerade, segments};

/// The priority of a route to nowhere: behind those that the kernel makes for a link's own prefix, which are 0 and in IPv6 256.
const BLACKHOLE_PRIORITY: u32 = 4096;

/// What this host tells its peers and its plugin, as soon as its kernel is as wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// What the kernel is ready to take in.
    pub receives: Vec<Receive>,
    /// The MTU for pods, in bytes.
    pub mtu_pod: u32,
}

/// What this host can publish, or `None` while it has no external interface or a pool cannot be served.
#[must_use]
pub fn published(view: &View) -> Option<Published> {
    let underlay = view.local.underlay.as_ref()?;
    let mut receives: Vec<Receive> = Vec::new();
    for pool in view.pools.values() {
        let cx = Context { view, underlay, pool };
        for backend in view.active_backends(pool) {
            receives.extend(backend.backend().receives(&cx));
        }
    }
    receives.sort();
    receives.dedup();
    Some(Published { receives, mtu_pod: mtu_pod(view).ok()? })
}

/// The MTU for pods: the smallest that any pool leaves, since a pod has one interface for all of them.
fn mtu_pod(view: &View) -> Result<u32, crate::config::ConfigError> {
    let Some(underlay) = view.local.underlay.as_ref() else { return Ok(1500) };
    let mut least = underlay.mtu;
    for pool in view.pools.values() {
        let cx = Context { view, underlay, pool };
        least = least.min(pool.backend.backend().mtu(&cx)?);
        // What others still send with is no fault of this configuration.
        let lingering = view.active_backends(pool).into_iter().skip(1);
        least = lingering.filter_map(|backend| backend.backend().mtu(&cx).ok()).fold(least, u32::min);
    }
    Ok(least)
}

/// The host's own objects.
pub(super) fn local(view: &View) -> Wishes {
    let mut out = Wishes::new(Source::Local);
    out.promised = promised(view);
    out.promised_segments = promised_segments(view);
    out.unsaid = unsaid(view);
    out.partial = !view.refused_pools().is_empty();
    let Some(underlay) = view.local.underlay.as_ref() else {
        // Without an external interface nothing is known to be wrong with what there is.
        out.hold = true;
        return out;
    };
    let mtu = match mtu_pod(view) {
        Ok(mtu) => mtu,
        Err(error) => {
            out.hold = true;
            out.problem("the configuration", error.to_string());
            return out;
        }
    };
    if view.pools.is_empty() {
        return out;
    }
    if let Some((pool, cause)) = joined(view) {
        out.hold = true;
        out.problem(format!("pool {pool}"), cause);
        return out;
    }
    lingering_notices(view, &mut out);
    for family in Family::ALL {
        if view.pools.values().any(|pool| pool.cidr.family() == family) {
            let path = if family == Family::V4 { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
            out.want(Key::Sysctl(path), Object::Sysctl(1), "forwarding");
        }
    }
    let table = masquerade::table(view);
    out.want(Key::Nft, Object::Nft(Box::new(table)), "masquerade and forwarding");
    bridges(view).into_iter().for_each(|dev| bridge(view, dev, mtu, &mut out));
    gateways(view, &mut out);
    if view.local.rules.blackhole {
        blackholes(view, &mut out);
    }
    for pool in view.pools.values() {
        out.serve(Some(pool.name.clone()));
        let cx = Context { view, underlay, pool };
        for backend in view.active_backends(pool) {
            backend.backend().host(&cx, &mut out);
        }
    }
    out
}

/// A pool whose segment would be one with that of another network, since its bridge is named as this node's own is.
fn joined(view: &View) -> Option<(&PoolName, String)> {
    let mut networks = BTreeMap::new();
    for pool in view.pools.values() {
        let Some(segment) = pool.backend.segment() else { continue };
        let bridge = view.bridge_of(segment);
        let (other, vni) = *networks.entry(bridge).or_insert((&pool.name, segment.vni));
        if vni != segment.vni {
            let cause = format!(
                "it extends bridge {bridge} by VNI {}, and pool {other} does by VNI {vni}: this node's own bridge has that name. Name \
                 another by `bridge` in the pool, or in the node's configuration",
                segment.vni
            );
            return Some((&pool.name, cause));
        }
    }
    None
}

/// The tunnels' ends that this node is to publish, as long as its record has not come back with all of them.
fn unsaid(view: &View) -> Option<BTreeSet<TunnelEnd>> {
    let (now, said) = (published(view)?, view.own_record()?);
    let is_said = now.receives.iter().all(|receive| said.receives.contains(receive));
    (!is_said).then(|| now.receives.iter().filter_map(TunnelEnd::of).collect())
}

/// Says which former backends are kept up, and for whom: a node that is gone without its record keeps one forever.
fn lingering_notices(view: &View, out: &mut Wishes) {
    for pool in view.pools.values() {
        for backend in view.active_backends(pool).into_iter().skip(1) {
            let names: Vec<_> = view.senders_of(&pool.name, backend).map(NodeName::as_str).collect();
            let shown = names[..names.len().min(3)].join(", ");
            let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
            out.notices.push(Problem::new(
                format!("pool {}", pool.name),
                format!(
                    "{} is kept up beside {} because {shown}{more} still sent with it when last heard of; a node that \
                     is gone for good should be removed from the cluster",
                    describe(backend),
                    describe(&pool.backend),
                ),
            ));
        }
    }
}

/// The bridges for pods: the node's own, and those of segments that have another.
fn bridges(view: &View) -> BTreeSet<IfName> {
    segments::bridges(view).into_iter().chain([view.local.bridge]).collect()
}

/// A bridge for pods.
fn bridge(view: &View, dev: IfName, mtu: u32, out: &mut Wishes) {
    // Fixed, else it would be the lowest of the ports' and change as pods come and go.
    let mac = view.local.mac_of(dev);
    let link = Link {
        kind: LinkKind::Bridge(Bridge::default()),
        mtu,
        mac: Some(mac),
        up: true,
        master: None,
        port: Port::default(),
        group: LINK_GROUP,
    };
    out.want(Key::Link(dev), Object::Link(Box::new(link)), "bridge for pods");
    // Without a link-local address the kernel asks for no neighbour on behalf of a packet that it forwards
    // (`ndisc_send_ns`, net/ipv6/ndisc.c). It is given here, since the one that the kernel makes up comes late.
    if view.pools.values().any(|pool| pool.cidr.family() == Family::V6)
        && let Ok(net) = ipnet::IpNet::new(mac.link_local().into(), 64)
    {
        out.want(Key::Address(dev, net), Object::Address { ours: true }, "asks for pods' neighbours");
    }
    for sysctl in [DeviceSysctl::AcceptRa, DeviceSysctl::AcceptDad] {
        out.want(Key::DeviceSysctl(dev, sysctl), Object::Sysctl(0), "bridge for pods");
    }
}

/// The bridge of a pool's pods bears the gateway of each of this host's blocks.
fn gateways(view: &View, out: &mut Wishes) {
    for pool in view.pools.values() {
        out.serve(Some(pool.name.clone()));
        let dev = view.bridge_of_pool(pool);
        for block in view.own_blocks_in(pool) {
            if let Some(net) = gateway(block) {
                out.want(Key::Address(dev, net), Object::Address { ours: true }, "pods' gateway");
            }
        }
    }
    out.serve(None);
}

/// Routes to nowhere for this host's blocks, behind those of the bridge: without it a packet to one of its pods would go to the
/// default gateway, which may send it back.
fn blackholes(view: &View, out: &mut Wishes) {
    for pool in view.pools.values() {
        out.serve(Some(pool.name.clone()));
        for block in view.own_blocks_in(pool) {
            let key = Key::Route(block.cidr, BLACKHOLE_PRIORITY);
            out.want(key, Object::Route(Via::Blackhole), "nowhere else");
        }
    }
    out.serve(None);
}

/// The first usable address of a block, with its prefix length.
fn gateway(block: &Block) -> Option<ipnet::IpNet> {
    ipnet::IpNet::new(block.cidr.nth(1)?, block.cidr.len()).ok()
}

/// What reaches one peer.
pub(super) fn peer(view: &View, name: &NodeName) -> Wishes {
    let mut out = Wishes::new(Source::Peer(name.clone()));
    let Some(blocks) = view.blocks.get(name) else { return out };
    let Some(underlay) = view.local.underlay.as_ref() else {
        out.hold = true;
        return out;
    };
    let Some(node) = view.nodes.get(name) else {
        out.problem(
            format!("node {name}"),
            "it owns blocks but has no record of its own; its agent writes one when it starts",
        );
        return out;
    };
    if let Some(problem) = view.refused_node(name) {
        out.problems.push(problem.clone());
        return out;
    }
    for addr in guard::hosts(view, node) {
        out.want(Key::KnownHost(addr), Object::KnownHost, "may send by tunnels");
    }
    let mut served: Vec<(&Pool, &Block)> = Vec::with_capacity(blocks.len());
    for block in blocks {
        let pool = view.pools.get(&block.pool).filter(|pool| pool.cidr.covers(block.cidr));
        match pool {
            // A block of another identity belongs to a former host of this name.
            Some(pool) if block.owner_uid == node.uid => served.push((pool, block)),
            Some(_) => out.problem(
                format!("block {}", block.cidr),
                format!(
                    "a former host named {name} owned it (identity {}, now {}); it is not routed before the present \
                     one's agent has taken it over, which it does when it starts",
                    block.owner_uid, node.uid
                ),
            ),
            None => out.problem(format!("block {}", block.cidr), not_held(view, block)),
        }
    }
    served.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    for of_pool in served.chunk_by(|(a, _), (b, _)| a.name == b.name) {
        let pool = of_pool[0].0;
        let blocks: Vec<&Block> = of_pool.iter().map(|(_, block)| *block).collect();
        out.serve(Some(pool.name.clone()));
        let cx = Context { view, underlay, pool };
        let subject = || format!("node {name}, pool {}", pool.name);
        for backend in view.active_backends(pool) {
            backend.backend().admit(&cx, node, &blocks, &mut out);
        }
        match reach(&cx, node, &blocks, &mut out) {
            Ok((_, None)) => {}
            Ok((backend, Some(cause))) => {
                out.problem(subject(), format!("still reached by {}: {cause}", backend.kind()))
            }
            Err(cause) => out.problem(subject(), cause),
        }
    }
    out
}

/// The answer to a question of the kernel's for an address on a device, as long as it is one that the view keeps.
pub(super) fn flow(view: &View, dev: IfName, addr: IpAddr) -> Wishes {
    if view.has_flow(dev, addr) { answer(view, dev, addr) } else { Wishes::new(Source::Flow(dev, addr)) }
}

/// Whether there is an answer.
pub(crate) fn is_answered(view: &View, dev: IfName, addr: IpAddr) -> bool {
    !answer(view, dev, addr).is_empty()
}

fn answer(view: &View, dev: IfName, addr: IpAddr) -> Wishes {
    let mut out = Wishes::new(Source::Flow(dev, addr));
    let Some(underlay) = view.local.underlay.as_ref() else {
        out.hold = true;
        return out;
    };
    let Some((node, pool, _)) = view.owner_of(addr) else { return out };
    out.serve(Some(pool.name.clone()));
    let cx = Context { view, underlay, pool };
    for backend in view.active_backends(pool) {
        backend.backend().answer(&cx, node, (dev, addr), &mut out);
    }
    out
}

/// Why a block is in no pool that is in force.
fn not_held(view: &View, block: &Block) -> String {
    let (pool, owner) = (&block.pool, &block.owner);
    match view.pools.get(pool) {
        Some(found) => format!(
            "pool {pool} no longer holds it, being {} now: it is not routed; node {owner} should give it back",
            found.cidr
        ),
        None if view.refused_pools().contains(pool) => {
            format!("it is not routed: pool {pool} is recorded but not in force, for a reason of its own")
        }
        None => format!("it is not routed: there is no pool {pool}; node {owner} should give it back"),
    }
}

/// What keeps a pod's attachment right on the host's side.
pub(super) fn attachment(view: &View, key: &AttachmentKey) -> Wishes {
    let mut out = Wishes::new(Source::Attachment(key.clone()));
    let Some(attachment) = view.attachments.get(key).filter(|attachment| attachment.complete) else {
        return out;
    };
    if let Some((dev, link)) =
        attach::host_link(attachment, mtu_pod(view).ok()).filter(|(_, link)| link.group == LINK_GROUP)
    {
        out.want(Key::Link(dev), Object::Link(Box::new(link)), "host's end");
    }
    for (key, object, role) in attach::host_objects(attachment) {
        out.want(key, object, role);
    }
    on_segments(view, attachment, &mut out);
    if attachment.attach == Attach::Routed && attachment.ips().any(|addr| addr.is_ipv4()) {
        // A proxy answers only for what the host has a route to (`arp_process`, net/ipv4/arp.c): this is one where there is
        // no default route.
        let key = Key::Route(Prefix::host(attach::ROUTED_GATEWAY_V4), default_priority(Family::V4));
        out.want(key, Object::Route(Via::Link(view.local.bridge)), "answers for pods' gateway");
    }
    out
}

/// A pod whose prefix is the whole pool's reaches all others of it straight: its segment is in use for as long as the pod is there, by
/// whatever backend the host itself sends.
fn on_segments(view: &View, attachment: &Attachment, out: &mut Wishes) {
    for pool in view.pools.values() {
        let is_its = |net: ipnet::IpNet| pool.cidr == Prefix::holding(net.addr(), net.prefix_len());
        let has_its = || attachment.ips().any(|addr| pool.cidr.contains(addr));
        if attachment.attach == Attach::Routed && pool.backend.segment().is_some() && has_its() {
            let text = format!(
                "it is routed, and the pods of pool {} are on one segment: those of other hosts ask for it there in vain. Attach it anew \
                 by a bridge",
                pool.name
            );
            out.problem(format!("attachment {}", attachment.key), text);
        }
        if pool.cidr.len() < pool.block_len && attachment.addresses.iter().any(|address| is_its(address.net)) {
            let active = view.active_backends(pool);
            let segments: Vec<_> = active.into_iter().filter(|backend| backend.segment().is_some()).collect();
            if segments.is_empty() {
                let text = format!(
                    "its address has the length of the whole pool {}, which is on one segment no more: it looks there for the pods of \
                     other hosts in vain. Attach it anew",
                    pool.name
                );
                out.problem(format!("attachment {}", attachment.key), text);
            }
            out.uses.extend(segments.into_iter().map(|segment| (pool.name.clone(), segment.clone())));
        }
    }
}
