//! What stands under one prefix of etcd in a network of flannel's: flannel's keys and loden's beside them, as records and flaws.
//!
//! `config` is net-conf.json, `subnets/…` the leases. loden's own records stand under `loden/`, where flanneld does not look:
//! `loden/block/…` says whose a block is, and its key under `subnets/` is only there for flannel's eyes (its twin; [`mirror`]
//! makes it). A key under `subnets/` of whose subnets none is loden's is a lease of a node of flannel's.
//!
//! The records depend only on the pairs that there are, never on the order in which they came. While `config` cannot be read,
//! nothing that hangs on it is decided: it stays for those who were told of it, as it does with a flanneld that runs.

mod judge;
mod mirror;
mod read;

pub use mirror::mirror;

use std::collections::{BTreeMap, BTreeSet};

use self::judge::Judged;
use self::read::{Lease, read_own, record_key};
use super::NetConf;
use crate::model::{Entry, Key, NodeName, Pool, Prefix, Record};

/// A key of etcd with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Behind the prefix and its slash.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that made the key (`create_revision`).
    pub created: u64,
    /// The revision that last wrote it (`mod_revision`).
    pub revision: u64,
    /// The lease of etcd's that it hangs on; 0: none, it stays (a reservation of flannel's).
    pub lease: i64,
}

/// An event of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawChange {
    /// A key was written.
    Put(Pair),
    /// A key was removed.
    Delete {
        /// Behind the prefix and its slash.
        key: String,
        /// The revision that removed it.
        revision: u64,
    },
}

/// What follows from events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A record is there, or is another one now.
    Put(Entry),
    /// A record is there no longer.
    Delete(Key),
    /// What stands at a place cannot be taken for what it should be; without a cause: can be again.
    Flaw {
        /// The full key.
        place: String,
        /// What is wrong.
        cause: Option<String>,
    },
}

/// What stands under a prefix.
#[derive(Debug, Clone)]
pub struct Layout {
    prefix: String,
    nat_outgoing: bool,
    pairs: BTreeMap<String, Pair>,
    /// Keys that were removed, with the revision: what is older and comes late is known by it.
    gone: BTreeMap<String, u64>,
    conf: Result<NetConf, String>,
    /// Keys under `subnets/`.
    leases: BTreeMap<String, Result<Lease, String>>,
    /// loden's own records.
    own: BTreeMap<Key, Result<Entry, String>>,
    /// Keys under `loden/` that are no record's, with the cause.
    odd: BTreeMap<String, String>,
    /// Which leases name a subnet.
    by_subnet: BTreeMap<Prefix, BTreeSet<String>>,
    /// Which leases a node has.
    by_node: BTreeMap<NodeName, BTreeSet<String>>,
    /// Which blocks are a node's by loden's own records.
    by_owner: BTreeMap<NodeName, BTreeSet<Prefix>>,
    /// What follows.
    entries: BTreeMap<Key, Entry>,
    /// What was told and is not decided now.
    held: BTreeSet<Key>,
    /// By the key behind the prefix.
    flaws: BTreeMap<String, String>,
}

const CONFIG: &str = "config";
const NO_CONFIG: &str = "there is no configuration: write flannel's net-conf.json there";

/// What has to be thought over again.
#[derive(Debug, Default)]
struct Dirty {
    all: bool,
    keys: BTreeSet<Key>,
    /// Behind the prefix.
    places: BTreeSet<String>,
}

impl Layout {
    /// An empty one. `prefix` is without a slash at its end; `nat_outgoing` is said of all pools, as flannel has it in a flag.
    #[must_use]
    pub fn new(prefix: &str, nat_outgoing: bool) -> Self {
        Self {
            prefix: prefix.to_owned(),
            nat_outgoing,
            pairs: BTreeMap::new(),
            gone: BTreeMap::new(),
            conf: Err(NO_CONFIG.to_owned()),
            leases: BTreeMap::new(),
            own: BTreeMap::new(),
            odd: BTreeMap::new(),
            by_subnet: BTreeMap::new(),
            by_node: BTreeMap::new(),
            by_owner: BTreeMap::new(),
            entries: BTreeMap::new(),
            held: BTreeSet::new(),
            flaws: BTreeMap::from([(CONFIG.to_owned(), NO_CONFIG.to_owned())]),
        }
    }

