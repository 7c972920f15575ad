//! From the view to the wishes of each source: this host itself, a peer, a pod.

use std::collections::BTreeMap;

use super::{Source, Wishes};
use crate::backend::{Context, reach};
use crate::kernel::link::{Bridge, Link, LinkKind, PodSide};
use crate::kernel::{DeviceSysctl, Key, LINK_GROUP, Object};
use crate::masquerade;
use crate::model::{AttachmentKey, Block, Family, Mac, NodeName, Pool, PoolName, Receive};
use crate::view::View;

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
        for backend in view.active_backends(pool) {
            least = least.min(backend.backend().mtu(&cx)?);
        }
    }
    Ok(least)
}

/// The host's own objects.
pub(super) fn local(view: &View) -> Wishes {
    let mut out = Wishes::new(Source::Local);
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
    for family in Family::ALL {
        if view.pools.values().any(|pool| pool.cidr.family() == family) {
            let path =
                if family == Family::V4 { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
            out.want(Key::Sysctl(path), Object::Sysctl(1), "forwarding");
        }
    }
    let table = masquerade::table(view.pools.values());
    out.want(Key::Nft, Object::Nft(Box::new(table)), "masquerade and forwarding");
    bridge(view, mtu, &mut out);
    for pool in view.pools.values() {
        out.pool = Some(pool.name.clone());
        let cx = Context { view, underlay, pool };
        for backend in view.active_backends(pool) {
            backend.backend().host(&cx, &mut out);
        }
    }
    out
}

/// The bridge for pods, which bears the gateway of each of this host's blocks.
fn bridge(view: &View, mtu: u32, out: &mut Wishes) {
    let dev = view.local.bridge;
    let link = Link {
        kind: LinkKind::Bridge(Bridge { mcast_snooping: false }),
        mtu,
        // Fixed, else it would be the lowest of the ports' and change as pods come and go.
        mac: Some(Mac::derived(&[view.local.uid.as_str(), dev.as_str()])),
        up: true,
        master: None,
        group: LINK_GROUP,
    };
    out.want(Key::Link(dev), Object::Link(Box::new(link)), "bridge for pods");
    for sysctl in [DeviceSysctl::AcceptRa, DeviceSysctl::AcceptDad] {
        out.want(Key::DeviceSysctl(dev, sysctl), Object::Sysctl(0), "bridge for pods");
    }
    for pool in view.pools.values() {
        out.pool = Some(pool.name.clone());
        for block in view.own_blocks_in(pool) {
            if let Some(net) = gateway(block) {
                out.want(Key::Address(dev, net), Object::Address { ours: true }, "pods' gateway");
            }
        }
    }
    out.pool = None;
}

/// The first usable address of a block, with its prefix length.
fn gateway(block: &Block) -> Option<ipnet::IpNet> {
    ipnet::IpNet::new(block.cidr.nth(1)?, block.cidr.len()).ok()
}

/// What reaches one peer.
pub(super) fn peer(view: &View, name: &NodeName) -> Wishes {
    let mut out = Wishes::new(Source::Peer(name.clone()));
    let Some(blocks) = view.blocks.get(name) else { return out };
    let Some(node) = view.nodes.get(name) else {
        out.problem(format!("node {name}"), "it owns blocks but has no record of its own yet");
        return out;
    };
    let Some(underlay) = view.local.underlay.as_ref() else {
        out.hold = true;
        return out;
    };
    let mut by_pool: BTreeMap<&PoolName, (&Pool, Vec<&Block>)> = BTreeMap::new();
    for block in blocks.values() {
        let pool = view.pools.get(&block.pool).filter(|pool| pool.cidr.covers(block.cidr));
        match pool {
            // A block of another identity belongs to a former host of this name.
            Some(pool) if block.owner_uid == node.uid => {
                by_pool.entry(&pool.name).or_insert((pool, Vec::new())).1.push(block);
            }
            Some(_) => out.problem(
                format!("block {}", block.cidr),
                format!("its owner was another host named {name}; it is not routed until that host gives it back"),
            ),
            None => out.problem(format!("block {}", block.cidr), format!("pool {} does not hold it", block.pool)),
        }
    }
    for (pool, blocks) in by_pool.into_values() {
        out.pool = Some(pool.name.clone());
        let cx = Context { view, underlay, pool };
        let subject = format!("node {name}, pool {}", pool.name);
        match reach(&cx, node, &blocks, &mut out) {
            Ok((backend, obstacle)) => {
                out.uses.push((pool.name.clone(), backend.clone()));
                if let Some(cause) = obstacle {
                    out.problem(subject, format!("still reached by {}: {cause}", backend.kind()));
                }
            }
            Err(cause) => out.problem(subject, cause),
        }
    }
    out
}

/// What keeps a pod's attachment right on the host's side.
pub(super) fn attachment(view: &View, key: &AttachmentKey) -> Wishes {
    let mut out = Wishes::new(Source::Attachment(key.clone()));
    let Some(attachment) = view.attachments.get(key).filter(|attachment| attachment.complete) else { return out };
    let link = Link {
        kind: LinkKind::Veth {
            pod: Some(PodSide { netns: attachment.netns.clone(), ifname: attachment.key.ifname }),
        },
        mtu: mtu_pod(view).unwrap_or(attachment.mtu),
        mac: None,
        up: true,
        master: Some(attachment.bridge),
        group: LINK_GROUP,
    };
    out.want(Key::Link(attachment.host_side), Object::Link(Box::new(link)), "host's end");
    out
}
