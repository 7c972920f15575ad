//! This node's blocks in the store: claimed when they run low, renewed where they are lent, given back when the plugin has let go
//! of them, and claimed anew when their record is lost and pods live on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use loden_core::ipam::{self, Load, capacity};
use loden_core::model::{Block, Entry, Key, NodeName, Pool, PoolName, Prefix, Record, overlapping};
use loden_core::view::Problem;
use loden_linux::clock::boot_ms;
use loden_store::{Change, Expect, Store, StoreError, Term};
use tokio::time::Instant;

use super::{Cluster, News, Outward};
use crate::claim::{self, ClaimError, Claimant};

/// How soon a renewal that failed for another reason than the store's absence is tried again, in milliseconds.
const RENEW_AGAIN_MS: u64 = 1000;

/// What is remembered of blocks besides their records.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Those that were this node's: they are claimed first.
    pub(super) former: BTreeSet<Prefix>,
    /// Until when those that are this node's are lent to it, in milliseconds since boot.
    pub(super) terms: BTreeMap<Prefix, u64>,
    /// When they are to be renewed, in milliseconds since boot.
    renewals: BTreeMap<Prefix, u64>,
    /// Addresses of blocks that were claimed for pods that wait: the batch of them, and how many.
    answered: BTreeMap<PoolName, (u64, u64)>,
}

impl Cluster {
    fn claimant(&self, store: &dyn Store) -> Claimant {
        let ttl = store.term().map(|term| term.ttl);
        Claimant { node: self.identity.node.clone(), uid: self.identity.uid.clone(), ttl }
    }

    pub(super) async fn settle_blocks(&mut self, store: &dyn Store, outward: &Outward) -> Result<(), StoreError> {
        if outward.underlay.is_none() && !self.flannels.is_empty() {
            // flannel's datastore knows a node by its address alone: before that is known nothing can be told to be this node's.
            return Ok(());
        }
        self.take_over(store, outward).await?;
        self.give_back(store, outward).await?;
        self.renew(store).await?;
        // What is this node's already and has only changed meanwhile (flannel has the blocks of both families on one lease) comes with the
        // watch: another in its place would be one too many.
        let awaited: BTreeSet<PoolName> = self.inheritance(outward).into_iter().map(|(block, _)| block.pool).collect();
        for pool in self.pools.values().filter(|pool| !awaited.contains(&pool.name)).cloned().collect::<Vec<_>>() {
            self.claim_for(store, &pool, outward).await?;
        }
        self.name_strangers(outward);
        Ok(())
    }

