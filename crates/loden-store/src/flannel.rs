//! The store in etcd as flannel uses it: flannel's own keys, with loden's records beside them under `loden/`, where flanneld does not
//! look.
//!
//! What stands there is read by [`Layout`], pure and in the core; what is to be written by [`plan`]. Here they meet etcd: a plan is
//! one transaction that asks for all that it was made from, and is made anew from what is there then when that is no longer so. What the
//! watch brings keeps the picture that plans are made from, so that a write seldom reads everything.

mod carry;
mod plan;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::KeyValue;
use loden_core::config::store::EtcdAddress;
use loden_core::dialect::flannel::Layout;
use loden_core::dialect::flannel::layout::{Pair, RawChange, Told};
use loden_core::model::{Block, Entry, Family, Key, Record};

use crate::etcd::Etcd;
use crate::etcd::fault::Fault;
use crate::etcd::layout::{signed, unsigned};
use crate::etcd::members::Members;
use crate::etcd::watcher::{self, Event, Subject};
use crate::etcd::{range, tenure};
use crate::{Change, Expect, Listing, Store, StoreError, Term, Watch, compare};
use carry::{Carried, lease_of};
use plan::{Bound, Obstacle, Plan};

/// Where the store's identity stands: flanneld does not look there.
const ID: &str = "loden/id";
/// How often a write is planned anew whose ground another has moved.
const TRIES: usize = 20;

/// The store.
#[derive(Debug)]
pub struct Flannel {
    members: Arc<Members>,
    prefix: String,
    nat_outgoing: bool,
    term: Term,
    /// loden's own records, where they hang on nothing of flannel's.
    own: Etcd,
    picture: Arc<Mutex<Picture>>,
}

/// What was last read.
#[derive(Debug, Default)]
struct Picture {
    /// With all that was written and heard since; `None`: nothing yet, or it has proved to be old.
    layout: Option<Layout>,
    /// The last listing as it was, with its revision, for the watch that follows it.
    listed: Option<(u64, Layout)>,
}

/// Everything at one revision.
struct Read {
    layout: Layout,
    revision: u64,
    id: Option<String>,
    /// Whether there is nothing at all yet.
    is_bare: bool,
}

/// What a call wants to be so.
struct Wish<'a> {
    key: &'a Key,
    /// `None`: nothing is to be there.
    record: Option<&'a Record>,
    expect: Expect,
    ttl: Option<Duration>,
}

impl Flannel {
    /// The store at an address. Nothing is sent yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when a file that the address names cannot be read.
    pub fn new(address: &EtcdAddress) -> Result<Self, StoreError> {
        let members = Arc::new(Members::new("flannel", address)?);
        Ok(Self {
            own: Etcd::under(members.clone(), &format!("{}/loden", address.prefix)),
            members,
            prefix: address.prefix.clone(),
            nat_outgoing: address.ip_masq,
            term: Term {
                ttl: Duration::from_secs(address.term_s.into()),
                margin: Duration::from_secs(u64::from(address.renew_margin_min) * 60),
            },
            picture: Arc::default(),
        })
    }

    fn error(&self, fault: Fault) -> StoreError {
        fault.into_error(self.members.place())
    }

    /// The full key.
    fn full(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }

