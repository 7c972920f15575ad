//! What the kernel's side keeps in mind of this node's blocks: since when each is empty, until when it is lent, which are on their
//! way back to the store, and how many pods wait for a further one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use loden_core::api::BlockWish;
use loden_core::cni::NodeFile;
use loden_core::ipam::{self, OwnBlock};
use loden_core::model::{PoolName, Prefix};
use loden_core::view::Problem;
use loden_linux::clock::boot_ms;

use crate::cluster::Waiting;

/// How often idle blocks are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// From a wish to its being passed on.
const BREATH: Duration = Duration::from_millis(5);

/// What is kept in mind.
#[derive(Debug, Default)]
pub struct Blocks {
    empty_since: BTreeMap<Prefix, Instant>,
    /// `None`: the store lends nothing.
    terms: Option<BTreeMap<Prefix, u64>>,
    retired: BTreeSet<Prefix>,
    waiting: BTreeMap<PoolName, Waiting>,
    /// What the plugin was told last.
    served: BTreeMap<Prefix, PoolName>,
    look: Option<Instant>,
}

impl Blocks {
    /// When they are to be looked at next.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.look
    }

    /// They are looked at now.
    pub fn looked_at(&mut self) {
        self.look = None;
    }

    /// Takes in until when blocks are lent.
    pub fn set_terms(&mut self, terms: Option<BTreeMap<Prefix, u64>>) {
        if self.terms != terms {
            self.terms = terms;
            self.look = Some(Instant::now());
        }
    }

    /// The blocks that the plugin may take addresses of at a time in milliseconds since boot, each with the end of its term; and what
    /// is wrong with the others. To be called with all that are this node's.
    pub fn offered(&mut self, own: &[OwnBlock], now_ms: u64) -> (BTreeMap<Prefix, Option<u64>>, Vec<Problem>) {
        let is_own = |cidr: &Prefix| own.iter().any(|block| block.cidr == *cidr);
        let before = self.retired.len();
        self.retired.retain(is_own);
        if self.retired.len() < before {
            // The next one need not wait.
            self.look = Some(Instant::now());
        }
        self.empty_since.retain(|cidr, _| is_own(cidr));
        let (mut offered, mut problems) = (BTreeMap::new(), Vec::new());
        for block in own {
            if block.used == 0 {
                self.empty_since.entry(block.cidr).or_insert_with(Instant::now);
            } else {
                self.empty_since.remove(&block.cidr);
            }
            let until_ms = self.terms.as_ref().map(|terms| terms.get(&block.cidr).copied().unwrap_or(0));
            if until_ms.is_some_and(|until| until <= now_ms) {
                let text = "the term for which it is lent to this node has ended, and the datastore has not said that it is still \
                            ours: no pod gets an address of it until it has; what is in the kernel stays";
                problems.push(Problem::new(format!("block {}", block.cidr), text));
            } else if !self.retired.contains(&block.cidr) {
                offered.insert(block.cidr, until_ms);
            }
        }
        let next_end = offered.values().flatten().min().map(|end| Duration::from_millis(end.saturating_sub(boot_ms())));
        let next_idle = (!self.empty_since.is_empty()).then_some(LOOK);
        if let Some(wait) = next_end.into_iter().chain(next_idle).min() {
            let at = Instant::now() + wait;
            self.look = Some(self.look.map_or(at, |look| look.min(at)));
        }
        (offered, problems)
    }

    /// For how long a block has been empty.
    #[must_use]
    pub fn idle(&self, cidr: Prefix) -> Duration {
        self.empty_since.get(&cidr).map_or(Duration::ZERO, Instant::elapsed)
    }

    /// The block to give back next. One at a time: what stays has to be known.
    #[must_use]
    pub fn surplus(&self, own: &[OwnBlock], most_idle: Duration) -> Option<Prefix> {
        if most_idle.is_zero() || !self.retired.is_empty() || self.waiting.values().any(|waiting| waiting.count > 0) {
            return None;
        }
        ipam::surplus(own, most_idle.as_secs())
    }

    /// The plugin is to take nothing of it any more.
    pub fn retire(&mut self, cidr: Prefix) {
        self.retired.insert(cidr);
    }

    /// It stays after all.
    pub fn keep(&mut self, cidr: Prefix) {
        self.retired.remove(&cidr);
        self.empty_since.insert(cidr, Instant::now());
    }

    /// Those that are on their way back.
    #[must_use]
    pub fn retired(&self) -> &BTreeSet<Prefix> {
        &self.retired
    }

    /// A pod has found no free address in these pools. Who has not seen what there is by now only has to look again.
    pub fn wish(&mut self, wish: &BlockWish) {
        for pool in &wish.pools {
            let is_served = self.served.iter().any(|(cidr, of)| of == pool && !wish.blocks.contains(cidr));
            if !is_served {
                self.waiting.entry(pool.clone()).or_default().count += 1;
                // Mostly others come in the same breath.
                let soon = Instant::now() + BREATH;
                self.look = Some(self.look.map_or(soon, |look| look.min(soon)));
            }
        }
    }

    /// Pods that wait.
    #[must_use]
    pub fn waiting(&self) -> &BTreeMap<PoolName, Waiting> {
        &self.waiting
    }

    /// The plugin has been told. Who waited for a further block of a pool looks now, and waits anew if it finds nothing.
    pub fn served(&mut self, node: &NodeFile) {
        let now: BTreeMap<Prefix, PoolName> = node.blocks.iter().map(|b| (b.cidr, b.pool.clone())).collect();
        for (_, pool) in now.iter().filter(|(cidr, _)| !self.served.contains_key(cidr)) {
            if let Some(waiting) = self.waiting.get_mut(pool).filter(|waiting| waiting.count > 0) {
                *waiting = Waiting { batch: waiting.batch + 1, count: 0 };
            }
        }
        self.served = now;
    }
}
