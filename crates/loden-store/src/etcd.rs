//! The store in etcd v3: loden's own records under one prefix.
//!
//! A record is a key, a write one transaction, a revision etcd's own. What changes how long a record stays is a write as well and makes a
//! revision: with another time to live than before, or with none. One prefix holds one cluster's records; what other prefixes are
//! written raises the revision, and nothing else.

pub(crate) mod fault;
pub(crate) mod layout;
pub(crate) mod members;
pub(crate) mod range;
pub(crate) mod tenure;
mod transaction;
pub(crate) mod watcher;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp};
use loden_core::config::store::EtcdAddress;
use loden_core::model::{Entry, Key, Record};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::{Expect, Listing, Store, StoreError, Watch, compare};
use fault::{Fault, Sort};
use layout::{Layout, unsigned};
use members::Members;
use tenure::Tenure;
use transaction::Outcome;
use watcher::{Event, Subject};

/// How often a write is tried anew whose lease ran out meanwhile.
const TRIES: usize = 3;

/// The store.
#[derive(Debug)]
pub struct Etcd {
    members: Arc<Members>,
    layout: Layout,
}

impl Etcd {
    /// The store at an address. Nothing is sent yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when a file that the address names cannot be read.
    pub fn new(address: &EtcdAddress) -> Result<Self, StoreError> {
        Ok(Self::under(Arc::new(Members::new("etcd", address)?), &address.prefix))
    }

    /// loden's records under a prefix.
    pub(crate) fn under(members: Arc<Members>, prefix: &str) -> Self {
        Self { members, layout: Layout::new(prefix) }
    }

    fn error(&self, fault: Fault) -> StoreError {
        fault.into_error(self.members.place())
    }

    async fn read(&self, key: &Key) -> Result<Option<KeyValue>, StoreError> {
        range::one(&self.members, &self.layout.place(key)).await.map_err(|fault| self.error(fault))
    }

    /// The record that stands at a place.
    fn entry(&self, kv: Option<&KeyValue>) -> Result<Option<Entry>, StoreError> {
        let entry = kv.map(|kv| self.layout.read(kv)).transpose();
        entry.map_err(|(key, cause)| StoreError::Unreadable { key, cause })
    }

    /// Makes the store's identity, unless another does so first.
    pub(crate) async fn make_identity(&self) -> Result<(), StoreError> {
        let mut bytes = [0; 16];
        getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|error| StoreError::Unavailable {
            place: "the system's random numbers".to_owned(),
            cause: error.to_string(),
        })?;
        let (place, id) = (self.layout.id(), format!("{:032x}", u128::from_be_bytes(bytes)));
        let made = Txn::new().when([Compare::version(place.as_str(), CompareOp::Equal, 0)]).and_then([TxnOp::put(
            place.as_str(),
            id,
            None,
        )]);
        let made = self.members.call(|client| {
            let made = made.clone();
            async move { Ok(client.kv_client().txn(made).await?) }
        });
        made.await.map(drop).map_err(|fault| self.error(fault))
    }

    /// One transaction. Where it was sent before without an answer, it may be that very one which now stands in its own way:
    /// the caller is told.
    async fn commit(&self, transaction: Txn) -> Result<(Outcome, bool), Fault> {
        let answer = self.members.call(|client| {
            let transaction = transaction.clone();
            async move { Ok(client.kv_client().txn(transaction).await?) }
        });
        let answer = answer.await?;
        Ok((transaction::outcome(&answer.value)?, answer.was_repeated))
    }

    /// Puts a value where it is not there already.
    async fn write(&self, place: &str, value: &[u8], lease: i64, expect: Expect) -> Result<Outcome, Fault> {
        let (outcome, was_repeated) = self.commit(transaction::put(place, value, lease, expect)).await?;
        match (outcome, expect) {
            (Outcome::Unexpected(Some(found)), Expect::Revision(revision))
                if unsigned(found.mod_revision()) == revision =>
            {
                // It says so already; only what it is bound to may be another.
                if found.lease() == lease {
                    return Ok(Outcome::Unchanged(found));
                }
                Ok(self.commit(transaction::bind(place, value, lease, revision)).await?.0)
            }
            (Outcome::Unexpected(Some(found)), _) if was_repeated && found.value() == value => {
                Ok(Outcome::Unchanged(found))
            }
            (outcome, _) => Ok(outcome),
        }
    }

    /// What a record that is to have a time to live is bound to, unless what is expected is not so.
    async fn tenure(&self, key: &Key, expect: Expect, ttl: Option<Duration>) -> Result<Tenure, StoreError> {
        let Some(ttl) = ttl else { return Ok(Tenure::FOR_EVER) };
        let found = self.read(key).await?;
        if expect != Expect::Any {
            // Another's lease must not be renewed by whoever tries to take it.
            compare::check(key, expect, self.entry(found.as_ref())?.as_ref())?;
        }
        Tenure::renewed(&self.members, found.as_ref(), ttl).await.map_err(|fault| self.error(fault))
    }
}