    fn picture(&self) -> MutexGuard<'_, Picture> {
        lock(&self.picture)
    }

    /// Everything as it was at a revision (0: now).
    async fn read(&self, revision: u64) -> Result<Read, StoreError> {
        let root = self.full("");
        let read = match revision {
            0 => range::all(&self.members, &root).await,
            revision => range::all_at(&self.members, &root, signed(revision)).await,
        };
        let (mut kvs, at) = read.map_err(|fault| self.error(fault))?;
        let id_key = self.full(ID);
        let id = kvs.iter().find(|kv| kv.key() == id_key.as_bytes());
        let id = id.map(|kv| String::from_utf8_lossy(kv.value()).into_owned());
        kvs.retain(|kv| kv.key() != id_key.as_bytes());
        let mut layout = Layout::new(&self.prefix, self.nat_outgoing);
        layout.apply(kvs.iter().map(|kv| raw_change(&root, &Event { kv, is_put: true })));
        Ok(Read { layout, revision: unsigned(at), id, is_bare: kvs.is_empty() })
    }

    /// Makes the picture anew.
    async fn refresh(&self) -> Result<(), StoreError> {
        let read = self.read(0).await?;
        self.picture().layout = Some(read.layout);
        Ok(())
    }

    /// Makes a wish so; answers what is there then.
    async fn change(&self, wish: &Wish<'_>) -> Result<Option<Entry>, StoreError> {
        let mut was_repeated = false;
        for tries in 0..TRIES {
            let is_missing = self.picture().layout.is_none();
            if is_missing {
                self.refresh().await?;
            }
            let is_fresh = is_missing || tries > 0;
            let (plan, found) = match self.plan(wish) {
                Ok(planned) => planned,
                // It may be this very wish, made so without an answer, that now stands in its own way.
                Err(StoreError::Conflict { found, .. })
                    if was_repeated && found.as_ref().map(|found| &found.record) == wish.record =>
                {
                    return Ok(found.map(|found| *found));
                }
                Err(error) if is_fresh => return Err(error),
                Err(_) => {
                    self.picture().layout = None;
                    continue;
                }
            };
            match carry::carry_out(&self.members, &self.prefix, &plan, wish.ttl)
                .await
                .map_err(|fault| self.error(fault))?
            {
                Carried::Out { .. } if plan.is_empty() => return Ok(found),
                Carried::Out { revision, lease } => {
                    for unneeded in &plan.unneeded {
                        tenure::give_back(&self.members, *unneeded).await;
                    }
                    self.note(&plan, unsigned(revision), lease);
                    if let (None, Some(Record::Block(block))) = (&found, wish.record) {
                        self.check_alone(block, unsigned(revision)).await?;
                    }
                    return Ok(wish.record.map(|record| self.made(record, found.as_ref(), unsigned(revision))));
                }
                Carried::NotOut { was_repeated: repeated, found } => {
                    was_repeated |= repeated;
                    let mut picture = self.picture();
                    match (&mut picture.layout, found, &plan.free) {
                        // A claim has asked for all that there can be of its block.
                        (Some(layout), Some(found), Some(_)) => drop(layout.apply(found)),
                        // Else there may be more to it than the plan knew of.
                        _ => picture.layout = None,
                    }
                }
            }
        }
        let cause = format!("{} hangs on what others kept writing: it was tried {TRIES} times", wish.key);
        Err(StoreError::Unavailable { place: self.members.place().to_owned(), cause })
    }

    /// What is to be done for a wish, going by the picture, and what is there now.
    fn plan(&self, wish: &Wish<'_>) -> Result<(Plan, Option<Entry>), StoreError> {
        let picture = self.picture();
        let Some(layout) = &picture.layout else {
            return Err(StoreError::Unavailable {
                place: self.members.place().to_owned(),
                cause: "it was not read yet".to_owned(),
            });
        };
        let found = layout.entry(wish.key);
        compare::check(wish.key, wish.expect, found)?;
        let planned = match wish.record {
            Some(record) => plan::put(layout, record, wish.ttl.is_some(), self.nat_outgoing),
            None => plan::delete(layout, wish.key),
        };
        match planned {
            Ok(plan) => Ok((plan, found.cloned())),
            Err(Obstacle::Taken) => Err(StoreError::Conflict { key: wish.key.clone(), found: None }),
            Err(Obstacle::Unsayable(cause)) => Err(StoreError::Unreadable { key: wish.key.to_string(), cause }),
        }
    }

    /// Puts what a plan wrote into the picture.
    fn note(&self, plan: &Plan, revision: u64, lease: i64) {
        let mut picture = self.picture();
        let Some(layout) = &mut picture.layout else { return };
        let put = |(key, (value, bound)): (&String, &(Vec<u8>, Bound))| {
            RawChange::Put(Pair {
                key: key.clone(),
                value: value.clone(),
                created: layout.pair(key).map_or(revision, |former| former.created),
                revision,
                lease: lease_of(*bound, lease),
            })
        };
        let puts: Vec<RawChange> = plan.puts.iter().map(put).collect();
        let deletes = plan.deletes.iter().map(|key| RawChange::Delete { key: key.clone(), revision });
        layout.apply(puts.into_iter().chain(deletes));
    }

    /// The record as it is listed now that it was written.
    fn made(&self, record: &Record, found: Option<&Entry>, revision: u64) -> Entry {
        let picture = self.picture();
        let entry = picture.layout.as_ref().and_then(|layout| layout.entry(&record.key()));
        entry.filter(|entry| entry.revision == revision).cloned().unwrap_or_else(|| Entry {
            record: record.clone(),
            created: found.map_or(revision, |found| found.created),
            revision,
        })
    }

    /// A subnet for IPv6 stands in the middle of flannel's keys, and no transaction can ask whether it is free: it is looked at
    /// afterwards, and given back when a node of flannel's was quicker.
    async fn check_alone(&self, block: &Block, revision: u64) -> Result<(), StoreError> {
        if block.cidr.family() == Family::V4 {
            return Ok(());
        }
        self.refresh().await?;
        let key = Key::Block(block.cidr);
        let is_shared = self.picture().layout.as_ref().is_some_and(|layout| plan::is_shared(layout, block));
        if !is_shared {
            return Ok(());
        }
        let wish = Wish { key: &key, record: None, expect: Expect::Revision(revision), ttl: None };
        Box::pin(self.change(&wish)).await?;
        Err(StoreError::Conflict { key, found: None })
    }
}

