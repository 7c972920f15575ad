//! What is to be written where flanneld looks too: a block is a record of loden's and a lease of flannel's, and both are written at
//! once or not at all.
//!
//! A plan is made from what was read, and says what of it must still be so when it is carried out. All keys are those behind the
//! prefix.

mod pool;

use std::collections::{BTreeMap, BTreeSet};

use loden_core::dialect::flannel::{Layout, SubnetKey, layout::mirror};
use loden_core::model::{Block, Entry, Family, Key, Node, NodeName, Pool, Prefix, Record};

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Which revision last wrote a key; 0: it must not be there.
    pub same: BTreeMap<String, u64>,
    /// What no key may begin with.
    pub free: Option<String>,
    /// What is written, and what it is bound to.
    pub puts: BTreeMap<String, (Vec<u8>, Bound)>,
    /// What is removed.
    pub deletes: BTreeSet<String>,
    /// What the record itself is bound to.
    pub bound: Bound,
    /// Leases of etcd's that nothing hangs on afterwards.
    pub unneeded: BTreeSet<i64>,
}

/// What a key is bound to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bound {
    /// Nothing: it stays for ever.
    #[default]
    ForEver,
    /// A lease of etcd's that is there.
    To(i64),
    /// A lease that is granted for it.
    Anew,
}

impl Bound {
    fn of(lease: i64) -> Self {
        if lease == 0 { Self::ForEver } else { Self::To(lease) }
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Somebody has it who cannot be read as a record.
    Taken,
    /// The record cannot be said in flannel's words, or what it hangs on cannot be read.
    Unsayable(String),
}

/// Writes a record that may be written, as [`crate::Expect`] was found to be so. `is_lent`: it has a time to live.
pub fn put(layout: &Layout, record: &Record, is_lent: bool, nat_outgoing: bool) -> Result<Plan, Obstacle> {
    match record {
        Record::Pool(pool) => pool::put(layout, pool, nat_outgoing),
        Record::Block(block) => put_block(layout, block, is_lent),
        Record::Node(node) => put_node(layout, node, is_lent),
        Record::Lease(lease) => {
            Err(Obstacle::Unsayable(format!("the sign of life of {} hangs on nothing", lease.node)))
        }
    }
}

/// Removes a record.
pub fn delete(layout: &Layout, key: &Key) -> Result<Plan, Obstacle> {
    match key {
        Key::Pool(_) => pool::delete(layout, key),
        Key::Block(cidr) => Ok(delete_block(layout, *cidr)),
        Key::Node(name) => Ok(delete_node(layout, name)),
        Key::Lease(_) => Ok(Plan::default()),
    }
}

fn put_block(layout: &Layout, block: &Block, is_lent: bool) -> Result<Plan, Obstacle> {
    check_pool(layout, block)?;
    let mut plan = Plan::default();
    let path = Layout::path(&Key::Block(block.cidr));
    let found = layout.entry(&Key::Block(block.cidr));
    let mut after = BTreeMap::from([(block.cidr, block.clone())]);
    let mut owners = BTreeSet::from([block.owner.clone()]);
    if let Some(own) = layout.pair(&path) {
        if found.is_none() {
            return Err(Obstacle::Taken);
        }
        plan.bound = Bound::of(own.lease);
        owners.extend(found.and_then(owner).cloned());
    } else if let Some(lease) = found.and_then(|found| deciding_lease(layout, block.cidr, found)) {
        // A node of flannel's has it: all that its lease names changes hands, bound as it is.
        plan.bound = Bound::of(layout.pair(&lease).map_or(0, |pair| pair.lease));
        plan.remember(layout, &lease);
        for cidr in subnets(&lease).filter(|cidr| *cidr != block.cidr) {
            let Some(pool) = pools(layout).iter().find(|pool| pool.cidr.covers(cidr)) else { continue };
            let fellow = Block { cidr, pool: pool.name.clone(), ..block.clone() };
            if layout.entry(&Key::Block(cidr)).is_some_and(|entry| owner(entry) == found.and_then(owner)) {
                after.insert(cidr, fellow);
            }
        }
    } else {
        if is_shared(layout, block) {
            return Err(Obstacle::Taken);
        }
        if block.cidr.family() == Family::V4 && layout.leases_of(block.cidr).next().is_none() {
            plan.free = Some(format!("subnets/{}", SubnetKey { v4: block.cidr, v6: None }));
        }
        plan.bound = if is_lent { Bound::Anew } else { Bound::ForEver };
    }
    for block in after.values() {
        let path = Layout::path(&Key::Block(block.cidr));
        plan.remember(layout, &path);
        plan.write(layout, path, json(&Record::Block(block.clone()))?, plan.bound);
    }
    plan.show(layout, &owners, &after, &BTreeSet::new(), None);
    Ok(plan)
}

fn put_node(layout: &Layout, node: &Node, is_lent: bool) -> Result<Plan, Obstacle> {
    let mut plan = Plan::default();
    let path = Layout::path(&Key::Node(node.name.clone()));
    if layout.pair(&path).is_some() && layout.entry(&Key::Node(node.name.clone())).is_none() {
        return Err(Obstacle::Taken);
    }
    plan.bound = if is_lent { Bound::Anew } else { Bound::ForEver };
    plan.remember(layout, &path);
    plan.write(layout, path, json(&Record::Node(node.clone()))?, plan.bound);
    plan.show(layout, &BTreeSet::from([node.name.clone()]), &BTreeMap::new(), &BTreeSet::new(), Some(node));
    Ok(plan)
}

fn delete_block(layout: &Layout, cidr: Prefix) -> Plan {
    let mut plan = Plan::default();
    let path = Layout::path(&Key::Block(cidr));
    plan.remember(layout, &path);
    let found = layout.entry(&Key::Block(cidr));
    if layout.pair(&path).is_some() {
        plan.remove(layout, &path);
        let owners = found.and_then(owner).cloned().into_iter().collect();
        plan.show(layout, &owners, &BTreeMap::new(), &BTreeSet::from([cidr]), None);
        // Blocks of both families that were taken over together hang on one lease.
        let stays = |entry: &&Entry| !plan.deletes.contains(&Layout::path(&entry.record.key()));
        let blocks = layout.entries().filter(|entry| is_own_entry(layout, entry)).filter(stays);
        let pairs = blocks.filter_map(|entry| layout.pair(&Layout::path(&entry.record.key())));
        let in_use: BTreeSet<i64> = pairs.map(|pair| pair.lease).collect();
        plan.unneeded.retain(|lease| !in_use.contains(lease));
    } else if let Some(lease) = found.and_then(|found| deciding_lease(layout, cidr, found)) {
        plan.remove(layout, &lease);
    } else {
        // What cannot be read can still be removed, but for what shows another block of loden's.
        let odd = layout.leases_of(cidr).filter(|lease| !subnets(lease).any(|cidr| is_own(layout, cidr)));
        odd.map(str::to_owned).collect::<Vec<_>>().iter().for_each(|lease| plan.remove(layout, lease));
    }
    plan
}

fn delete_node(layout: &Layout, name: &NodeName) -> Plan {
    let mut plan = Plan::default();
    let path = Layout::path(&Key::Node(name.clone()));
    plan.remember(layout, &path);
    if layout.pair(&path).is_some() {
        plan.remove(layout, &path);
        // Its blocks stay taken, for flannel's eyes too.
        plan.show(
            layout,
            &BTreeSet::from([name.clone()]),
            &BTreeMap::new(),
            &BTreeSet::new(),
            Some(&Node::named(name.clone(), loden_core::dialect::flannel::node_uid())),
        );
        return plan;
    }
    // A node of flannel's is there by its leases.
    let of_node = |entry: &&Entry| owner(entry) == Some(name) && !is_own_entry(layout, entry);
    let blocks: Vec<&Entry> = layout.entries().filter(of_node).collect();
    for entry in blocks {
        if let Key::Block(cidr) = entry.record.key()
            && let Some(lease) = deciding_lease(layout, cidr, entry)
        {
            plan.remove(layout, &lease);
        }
    }
    plan
}

impl Plan {
    /// Whether anything is to be written.
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }

