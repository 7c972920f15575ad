//! The datastore's side of the agent: follows the records, holds the lease, claims blocks, publishes this node.
//!
//! It never touches the kernel and the kernel's thread never waits for it: records go there by message, facts come back by a
//! watch. When the store is away everything stays as it is, and it is tried again with growing pauses; an agent that starts
//! meanwhile runs on the view on disk.

mod blocks;
mod disk;
mod lease;
mod predecessor;
mod publish;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use loden_core::api::ViewOrigin;
use loden_core::model::{Block, Entry, Key, Node, NodeName, NodeUid, PerFamily, Pool, PoolName, Prefix, Record};
use loden_core::view::Problem;
use loden_linux::run_dir::{self, RunDir};
use loden_store::{Change, Readiness, Store, StoreError, Watch};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::journal::{Journal, Remembered};
use crate::reconcile::Facts;

/// Pauses between tries while the store is away.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(10);
/// How many changes are taken in at most before anything else is looked at.
const AT_ONCE: usize = 10_000;
/// How long a store that says nothing is waited for before the view on disk is taken.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// The subject of what hinders changes from being heard of at once.
const LISTENING: &str = "listening to the datastore";

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
    /// Where the identity of the datastore and what it said last are kept.
    pub state_dir: PathBuf,
    /// Where attachments are, and what the plugin was told.
    pub run_dir: RunDir,
    /// Blocks that it had by another file than its own: they are asked for again.
    pub preferred: Vec<Prefix>,
    /// Whether those who look at the cluster from outside are told how it is.
    pub announces: bool,
}

impl Identity {
    /// Keeps another datastore from being taken for the one that was followed before.
    fn store_id_file(&self) -> PathBuf {
        self.state_dir.join("store-id")
    }
}

/// What the kernel's side knows that the store's side publishes or needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outward {
    /// What this host takes in and sends.
    pub facts: Facts,
    /// Where peers reach it; `None` while there is no external interface.
    pub underlay: Option<PerFamily<std::net::IpAddr>>,
    /// Addresses that pods have of this node's blocks, pool by pool.
    pub used: BTreeMap<PoolName, u64>,
    /// Pods that wait for an address, pool by pool.
    pub waiting: BTreeMap<PoolName, Waiting>,
    /// Blocks that some pod here has an address of, whoever owns them.
    pub in_use: BTreeSet<Prefix>,
    /// Blocks of this node's that the plugin has been told to take nothing of any more: they are to be given back.
    pub retired: BTreeSet<Prefix>,
    /// Blocks of this node's that are not in force.
    pub refused: BTreeSet<Prefix>,
    /// How the node is; `None` before anything is known.
    pub readiness: Option<Readiness>,
}

/// Pods that wait for a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Counts up when a further block is there for them: who still has no address then waits anew.
    pub batch: u64,
    /// How many.
    pub count: u64,
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
    /// Where the view that was given to the kernel's side is from.
    pub view: Option<ViewOrigin>,
    /// What else is wrong: exhausted pools, a namesake.
    pub problems: Vec<Problem>,
    /// Blocks that pods here have addresses of and that another node owns.
    pub strangers: Vec<Problem>,
}

/// What goes to the kernel's thread.
#[derive(Debug)]
pub enum News {
    /// Everything that there is.
    Listing(Vec<Entry>),
    /// Everything that there was when the store was last heard.
    Remembered(Vec<Entry>),
    /// Changes that are to be acted on together.
    Changes(Vec<Change>),
    /// Until when this node's blocks are lent to it, in milliseconds since boot; one that is not named is not known to be ours any
    /// more. `None`: the store lends nothing.
    Terms(Option<BTreeMap<Prefix, u64>>),
    /// Something that happened: its object and a text.
    Event(String, String),
}

/// What is on its way to being a store.
pub type Opening = Pin<Box<dyn Future<Output = Result<Arc<dyn Store>, StoreError>> + Send>>;
/// Opens the store; called until it succeeds.
pub type Opener = Box<dyn Fn() -> Opening + Send + Sync>;

