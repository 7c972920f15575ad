//! The store in etcd v3: loden's own records under one prefix.
//!
//! A record is a key, a write one transaction, a revision etcd's own. Every write says which revision it replaces, also one that may
//! replace anything: a member that fell silent may carry out much later what it was sent, and that must not undo what is newer. (A
//! record that was made and removed meanwhile can come back so; its owner sees it.) What changes how long a record stays is a write as well and makes a
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

/// How often a write is tried anew that may replace anything and was overtaken, or whose lease ran out meanwhile.
const TRIES: usize = 20;

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

    /// What is to be replaced: what is there, if that is what was expected.
    async fn expected(&self, key: &Key, expect: Expect) -> Result<Option<KeyValue>, StoreError> {
        let found = self.read(key).await?;
        if expect != Expect::Any {
            // What cannot be read can still be overwritten and removed by whoever wants just that.
            compare::check(key, expect, self.entry(found.as_ref())?.as_ref())?;
        }
        Ok(found)
    }

    async fn tenure(&self, found: Option<&KeyValue>, ttl: Option<Duration>) -> Result<Tenure, StoreError> {
        match ttl {
            None => Ok(Tenure::FOR_EVER),
            Some(ttl) => Tenure::renewed(&self.members, found, ttl).await.map_err(|fault| self.error(fault)),
        }
    }

    fn conflict(&self, key: &Key, found: Option<&KeyValue>) -> StoreError {
        match self.entry(found) {
            Ok(found) => StoreError::Conflict { key: key.clone(), found: found.map(Box::new) },
            Err(error) => error,
        }
    }

    fn overtaken(&self, key: &Key) -> StoreError {
        let cause = format!("{key} was written by others {TRIES} times meanwhile; it is tried again");
        StoreError::Unavailable { place: self.members.place().to_owned(), cause }
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
        let place = self.layout.place(&key);
        let value = serde_json::to_vec(&record)
            .map_err(|error| StoreError::Unreadable { key: key.to_string(), cause: error.to_string() })?;
        for _ in 0..TRIES {
            let found = match expect {
                // What is to be new needs no look: the transaction looks.
                Expect::Absent => None,
                _ => self.expected(&key, expect).await?,
            };
            let tenure = self.tenure(found.as_ref(), ttl).await?;
            if let Some(found) = found.as_ref().filter(|found| found.value() == value && found.lease() == tenure.lease)
            {
                return Ok(entry_of(record, found));
            }
            let replaced = found.map_or(0, |found| unsigned(found.mod_revision()));
            match self.commit(transaction::put(&place, &value, tenure.lease, replaced)).await {
                Ok((Outcome::Written { revision, former }, _)) => {
                    let revision = unsigned(revision);
                    let created = former.as_ref().map_or(revision, |former| unsigned(former.create_revision()));
                    if let Some(former) = former.filter(|former| former.lease() != tenure.lease) {
                        tenure::give_back(&self.members, former.lease()).await;
                    }
                    return Ok(Entry { record, created, revision });
                }
                Ok((Outcome::Unexpected(Some(found)), true)) if found.value() == value => {
                    return Ok(entry_of(record, &found));
                }
                Ok((Outcome::Unexpected(found), _)) => {
                    if tenure.is_new {
                        tenure::give_back(&self.members, tenure.lease).await;
                    }
                    if expect != Expect::Any {
                        return Err(self.conflict(&key, found.as_ref()));
                    }
                }
                // It ran out meanwhile, and the record with it.
                Err(fault) if fault.sort == Sort::NoLease => {}
                // The record may have been written: a new lease is left to run out.
                Err(fault) => return Err(self.error(fault)),
            }
        }
        Err(self.overtaken(&key))
    }

    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        for _ in 0..TRIES {
            let Some(found) = self.expected(key, expect).await? else { return Ok(()) };
            let replaced = unsigned(found.mod_revision());
            let deleted = self.commit(transaction::delete(&self.layout.place(key), replaced)).await;
            match deleted.map_err(|fault| self.error(fault))? {
                (Outcome::Written { former, .. }, _) => {
                    tenure::give_back(&self.members, former.map_or(0, |former| former.lease())).await;
                    return Ok(());
                }
                (Outcome::Unexpected(None), true) => return Ok(()),
                (Outcome::Unexpected(found), _) if expect != Expect::Any => {
                    return Err(self.conflict(key, found.as_ref()));
                }
                (Outcome::Unexpected(_), _) => {}
            }
        }
        Err(self.overtaken(key))
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

/// A record that is there already.
fn entry_of(record: Record, found: &KeyValue) -> Entry {
    let (created, revision) = (unsigned(found.create_revision()), unsigned(found.mod_revision()));
    Entry { record, created, revision }
}
