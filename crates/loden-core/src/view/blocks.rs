//! Blocks that overlap: the one that was recorded first is in force, whatever the order in which they are heard of.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Changed, Problem, View};
use crate::desired::Source;
use crate::model::{Block, Family, NodeName, Prefix, overlapping};

/// All blocks that are recorded.
#[derive(Debug, Clone, Default)]
pub(super) struct Recorded {
    all: BTreeMap<Prefix, Mark>,
    /// How many there are of each length: mostly all have one.
    lengths: BTreeMap<(Family, u8), usize>,
    refused: BTreeMap<Prefix, Refused>,
}

#[derive(Debug, Clone)]
struct Mark {
    owner: NodeName,
    /// The revision that first wrote it.
    created: u64,
}

/// A block that is not in force.
#[derive(Debug, Clone)]
struct Refused {
    block: Block,
    problem: Problem,
}

impl Recorded {
    pub(super) fn keys(&self) -> impl Iterator<Item = &Prefix> {
        self.all.keys()
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.refused.values().map(|refused| &refused.problem)
    }

    pub(super) fn refused(&self) -> impl Iterator<Item = &Block> {
        self.refused.values().map(|refused| &refused.block)
    }

    fn insert(&mut self, cidr: Prefix, mark: Mark) {
        if self.all.insert(cidr, mark).is_none() {
            *self.lengths.entry((cidr.family(), cidr.len())).or_default() += 1;
        }
    }

    fn remove(&mut self, cidr: Prefix) -> Option<Mark> {
        let mark = self.all.remove(&cidr)?;
        let of_length = (cidr.family(), cidr.len());
        if let Some(count) = self.lengths.get_mut(&of_length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&of_length);
            }
        }
        Some(mark)
    }

    /// The largest that covers a prefix, or the prefix itself: by a look-up a length.
    fn outermost(&self, cidr: Prefix) -> Prefix {
        let lengths = self.lengths.range((cidr.family(), 0)..(cidr.family(), cidr.len())).map(|((_, len), _)| *len);
        let around = lengths.map(|len| Prefix::holding(cidr.network(), len));
        around.into_iter().find(|other| self.all.contains_key(other)).unwrap_or(cidr)
    }

    /// Those that share addresses with a prefix, and those that share addresses with them: the oldest first.
    fn around(&self, cidr: Prefix) -> Vec<Prefix> {
        let top = self.outermost(cidr);
        let mut all: Vec<(u64, Prefix)> =
            self.all.range(top..).take_while(|(other, _)| top.covers(**other)).map(|(c, m)| (m.created, *c)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, cidr)| cidr).collect()
    }

    fn problem(&self, cidr: Prefix, by: Prefix) -> Problem {
        let owner = |cidr: &Prefix| self.all.get(cidr).map_or("?", |mark| mark.owner.as_str());
        let text = format!(
            "node {} has recorded it, and it overlaps {by} of node {}, which was recorded before: it is not in force. Remove the \
             record of the one that is wrong",
            owner(&cidr),
            owner(&by)
        );
        Problem::new(format!("block {cidr}"), text)
    }
}

impl View {
    /// The largest block that covers a prefix, or the prefix itself: whatever is recorded or not in it, what becomes of others stays
    /// within.
    pub(super) fn around_block(&self, cidr: Prefix) -> Prefix {
        self.recorded.outermost(cidr)
    }

    /// The block in force that has an address, and its owner.
    pub(super) fn block_of(&self, addr: IpAddr) -> Option<(&NodeName, &Block)> {
        let family = Family::of(addr);
        let lengths = self.recorded.lengths.range((family, 0)..=(family, family.bits())).map(|((_, len), _)| *len);
        lengths.map(|len| Prefix::holding(addr, len)).find_map(|cidr| {
            let owner = &self.recorded.all.get(&cidr)?.owner;
            let block = self.blocks.get(owner)?.iter().find(|block| block.cidr == cidr)?;
            Some((owner, block))
        })
    }

    pub(super) fn put_block(&mut self, block: Block, created: u64) -> Changed {
        let (cidr, owner) = (block.cidr, block.owner.clone());
        let is_known = self.recorded.all.get(&cidr).is_some_and(|mark| mark.created == created);
        let in_force = || self.blocks.get(&owner).is_some_and(|blocks| blocks.contains(&block));
        let is_refused = || self.recorded.refused.get(&cidr).is_some_and(|refused| refused.block == block);
        if is_known && (in_force() || is_refused()) {
            return Changed::default();
        }
        let mut changed = match self.take_out(cidr) {
            // Its age is all that is new of it: then it is nobody's news unless it is in force no more.
            Some(former) if former == block => Changed::default(),
            former => former.map_or_else(Changed::default, |former| Changed::one(self.source_of(&former.owner))),
        };
        self.recorded.insert(cidr, Mark { owner, created });
        changed.merge(self.judge_blocks(cidr, Some(block)));
        changed
    }

    pub(super) fn remove_block(&mut self, cidr: Prefix) -> Changed {
        let former = self.take_out(cidr);
        self.recorded.refused.remove(&cidr);
        if self.recorded.remove(cidr).is_none() {
            return Changed::default();
        }
        let mut changed = former.map_or_else(Changed::default, |former| Changed::one(self.source_of(&former.owner)));
        changed.merge(self.judge_blocks(cidr, None));
        changed
    }

    /// Decides which of the blocks around a prefix are in force: the oldest first, each unless it overlaps one before it. `new` is one
    /// of them that has no place yet.
    fn judge_blocks(&mut self, cidr: Prefix, mut new: Option<Block>) -> Changed {
        let (mut changed, mut accepted) = (Changed::default(), BTreeMap::new());
        for cidr in self.recorded.around(cidr) {
            let by = overlapping(&accepted, cidr).map(|(other, ())| *other);
            let is_new = new.as_ref().is_some_and(|block| block.cidr == cidr);
            let block = if is_new { new.take() } else { None };
            match by {
                None => {
                    accepted.insert(cidr, ());
                    let former = self.recorded.refused.remove(&cidr).map(|refused| refused.block);
                    if let Some(block) = block.or(former) {
                        changed.sources.insert(self.source_of(&block.owner));
                        self.put_in(block);
                    }
                }
                Some(by) => {
                    let problem = self.recorded.problem(cidr, by);
                    let former = self.take_out(cidr);
                    if let Some(former) = &former {
                        changed.sources.insert(self.source_of(&former.owner));
                    }
                    if let Some(block) = block.or(former) {
                        self.recorded.refused.insert(cidr, Refused { block, problem });
                    } else if let Some(refused) = self.recorded.refused.get_mut(&cidr) {
                        refused.problem = problem;
                    }
                }
            }
        }
        changed
    }

    fn put_in(&mut self, block: Block) {
        let blocks = self.blocks.entry(block.owner.clone()).or_insert_with(|| Vec::with_capacity(1));
        blocks.insert(blocks.partition_point(|other| other.cidr < block.cidr), block);
    }

    /// Takes a block that is in force out of those that are.
    fn take_out(&mut self, cidr: Prefix) -> Option<Block> {
        let owner = &self.recorded.all.get(&cidr)?.owner;
        let blocks = self.blocks.get_mut(owner)?;
        let place = blocks.iter().position(|block| block.cidr == cidr)?;
        let block = blocks.remove(place);
        if blocks.is_empty() {
            self.blocks.remove(&block.owner);
        }
        Some(block)
    }

    fn source_of(&self, node: &NodeName) -> Source {
        if *node == self.local.node { Source::Local } else { Source::Peer(node.clone()) }
    }
}
