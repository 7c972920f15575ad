//! What the cluster's objects say together: records and what is wrong. A pure state machine, object in, changes out.
//!
//! The picture depends on the objects that there are, never on the order in which they came: of two nodes that Kubernetes has
//! given overlapping podCIDRs the one whose object is older has them, and the other is named.

use std::collections::{BTreeMap, BTreeSet};

use loden_core::model::{Block, Entry, Key, Node, NodeName, Pool, Prefix, Record};

use super::custom;
use super::node::{Dialect, Reading};
use super::object::{Kind, Meta, Object};
use crate::Change;

/// All that is known of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    dialect: Dialect,
    entries: BTreeMap<Key, Entry>,
    flaws: BTreeMap<String, String>,
    /// The nodes that are served, by the name of their object.
    nodes: BTreeMap<String, Served>,
    /// Which nodes have which podCIDR, the oldest first.
    claims: BTreeMap<Prefix, BTreeSet<Claim>>,
    /// Which record an object of loden's own is.
    objects: BTreeMap<(Kind, String), Key>,
    /// How many blocks a Pool's status says that nodes have.
    said: BTreeMap<String, Option<u64>>,
}

#[derive(Debug, Clone)]
struct Served {
    node: Node,
    created: u64,
    cidrs: Vec<Prefix>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: u64,
    name: String,
}

impl Picture {
    /// An empty one, with the pools of net-conf.json if there is one.
    pub fn new(dialect: Dialect) -> Self {
        let mut picture = Self { dialect, ..Self::default() };
        for pool in picture.dialect.net_conf.clone().into_iter().flatten() {
            let entry = Entry { record: Record::Pool(pool), created: 0, revision: 0 };
            picture.entries.insert(entry.record.key(), entry);
        }
        picture
    }

    /// The records.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One record.
    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// What is no record, and why.
    pub fn flaws(&self) -> &BTreeMap<String, String> {
        &self.flaws
    }

    /// Whether there are objects of loden's own.
    pub fn has_objects(&self) -> bool {
        !self.objects.is_empty()
    }

    /// The pools whose status says another number of blocks than there are and whose keeper this node is, with the number. One node
    /// keeps it: the owner of the pool's lowest block, or the first node while there is none.
    pub fn tallies(&self, own: &NodeName) -> Vec<(String, u64)> {
        let mut counts: BTreeMap<&str, (u64, &NodeName)> = BTreeMap::new();
        let blocks = self.entries.values().filter_map(|entry| match &entry.record {
            Record::Block(block) => Some(block),
            _ => None,
        });
        for block in blocks {
            counts.entry(block.pool.as_str()).or_insert((0, &block.owner)).0 += 1;
        }
        let first = self.entries.values().find_map(|entry| match &entry.record {
            Record::Node(node) => Some(&node.name),
            _ => None,
        });
        let due = |(pool, said): (&String, &Option<u64>)| {
            let (count, keeper) = counts.get(pool.as_str()).map_or((0, first), |(count, owner)| (*count, Some(*owner)));
            (keeper == Some(own) && *said != Some(count)).then(|| (pool.clone(), count))
        };
        self.said.iter().filter_map(due).collect()
    }

    /// Whether the podCIDRs of a Node are needed and it does not say them where a watch shows it.
    pub fn wants_cidrs(&self, meta: &Meta) -> bool {
        let is_silent = |reading: Option<Reading>| reading.is_some_and(|reading| reading.cidrs.is_none());
        self.dialect.net_conf.is_some() && self.dialect.read(meta).is_ok_and(is_silent)
    }

    /// Takes in an object as it is now, at the revision that made it so. `cidrs` is what a Node's spec says, where somebody has
    /// looked.
    pub fn put(&mut self, kind: Kind, object: &Object, cidrs: Option<&[Prefix]>, revision: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        if kind == Kind::Node {
            let reading = self.dialect.read(&object.metadata);
            self.set_node(&object.metadata, reading, cidrs, revision, &mut changes);
        } else {
            self.set_custom(kind, object, revision, &mut changes);
        }
        changes
    }