#[async_trait]
impl Store for Flannel {
    async fn list(&self) -> Result<Listing, StoreError> {
        loop {
            let read = self.read(0).await?;
            let Some(id) = read.id else {
                self.own.make_identity().await?;
                continue;
            };
            if let (Err(cause), false) = (read.layout.conf(), read.is_bare) {
                // Without it there is no pool and no block: that is no order to clear the kernel.
                return Err(StoreError::Unreadable { key: self.full("config"), cause: cause.to_owned() });
            }
            let listing = Listing {
                entries: read.layout.entries().cloned().collect(),
                revision: read.revision,
                id,
                flaws: read.layout.flaws(),
            };
            *self.picture() = Picture { listed: Some((read.revision, read.layout.clone())), layout: Some(read.layout) };
            return Ok(listing);
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        if let Key::Lease(_) | Key::Node(_) = key {
            let found = self.own.get(key).await?;
            if found.is_some() || matches!(key, Key::Lease(_)) {
                return Ok(found);
            }
        }
        self.refresh().await?;
        Ok(self.picture().layout.as_ref().and_then(|layout| layout.entry(key)).cloned())
    }

    async fn put(&self, record: Record, expect: Expect, ttl: Option<Duration>) -> Result<Entry, StoreError> {
        if let Record::Lease(_) = record {
            return self.own.put(record, expect, ttl).await;
        }
        let key = record.key();
        let made = self.change(&Wish { key: &key, record: Some(&record), expect, ttl }).await?;
        made.ok_or(StoreError::Conflict { key, found: None })
    }

    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        if let Key::Lease(_) = key {
            return self.own.delete(key, expect).await;
        }
        self.change(&Wish { key, record: None, expect, ttl: None }).await.map(drop)
    }

    async fn renew(&self, key: &Key, revision: u64, ttl: Duration) -> Result<(), StoreError> {
        self.own.renew(key, revision, ttl).await
    }

    async fn watch(&self, after: u64) -> Result<Watch, StoreError> {
        let listed = self.picture().listed.take().filter(|(revision, _)| *revision == after);
        let mut layout = match listed {
            Some((_, layout)) => layout,
            None => self.read(after).await?.layout,
        };
        let (root, picture) = (self.full(""), self.picture.clone());
        let read = {
            let root = root.clone();
            move |events: &[Event<'_>]| {
                let revision = |event: &Event<'_>| unsigned(event.kv.mod_revision());
                let mut changes = Vec::new();
                // What was written at once is read at once, and what was written later later.
                for events in events.chunk_by(|a, b| revision(a) == revision(b)) {
                    let raw: Vec<RawChange> = events.iter().map(|event| raw_change(&root, event)).collect();
                    if let Some(layout) = &mut lock(&picture).layout {
                        layout.apply(raw.clone());
                    }
                    let at = events.first().map_or(0, revision);
                    changes.extend(layout.apply(raw).into_iter().map(|told| change(told, at)));
                }
                changes
            }
        };
        watcher::watch(self.members.clone(), Subject { root, id: self.full(ID), read }, after).await
    }

    fn term(&self) -> Option<Term> {
        Some(self.term)
    }
}

fn lock(picture: &Mutex<Picture>) -> MutexGuard<'_, Picture> {
    // No user of the picture can panic half-way through a change.
    picture.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event as the core reads it.
fn raw_change(root: &str, event: &Event<'_>) -> RawChange {
    let kv = event.kv;
    match event.is_put {
        true => RawChange::Put(pair(root, kv)),
        false => RawChange::Delete { key: below(root, kv), revision: unsigned(kv.mod_revision()) },
    }
}

fn pair(root: &str, kv: &KeyValue) -> Pair {
    Pair {
        key: below(root, kv),
        value: kv.value().to_vec(),
        created: unsigned(kv.create_revision()),
        revision: unsigned(kv.mod_revision()),
        lease: kv.lease(),
    }
}

/// The key behind the prefix.
fn below(root: &str, kv: &KeyValue) -> String {
    let key = String::from_utf8_lossy(kv.key());
    key.strip_prefix(root).unwrap_or(&key).to_owned()
}

fn change(told: Told, revision: u64) -> Change {
    match told {
        Told::Put(entry) => Change::Put(entry),
        Told::Delete(key) => Change::Delete { key, revision },
        Told::Flaw { place, cause } => Change::Flaw { place, cause, revision },
    }
}
