//! The datastore's side of the agent: follows the records, holds the lease, claims blocks, publishes this node.
//!
//! It never touches the kernel and the kernel's thread never waits for it: records go there by message, facts come back by a
//! watch. When the store is away everything stays as it is, and it is tried again with growing pauses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use loden_core::model::{Block, Entry, Key, Lease, Node, NodeName, NodeUid, PerFamily, Pool, PoolName, Prefix, Record};
use loden_core::view::Problem;
use loden_linux::run_dir;
use loden_store::{Change, Expect, Store, StoreError, Watch};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::claim::{self, ClaimError, Usage};
use crate::reconcile::Facts;

/// How long the agent's sign of life holds, and how often it is renewed.
const LEASE_TTL: Duration = Duration::from_secs(30);
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// Pauses between tries while the store is away.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(10);

/// Who this node is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub node: NodeName,
    /// Its identity.
    pub uid: NodeUid,
    /// Which start of the agent this is.
    pub instance: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where the identity of the datastore is kept, so that another one is not taken for it.
    pub store_id_file: PathBuf,
}

/// What the kernel's side knows that the store's side publishes or needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outward {
    /// What this host takes in and sends.
    pub facts: Facts,
    /// Where peers reach it; `None` while there is no external interface.
    pub underlay: Option<PerFamily<std::net::IpAddr>>,
    /// How full its blocks are.
    pub usage: Usage,
}

/// How the store's side is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterHealth {
    /// Whether the store answers.
    pub up: bool,
    /// The last revision seen.
    pub revision: u64,
    /// Its last error, while it does not answer.
    pub error: Option<String>,
    /// Whether this agent holds the node's lease.
    pub leased: bool,
    /// What else is wrong: exhausted pools, a namesake.
    pub problems: Vec<Problem>,
}

/// What goes to the kernel's thread.
#[derive(Debug)]
pub enum News {
    /// Everything that there is.
    Listing(Vec<Entry>),
    /// One change.
    Change(Box<Change>),
}

/// The store's side.
pub struct Cluster {
    store: Arc<dyn Store>,
    identity: Identity,
    outward: watch::Receiver<Outward>,
    health: watch::Sender<ClusterHealth>,
    deliver: Box<dyn Fn(News) + Send>,
    /// What of the records matters here.
    pools: BTreeMap<PoolName, Pool>,
    own_blocks: BTreeMap<Prefix, (Block, u64)>,
    taken: BTreeMap<Prefix, NodeName>,
    /// What in the store is no record, and why.
    flaws: BTreeMap<String, String>,
    own_node: Option<(Node, u64)>,
    lease: Option<u64>,
}

impl Cluster {
    /// A store's side that has not begun.
    pub fn new(
        store: Arc<dyn Store>,
        identity: Identity,
        outward: watch::Receiver<Outward>,
        health: watch::Sender<ClusterHealth>,
        deliver: Box<dyn Fn(News) + Send>,
    ) -> Self {
        Self {
            store,
            identity,
            outward,
            health,
            deliver,
            pools: BTreeMap::new(),
            own_blocks: BTreeMap::new(),
            taken: BTreeMap::new(),
            flaws: BTreeMap::new(),
            own_node: None,
            lease: None,
        }
    }

    /// Follows the store until the task is dropped.
    pub async fn run(mut self) {
        let mut pause = PAUSE_FIRST;
        loop {
            let began = Instant::now();
            let error = match self.session().await {
                // History was cut before it was read: a new listing mends that at once.
                StoreError::Compacted { .. } => continue,
                error => error,
            };
            tracing::warn!(%error, "the datastore is away; what is in the kernel stays");
            self.health.send_modify(|health| {
                health.up = false;
                health.error = Some(error.to_string());
            });
            pause = if began.elapsed() > PAUSE_MOST { PAUSE_FIRST } else { (pause * 2).min(PAUSE_MOST) };
            tokio::time::sleep(pause).await;
        }
    }

    /// One listing and the watch behind it, until something fails.
    async fn session(&mut self) -> StoreError {
        match self.begin().await {
            Ok(watch) => match self.follow(watch).await {
                Ok(never) => match never {},
                Err(error) => error,
            },
            Err(error) => error,
        }
    }

