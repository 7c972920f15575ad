//! A store that can be away, lend, and listen to what it is told; and an agent without a kernel's thread.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use loden_agent::cluster::{Cluster, ClusterHealth, Identity, News, Opener, Opening, Outward};
use loden_agent::status;
use loden_core::model::{Entry, Key, NodeName, Prefix, Record};
use loden_linux::run_dir::RunDir;
use loden_store::memory::Memory;
use loden_store::{Expect, Listing, Readiness, Store, StoreError, Term, Watch};
use loden_testkit::FakeKernel;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::cluster::reconciler;

/// The store.
#[derive(Debug, Clone)]
pub struct Double {
    pub memory: Memory,
    pub id: String,
    pub term: Option<Term>,
    pub away: watch::Sender<bool>,
    /// Says nothing instead of failing.
    pub silent: Arc<AtomicBool>,
    pub cannot_announce: Arc<AtomicBool>,
    pub announced: Arc<Mutex<Vec<Readiness>>>,
}

impl Double {
    pub fn new() -> Self {
        Self {
            memory: Memory::new(),
            id: "one".to_owned(),
            term: None,
            away: watch::channel(false).0,
            silent: Arc::default(),
            cannot_announce: Arc::default(),
            announced: Arc::default(),
        }
    }

    pub async fn with(records: Vec<Entry>) -> Self {
        let double = Self::new();
        for entry in records {
            double.memory.put(entry.record, Expect::Any, None).await.expect("written");
        }
        double
    }

    pub fn set_away(&self, is_away: bool) {
        self.away.send_replace(is_away);
    }

    pub async fn record(&self, key: &str) -> Option<Record> {
        let all = self.memory.list().await.expect("listed").entries;
        all.into_iter().find(|entry| entry.record.key().to_string() == key).map(|entry| entry.record)
    }

    /// Until it is so.
    pub async fn until(&self, what: &str, is_so: impl Fn(&[Record]) -> bool) {
        for _ in 0..1000 {
            let all = self.memory.list().await.expect("listed").entries;
            let all: Vec<Record> = all.into_iter().map(|entry| entry.record).collect();
            if is_so(&all) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not come to pass: {:#?}", self.memory.list().await);
    }

    async fn is_there(&self) -> Result<(), StoreError> {
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if *self.away.borrow() { Err(gone()) } else { Ok(()) }
    }
}

fn gone() -> StoreError {
    StoreError::Unavailable { place: "the double".to_owned(), cause: "it is away".to_owned() }
}

#[async_trait]
impl Store for Double {
    async fn list(&self) -> Result<Listing, StoreError> {
        self.is_there().await?;
        self.memory.list().await.map(|listing| Listing { id: self.id.clone(), ..listing })
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.is_there().await?;
        self.memory.get(key).await
    }

    async fn put(&self, record: Record, expect: Expect, ttl: Option<Duration>) -> Result<Entry, StoreError> {
        self.is_there().await?;
        self.memory.put(record, expect, ttl).await
    }

    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        self.is_there().await?;
        self.memory.delete(key, expect).await
    }

    async fn renew(&self, key: &Key, revision: u64, ttl: Duration) -> Result<(), StoreError> {
        self.is_there().await?;
        self.memory.renew(key, revision, ttl).await
    }

    async fn watch(&self, after: u64) -> Result<Watch, StoreError> {
        self.is_there().await?;
        let mut inner = self.memory.watch(after).await?;
        let (sender, watch) = Watch::new("the double");
        let mut away = self.away.subscribe();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    _ = away.wait_for(|is_away| *is_away) => Err(gone()),
                    change = inner.next() => change,
                };
                let is_over = next.is_err();
                if sender.send(next).is_err() || is_over {
                    return;
                }
            }
        });
        Ok(watch)
    }

    fn term(&self) -> Option<Term> {
        self.term
    }

    async fn announce(&self, _node: &NodeName, readiness: &Readiness) -> Result<(), StoreError> {
        self.is_there().await?;
        if self.cannot_announce.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable { place: "the condition".to_owned(), cause: "forbidden".to_owned() });
        }
        self.announced.lock().expect("no panic").push(readiness.clone());
        Ok(())
    }
}

