//! Whom to ask: the devices, and the peers behind them.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::Target;
use crate::desired::{Desired, Source};
use crate::kernel::{Key, Object, default_priority};
use crate::model::{IfName, NodeName, Prefix};
use crate::view::View;

/// One is enough; others are asked where it does not answer.
const TARGETS: usize = 4;

/// The devices whose packets the kernel wraps, each with the peers that it reaches by it: those that come behind this node by
/// name, so that nodes that start together do not all ask the same one.
#[must_use]
pub fn devices(view: &View, desired: &Desired) -> BTreeMap<IfName, Vec<Target>> {
    let map = desired.map();
    let is_of_kernel = |key: &Key| match map.actual(key) {
        Some(Object::Link(link)) => link.kind.is_kernels_tunnel(),
        _ => false,
    };
    let own = desired.keys_of(&Source::Local).iter().filter(|key| is_of_kernel(key));
    let mut devices: BTreeMap<IfName, Vec<Target>> = own.filter_map(Key::device).map(|dev| (dev, Vec::new())).collect();
    let own = &view.local.node;
    let behind = view.nodes.range::<NodeName, _>((Bound::Excluded(own), Bound::Unbounded));
    for (name, _) in behind.chain(view.nodes.range::<NodeName, _>(..own)) {
        if devices.values().all(|targets| targets.len() >= TARGETS) {
            break;
        }
        for (dev, block) in lowest_blocks(view, desired, name) {
            if let Some(targets) = devices.get_mut(&dev).filter(|targets| targets.len() < TARGETS) {
                // The address of its lowest block is the peer's own.
                targets.push(Target { node: name.clone(), addr: block.network() });
            }
        }
    }
    devices
}

/// Of a peer's blocks, the lowest that is reached by each device.
fn lowest_blocks(view: &View, desired: &Desired, peer: &NodeName) -> BTreeMap<IfName, Prefix> {
    let mut lowest: BTreeMap<IfName, Prefix> = BTreeMap::new();
    for block in view.blocks.get(peer).into_iter().flatten() {
        let way = |to: Prefix| match desired.map().actual(&Key::Route(to, default_priority(to.family()))) {
            Some(Object::Route(via)) => via.device(),
            _ => None,
        };
        // Where the kernel asks for addresses one route of the pool may lead to all its blocks.
        let of_pool = || view.pools.get(&block.pool).and_then(|pool| way(pool.cidr));
        if let Some(dev) = way(block.cidr).or_else(of_pool) {
            lowest.entry(dev).and_modify(|known| *known = block.cidr.min(*known)).or_insert(block.cidr);
        }
    }
    lowest
}