/// The store's side.
pub struct Cluster {
    open: Opener,
    store: Option<Arc<dyn Store>>,
    identity: Identity,
    outward: watch::Receiver<Outward>,
    health: watch::Sender<ClusterHealth>,
    deliver: Box<dyn Fn(News) + Send>,
    journal: Journal,
    /// The view on disk as this agent found it, until the store has been listed.
    remembered: Option<Remembered>,
    /// When the view on disk is written anew, if it cannot be now.
    journal_retry: Option<Instant>,
    /// What of the records matters here.
    pools: BTreeMap<PoolName, Pool>,
    own_blocks: BTreeMap<Prefix, (Block, u64)>,
    taken: BTreeMap<Prefix, NodeName>,
    /// What in the store is no record, and why.
    flaws: BTreeMap<String, String>,
    own_node: Option<(Node, u64)>,
    flannels: predecessor::Flannels,
    lease: Option<u64>,
    blocks: blocks::Memory,
    announced: publish::Announced,
}

impl Cluster {
    /// A store's side that has not begun.
    pub fn new(
        open: Opener,
        identity: Identity,
        outward: watch::Receiver<Outward>,
        health: watch::Sender<ClusterHealth>,
        deliver: Box<dyn Fn(News) + Send>,
    ) -> Self {
        Self {
            open,
            store: None,
            journal: Journal::new(&identity.state_dir),
            identity,
            outward,
            health,
            deliver,
            remembered: None,
            journal_retry: None,
            pools: BTreeMap::new(),
            own_blocks: BTreeMap::new(),
            taken: BTreeMap::new(),
            flaws: BTreeMap::new(),
            own_node: None,
            flannels: predecessor::Flannels::default(),
            lease: None,
            blocks: blocks::Memory::default(),
            announced: publish::Announced::default(),
        }
    }