    /// Asks that a key is as it was read.
    fn remember(&mut self, layout: &Layout, key: &str) {
        self.same.insert(key.to_owned(), revision(layout, key));
    }

    /// Writes a key, unless it says so already.
    fn write(&mut self, layout: &Layout, key: String, value: Vec<u8>, bound: Bound) {
        let is_there = layout.pair(&key).is_some_and(|pair| pair.value == value && Bound::of(pair.lease) == bound);
        if !is_there {
            self.remember(layout, &key);
            self.puts.insert(key, (value, bound));
        }
    }

    /// Removes a key that is there.
    fn remove(&mut self, layout: &Layout, key: &str) {
        self.remember(layout, key);
        self.deletes.insert(key.to_owned());
        self.unneeded.extend(layout.pair(key).map(|pair| pair.lease).filter(|lease| *lease != 0));
    }

    /// Makes flannel's keys say what some nodes have: the blocks that they are read to have, with those of `after`, without those of
    /// `without`; `node` in the place of the record of that name.
    fn show(
        &mut self,
        layout: &Layout,
        owners: &BTreeSet<NodeName>,
        after: &BTreeMap<Prefix, Block>,
        without: &BTreeSet<Prefix>,
        node: Option<&Node>,
    ) {
        let of_owners = |entry: &&Entry| owner(entry).is_some_and(|owner| owners.contains(owner));
        let mut blocks: BTreeMap<Prefix, Block> = BTreeMap::new();
        for entry in layout.entries().filter(of_owners).filter(|entry| is_own_entry(layout, entry)) {
            if let Record::Block(block) = &entry.record {
                self.remember(layout, &Layout::path(&Key::Block(block.cidr)));
                blocks.insert(block.cidr, block.clone());
            }
        }
        let named: BTreeSet<Prefix> = blocks.keys().chain(after.keys()).copied().collect();
        blocks.extend(after.iter().map(|(cidr, block)| (*cidr, block.clone())));
        blocks.retain(|cidr, _| !without.contains(cidr));
        let all: Vec<Block> = blocks.into_values().collect();
        let mut shown: BTreeMap<String, String> = BTreeMap::new();
        for name in owners {
            let key = Key::Node(name.clone());
            self.remember(layout, &Layout::path(&key));
            let stored = match layout.entry(&key).map(|entry| &entry.record) {
                Some(Record::Node(node)) if layout.pair(&Layout::path(&key)).is_some() => node.clone(),
                _ => Node::named(name.clone(), loden_core::dialect::flannel::node_uid()),
            };
            let node = node.filter(|node| node.name == *name).unwrap_or(&stored);
            shown.extend(mirror(node, &all, pools(layout)));
        }
        self.remember(layout, &Layout::path(&Key::Pool(loden_core::dialect::flannel::pool_name(Family::V4))));
        let twins: BTreeSet<&str> = named.iter().flat_map(|cidr| layout.leases_of(*cidr)).collect();
        for twin in twins {
            if !shown.contains_key(twin) && subnets(twin).all(|cidr| named.contains(&cidr)) {
                self.remember(layout, twin);
                self.deletes.insert(twin.to_owned());
            }
        }
        for (key, value) in shown {
            let first = subnets(&key).next().map(|cidr| Layout::path(&Key::Block(cidr)));
            let bound = first.map_or(Bound::ForEver, |path| match self.puts.get(&path) {
                Some((_, bound)) => *bound,
                None => Bound::of(layout.pair(&path).map_or(0, |pair| pair.lease)),
            });
            self.write(layout, key, value.into_bytes(), bound);
        }
    }
}

