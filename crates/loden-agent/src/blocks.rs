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
use tokio::sync::oneshot;

use crate::cluster::Waiting;

/// How often idle blocks are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// From a wish to its being passed on.
const BREATH: Duration = Duration::from_millis(5);
/// How often it is looked whether pods wait in vain.
const LOOK_FOR_WISHES: Duration = Duration::from_millis(250);

/// What is kept in mind.
#[derive(Debug, Default)]
pub struct Blocks {
    empty_since: BTreeMap<Prefix, Instant>,
    /// `None`: the store lends nothing.
    terms: Option<BTreeMap<Prefix, u64>>,
    /// If the store goes away now they stay so until it is back: nobody knows whether their records are gone.
    retired: BTreeSet<Prefix>,
    wishes: Vec<Wish>,
    /// How often pods that waited have had a further block, pool by pool.
    batches: BTreeMap<PoolName, u64>,
    /// What the plugin was told last.
    served: BTreeMap<Prefix, PoolName>,
    look: Option<Instant>,
}

/// A pod that waits for a further block, and where it is told.
#[derive(Debug)]
struct Wish {
    asked: BlockWish,
    answer: oneshot::Sender<Result<(), String>>,
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
            self.look_in(wait);
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
        if most_idle.is_zero() || !self.retired.is_empty() || !self.wishes.is_empty() {
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

    /// A pod has found no free address and waits for a further block. It is answered when there is one that it has not seen.
    pub fn wish(&mut self, asked: BlockWish, answer: oneshot::Sender<Result<(), String>>) {
        if self.has_further(&asked) {
            // Who has gone away does not want the answer, here and below.
            drop(answer.send(Ok(())));
            return;
        }
        self.wishes.push(Wish { asked, answer });
        // Mostly others come in the same breath.
        self.look_in(BREATH);
    }

    fn has_further(&self, asked: &BlockWish) -> bool {
        self.served.iter().any(|(cidr, pool)| asked.pools.contains(pool) && !asked.blocks.contains(cidr))
    }

    /// Answers those that wait in vain, by the problems of their pools, and forgets those that have gone away.
    pub fn refuse(&mut self, problems: &[Problem]) {
        for wish in std::mem::take(&mut self.wishes) {
            let known = problems.iter().filter(|problem| wish.asked.is_about(&problem.subject));
            let known: Vec<String> = known.map(ToString::to_string).collect();
            if wish.answer.is_closed() {
                continue;
            }
            if known.is_empty() {
                self.wishes.push(wish);
            } else {
                drop(wish.answer.send(Err(known.join("; "))));
            }
        }
        if !self.wishes.is_empty() {
            self.look_in(LOOK_FOR_WISHES);
        }
    }

    fn look_in(&mut self, wait: Duration) {
        let at = Instant::now() + wait;
        self.look = Some(self.look.map_or(at, |look| look.min(at)));
    }

    /// Pods that wait.
    #[must_use]
    pub fn waiting(&self) -> BTreeMap<PoolName, Waiting> {
        let mut waiting: BTreeMap<PoolName, Waiting> = BTreeMap::new();
        for pool in self.wishes.iter().flat_map(|wish| &wish.asked.pools) {
            let batch = self.batches.get(pool).copied().unwrap_or(0);
            waiting.entry(pool.clone()).or_insert(Waiting { batch, count: 0 }).count += 1;
        }
        waiting
    }

    /// The plugin has been told. Who waited for a further block of a pool looks now, and waits anew if it finds nothing.
    pub fn served(&mut self, node: &NodeFile) {
        self.served = node.blocks.iter().map(|block| (block.cidr, block.pool.clone())).collect();
        for wish in std::mem::take(&mut self.wishes) {
            if !self.has_further(&wish.asked) {
                self.wishes.push(wish);
                continue;
            }
            for pool in &wish.asked.pools {
                *self.batches.entry(pool.clone()).or_default() += 1;
            }
            drop(wish.answer.send(Ok(())));
        }
    }
}