    /// Follows the store until the task is dropped.
    pub async fn run(mut self) {
        self.remember();
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
            self.run_on_disk();
            pause = if began.elapsed() > PAUSE_MOST { PAUSE_FIRST } else { (pause * 2).min(PAUSE_MOST) };
            tokio::time::sleep(pause).await;
        }
    }

    /// One listing and the watch behind it, until something fails.
    async fn session(&mut self) -> StoreError {
        match self.begin().await {
            Ok((store, watch)) => match self.follow(&*store, watch).await {
                Ok(never) => match never {},
                Err(error) => error,
            },
            Err(error) => error,
        }
    }

    async fn begin(&mut self) -> Result<(Arc<dyn Store>, Watch), StoreError> {
        let store = match &self.store {
            Some(store) => Arc::clone(store),
            None => {
                let opening = (self.open)();
                let store = self.patiently(opening).await?;
                self.store = Some(Arc::clone(&store));
                store
            }
        };
        let listing = store.list();
        let mut listing = self.patiently(listing).await?;
        self.know_store(&listing.id)?;
        let watch = store.watch(listing.revision).await?;
        let former = std::mem::take(&mut self.own_blocks).into_keys();
        self.blocks.former.extend(former);
        self.pools.clear();
        self.taken.clear();
        self.own_node = None;
        self.flannels.clear();
        self.lease = None;
        for entry in &listing.entries {
            self.note(entry);
        }
        for place in std::mem::replace(&mut self.flaws, listing.flaws.clone()).keys() {
            self.set_problem(place, None);
        }
        for (place, cause) in &self.flaws {
            self.set_problem(place, Some(flaw(cause)));
        }
        // What pods here live on is claimed anew before the kernel hears that it is nobody's.
        let regained = self.regain(&*store).await?;
        listing.entries.extend(regained);
        self.write_journal(&listing, store.term().is_some());
        self.remembered = None;
        if self.health.borrow().error.is_some() {
            tracing::info!("the datastore is there again");
        }
        self.health.send_modify(|health| {
            health.up = true;
            health.error = None;
            health.revision = listing.revision;
            health.view = Some(ViewOrigin::Store);
        });
        self.set_problem(disk::SUBJECT, None);
        self.tell_terms(&*store);
        (self.deliver)(News::Listing(listing.entries));
        Ok((store, watch))
    }

    /// Waits for the store's answer. One that says nothing at the start is not waited for without a view.
    async fn patiently<T>(&mut self, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let mut answer = std::pin::pin!(answer);
        match tokio::time::timeout(FIRST_ANSWER, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                self.run_on_disk();
                answer.await
            }
        }
    }

    /// An empty store in the place of the cluster's would be an order to clear every kernel: a store is followed only if
    /// it is the one that was followed before.
    fn know_store(&self, id: &str) -> Result<(), StoreError> {
        let path = &self.identity.store_id_file();
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

    async fn follow(&mut self, store: &dyn Store, mut watch: Watch) -> Result<std::convert::Infallible, StoreError> {
        let mut renewal = Instant::now();
        loop {
            self.set_problem(LISTENING, watch.hindrance());
            if Instant::now() >= renewal {
                self.hold_lease(store).await?;
                renewal = Instant::now() + lease::RENEWAL;
            }
            if self.lease.is_some() {
                self.settle(store).await?;
            }
            self.mend_journal(store).await?;
            self.announce(store).await;
            let next = [self.next_term(store), self.announced.due(), self.journal_retry];
            let next = next.into_iter().flatten().fold(renewal, Instant::min);
            tokio::select! {
                change = watch.next() => {
                    let mut changes = vec![change?];
                    // What belongs together (a node and its blocks, where one object has both) comes together: the kernel's side must not
                    // act on the one half.
                    while changes.len() < AT_ONCE && let Some(change) = watch.ready() {
                        changes.push(change?);
                    }
                    self.take_in(store, changes).await?;
                }
                changed = self.outward.changed() => {
                    if changed.is_err() {
                        // The kernel's thread has ended; the agent is stopping.
                        std::future::pending::<()>().await;
                    }
                }
                () = sleep_until(next) => {}
            }
        }
    }

    async fn take_in(&mut self, store: &dyn Store, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut told = Vec::with_capacity(changes.len());
        for change in changes {
            if self.note_change(store, &change).await? {
                let revision = change.revision();
                self.health.send_modify(|health| health.revision = revision);
                self.append_journal(&change);
                told.push(change);
            }
        }
        (self.deliver)(News::Changes(told));
        Ok(())
    }

    /// Says whether the kernel's side is to hear of it.
    async fn note_change(&mut self, store: &dyn Store, change: &Change) -> Result<bool, StoreError> {
        match change {
            Change::Put(entry) => {
                self.note(entry);
                self.note_flaw(&entry.record.key().to_string(), None);
            }
            Change::Delete { key, .. } => {
                self.forget(key);
                self.note_flaw(&key.to_string(), None);
                if let Key::Block(cidr) = key
                    && self.regain_one(store, *cidr).await?.is_some()
                {
                    // The watch brings it as it is now; that it was gone in between nobody need hear.
                    return Ok(false);
                }
            }
            Change::Flaw { place, cause, .. } => self.note_flaw(place, cause.as_ref()),
        }
        Ok(true)
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
        self.flannels.note(entry);
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
        self.flannels.forget(key);
        match key {
            Key::Pool(name) => drop(self.pools.remove(name)),
            Key::Block(cidr) => {
                self.taken.remove(cidr);
                if self.own_blocks.remove(cidr).is_some() {
                    self.blocks.former.insert(*cidr);
                }
            }
            Key::Node(name) if *name == self.identity.node => self.own_node = None,
            Key::Lease(name) if *name == self.identity.node => self.lease = None,
            Key::Node(_) | Key::Lease(_) => {}
        }
    }

    /// Makes the store say what is so here: blocks that are needed, and this node's record.
    async fn settle(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let outward = self.outward.borrow_and_update().clone();
        if self.own_node.as_ref().is_none_or(|(node, _)| node.uid != self.identity.uid) {
            // Before its blocks: what peers know of who served this host before goes on being true.
            self.publish(store, &outward).await?;
        }
        self.settle_blocks(store, &outward).await?;
        self.publish(store, &outward).await
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
