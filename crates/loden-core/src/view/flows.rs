//! Addresses that the kernel has asked for, on devices whose neighbours the agent answers for.
//!
//! They are bounded and end by themselves, used or not: the kernel asks again and holds what waits meanwhile, so nothing is lost
//! with one that ends. An address of no peer's block leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Changed, View};
use crate::desired::{self, Source};
use crate::model::{Block, IfName, Node, NodeName, Pool, Prefix};

/// How many there are on a device at most: one more, and the one that ends first goes.
pub const MOST_FLOWS: usize = 4096;

/// The flows, and when each ends, in milliseconds of the caller's clock.
#[derive(Debug, Clone, Default)]
pub(super) struct Flows {
    /// By address, so that those in a block are found. Mostly an address is asked for on one device.
    until: BTreeMap<IpAddr, Vec<(IfName, u64)>>,
    by_end: BTreeMap<IfName, BTreeSet<(u64, IpAddr)>>,
}

impl Flows {
    fn insert(&mut self, dev: IfName, addr: IpAddr, until: u64) {
        self.remove(dev, addr);
        self.until.entry(addr).or_insert_with(|| Vec::with_capacity(1)).push((dev, until));
        self.by_end.entry(dev).or_default().insert((until, addr));
    }

    fn remove(&mut self, dev: IfName, addr: IpAddr) {
        let Some(at) = self.until.get_mut(&addr) else { return };
        let Some(place) = at.iter().position(|(of, _)| *of == dev) else { return };
        let (_, until) = at.swap_remove(place);
        if at.is_empty() {
            self.until.remove(&addr);
        }
        if let Some(of_device) = self.by_end.get_mut(&dev) {
            of_device.remove(&(until, addr));
        }
    }

    /// The one to go when there are too many.
    fn surplus(&self, dev: IfName) -> Option<IpAddr> {
        let of_device = self.by_end.get(&dev).filter(|of_device| of_device.len() > MOST_FLOWS)?;
        of_device.first().map(|(_, addr)| *addr)
    }

    /// Those in a prefix.
    fn within(&self, prefix: Prefix) -> impl Iterator<Item = Source> + '_ {
        let inside = self.until.range(prefix.network()..=prefix.last());
        inside.flat_map(|(addr, at)| at.iter().map(|(dev, _)| Source::Flow(*dev, *addr)))
    }
}

impl View {
    /// The flows: device and address.
    pub fn flows(&self) -> impl Iterator<Item = (IfName, IpAddr)> + '_ {
        self.flows.until.iter().flat_map(|(addr, at)| at.iter().map(|(dev, _)| (*dev, *addr)))
    }

    /// How many there are.
    #[must_use]
    pub fn count_flows(&self) -> usize {
        self.flows.by_end.values().map(BTreeSet::len).sum()
    }

    /// Whether it is one.
    #[must_use]
    pub fn has_flow(&self, dev: IfName, addr: IpAddr) -> bool {
        self.flows.until.get(&addr).is_some_and(|at| at.iter().any(|(of, _)| *of == dev))
    }

    /// Takes in that the kernel asks for an address: the flow begins, or goes on, until then. `None` when there is no answer, since no
    /// peer that is reached by the device has a block with it: nothing is kept of it.
    pub fn ask(&mut self, dev: IfName, addr: IpAddr, until: u64) -> Option<Changed> {
        if !desired::is_answered(self, dev, addr) {
            return None;
        }
        self.flows.insert(dev, addr, until);
        let mut changed = Changed::one(Source::Flow(dev, addr));
        while let Some(oldest) = self.flows.surplus(dev) {
            self.flows.remove(dev, oldest);
            changed.sources.insert(Source::Flow(dev, oldest));
        }
        Some(changed)
    }

    /// Ends the flows whose time has come.
    pub fn end_flows(&mut self, now: u64) -> Changed {
        let mut changed = Changed::default();
        let due = |of_device: &BTreeSet<(u64, IpAddr)>| of_device.first().copied().filter(|(until, _)| *until <= now);
        while let Some((dev, addr)) = self.flows.by_end.iter().find_map(|(dev, all)| Some((*dev, due(all)?.1))) {
            self.flows.remove(dev, addr);
            changed.sources.insert(Source::Flow(dev, addr));
        }
        changed
    }

    /// When the first of them ends.
    #[must_use]
    pub fn next_end(&self) -> Option<u64> {
        self.flows.by_end.values().filter_map(|all| all.first()).map(|(until, _)| *until).min()
    }

    /// The peer that has the address in one of its blocks, with the block and its pool.
    #[must_use]
    pub fn owner_of(&self, addr: IpAddr) -> Option<(&Node, &Pool, &Block)> {
        let (owner, block) = self.block_of(addr)?;
        let node = self.nodes.get(owner).filter(|node| node.uid == block.owner_uid)?;
        let pool = self.pools.get(&block.pool).filter(|pool| pool.cidr.covers(block.cidr))?;
        let is_peer = node.name != self.local.node && self.refused_node(&node.name).is_none();
        is_peer.then_some((&**node, pool, block))
    }

    /// Adds the flows that hang on what has changed: those of peers to be thought over again, and those of a prefix whose blocks are
    /// others now.
    pub(super) fn with_flows(&self, mut changed: Changed, prefix: Option<Prefix>) -> Changed {
        if changed.all || self.flows.until.is_empty() {
            return changed;
        }
        let blocks_of = |source: &Source| match source {
            Source::Peer(name) => self.blocks_of(name),
            _ => Vec::new(),
        };
        let blocks: BTreeSet<Prefix> = changed.sources.iter().flat_map(blocks_of).chain(prefix).collect();
        changed.sources.extend(blocks.into_iter().flat_map(|block| self.flows.within(block)));
        changed
    }

    fn blocks_of(&self, name: &NodeName) -> Vec<Prefix> {
        self.blocks.get(name).into_iter().flatten().map(|block| block.cidr).collect()
    }
}
