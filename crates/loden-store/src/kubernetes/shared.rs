//! What a handle and its watches know together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use loden_core::model::{Entry, Key, NodeName, Prefix};

use super::client::Client;
use super::node;
use super::object::{Kind, Meta};
use super::picture::Picture;
use crate::{Change, StoreError};

/// What the handle and its watches know together.
#[derive(Default)]
pub struct Shared {
    /// The podCIDRs of Nodes that were read whole, by uid: once set they do not change.
    cidrs: Mutex<BTreeMap<String, Vec<Prefix>>>,
    /// The revision at which a record was last seen to change, with a mark of what it said.
    stamps: Mutex<BTreeMap<Key, (u64, u64)>>,
    /// The node whose agent this is, as its lease said.
    own: Mutex<Option<NodeName>>,
}

impl Shared {
    /// What a Node's spec says, asked for once in its life; `None`: it is gone.
    pub async fn pod_cidrs(&self, client: &Client, meta: &Meta) -> Result<Option<Vec<Prefix>>, StoreError> {
        if let Some(known) = lock(&self.cidrs).get(&meta.uid) {
            return Ok(Some(known.clone()));
        }
        let object = client.get(Kind::Node, &meta.name).await.map_err(|fault| fault.at(&client.place))?;
        let Some(object) = object.filter(|object| object.metadata.uid == meta.uid) else { return Ok(None) };
        // One that cannot be read is as none: Kubernetes checks them.
        let cidrs = node::pod_cidrs(&object).unwrap_or_default();
        if !cidrs.is_empty() {
            lock(&self.cidrs).insert(meta.uid.clone(), cidrs.clone());
        }
        Ok(Some(cidrs))
    }

    /// This agent's node was heard of.
    pub fn set_own(&self, node: &NodeName) {
        *lock(&self.own) = Some(node.clone());
    }

    /// The node whose agent this is.
    pub fn own(&self) -> Option<NodeName> {
        lock(&self.own).clone()
    }

    /// A Node is gone.
    pub fn forget(&self, uid: &str) {
        lock(&self.cidrs).remove(uid);
    }

    /// Forgets what a new listing does not have.
    pub fn begin(&self, picture: &Picture) {
        let there: BTreeSet<Key> = picture.entries().map(|entry| entry.record.key()).collect();
        lock(&self.stamps).retain(|key, _| there.contains(key));
    }

    /// Gives a record the revision at which it was first seen to say what it says.
    pub fn stamp(&self, mut entry: Entry) -> Entry {
        let mut hasher = DefaultHasher::new();
        serde_json::to_string(&entry.record).unwrap_or_default().hash(&mut hasher);
        let mark = hasher.finish();
        let mut stamps = lock(&self.stamps);
        match stamps.get(&entry.record.key()) {
            Some((revision, known)) if *known == mark && *revision <= entry.revision => entry.revision = *revision,
            Some((revision, _)) if *revision > entry.revision => {}
            _ => drop(stamps.insert(entry.record.key(), (entry.revision, mark))),
        }
        entry
    }

    /// The same of a change.
    pub fn stamped(&self, change: Change) -> Change {
        match change {
            Change::Put(entry) => Change::Put(self.stamp(entry)),
            other => other,
        }
    }
}

/// The inside of a mutex.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No user of these can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