    /// Takes in that an object is gone.
    pub fn remove(&mut self, kind: Kind, name: &str, revision: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        if kind == Kind::Node {
            let meta = Meta { name: name.to_owned(), ..Meta::default() };
            self.set_node(&meta, Ok(None), None, revision, &mut changes);
        } else {
            if kind == Kind::Pool {
                self.said.remove(name);
            }
            if let Some(key) = self.objects.remove(&(kind, name.to_owned())) {
                self.set(key, None, 0, revision, &mut changes);
            }
            self.set_flaw(custom_place(kind, name), None, revision, &mut changes);
        }
        changes
    }

    fn set_custom(&mut self, kind: Kind, object: &Object, revision: u64, changes: &mut Vec<Change>) {
        let meta = &object.metadata;
        if kind == Kind::Pool {
            self.said.insert(meta.name.clone(), object.status["blocks"].as_u64());
        }
        let (record, cause) = match custom::read(kind, object) {
            Ok(record) => (Some(record), None),
            Err(cause) => (None, Some(cause)),
        };
        let former = match &record {
            Some(record) => self.objects.insert((kind, meta.name.clone()), record.key()),
            None => self.objects.remove(&(kind, meta.name.clone())),
        };
        if let Some(key) = former.filter(|key| record.as_ref().map(Record::key).as_ref() != Some(key)) {
            self.set(key, None, 0, revision, changes);
        }
        if let Some(record) = record {
            self.set(record.key(), Some(record), meta.created, revision, changes);
        }
        self.set_flaw(custom_place(kind, &meta.name), cause, revision, changes);
    }

    fn set_node(
        &mut self,
        meta: &Meta,
        reading: Result<Option<Reading>, String>,
        spec_cidrs: Option<&[Prefix]>,
        revision: u64,
        changes: &mut Vec<Change>,
    ) {
        let (reading, cause) = match reading {
            Ok(reading) => (reading, None),
            Err(cause) => (None, Some(cause)),
        };
        let former = self.nodes.remove(&meta.name);
        if let Ok(name) = meta.name.parse::<NodeName>() {
            let record = reading.as_ref().map(|reading| Record::Node(reading.node.clone()));
            self.set(Key::Node(name), record, meta.created, revision, changes);
        }
        self.set_flaw(format!("node/{}", meta.name), cause, revision, changes);
        let unfit = reading.as_ref().and_then(|reading| reading.flaw.clone());
        self.set_flaw(format!("node/{} annotations", meta.name), unfit, revision, changes);

        let created = former.as_ref().map_or_else(|| meta.created, |former| former.created);
        let claim = Claim { created, name: meta.name.clone() };
        let former_cidrs = former.map(|former| former.cidrs).unwrap_or_default();
        for cidr in &former_cidrs {
            if let Some(claims) = self.claims.get_mut(cidr) {
                claims.remove(&claim);
                if claims.is_empty() {
                    self.claims.remove(cidr);
                }
            }
        }
        let mut cidrs = Vec::new();
        let created = meta.created;
        if let Some(Reading { node, cidrs: said, .. }) = reading {
            // What the spec says is so; the annotation is a copy of it.
            let said = spec_cidrs.map(<[Prefix]>::to_vec).or(said).unwrap_or_default();
            cidrs = if self.dialect.net_conf.is_some() { said } else { Vec::new() };
            for cidr in &cidrs {
                self.claims.entry(*cidr).or_default().insert(Claim { created, name: meta.name.clone() });
            }
            self.nodes.insert(meta.name.clone(), Served { node, created, cidrs: cidrs.clone() });
        }
        for cidr in former_cidrs.iter().filter(|cidr| !cidrs.contains(cidr)) {
            self.set_flaw(cidr_place(&meta.name, *cidr), None, revision, changes);
        }
        let own: BTreeSet<Prefix> = former_cidrs.into_iter().chain(cidrs).collect();
        let touched: BTreeSet<Prefix> =
            own.iter().flat_map(|cidr| self.overlapping(*cidr)).chain(own.clone()).collect();
        for cidr in touched {
            self.judge(cidr, revision, changes);
        }
    }

