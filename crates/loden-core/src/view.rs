//! The view: one picture of the cluster as this host sees it. Backends look at nothing else.
//!
//! [`View::put`] and [`View::delete`] take records in any order and say whose objects have to be thought over again; the
//! picture depends only on the records that are there, never on the order in which they came.

mod addresses;
mod blocks;
mod flows;
mod problem;

pub use flows::MOST_FLOWS;
pub use problem::Problem;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::backend::{Promise, promises};
use crate::config::cluster;
use crate::desired::Source;
use crate::model::{
    Attachment, AttachmentKey, BackendConfig, Block, Entry, Family, IfName, Key, Mac, Node, NodeName, NodeUid, Pool,
    PoolName, Receive, Record, VxlanConfig,
};
use crate::underlay::Underlay;

/// What is known of this host itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// This node's name.
    pub node: NodeName,
    /// This node's identity.
    pub uid: NodeUid,
    /// This node's labels.
    pub labels: BTreeMap<String, String>,
    /// The bridge that pods are attached to.
    pub bridge: IfName,
    /// The external interface; `None` while there is none that fits.
    pub underlay: Option<Underlay>,
    /// Ethernet addresses of bridges and VXLAN devices that were there when the agent started, whoever made them: pods and peers
    /// know them, so they stay (a node that changes hands in place).
    pub found: BTreeMap<IfName, Mac>,
    /// Which rules this host has for its pods' traffic.
    pub rules: HostRules,
    /// What its kernel can and others' cannot.
    pub abilities: Abilities,
}

/// What some kernels can and others cannot, found out by doing it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// IPIP devices.
    pub ipip: bool,
}

/// What the operator of this host says about rules for its pods' traffic, beside what pools say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRules {
    /// Whether this host masquerades; `None`: as each pool says, which is about what leaves the pools. `Some(true)`: what enters
    /// them from elsewhere by this host, too.
    pub masquerade: Option<bool>,
    /// Whether what is forwarded for pods is let through.
    pub forward: bool,
    /// Whether what goes to this host's blocks and is not reached by their bridge is dropped, not sent to the default gateway.
    pub blackhole: bool,
    /// Whether a tunnel's packets are taken in from the cluster's hosts alone, and none from pods.
    pub guard: bool,
}

impl Default for HostRules {
    fn default() -> Self {
        Self { masquerade: None, forward: true, blackhole: false, guard: true }
    }
}

impl Local {
    /// The Ethernet address of a device that the agent makes: what was found there, else one that hangs on nothing but the node's
    /// identity and the device's name.
    #[must_use]
    pub fn mac_of(&self, dev: IfName) -> Mac {
        self.found.get(&dev).copied().unwrap_or_else(|| Mac::derived(&[self.uid.as_str(), dev.as_str()]))
    }
}

/// The picture.
#[derive(Debug, Clone)]
pub struct View {
    /// This host.
    pub local: Local,
    /// Pools that are in force.
    pub pools: BTreeMap<PoolName, Pool>,
    /// All nodes, this one too.
    pub nodes: BTreeMap<NodeName, Arc<Node>>,
    /// Blocks by their owner, lowest first. Most nodes have one or few.
    pub blocks: BTreeMap<NodeName, Vec<Block>>,
    /// Pods attached on this host.
    pub attachments: BTreeMap<AttachmentKey, Arc<Attachment>>,
    /// Every pool record as it came, with the revision that first wrote it.
    given_pools: BTreeMap<PoolName, (u64, Pool)>,
    /// How many nodes, this one too, send with which backend, pool by pool.
    senders: BTreeMap<PoolName, BTreeMap<BackendConfig, usize>>,
    /// How many peers lack an underlay address of the family.
    lacking: BTreeMap<Family, usize>,
    /// How many peers have one.
    having: BTreeMap<Family, usize>,
    /// Every block record as it came, and which are in force.
    recorded: blocks::Recorded,
    /// Who is reached where.
    addresses: addresses::Addresses,
    /// Which addresses the kernel has asked for.
    flows: flows::Flows,
    /// Pools that are recorded but not in force.
    refused_pools: BTreeSet<PoolName>,
    /// What is wrong with the pools.
    pool_problems: Vec<Problem>,
    /// The VTEPs that this node's record names, or is to name.
    promises: Vec<Promise>,
    /// What this host last gave out to be written into its record. There is one such at a time: until the record has come back
    /// with it, nothing else is given out.
    said: Option<Said>,
}

/// What a host says of itself in its record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// [`Node::receives`].
    pub receives: Vec<Receive>,
    /// [`Node::sends`].
    pub sends: BTreeMap<PoolName, BTreeSet<BackendConfig>>,
}

