//! The store in this process's memory: for tests, and to say what the trait means.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use loden_core::model::{Entry, Key, Record};
use tokio::time::Instant;

use crate::watch::Sender;
use crate::{Change, Expect, HISTORY, Listing, Store, StoreError, Watch, compare};

/// The store. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Key, Entry>,
    expiries: BTreeMap<Key, Instant>,
    history: VecDeque<Change>,
    revision: u64,
    watchers: Vec<Sender>,
}

impl Memory {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No user of the state can panic half-way through a change.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(Instant::now());
        state
    }

    /// Ends the record when its time is over, unless it was renewed.
    fn expire_at(&self, at: Instant) {
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            if let Some(state) = weak.upgrade() {
                state.lock().unwrap_or_else(PoisonError::into_inner).expire(Instant::now());
            }
        });
    }
}

impl State {
    fn expire(&mut self, now: Instant) {
        let over: Vec<Key> = self.expiries.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in over {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: Key) {
        self.expiries.remove(&key);
        if self.entries.remove(&key).is_some() {
            self.revision += 1;
            let revision = self.revision;
            self.tell(Change::Delete { key, revision });
        }
    }

    fn tell(&mut self, change: Change) {
        self.watchers.retain(|watcher| watcher.send(Ok(change.clone())).is_ok());
        self.history.push_back(change);
        if self.history.len() as u64 > HISTORY {
            self.history.pop_front();
        }
    }
}

#[async_trait]
impl Store for Memory {
    async fn list(&self) -> Result<Listing, StoreError> {
        let state = self.state();
        Ok(Listing {
            entries: state.entries.values().cloned().collect(),
            revision: state.revision,
            id: "memory".to_owned(),
            flaws: BTreeMap::new(),
        })
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        Ok(self.state().entries.get(key).cloned())
    }

    async fn put(&self, record: Record, expect: Expect, ttl: Option<Duration>) -> Result<Entry, StoreError> {
        let key = record.key();
        let expiry = ttl.map(|ttl| Instant::now() + ttl);
        let entry = {
            let mut state = self.state();
            let found = state.entries.get(&key);
            compare::check(&key, expect, found)?;
            let entry = match found {
                Some(found) if found.record == record => found.clone(),
                found => {
                    let created = found.map(|found| found.created);
                    state.revision += 1;
                    let revision = state.revision;
                    let entry = Entry { record, created: created.unwrap_or(revision), revision };
                    state.entries.insert(key.clone(), entry.clone());
                    state.tell(Change::Put(entry.clone()));
                    entry
                }
            };
            match expiry {
                Some(at) => drop(state.expiries.insert(key, at)),
                None => drop(state.expiries.remove(&key)),
            }
            entry
        };
        if let Some(at) = expiry {
            self.expire_at(at);
        }
        Ok(entry)
    }

    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        let mut state = self.state();
        compare::check(key, expect, state.entries.get(key))?;
        state.remove(key.clone());
        Ok(())
    }

    async fn renew(&self, key: &Key, revision: u64, ttl: Duration) -> Result<(), StoreError> {
        let at = Instant::now() + ttl;
        {
            let mut state = self.state();
            compare::check(key, Expect::Revision(revision), state.entries.get(key))?;
            state.expiries.insert(key.clone(), at);
        }
        self.expire_at(at);
        Ok(())
    }

    async fn watch(&self, after: u64) -> Result<Watch, StoreError> {
        let mut state = self.state();
        let oldest = state.history.front().map_or(state.revision + 1, Change::revision);
        if after + 1 < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let (sender, watch) = Watch::new("memory");
        for change in state.history.iter().filter(|change| change.revision() > after) {
            // The receiver is held here: it cannot be gone.
            let _ = sender.send(Ok(change.clone()));
        }
        state.watchers.push(sender);
        Ok(watch)
    }
}