    /// Takes in what happened in one revision, or more. What is known already, or older than what is known, does nothing.
    /// Records that are there come first, then those that are there no longer, then flaws.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = RawChange>) -> Vec<Told> {
        let mut dirty = Dirty::default();
        for change in changes {
            self.take_in(change, &mut dirty);
        }
        if dirty.all {
            self.touch_all(&mut dirty);
        }
        self.settle(dirty)
    }

    /// The records that there are, in the order of their keys.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One record.
    #[must_use]
    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// What cannot be taken for what it should be, by its full key, with the cause.
    #[must_use]
    pub fn flaws(&self) -> BTreeMap<String, String> {
        self.flaws.iter().map(|(place, cause)| (self.full(place), cause.clone())).collect()
    }

    /// A pair as it came, by the key behind the prefix.
    #[must_use]
    pub fn pair(&self, key: &str) -> Option<&Pair> {
        self.pairs.get(key)
    }

    /// The configuration.
    ///
    /// # Errors
    /// Why there is none. A listing that lacks it would take the network away from under those who have it: it is to be refused.
    pub fn conf(&self) -> Result<&NetConf, &str> {
        self.conf.as_ref().map_err(String::as_str)
    }

    /// The keys under `subnets/` that name a subnet, whether they can be read or not: while there is one it is not free.
    pub fn leases_of(&self, subnet: Prefix) -> impl Iterator<Item = &str> {
        self.by_subnet.get(&subnet).into_iter().flatten().map(String::as_str)
    }

    /// Where a record stands, behind the prefix. All pools stand in `config`.
    #[must_use]
    pub fn path(key: &Key) -> String {
        match key {
            Key::Pool(_) => CONFIG.to_owned(),
            Key::Block(cidr) => format!("loden/block/{}-{}", cidr.network(), cidr.len()),
            Key::Node(_) | Key::Lease(_) => format!("loden/{key}"),
        }
    }

    fn pools(&self) -> &[Pool] {
        self.conf.as_ref().map_or(&[], |conf| &conf.pools)
    }

    fn full(&self, place: &str) -> String {
        format!("{}/{place}", self.prefix)
    }

    fn take_in(&mut self, change: RawChange, dirty: &mut Dirty) {
        let (key, revision) = match &change {
            RawChange::Put(pair) => (pair.key.clone(), pair.revision),
            RawChange::Delete { key, revision } => (key.clone(), *revision),
        };
        let (lease, own) = (key.strip_prefix("subnets/").map(str::to_owned), record_key(&key));
        if key != CONFIG && lease.is_none() && own.is_none() {
            return;
        }
        let known = self.pairs.get(&key).map(|pair| pair.revision).max(self.gone.get(&key).copied());
        if known.is_some_and(|known| revision <= known) {
            return;
        }
        let pair = match change {
            RawChange::Put(pair) => {
                self.gone.remove(&key);
                Some(pair)
            }
            RawChange::Delete { .. } => {
                self.gone.insert(key.clone(), revision);
                None
            }
        };
        dirty.places.insert(key.clone());
        if key == CONFIG {
            self.conf = match &pair {
                Some(pair) => NetConf::parse(&pair.value, self.nat_outgoing).map_err(|error| error.to_string()),
                None => Err(NO_CONFIG.to_owned()),
            };
            dirty.all = true;
        } else if let Some(name) = lease {
            self.set_lease(&key, pair.as_ref().map(|pair| Lease::parse(&name, &pair.value)), dirty);
        } else if let Some(record) = own {
            self.set_own(&key, record, pair.as_ref(), dirty);
        }
        match pair {
            Some(pair) => drop(self.pairs.insert(key, pair)),
            None => drop(self.pairs.remove(&key)),
        }
    }

    fn set_lease(&mut self, key: &str, lease: Option<Result<Lease, String>>, dirty: &mut Dirty) {
        if let Some(Ok(former)) = self.leases.get(key) {
            let former = former.clone();
            former.subnets.iter().for_each(|subnet| self.touch(*subnet, dirty));
            former.subnets.iter().for_each(|subnet| take_out(&mut self.by_subnet, subnet, key));
            if let Some(node) = &former.node {
                take_out(&mut self.by_node, node, key);
            }
        }
        match lease {
            Some(lease) => {
                if let Ok(lease) = &lease {
                    for subnet in &lease.subnets {
                        self.by_subnet.entry(*subnet).or_default().insert(key.to_owned());
                    }
                    if let Some(node) = &lease.node {
                        self.by_node.entry(node.clone()).or_default().insert(key.to_owned());
                    }
                }
                self.leases.insert(key.to_owned(), lease);
            }
            None => drop(self.leases.remove(key)),
        }
        if let Some(Ok(lease)) = self.leases.get(key) {
            lease.subnets.iter().for_each(|subnet| self.touch(*subnet, dirty));
        }
    }

    fn set_own(&mut self, place: &str, key: Result<Key, String>, pair: Option<&Pair>, dirty: &mut Dirty) {
        let key = match (key, pair) {
            (Ok(key), _) => key,
            (Err(cause), Some(_)) => return drop(self.odd.insert(place.to_owned(), cause)),
            (Err(_), None) => return drop(self.odd.remove(place)),
        };
        self.touch_around(&key, dirty);
        if let Some(Ok(Entry { record: Record::Block(block), .. })) = self.own.get(&key) {
            take_out(&mut self.by_owner, &block.owner.clone(), &block.cidr.clone());
        }
        match pair.map(|pair| read_own(&key, pair)) {
            Some(read) => {
                if let Ok(Entry { record: Record::Block(block), .. }) = &read {
                    self.by_owner.entry(block.owner.clone()).or_default().insert(block.cidr);
                }
                self.own.insert(key.clone(), read);
            }
            None => drop(self.own.remove(&key)),
        }
        self.touch_around(&key, dirty);
    }

    /// Marks what hangs on one of loden's own records.
    fn touch_around(&self, key: &Key, dirty: &mut Dirty) {
        dirty.keys.insert(key.clone());
        match key {
            Key::Block(cidr) => {
                self.touch(*cidr, dirty);
                // The leases that name it are twins of it or are not, with all that they name.
                for lease in self.leases_of(*cidr).filter_map(|lease| self.leases.get(lease)?.as_ref().ok()) {
                    lease.subnets.iter().for_each(|subnet| self.touch(*subnet, dirty));
                }
            }
            Key::Node(node) => {
                let blocks = self.by_owner.get(node).into_iter().flatten();
                dirty.places.extend(blocks.flat_map(|cidr| self.leases_of(*cidr)).map(str::to_owned));
            }
            Key::Pool(_) | Key::Lease(_) => {}
        }
    }

    /// Marks what hangs on who has a subnet.
    fn touch(&self, subnet: Prefix, dirty: &mut Dirty) {
        dirty.keys.insert(Key::Block(subnet));
        for place in self.leases_of(subnet) {
            dirty.places.insert(place.to_owned());
            if let Some(Ok(Lease { node: Some(node), .. })) = self.leases.get(place) {
                dirty.keys.insert(Key::Node(node.clone()));
            }
        }
    }

    fn touch_all(&self, dirty: &mut Dirty) {
        dirty.keys.extend(self.entries.keys().chain(&self.held).chain(self.own.keys()).cloned());
        dirty.keys.extend(self.pools().iter().map(|pool| Key::Pool(pool.name.clone())));
        dirty.keys.extend(self.by_subnet.keys().map(|subnet| Key::Block(*subnet)));
        dirty.keys.extend(self.by_node.keys().map(|node| Key::Node(node.clone())));
        dirty.places.extend(self.pairs.keys().cloned());
    }

    fn settle(&mut self, dirty: Dirty) -> Vec<Told> {
        let (mut told, mut deleted) = (Vec::new(), Vec::new());
        for key in dirty.keys {
            match self.judge(&key) {
                Judged::Is(entry) => {
                    let was_held = self.held.remove(&key);
                    if was_held || self.entries.get(&key) != Some(&*entry) {
                        told.push(Told::Put(Entry::clone(&entry)));
                        self.entries.insert(key, *entry);
                    }
                }
                Judged::IsNot => {
                    let was_held = self.held.remove(&key);
                    if self.entries.remove(&key).is_some() || was_held {
                        deleted.push(Told::Delete(key));
                    }
                }
                Judged::Undecided => {
                    if self.entries.remove(&key).is_some() {
                        self.held.insert(key);
                    }
                }
            }
        }
        told.append(&mut deleted);
        for place in dirty.places {
            let cause = self.flaw(&place);
            let before = match &cause {
                Some(cause) => self.flaws.insert(place.clone(), cause.clone()),
                None => self.flaws.remove(&place),
            };
            if before != cause {
                told.push(Told::Flaw { place: self.full(&place), cause });
            }
        }
        told
    }
}

fn take_out<K: Ord, Q: Ord + ?Sized, V: Ord + std::borrow::Borrow<Q>>(
    map: &mut BTreeMap<K, BTreeSet<V>>,
    key: &K,
    value: &Q,
) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