    async fn begin(&mut self) -> Result<Watch, StoreError> {
        let listing = self.store.list().await?;
        self.know_store(&listing.id)?;
        let watch = self.store.watch(listing.revision).await?;
        self.pools.clear();
        self.own_blocks.clear();
        self.taken.clear();
        self.own_node = None;
        self.lease = None;
        for entry in &listing.entries {
            self.note(entry);
        }
        for place in std::mem::replace(&mut self.flaws, listing.flaws).keys() {
            self.set_problem(place, None);
        }
        for (place, cause) in &self.flaws {
            self.set_problem(place, Some(flaw(cause)));
        }
        self.health.send_modify(|health| {
            health.up = true;
            health.error = None;
            health.revision = listing.revision;
        });
        (self.deliver)(News::Listing(listing.entries));
        Ok(watch)
    }

    /// An empty store in the place of the cluster's would be an order to clear every kernel: a store is followed only if
    /// it is the one that was followed before.
    fn know_store(&self, id: &str) -> Result<(), StoreError> {
        let path = &self.identity.store_id_file;
        let fail = |cause: String| StoreError::Unavailable { place: path.display().to_string(), cause };
        match std::fs::read_to_string(path) {
            Ok(known) if known.trim() == id => Ok(()),
            Ok(known) => Err(fail(format!(
                "the datastore is another one (identity {id}) than this node has followed ({}): nothing is taken from it. \
                 Bring the former back; if the new one is meant, remove this file",
                known.trim()
            ))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                run_dir::write_atomically(path, id.as_bytes()).map_err(|error| fail(error.to_string()))
            }
            Err(error) => Err(fail(error.to_string())),
        }
    }

    async fn follow(&mut self, mut watch: Watch) -> Result<std::convert::Infallible, StoreError> {
        let mut renewal = Instant::now();
        loop {
            if Instant::now() >= renewal {
                self.hold_lease().await?;
                renewal = Instant::now() + LEASE_RENEWAL;
            }
            if self.lease.is_some() {
                self.settle().await?;
            }
            tokio::select! {
                change = watch.next() => self.take_in(change?),
                changed = self.outward.changed() => {
                    if changed.is_err() {
                        // The kernel's thread has ended; the agent is stopping.
                        std::future::pending::<()>().await;
                    }
                }
                () = sleep_until(renewal) => {}
            }
        }
    }

    fn take_in(&mut self, change: Change) {
        match &change {
            Change::Put(entry) => {
                self.note(entry);
                self.note_flaw(&entry.record.key().to_string(), None);
            }
            Change::Delete { key, .. } => {
                self.forget(key);
                self.note_flaw(&key.to_string(), None);
            }
            Change::Flaw { place, cause, .. } => self.note_flaw(place, cause.as_ref()),
        }
        let revision = change.revision();
        self.health.send_modify(|health| health.revision = revision);
        (self.deliver)(News::Change(Box::new(change)));
    }

    fn note_flaw(&mut self, place: &str, cause: Option<&String>) {
        let former = match cause {
            Some(cause) => self.flaws.insert(place.to_owned(), cause.clone()),
            None if self.flaws.is_empty() => return,
            None => self.flaws.remove(place),
        };
        if former.as_ref() != cause {
            self.set_problem(place, cause.map(|cause| flaw(cause)));
        }
    }

    fn note(&mut self, entry: &Entry) {
        match &entry.record {
            Record::Pool(pool) => drop(self.pools.insert(pool.name.clone(), pool.clone())),
            Record::Block(block) => {
                self.taken.insert(block.cidr, block.owner.clone());
                if block.owner == self.identity.node {
                    self.own_blocks.insert(block.cidr, (block.clone(), entry.revision));
                } else {
                    self.own_blocks.remove(&block.cidr);
                }
            }
            Record::Node(node) if node.name == self.identity.node => {
                self.own_node = Some((node.clone(), entry.revision));
            }
            Record::Node(_) | Record::Lease(_) => {}
        }
    }

    fn forget(&mut self, key: &Key) {
        match key {
            Key::Pool(name) => drop(self.pools.remove(name)),
            Key::Block(cidr) => {
                self.taken.remove(cidr);
                self.own_blocks.remove(cidr);
            }
            Key::Node(name) if *name == self.identity.node => self.own_node = None,
            Key::Lease(name) if *name == self.identity.node => self.lease = None,
            Key::Node(_) | Key::Lease(_) => {}
        }
    }

