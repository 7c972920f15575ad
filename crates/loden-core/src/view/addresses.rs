//! Nodes that are said to be at one address: packets for all of them would come to one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Changed, Problem, View};
use crate::desired::Source;
use crate::dialect::flannel;
use crate::model::{Node, NodeName};

/// Which peers are reached at which address, and which show signs of life.
#[derive(Debug, Clone, Default)]
pub(super) struct Addresses {
    /// Those at an address, the oldest record first: mostly one.
    at: BTreeMap<IpAddr, Vec<(u64, NodeName)>>,
    pub(super) alive: BTreeSet<NodeName>,
    pub(super) refused: BTreeMap<NodeName, Problem>,
}

/// Who is taken at its word, and why.
struct Winner<'a> {
    node: &'a NodeName,
    because: &'static str,
}

impl Addresses {
    fn insert(&mut self, addr: IpAddr, created: u64, name: &NodeName) {
        let there = self.at.entry(addr).or_insert_with(|| Vec::with_capacity(1));
        let mark = (created, name.clone());
        there.insert(there.partition_point(|other| *other < mark), mark);
    }

    fn remove(&mut self, addr: IpAddr, name: &NodeName) {
        if let Some(there) = self.at.get_mut(&addr) {
            there.retain(|(_, other)| other != name);
            if there.is_empty() {
                self.at.remove(&addr);
            }
        }
    }
}

impl View {
    /// Puts a peer's record in the place of its former one.
    pub(super) fn move_node(&mut self, name: &NodeName, former: Option<&Node>, now: Option<(&Node, u64)>) -> Changed {
        // This host's own addresses are those that it has, whatever its record says yet.
        if *name == self.local.node {
            return Changed::default();
        }
        let mut touched: BTreeSet<IpAddr> = former.into_iter().flat_map(reached).collect();
        touched.iter().for_each(|addr| self.addresses.remove(*addr, name));
        if let Some((node, created)) = now {
            for addr in reached(node) {
                self.addresses.insert(addr, created, name);
                touched.insert(addr);
            }
        }
        self.judge_addresses(touched, name)
    }

    /// Takes in that a node shows signs of life, or does not any more.
    pub(super) fn set_alive(&mut self, name: &NodeName, is_alive: bool) -> Changed {
        let is_new =
            if is_alive { self.addresses.alive.insert(name.clone()) } else { self.addresses.alive.remove(name) };
        let touched = self.nodes.get(name).filter(|_| is_new).map(|node| reached(node).collect());
        touched.map_or_else(Changed::default, |touched| self.judge_addresses(touched, name))
    }

    /// Decides anew who is refused of those at addresses of this host's, before and now.
    pub(super) fn judge_own_addresses(&mut self, before: &[IpAddr]) -> Changed {
        let touched = before.iter().copied().chain(self.own_addresses()).collect();
        let name = self.local.node.clone();
        self.judge_addresses(touched, &name)
    }

    pub(super) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let addresses = self.local.underlay.as_ref().map(|underlay| underlay.addresses).unwrap_or_default();
        addresses.iter().map(|(_, addr)| addr).collect::<Vec<_>>().into_iter()
    }

    /// Decides who is refused of those at some addresses, and whether the one whose record or life has changed is.
    fn judge_addresses(&mut self, touched: BTreeSet<IpAddr>, changed_one: &NodeName) -> Changed {
        let own: Vec<IpAddr> = self.own_addresses().collect();
        let is_contested =
            |addr: &IpAddr| self.addresses.at.get(addr).is_some_and(|there| there.len() > 1) || own.contains(addr);
        let was_contested = |addr: &IpAddr| {
            let there = self.addresses.at.get(addr);
            there.into_iter().flatten().any(|(_, name)| self.addresses.refused.contains_key(name))
        };
        if !self.addresses.refused.contains_key(changed_one)
            && !touched.iter().any(|a| is_contested(a) || was_contested(a))
        {
            return Changed::default();
        }
        let at = touched.iter().filter_map(|addr| self.addresses.at.get(addr)).flatten();
        let concerned: BTreeSet<NodeName> =
            at.map(|(_, name)| name).chain([changed_one]).filter(|name| **name != self.local.node).cloned().collect();
        let mut changed = Changed::default();
        for name in concerned {
            let verdict = self.refusal(&name);
            if self.addresses.refused.get(&name) == verdict.as_ref() {
                continue;
            }
            match verdict {
                Some(problem) => drop(self.addresses.refused.insert(name.clone(), problem)),
                None => drop(self.addresses.refused.remove(&name)),
            }
            changed.sources.insert(Source::Peer(name));
        }
        changed
    }

    /// Why a peer is not sent to, if another one is at an address of its.
    fn refusal(&self, name: &NodeName) -> Option<Problem> {
        let node = self.nodes.get(name)?;
        reached(node).find_map(|addr| {
            let winner = self.winner(node, addr).filter(|winner| winner.node != name)?;
            let text = format!(
                "it is said to be at {addr}, where node {} is too, which {}: nothing is sent to it. Give it an address of its own, \
                 or remove the record of the one that is gone",
                winner.node, winner.because
            );
            Some(Problem::new(format!("node {name}"), text))
        })
    }

    /// Who is sent to at an address of a node's: this host at its own; else one that shows signs of life before one that does not, and
    /// then the one that was recorded first. A node of flannel's is known by its address alone: one of loden's there is the same host, which
    /// is changing hands, and both are sent to until it has its blocks.
    fn winner(&self, node: &Node, addr: IpAddr) -> Option<Winner<'_>> {
        if self.own_addresses().any(|own| own == addr) {
            return Some(Winner { node: &self.local.node, because: "is this host" });
        }
        let flannels = flannel::node_uid();
        if node.uid == flannels {
            return None;
        }
        let is_rival = |(_, name): &&(u64, NodeName)| self.nodes.get(name).is_some_and(|other| other.uid != flannels);
        let there = || self.addresses.at.get(&addr).into_iter().flatten().filter(is_rival);
        let is_alive = |(_, name): &&(u64, NodeName)| self.addresses.alive.contains(name);
        let alive = there().filter(is_alive).count();
        let (_, node) = there().find(is_alive).or(there().next())?;
        let because = if alive == 1 { "shows signs of life" } else { "was recorded before" };
        Some(Winner { node, because })
    }
}

fn reached(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    crate::model::Family::ALL.into_iter().filter_map(|family| node.reached_at(family))
}