/// Whether a lease that shows nothing of its owner names a block, too.
pub fn is_shared(layout: &Layout, block: &Block) -> bool {
    !layout.leases_of(block.cidr).all(|lease| is_shown_by(layout, lease, block))
}

/// Whether a lease is there to show the owner's blocks.
fn is_shown_by(layout: &Layout, lease: &str, block: &Block) -> bool {
    subnets(lease)
        .filter(|cidr| *cidr != block.cidr)
        .any(|cidr| is_own(layout, cidr) && layout.entry(&Key::Block(cidr)).and_then(owner) == Some(&block.owner))
}

fn check_pool(layout: &Layout, block: &Block) -> Result<(), Obstacle> {
    layout.conf().map_err(|cause| Obstacle::Unsayable(cause.to_owned()))?;
    let pool = pools(layout).iter().find(|pool| pool.cidr.covers(block.cidr));
    match pool {
        Some(pool) if pool.name == block.pool && pool.block_len == block.cidr.len() => Ok(()),
        Some(pool) => Err(Obstacle::Unsayable(format!(
            "it is said to be of pool {}; its addresses are those of {} with blocks of /{}",
            block.pool, pool.name, pool.block_len
        ))),
        None => Err(Obstacle::Unsayable("it is in no network of flannel's configuration".to_owned())),
    }
}

fn pools(layout: &Layout) -> &[Pool] {
    layout.conf().map_or(&[], |conf| &conf.pools)
}

fn revision(layout: &Layout, key: &str) -> u64 {
    layout.pair(key).map_or(0, |pair| pair.revision)
}

fn owner(entry: &Entry) -> Option<&NodeName> {
    match &entry.record {
        Record::Block(block) => Some(&block.owner),
        _ => None,
    }
}

/// Whether a block is there by a record of loden's.
fn is_own(layout: &Layout, cidr: Prefix) -> bool {
    layout.pair(&Layout::path(&Key::Block(cidr))).is_some()
}

fn is_own_entry(layout: &Layout, entry: &Entry) -> bool {
    layout.pair(&Layout::path(&entry.record.key())).is_some()
}

/// The subnets that a key under `subnets/` names.
fn subnets(lease: &str) -> impl Iterator<Item = Prefix> {
    let key = lease.strip_prefix("subnets/").and_then(|name| name.parse::<SubnetKey>().ok());
    key.into_iter().flat_map(|key| key.prefixes().collect::<Vec<_>>())
}

/// The lease by which a block is a node's of flannel's.
fn deciding_lease(layout: &Layout, cidr: Prefix, entry: &Entry) -> Option<String> {
    let decides = |lease: &&str| layout.pair(lease).is_some_and(|pair| pair.revision == entry.revision);
    layout.leases_of(cidr).find(decides).map(str::to_owned)
}

fn json(record: &Record) -> Result<Vec<u8>, Obstacle> {
    serde_json::to_vec(record).map_err(|error| Obstacle::Unsayable(error.to_string()))
}