#[async_trait]
impl Store for Etcd {
    async fn list(&self) -> Result<Listing, StoreError> {
        loop {
            let (kvs, revision) =
                range::all(&self.members, self.layout.root()).await.map_err(|fault| self.error(fault))?;
            let mut listing = Listing { revision: unsigned(revision), ..Listing::default() };
            for kv in &kvs {
                if kv.key() == self.layout.id().as_bytes() {
                    listing.id = String::from_utf8_lossy(kv.value()).into_owned();
                    continue;
                }
                match self.layout.read(kv) {
                    Ok(entry) => listing.entries.push(entry),
                    Err((place, cause)) => drop(listing.flaws.insert(place, cause)),
                }
            }
            if !listing.id.is_empty() {
                return Ok(listing);
            }
            self.make_identity().await?;
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.entry(self.read(key).await?.as_ref())
    }

    async fn put(&self, record: Record, expect: Expect, ttl: Option<Duration>) -> Result<Entry, StoreError> {
        let key = record.key();
        let value = serde_json::to_vec(&record)
            .map_err(|error| StoreError::Unreadable { key: key.to_string(), cause: error.to_string() })?;
        let mut tries = 0;
        let (tenure, outcome) = loop {
            tries += 1;
            let tenure = self.tenure(&key, expect, ttl).await?;
            match self.write(&self.layout.place(&key), &value, tenure.lease, expect).await {
                Ok(outcome) => break (tenure, outcome),
                Err(fault) if fault.sort == Sort::NoLease && tries < TRIES => {}
                // The record may have been written: a new lease is left to run out.
                Err(fault) => return Err(self.error(fault)),
            }
        };
        match outcome {
            Outcome::Written { revision, former } => {
                let revision = unsigned(revision);
                let created = former.as_ref().map_or(revision, |former| unsigned(former.create_revision()));
                if let Some(former) = former.filter(|former| former.lease() != tenure.lease) {
                    tenure::give_back(&self.members, former.lease()).await;
                }
                Ok(Entry { record, created, revision })
            }
            Outcome::Unchanged(found) => {
                let (created, revision) = (unsigned(found.create_revision()), unsigned(found.mod_revision()));
                Ok(Entry { record, created, revision })
            }
            Outcome::Unexpected(found) => {
                if tenure.is_new {
                    tenure::give_back(&self.members, tenure.lease).await;
                }
                Err(StoreError::Conflict { key, found: self.entry(found.as_ref())?.map(Box::new) })
            }
        }
    }

    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        let deleted = self.commit(transaction::delete(&self.layout.place(key), expect)).await;
        match deleted.map_err(|fault| self.error(fault))? {
            (Outcome::Written { former, .. }, _) => {
                tenure::give_back(&self.members, former.map_or(0, |former| former.lease())).await;
                Ok(())
            }
            (Outcome::Unexpected(None), true) => Ok(()),
            (Outcome::Unexpected(found), _) => {
                let found = self.entry(found.as_ref())?.map(Box::new);
                Err(StoreError::Conflict { key: key.clone(), found })
            }
            (Outcome::Unchanged(_), _) => Ok(()),
        }
    }

    async fn renew(&self, key: &Key, revision: u64, _ttl: Duration) -> Result<(), StoreError> {
        let found = self.read(key).await?;
        compare::check(key, Expect::Revision(revision), self.entry(found.as_ref())?.as_ref())?;
        // What has no lease stays for ever.
        let Some(lease) = found.map(|found| found.lease()).filter(|lease| *lease != 0) else { return Ok(()) };
        match tenure::renew(&self.members, lease).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::Conflict { key: key.clone(), found: None }),
            Err(fault) => Err(self.error(fault)),
        }
    }

    async fn watch(&self, after: u64) -> Result<Watch, StoreError> {
        let layout = self.layout.clone();
        let subject = Subject {
            root: layout.root().to_owned(),
            id: layout.id(),
            read: move |events: &[Event<'_>]| events.iter().map(|event| layout.change(event)).collect(),
        };
        watcher::watch(self.members.clone(), subject, after).await
    }
}