    /// Takes or renews this node's lease. While a namesake holds it nothing is claimed or published.
    async fn hold_lease(&mut self) -> Result<(), StoreError> {
        let key = Key::Lease(self.identity.node.clone());
        if let Some(revision) = self.lease {
            match self.store.renew(&key, revision, LEASE_TTL).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Conflict { .. }) => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        let lease = Lease {
            node: self.identity.node.clone(),
            uid: self.identity.uid.clone(),
            instance: self.identity.instance.clone(),
        };
        let expect = match self.store.get(&key).await? {
            None => Expect::Absent,
            Some(entry) => match &entry.record {
                // An earlier start on this host: the run directory's lock says that it is over.
                Record::Lease(held) if held.uid == self.identity.uid => Expect::Revision(entry.revision),
                _ => {
                    self.set_problem(
                        "lease",
                        Some(
                            "another host serves under this node's name: give this host another \
                         name (`node` in its configuration), or wait until the other's lease has run out"
                                .to_owned(),
                        ),
                    );
                    return Ok(());
                }
            },
        };
        match self.store.put(Record::Lease(lease), expect, Some(LEASE_TTL)).await {
            Ok(entry) => {
                self.lease = Some(entry.revision);
                self.set_problem("lease", None);
                self.health.send_modify(|health| health.leased = true);
                Ok(())
            }
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes the store say what is so here: blocks that are needed, and this node's record.
    async fn settle(&mut self) -> Result<(), StoreError> {
        let outward = self.outward.borrow_and_update().clone();
        for (block, revision) in self.own_blocks.values() {
            if block.owner_uid != self.identity.uid {
                match claim::take_over(&*self.store, block, *revision, &self.identity.uid).await {
                    Ok(()) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for pool in self.pools.values().cloned().collect::<Vec<_>>() {
            let own = self.own_blocks.values().filter(|(block, _)| block.pool == pool.name).count();
            let subject = format!("pool {}", pool.name);
            if !claim::needs_block(&pool, &self.identity.labels, own, &outward.usage) {
                self.set_problem(&subject, None);
                continue;
            }
            let (node, uid) = (&self.identity.node, &self.identity.uid);
            match claim::claim_block(&*self.store, &pool, node, uid, self.taken.clone()).await {
                Ok(block) => {
                    tracing::info!(block = %block.cidr, pool = %pool.name, "claimed a block");
                    self.taken.insert(block.cidr, node.clone());
                    self.own_blocks.insert(block.cidr, (block, 0));
                    self.set_problem(&subject, None);
                }
                Err(ClaimError::Store(error)) => return Err(error),
                Err(error) => self.set_problem(&subject, Some(error.to_string())),
            }
        }
        self.publish(&outward).await
    }

    async fn publish(&mut self, outward: &Outward) -> Result<(), StoreError> {
        let Some(underlay) = outward.underlay else { return Ok(()) };
        let former = self.own_node.as_ref();
        let node = Node {
            name: self.identity.node.clone(),
            uid: self.identity.uid.clone(),
            underlay,
            public: former.map(|(node, _)| node.public).unwrap_or_default(),
            asked: former.map(|(node, _)| node.asked).unwrap_or_default(),
            labels: self.identity.labels.clone(),
            // Until the kernel has been seen to hold them, what was published before the restart goes on being true.
            receives: match (outward.facts.mtu_pod, former) {
                (None, Some((node, _))) if node.uid == self.identity.uid => node.receives.clone(),
                _ => outward.facts.receives.clone(),
            },
            sends: match (&outward.facts.sends, former) {
                (Some(sends), _) => sends.clone(),
                (None, Some((node, _))) if node.uid == self.identity.uid => node.sends.clone(),
                (None, _) => BTreeMap::new(),
            },
            unknown: former.map(|(node, _)| node.unknown.clone()).unwrap_or_default(),
        };
        if former.is_some_and(|(former, _)| *former == node) {
            return Ok(());
        }
        let expect = former.map_or(Expect::Absent, |(_, revision)| Expect::Revision(*revision));
        match self.store.put(Record::Node(node), expect, None).await {
            Ok(entry) => self.note(&entry),
            // Somebody wrote it meanwhile: the watch brings that, and then it is compared again.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn set_problem(&self, subject: &str, cause: Option<String>) {
        self.health.send_if_modified(|health| {
            let before = health.problems.clone();
            health.problems.retain(|problem| problem.subject != subject);
            health.problems.extend(cause.map(|cause| Problem::new(subject, cause)));
            health.problems != before
        });
    }
}

/// What is wrong with something in the store that is no record, for people.
fn flaw(cause: &str) -> String {
    format!("{cause}; it is passed over, and all else goes on. Mend or remove it there")
}