/// Whose objects have to be thought over again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Everybody's.
    pub all: bool,
    /// These ones'.
    pub sources: BTreeSet<Source>,
}

impl Changed {
    /// Adds another's.
    pub fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.sources.extend(other.sources);
    }

    /// Whether nothing has to be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && self.sources.is_empty()
    }

    fn all() -> Self {
        Self { all: true, sources: BTreeSet::new() }
    }

    fn one(source: Source) -> Self {
        Self { all: false, sources: BTreeSet::from([source]) }
    }
}

impl View {
    /// A picture of this host alone.
    #[must_use]
    pub fn new(local: Local) -> Self {
        Self {
            local,
            pools: BTreeMap::new(),
            nodes: BTreeMap::new(),
            blocks: BTreeMap::new(),
            attachments: BTreeMap::new(),
            given_pools: BTreeMap::new(),
            senders: BTreeMap::new(),
            lacking: BTreeMap::new(),
            having: BTreeMap::new(),
            recorded: blocks::Recorded::default(),
            addresses: addresses::Addresses::default(),
            flows: flows::Flows::default(),
            refused_pools: BTreeSet::new(),
            pool_problems: Vec::new(),
            promises: Vec::new(),
            said: None,
        }
    }

    /// Takes in a record.
    pub fn put(&mut self, entry: &Entry) -> Changed {
        let changed = match &entry.record {
            Record::Pool(pool) => {
                self.given_pools.insert(pool.name.clone(), (entry.created, pool.clone()));
                self.judge_pools()
            }
            Record::Node(node) => self.set_node(&node.name, Some((Arc::new(node.clone()), entry.created))),
            Record::Block(block) => self.put_block(block.clone(), entry.created),
            Record::Lease(lease) => self.set_alive(&lease.node, true),
        };
        let prefix = if let Record::Block(block) = &entry.record { Some(self.around_block(block.cidr)) } else { None };
        self.with_flows(changed, prefix)
    }

    /// Takes a record out.
    pub fn delete(&mut self, key: &Key) -> Changed {
        let prefix = if let Key::Block(cidr) = key { Some(self.around_block(*cidr)) } else { None };
        let changed = match key {
            Key::Pool(name) => {
                self.given_pools.remove(name);
                self.judge_pools()
            }
            Key::Node(name) => self.set_node(name, None),
            Key::Block(cidr) => self.remove_block(*cidr),
            Key::Lease(name) => self.set_alive(name, false),
        };
        self.with_flows(changed, prefix)
    }

    /// Takes in what is known of this host.
    pub fn set_local(&mut self, local: Local) -> Changed {
        if local == self.local {
            return Changed::default();
        }
        // This host does not count as a peer, so its name has to be known to the counts.
        debug_assert_eq!(local.node, self.local.node);
        let before: Vec<IpAddr> = self.own_addresses().collect();
        self.local = local;
        self.judge_own_addresses(&before);
        self.promises = promises(self);
        Changed::all()
    }

    /// Takes in a pod's attachment, or its end.
    pub fn set_attachment(&mut self, key: AttachmentKey, attachment: Option<Arc<Attachment>>) -> Changed {
        let old = match attachment.clone() {
            Some(new) => self.attachments.insert(key.clone(), new),
            None => self.attachments.remove(&key),
        };
        if old == attachment { Changed::default() } else { Changed::one(Source::Attachment(key)) }
    }

    /// The keys of all records that were taken in.
    #[must_use]
    pub fn known_keys(&self) -> Vec<Key> {
        let pools = self.given_pools.keys().cloned().map(Key::Pool);
        let nodes = self.nodes.keys().cloned().map(Key::Node);
        let leases = self.addresses.alive.iter().cloned().map(Key::Lease);
        pools.chain(nodes).chain(self.recorded.keys().copied().map(Key::Block)).chain(leases).collect()
    }