/// An agent on the fake kernel; dropped, it is killed.
pub struct Agent {
    pub reconciler: loden_agent::reconcile::Reconciler<FakeKernel>,
    pub news: mpsc::UnboundedReceiver<News>,
    pub outward: watch::Sender<Outward>,
    pub health: watch::Receiver<ClusterHealth>,
    /// What came in, by name.
    pub heard: Vec<String>,
    pub terms: Option<std::collections::BTreeMap<loden_core::model::Prefix, u64>>,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    pub fn start(dir: &Path, store: &Double, kernel: FakeKernel) -> Self {
        Self::start_with(dir, store, kernel, Vec::new())
    }

    /// The same; these blocks are asked for again.
    pub fn start_with(dir: &Path, store: &Double, kernel: FakeKernel, preferred: Vec<Prefix>) -> Self {
        let store = store.clone();
        let open = Box::new(move || -> Opening {
            let store = store.clone();
            Box::pin(async move {
                store.is_there().await?;
                Ok(Arc::new(store) as Arc<dyn Store>)
            })
        });
        Self::start_on(dir, open, kernel, preferred)
    }

    /// The same on any store.
    pub fn start_on(dir: &Path, open: Opener, kernel: FakeKernel, preferred: Vec<Prefix>) -> Self {
        let identity = Identity {
            preferred,
            announces: true,
            node: "n0".parse().expect("name"),
            uid: "uid-n0".parse().expect("uid"),
            instance: "now".to_owned(),
            labels: Default::default(),
            state_dir: dir.to_owned(),
            run_dir: RunDir::new(dir.join("run")),
        };
        let (outward, seen) = watch::channel(Outward::default());
        let (told, health) = watch::channel(ClusterHealth::default());
        let (sender, news) = mpsc::unbounded_channel();
        let deliver = Box::new(move |news| drop(sender.send(news)));
        let task = tokio::spawn(Cluster::new(open, identity, seen, told, deliver).run());
        let (heard, terms) = (Vec::new(), None);
        Self { reconciler: reconciler(kernel), news, outward, health, heard, terms, task }
    }

    /// Takes in what has come, makes the kernel follow and tells what has been reached.
    pub fn turn(&mut self) {
        while let Ok(news) = self.news.try_recv() {
            match &news {
                News::Listing(_) => self.heard.push("listing".to_owned()),
                News::Remembered(_) => self.heard.push("remembered".to_owned()),
                News::Changes(changes) => self.heard.extend(changes.iter().map(|change| format!("{change:?}"))),
                News::Terms(_) => self.heard.push("terms".to_owned()),
                News::Event(object, text) => self.heard.push(format!("event {object}: {text}")),
            }
            match news {
                News::Listing(entries) => self.reconciler.listing(&entries),
                News::Remembered(entries) => self.reconciler.remembered(&entries),
                News::Changes(changes) => changes.iter().for_each(|change| self.reconciler.record(change)),
                News::Terms(terms) => self.terms = terms,
                News::Event(..) => {}
            }
        }
        self.reconciler.retry();
        self.reconciler.round();
        let view = self.reconciler.view();
        let (facts, used) = (self.reconciler.facts().clone(), status::used_of_pools(view));
        let underlay = view.local.underlay.as_ref().map(|underlay| underlay.addresses);
        self.outward.send_if_modified(|was| {
            let now = Outward { facts, used, underlay, ..was.clone() };
            let is_new = *was != now;
            *was = now;
            is_new
        });
    }

    /// Turns until it is so.
    pub async fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        for _ in 0..1500 {
            self.turn();
            if is_so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not come to pass: {:?}\n{:#?}", self.health.borrow(), self.heard);
    }

    /// Turns until the store's side is up and nothing comes any more.
    pub async fn settle(&mut self) {
        let mut quiet = 0;
        self.until("rest", |agent| {
            let before = agent.heard.len();
            agent.turn();
            let is_quiet = agent.heard.len() == before && agent.health.borrow().up && agent.health.borrow().leased;
            quiet = if is_quiet { quiet + 1 } else { 0 };
            quiet > 10
        })
        .await;
    }

    pub fn problems(&self) -> String {
        let health = self.health.borrow();
        health.problems.iter().chain(&health.strangers).map(|problem| format!("{problem}\n")).collect()
    }
}