    /// Blocks of who served this host before.
    async fn take_over(&mut self, store: &dyn Store, outward: &Outward) -> Result<(), StoreError> {
        let claimant = self.claimant(store);
        for (block, revision) in self.inheritance(outward) {
            let asked_ms = boot_ms();
            match claim::take_over(store, &block, revision, &claimant).await {
                Ok(entry) => {
                    if block.owner != self.identity.node {
                        let text =
                            format!("was that of the flanneld at {}, whose place this agent has taken", block.owner);
                        (self.deliver)(News::Event(format!("block {}", block.cidr), text));
                    }
                    self.gained(store, &entry, asked_ms);
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Deletes the records of what the plugin takes nothing of any more. That they go is on disk before: an agent that starts again on
    /// the view there must not take them for its own.
    async fn give_back(&mut self, store: &dyn Store, outward: &Outward) -> Result<(), StoreError> {
        for cidr in &outward.retired {
            let Some((_, revision)) = self.own_blocks.get(cidr) else { continue };
            let (key, revision) = (Key::Block(*cidr), *revision);
            self.append_journal(&Change::Delete { key: key.clone(), revision });
            match store.delete(&key, Expect::Revision(revision)).await {
                Ok(()) => {
                    self.forget(&key);
                    self.lost(*cidr);
                    self.blocks.former.remove(cidr);
                    self.tell_terms(store);
                    (self.deliver)(News::Event(format!("block {cidr}"), "was idle and is given back".to_owned()));
                }
                // The watch brings what it is now.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Renews what is lent, in good time. By the clock that began at boot: a step of the wall clock ends no term.
    async fn renew(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let Some(term) = store.term() else { return Ok(()) };
        let now = boot_ms();
        let is_due = |(cidr, (block, _)): &(&Prefix, &(Block, u64))| {
            let is_time = self.blocks.renewals.get(cidr).is_none_or(|at| *at <= now);
            is_time && block.owner_uid == self.identity.uid
        };
        let due: Vec<_> =
            self.own_blocks.iter().filter(is_due).map(|(cidr, (_, revision))| (*cidr, *revision)).collect();
        for (cidr, revision) in due {
            let asked_ms = boot_ms();
            match store.renew(&Key::Block(cidr), revision, term.ttl).await {
                Ok(()) => self.lent(cidr, term, asked_ms),
                // It is gone or another's, which the watch brings.
                Err(StoreError::Conflict { .. }) => {
                    self.blocks.renewals.insert(cidr, now + RENEW_AGAIN_MS);
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.tell_terms(store);
        }
        Ok(())
    }

    /// When the next block is to be renewed.
    pub(super) fn next_term(&self, store: &dyn Store) -> Option<Instant> {
        store.term()?;
        let next = self.own_blocks.keys().filter_map(|cidr| self.blocks.renewals.get(cidr)).min()?;
        Some(Instant::now() + Duration::from_millis(next.saturating_sub(boot_ms())))
    }

    /// Claims what the pool should give this node.
    async fn claim_for(&mut self, store: &dyn Store, pool: &Pool, outward: &Outward) -> Result<(), StoreError> {
        let subject = format!("pool {}", pool.name);
        let waiting = outward.waiting.get(&pool.name).copied().unwrap_or_default();
        loop {
            let of_pool = self.own_blocks.values().filter(|(block, _)| block.pool == pool.name);
            let own: Vec<Prefix> = of_pool
                .map(|(block, _)| block.cidr)
                .filter(|cidr| pool.cidr.covers(*cidr))
                .filter(|cidr| !outward.retired.contains(cidr) && !outward.refused.contains(cidr))
                .collect();
            let answered = match self.blocks.answered.get(&pool.name) {
                Some((batch, addresses)) if *batch == waiting.batch => *addresses,
                _ => 0,
            };
            let load = Load {
                used: outward.used.get(&pool.name).copied().unwrap_or(0),
                waiting: waiting.count.saturating_sub(answered),
            };
            if ipam::lacking(pool, &self.identity.labels, &own, load) == 0 {
                self.set_problem(&subject, None);
                return Ok(());
            }
            if store.gives_blocks() {
                let cause = if own.is_empty() { NOT_GIVEN.to_owned() } else { crowded(&own, load) };
                self.set_problem(&subject, Some(cause));
                return Ok(());
            }
            let former: Vec<Prefix> = outward.in_use.iter().chain(&self.blocks.former).copied().collect();
            let (claimant, asked_ms) = (self.claimant(store), boot_ms());
            match claim::claim_block(store, pool, &claimant, &former, self.taken.clone()).await {
                Ok(entry) => {
                    let Key::Block(cidr) = entry.record.key() else { return Ok(()) };
                    tracing::info!(block = %cidr, pool = %pool.name, "claimed a block");
                    self.gained(store, &entry, asked_ms);
                    if waiting.count > 0 {
                        let answered = answered + capacity(cidr);
                        self.blocks.answered.insert(pool.name.clone(), (waiting.batch, answered));
                    }
                }
                Err(ClaimError::Store(error)) => return Err(error),
                Err(error) => {
                    self.set_problem(&subject, Some(error.to_string()));
                    return Ok(());
                }
            }
        }
    }

    /// Claims anew the blocks of this node whose records are lost and that pods here have addresses of. Gives the records.
    pub(super) async fn regain(&mut self, store: &dyn Store) -> Result<Vec<Entry>, StoreError> {
        let gone: Vec<Prefix> =
            self.blocks.former.iter().copied().filter(|cidr| !self.taken.contains_key(cidr)).collect();
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let attachments = self.identity.run_dir.attachments().good;
        let lost: Vec<Prefix> =
            gone.into_iter().filter(|cidr| attachments.iter().any(|a| a.ips().any(|ip| cidr.contains(ip)))).collect();
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        self.hold_lease(store).await?;
        let mut regained = Vec::new();
        for cidr in lost {
            regained.extend(self.claim_lost(store, cidr).await?);
        }
        Ok(regained)
    }

    /// The same of one whose record was just removed.
    pub(super) async fn regain_one(&mut self, store: &dyn Store, cidr: Prefix) -> Result<Option<Entry>, StoreError> {
        let is_missed = self.blocks.former.contains(&cidr) && self.outward.borrow().in_use.contains(&cidr);
        if is_missed { self.claim_lost(store, cidr).await } else { Ok(None) }
    }

    async fn claim_lost(&mut self, store: &dyn Store, cidr: Prefix) -> Result<Option<Entry>, StoreError> {
        if self.lease.is_none() {
            return Ok(None);
        }
        let fits = |pool: &&Pool| ipam::preferred(pool, &[cidr], &self.taken) == [cidr];
        let Some(pool) = self.pools.values().find(fits).cloned() else { return Ok(None) };
        let asked_ms = boot_ms();
        match claim::claim_this(store, &pool, &self.claimant(store), cidr).await {
            Ok(entry) => {
                let text = "its record was lost; it is claimed anew for the pods that have addresses of it".to_owned();
                (self.deliver)(News::Event(format!("block {cidr}"), text));
                self.gained(store, &entry, asked_ms);
                Ok(Some(entry))
            }
            // It is another's now, or (where the store gives the blocks) not this node's any more.
            Err(StoreError::Conflict { .. } | StoreError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A block is this node's now, asked for at `asked_ms`.
    fn gained(&mut self, store: &dyn Store, entry: &Entry, asked_ms: u64) {
        self.note(entry);
        if let (Record::Block(block), Some(term)) = (&entry.record, store.term()) {
            self.lent(block.cidr, term, asked_ms);
            self.tell_terms(store);
        }
    }

    fn lent(&mut self, cidr: Prefix, term: Term, asked_ms: u64) {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let end = asked_ms.saturating_add(ms(term.ttl));
        self.blocks.terms.insert(cidr, end);
        // A margin that leaves nothing is none.
        let margin = if term.margin < term.ttl { term.margin } else { term.ttl / 2 };
        self.blocks.renewals.insert(cidr, end.saturating_sub(ms(margin)));
    }

    fn lost(&mut self, cidr: Prefix) {
        self.blocks.terms.remove(&cidr);
        self.blocks.renewals.remove(&cidr);
    }

    /// Tells the kernel's side, and by it the plugin, until when addresses may be taken.
    pub(super) fn tell_terms(&self, store: &dyn Store) {
        let own = |(cidr, until): (&Prefix, &u64)| self.own_blocks.contains_key(cidr).then_some((*cidr, *until));
        let terms = store.term().map(|_| self.blocks.terms.iter().filter_map(own).collect());
        (self.deliver)(News::Terms(terms));
    }

    /// Blocks that pods here have addresses of and that another node owns.
    fn name_strangers(&mut self, outward: &Outward) {
        let strangers: BTreeMap<Prefix, (Prefix, NodeName)> = outward
            .in_use
            .iter()
            .filter(|cidr| !self.own_blocks.contains_key(cidr))
            .filter_map(|cidr| Some((*cidr, overlapping(&self.taken, *cidr).map(|(c, n)| (*c, n.clone()))?)))
            .filter(|(_, (_, owner))| *owner != self.identity.node)
            .collect();
        let problem = |(cidr, (other, owner)): (&Prefix, &(Prefix, NodeName))| {
            let text = format!(
                "pods of node {} have addresses of it, and node {owner} owns {other} now: they are cut off; start them anew, and \
                 they get addresses of another block",
                self.identity.node
            );
            Problem::new(format!("block {cidr}"), text)
        };
        let now: Vec<Problem> = strangers.iter().map(problem).collect();
        let before = self.health.borrow().strangers.clone();
        for problem in now.iter().filter(|problem| !before.contains(problem)) {
            (self.deliver)(News::Event(problem.subject.clone(), problem.cause.clone()));
        }
        self.health.send_if_modified(|health| {
            let is_new = health.strangers != now;
            health.strangers = now;
            is_new
        });
    }
}

/// Of a pool that gives this node nothing where the datastore decides about it.
const NOT_GIVEN: &str = "the datastore has given this node no block of it yet: it comes with the node's record (in Kubernetes its podCIDRs, \
                         which the controller manager allocates, for each family)";

/// What to do about a block that runs out where the datastore gives no second one.
fn crowded(own: &[Prefix], load: Load) -> String {
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    format!(
        "{} addresses of {} are in use, and the datastore gives this node no other block: let it give larger ones (the controller \
         manager's --node-cidr-mask-size) and register the node anew, or move pods",
        load.used,
        own.join(" and ")
    )
}