    /// The peers: every node but this one.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().filter(|node| node.name != self.local.node)
    }

    /// A node's blocks in a pool, lowest first.
    pub fn blocks_in<'a>(&'a self, node: &NodeName, pool: &'a Pool) -> impl Iterator<Item = &'a Block> {
        self.blocks
            .get(node)
            .into_iter()
            .flatten()
            .filter(|block| block.pool == pool.name && pool.cidr.covers(block.cidr))
    }

    /// This host's blocks in a pool, lowest first. A block of a namesake (another identity) is not ours.
    pub fn own_blocks_in<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = &'a Block> {
        self.blocks_in(&self.local.node, pool).filter(|block| block.owner_uid == self.local.uid)
    }

    /// The backends that serve a pool here: its own, and those that some node, this one too, still sends with.
    #[must_use]
    pub fn active_backends<'a>(&'a self, pool: &'a Pool) -> Vec<&'a BackendConfig> {
        let lingering = self.senders.get(&pool.name).into_iter().flat_map(BTreeMap::keys);
        std::iter::once(&pool.backend).chain(lingering.filter(|other| **other != pool.backend)).collect()
    }

    /// The bridge that a segment extends: one of its own, or the node's.
    #[must_use]
    pub fn bridge_of(&self, segment: &VxlanConfig) -> IfName {
        segment.bridge.unwrap_or(self.local.bridge)
    }

    /// The bridge that a pool's pods are attached to.
    #[must_use]
    pub fn bridge_of_pool(&self, pool: &Pool) -> IfName {
        pool.backend.segment().map_or(self.local.bridge, |segment| self.bridge_of(segment))
    }

    /// The segment that a pool's pods are on, once all packets between its hosts go by it: until then a pod reaches others by its host
    /// alone.
    #[must_use]
    pub fn is_whole_segment(&self, pool: &Pool) -> bool {
        pool.backend.segment().is_some() && self.active_backends(pool).len() == 1
    }

    /// This node's own record, once it has come back from the datastore.
    #[must_use]
    pub fn own_record(&self) -> Option<&Node> {
        self.nodes.get(&self.local.node).map(|node| &**node).filter(|node| node.uid == self.local.uid)
    }

    /// Whether this host's record has come back with what was last given out to be written.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        let is_it = |said: &Said| {
            self.own_record().is_some_and(|node| node.receives == said.receives && node.sends == said.sends)
        };
        self.said.as_ref().is_none_or(is_it)
    }

    /// Takes in what this host gives out to be written into its record. From now on peers may know of it, whatever the record
    /// in this picture still says. Nobody's objects have to be thought over again: what is in use is among what is said.
    pub fn set_said(&mut self, said: Said) {
        debug_assert!(self.is_heard(), "two records under way cannot be told apart");
        self.said = Some(said);
        self.promises = promises(self);
    }

    /// What this host takes in, as peers may know it: as its record says, and as it is to say.
    pub(crate) fn own_receives(&self) -> impl Iterator<Item = &Receive> {
        let recorded = self.own_record().into_iter().flat_map(|node| &node.receives);
        recorded.chain(self.said.iter().flat_map(|said| &said.receives))
    }

    /// The VTEPs that this node's own record names, or is to name.
    pub(crate) fn promises(&self) -> &[Promise] {
        &self.promises
    }

    /// Whether this node's own record says that it sends with the backend, and goes on saying so: then no peer gives up taking
    /// it in.
    #[must_use]
    pub fn has_announced(&self, pool: &PoolName, backend: &BackendConfig) -> bool {
        let names = |sends: &BTreeMap<PoolName, BTreeSet<BackendConfig>>| {
            sends.get(pool).is_some_and(|backends| backends.contains(backend))
        };
        self.own_record().is_some_and(|node| names(&node.sends))
            && self.said.as_ref().is_none_or(|said| names(&said.sends))
    }

    /// The nodes that send with a backend, by name.
    pub fn senders_of<'a>(
        &'a self,
        pool: &'a PoolName,
        backend: &'a BackendConfig,
    ) -> impl Iterator<Item = &'a NodeName> {
        let sends = move |node: &&Arc<Node>| node.sends.get(pool).is_some_and(|sends| sends.contains(backend));
        self.nodes.values().filter(sends).map(|node| &node.name)
    }

    /// The pools that are recorded but not in force: what they are to be cannot be known.
    #[must_use]
    pub fn refused_pools(&self) -> &BTreeSet<PoolName> {
        &self.refused_pools
    }

    /// Whether some peer has no underlay address of the family.
    #[must_use]
    pub fn some_peer_lacks(&self, family: Family) -> bool {
        self.lacking.get(&family).is_some_and(|count| *count > 0)
    }

    /// Whether some peer has an underlay address of the family.
    #[must_use]
    pub fn some_peer_has(&self, family: Family) -> bool {
        self.having.get(&family).is_some_and(|count| *count > 0)
    }

    /// Blocks that are recorded but not in force: they overlap older ones.
    pub fn refused_blocks(&self) -> impl Iterator<Item = &Block> {
        self.recorded.refused()
    }

    /// Why a peer is not sent to, if another node is at its address.
    #[must_use]
    pub fn refused_node(&self, name: &NodeName) -> Option<&Problem> {
        self.addresses.refused.get(name)
    }

    /// Nodes whose agent shows signs of life.
    #[must_use]
    pub fn alive(&self) -> &BTreeSet<NodeName> {
        &self.addresses.alive
    }

    /// What is wrong with the records.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.pool_problems.iter().chain(self.recorded.problems())
    }

    /// Takes in a node's record, or its end.
    fn set_node(&mut self, name: &NodeName, new: Option<(Arc<Node>, u64)>) -> Changed {
        let old = match &new {
            Some((new, _)) => self.nodes.insert(name.clone(), Arc::clone(new)),
            None => self.nodes.remove(name),
        };
        // The record's age counts among those at one address.
        let mut changed = self.move_node(name, old.as_deref(), new.as_ref().map(|(new, created)| (&**new, *created)));
        let new = new.map(|(new, _)| new);
        if old != new {
            changed.merge(self.concerned(name, old.as_deref(), new.as_deref()));
        }
        changed
    }

    /// Whose objects hang on what is new of a node's record.
    fn concerned(&mut self, name: &NodeName, old: Option<&Node>, new: Option<&Node>) -> Changed {
        // In before out: what both have is never counted as gone in between.
        let mut concerns_all = new.is_some_and(|new| self.count(new, true));
        concerns_all |= old.is_some_and(|old| self.count(old, false));
        let is_same = |same: fn(&Node, &Node) -> bool| match (old, new) {
            (Some(old), Some(new)) => same(old, new),
            _ => false,
        };
        if *name == self.local.node {
            self.promises = promises(self);
            // What this node has said decides by which backends and on which devices it goes on.
            concerns_all |= !is_same(|a, b| (&a.uid, &a.receives, &a.sends) == (&b.uid, &b.receives, &b.sends));
            return if concerns_all { Changed::all() } else { Changed::default() };
        }
        if concerns_all {
            return Changed::all();
        }
        let mut changed = Changed::one(Source::Peer(name.clone()));
        if !is_same(|a, b| a.sends == b.sends) && self.pools.values().any(|pool| self.active_backends(pool).len() > 1) {
            // Who still sends with a former backend is said among this host's own notices.
            changed.sources.insert(Source::Local);
        }
        changed
    }

    /// Counts a node in or out. Says whether that begins or ends something that all peers' objects hang on.
    fn count(&mut self, node: &Node, is_in: bool) -> bool {
        let mut crosses = false;
        let mut step = |count: &mut usize| {
            crosses |= *count == usize::from(!is_in);
            *count = if is_in { *count + 1 } else { count.saturating_sub(1) };
        };
        for (pool, backends) in &node.sends {
            let of_pool = self.senders.entry(pool.clone()).or_default();
            for backend in backends {
                step(of_pool.entry(backend.clone()).or_default());
            }
            of_pool.retain(|_, count| *count > 0);
        }
        // A peer that has not said where it is lacks nothing yet.
        if node.name != self.local.node && !node.underlay.is_empty() {
            for family in Family::ALL {
                let of = if node.underlay.get(family).is_none() { &mut self.lacking } else { &mut self.having };
                step(of.entry(family).or_default());
            }
        }
        crosses
    }

    /// Decides anew which pools are in force: the oldest first, each unless it is faulty or clashes with one before it.
    /// A pool that was in force and has become faulty stays as it was; so does one that was changed so that it clashes
    /// with a younger one that has not changed.
    fn judge_pools(&mut self) -> Changed {
        let mut by_age: Vec<_> = self.given_pools.values().collect();
        by_age.sort_by(|(a_created, a), (b_created, b)| a_created.cmp(b_created).then_with(|| a.name.cmp(&b.name)));
        let is_unchanged = |pool: &&Pool| self.given_pools.get(&pool.name).is_some_and(|(_, given)| given == *pool);
        let mut accepted: BTreeMap<PoolName, Pool> = BTreeMap::new();
        let mut problems = Vec::new();
        for (_, given) in by_age {
            let former = self.pools.get(&given.name);
            let mut fault = cluster::check_pool(given).and_then(|()| cluster::check_together(accepted.values(), given));
            if fault.is_ok() && former.is_some_and(|former| former != given) {
                fault = cluster::check_together(self.pools.values().filter(is_unchanged), given);
            }
            match fault {
                Ok(()) => {
                    accepted.insert(given.name.clone(), given.clone());
                }
                Err(error) => {
                    let former = former.filter(|former| cluster::check_together(accepted.values(), former).is_ok());
                    let outcome = match former {
                        Some(_) => "the pool goes on as it was before this change",
                        None => "the pool is not in force",
                    };
                    problems.push(Problem::new(
                        format!("pool {}", given.name),
                        format!("{error}. Until that is mended {outcome}"),
                    ));
                    accepted.extend(former.map(|former| (former.name.clone(), former.clone())));
                }
            }
        }
        self.pool_problems = problems;
        let refused = self.given_pools.keys().filter(|name| !accepted.contains_key(*name)).cloned().collect();
        if accepted == self.pools && refused == self.refused_pools {
            return Changed::default();
        }
        self.pools = accepted;
        self.refused_pools = refused;
        Changed::all()
    }
}