    /// Decides anew who has a podCIDR.
    fn judge(&mut self, cidr: Prefix, revision: u64, changes: &mut Vec<Change>) {
        let claims = self.claims.get(&cidr).cloned().unwrap_or_default();
        let rivals =
            self.overlapping(cidr).into_iter().filter_map(|other| Some((other, self.claims.get(&other)?.first()?)));
        // Older ones only: what a younger one was given wrongly is its own fault.
        let elder =
            claims.first().and_then(|first| rivals.filter(|(_, other)| *other < first).min_by_key(|(_, other)| *other));
        let elder = elder.map(|(other, claim)| (other, claim.clone()));
        let holder = claims.first().filter(|_| elder.is_none()).cloned();
        let block = holder.as_ref().and_then(|holder| {
            let served = self.nodes.get(&holder.name)?;
            let pool = self.pool_of(cidr)?;
            let (pool, owner, owner_uid) = (pool.name.clone(), served.node.name.clone(), served.node.uid.clone());
            Some(Record::Block(Block { cidr, pool, owner, owner_uid }))
        });
        let is_in_pool = self.pool_of(cidr).is_some();
        let created = holder.as_ref().map_or(0, |holder| holder.created);
        self.set(Key::Block(cidr), block, created, revision, changes);
        for claim in &claims {
            let cause = if !is_in_pool {
                Some(self.outside())
            } else if let Some((other, elder)) = &elder {
                Some(clash(&claim.name, cidr, &elder.name, *other))
            } else {
                claims.first().filter(|first| *first != claim).map(|first| clash(&claim.name, cidr, &first.name, cidr))
            };
            self.set_flaw(cidr_place(&claim.name, cidr), cause, revision, changes);
        }
    }

    /// Other podCIDRs that share addresses with this one.
    fn overlapping(&self, cidr: Prefix) -> Vec<Prefix> {
        // In the order of prefixes, those inside stand right behind it.
        let inside = self.claims.range(cidr..).map(|(other, _)| *other).take_while(|other| cidr.covers(*other));
        let around = (0..cidr.len()).map(|len| Prefix::holding(cidr.network(), len));
        inside.filter(|other| *other != cidr).chain(around.filter(|other| self.claims.contains_key(other))).collect()
    }

    fn pool_of(&self, cidr: Prefix) -> Option<&Pool> {
        self.dialect.net_conf.iter().flatten().find(|pool| pool.cidr.covers(cidr))
    }

    fn outside(&self) -> String {
        let networks: Vec<String> = self.dialect.net_conf.iter().flatten().map(|pool| pool.cidr.to_string()).collect();
        format!(
            "Kubernetes gave it outside of {}: the network of net-conf.json and the controller manager's --cluster-cidr are to agree",
            networks.join(" and ")
        )
    }

    fn set(&mut self, key: Key, record: Option<Record>, created: u64, revision: u64, changes: &mut Vec<Change>) {
        let former = self.entries.get(&key);
        let is_same = |record: &Record| former.is_some_and(|it| it.record == *record && it.created == created);
        match record {
            Some(record) if is_same(&record) => {}
            Some(record) => {
                let entry = Entry { record, created, revision };
                self.entries.insert(key, entry.clone());
                changes.push(Change::Put(entry));
            }
            None if former.is_some() => {
                self.entries.remove(&key);
                changes.push(Change::Delete { key, revision });
            }
            None => {}
        }
    }

    fn set_flaw(&mut self, place: String, cause: Option<String>, revision: u64, changes: &mut Vec<Change>) {
        if self.flaws.get(&place) == cause.as_ref() {
            return;
        }
        match &cause {
            Some(cause) => drop(self.flaws.insert(place.clone(), cause.clone())),
            None => drop(self.flaws.remove(&place)),
        }
        changes.push(Change::Flaw { place, cause, revision });
    }
}

fn custom_place(kind: Kind, name: &str) -> String {
    format!("{}/{name}", kind.resource())
}

fn cidr_place(node: &str, cidr: Prefix) -> String {
    format!("node/{node} podCIDR {cidr}")
}

fn clash(node: &str, cidr: Prefix, elder: &str, other: Prefix) -> String {
    let what = if other == cidr { "as well".to_owned() } else { format!(", which overlaps, as {other}") };
    format!(
        "{cidr} of {node} is {elder}'s{}: {elder} is the older one and has it; drain {node}, delete its Node object and let it \
         register again",
        if other == cidr { format!(" {what}") } else { what }
    )
}

#[cfg(test)]
mod tests {
    use loden_core::dialect::flannel::NetConf;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::object::Object;
    use super::*;

    const CIDRS: [&str; 5] = ["10.1.1.0/24", "10.1.2.0/24", "10.1.0.0/16", "10.1.2.128/25", "192.0.2.0/24"];

    /// What becomes of one node: it is gone, or somebody serves it (or nobody, or it cannot be read) and Kubernetes gave it this.
    #[derive(Debug, Clone)]
    struct State {
        node: u8,
        serves: Option<u8>,
        cidr: usize,
    }

    fn states() -> impl Strategy<Value = Vec<State>> {
        let state = (0..5_u8, proptest::option::of(0..4_u8), 0..CIDRS.len());
        proptest::collection::vec(state.prop_map(|(node, serves, cidr)| State { node, serves, cidr }), 0..40)
    }

    fn picture() -> Picture {
        let conf = br#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#;
        let pools = NetConf::parse(conf, true).expect("net-conf.json").pools;
        Picture::new(Dialect { prefix: "flannel.alpha.coreos.com/".to_owned(), net_conf: Some(pools) })
    }

    fn apply(picture: &mut Picture, state: &State, revision: u64) -> Vec<Change> {
        let name = format!("n{}", state.node);
        let Some(serves) = state.serves else { return picture.remove(Kind::Node, &name, revision) };
        let annotations = match serves {
            0 => json!({}),
            1 => json!({"loden.dev/node": "{"}),
            2 => json!({"loden.dev/node": format!("{{\"uid\":\"u{}\"}}", state.node)}),
            _ => {
                json!({"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/public-ip": "192.0.2.1",
                "flannel.alpha.coreos.com/backend-type": "host-gw"})
            }
        };
        // Two of them are of one age.
        let created = format!("2026-01-01T00:00:0{}Z", state.node / 2);
        let meta = json!({"name": name, "uid": format!("uid-{name}"), "resourceVersion": revision.to_string(),
            "creationTimestamp": created, "annotations": annotations});
        let object: Object = serde_json::from_value(json!({"metadata": meta})).expect("an object");
        let cidrs = [CIDRS[state.cidr].parse().expect("a prefix")];
        picture.put(Kind::Node, &object, Some(&cidrs), revision)
    }

    type Shown = (BTreeMap<Key, (Record, u64)>, BTreeMap<String, String>);

    fn shown(picture: &Picture) -> Shown {
        let entries = picture.entries().map(|entry| (entry.record.key(), (entry.record.clone(), entry.created)));
        (entries.collect(), picture.flaws().clone())
    }

    proptest! {
        #[test]
        fn it_depends_on_what_there_is_and_the_changes_lead_to_it(states in states()) {
            let mut followed = picture();
            let (mut entries, mut flaws) = shown(&followed);
            for (revision, state) in (1..).zip(&states) {
                for change in apply(&mut followed, state, revision) {
                    prop_assert_eq!(change.revision(), revision);
                    match change {
                        Change::Put(entry) => drop(entries.insert(entry.record.key(), (entry.record, entry.created))),
                        Change::Delete { key, .. } => prop_assert!(entries.remove(&key).is_some()),
                        Change::Flaw { place, cause: Some(cause), .. } => drop(flaws.insert(place, cause)),
                        Change::Flaw { place, cause: None, .. } => prop_assert!(flaws.remove(&place).is_some()),
                    }
                }
                prop_assert!(apply(&mut followed, state, revision).is_empty(), "the same again is no change");
            }
            prop_assert_eq!(&shown(&followed), &(entries, flaws));
            let last: BTreeMap<u8, &State> = states.iter().map(|state| (state.node, state)).collect();
            for order in [last.values().copied().collect::<Vec<_>>(), last.values().rev().copied().collect()] {
                let mut listed = picture();
                for state in order {
                    apply(&mut listed, state, 1);
                }
                prop_assert_eq!(shown(&listed), shown(&followed));
            }
            let blocks: Vec<Prefix> = followed.entries().filter_map(|entry| match &entry.record {
                Record::Block(block) => Some(block.cidr),
                _ => None,
            }).collect();
            for (n, one) in blocks.iter().enumerate() {
                prop_assert!(blocks[n + 1..].iter().all(|other| !one.overlaps(*other)), "no address is in two blocks");
            }
        }
    }
}
