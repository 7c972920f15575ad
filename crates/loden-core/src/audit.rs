//! Looks at a datastore's records as a whole: who has what twice, what belongs to nobody, and how two datastores differ.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use crate::config::cluster::{check_pool, check_together};
use crate::model::{Block, Entry, Family, Key, Node, NodeName, Pool, PoolName, Prefix, Record, overlapping};
use crate::view::Problem;

/// What is wrong with the records: each thing once, with what to do. Empty when all is well.
///
/// Of two records that cannot both be, the one that was written first counts, as it does on every node.
#[must_use]
pub fn problems(entries: &[Entry]) -> Vec<Problem> {
    let mut by_age: Vec<&Entry> = entries.iter().collect();
    by_age.sort_by_key(|entry| entry.created);
    let cluster = Cluster::of(&by_age);
    let mut problems = cluster.pools();
    problems.extend(cluster.blocks());
    problems.extend(cluster.nodes());
    problems
}

/// A key that two datastores do not have alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The key's text.
    pub key: String,
    /// What the first has there.
    pub left: Option<Record>,
    /// What the second has there.
    pub right: Option<Record>,
}

/// What two datastores do not have alike, by key. Signs of life are left out: they are of the moment.
#[must_use]
pub fn differences(left: &[Entry], right: &[Entry]) -> Vec<Difference> {
    let lasting = |entries: &[Entry]| -> BTreeMap<Key, Record> {
        entries
            .iter()
            .map(|entry| (entry.record.key(), entry.record.clone()))
            .filter(|(key, _)| is_lasting(key))
            .collect()
    };
    let (mut left, mut right) = (lasting(left), lasting(right));
    let keys: BTreeSet<Key> = left.keys().chain(right.keys()).cloned().collect();
    let difference = |key: Key| {
        let (left, right) = (left.remove(&key), right.remove(&key));
        (left != right).then(|| Difference { key: key.to_string(), left, right })
    };
    keys.into_iter().filter_map(difference).collect()
}

/// Whether a record is worth keeping elsewhere.
#[must_use]
pub fn is_lasting(key: &Key) -> bool {
    !matches!(key, Key::Lease(_))
}

/// The records by sort, each with the oldest first.
struct Cluster<'a> {
    pools: Vec<&'a Pool>,
    nodes: Vec<&'a Node>,
    blocks: Vec<&'a Block>,
    /// Nodes whose agent shows signs of life.
    alive: BTreeSet<&'a NodeName>,
}

impl<'a> Cluster<'a> {
    fn of(by_age: &[&'a Entry]) -> Self {
        let mut cluster = Self { pools: Vec::new(), nodes: Vec::new(), blocks: Vec::new(), alive: BTreeSet::new() };
        for entry in by_age {
            match &entry.record {
                Record::Pool(pool) => cluster.pools.push(pool),
                Record::Node(node) => cluster.nodes.push(node),
                Record::Block(block) => cluster.blocks.push(block),
                Record::Lease(lease) => drop(cluster.alive.insert(&lease.node)),
            }
        }
        cluster
    }

    fn pools(&self) -> Vec<Problem> {
        let mut accepted: Vec<&Pool> = Vec::new();
        let mut problems = Vec::new();
        for pool in &self.pools {
            match check_pool(pool).and_then(|()| check_together(accepted.iter().copied(), pool)) {
                Ok(()) => accepted.push(pool),
                Err(error) => problems.push(Problem::new(format!("pool {}", pool.name), error.to_string())),
            }
        }
        problems
    }

    fn blocks(&self) -> Vec<Problem> {
        let pools: BTreeMap<&PoolName, &Pool> = self.pools.iter().map(|pool| (&pool.name, *pool)).collect();
        let nodes: BTreeMap<&NodeName, &Node> = self.nodes.iter().map(|node| (&node.name, *node)).collect();
        let mut owners: BTreeMap<Prefix, &NodeName> = BTreeMap::new();
        let mut problems = Vec::new();
        for block in &self.blocks {
            let mut tell = |cause: String| problems.push(Problem::new(format!("block {}", block.cidr), cause));
            if let Some((other, owner)) = overlapping(&owners, block.cidr) {
                tell(format!(
                    "it is {}'s, and overlaps {other}, which {owner} had before: {}'s pods that have addresses there are not \
                     reached. Detach them, and take this record away",
                    block.owner, block.owner
                ));
            } else {
                owners.insert(block.cidr, &block.owner);
            }
            match pools.get(&block.pool) {
                None => tell(format!("its pool {} is not there: it serves nobody", block.pool)),
                Some(pool) => {
                    if !pool.cidr.covers(block.cidr) {
                        tell(format!("it is not in its pool {}, {}: it serves nobody", pool.name, pool.cidr));
                    } else if block.cidr.len() != pool.block_len {
                        tell(format!("pool {} has blocks of /{} now", pool.name, pool.block_len));
                    }
                }
            }
            match nodes.get(&block.owner) {
                None => tell(format!(
                    "its owner {0} is not there. If it is gone for good: `loden store forget {0}`",
                    block.owner
                )),
                Some(node) if node.uid != block.owner_uid => tell(format!(
                    "it belongs to a former host of the name {}: the present one takes it over once its agent runs",
                    block.owner
                )),
                Some(_) => {}
            }
        }
        problems
    }

    fn nodes(&self) -> Vec<Problem> {
        let mut holders: BTreeMap<IpAddr, &NodeName> = BTreeMap::new();
        let mut problems = Vec::new();
        for node in &self.nodes {
            let mut tell = |cause: String| problems.push(Problem::new(format!("node {}", node.name), cause));
            for addr in Family::ALL.into_iter().filter_map(|family| node.reached_at(family)) {
                match holders.get(&addr) {
                    Some(other) => {
                        tell(format!("it is at {addr}, where {other} was before it: one of them is not reached"))
                    }
                    None => drop(holders.insert(addr, &node.name)),
                }
            }
            // Where nobody shows signs of life the datastore has no place for them.
            if !self.alive.is_empty() && !self.alive.contains(&node.name) {
                tell(format!(
                    "its agent shows no sign of life; its blocks stay its own. If it is gone for good: `loden store forget {}`",
                    node.name
                ));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(records: &[serde_json::Value]) -> Vec<Entry> {
        let read = |value: &serde_json::Value| serde_json::from_value(value.clone()).expect("a record");
        (1..).zip(records.iter().map(read)).map(|(n, record)| Entry { record, created: n, revision: n }).collect()
    }

    #[test]
    fn who_shows_no_sign_of_life_is_named_where_others_do() {
        let node = |name: &str| serde_json::json!({ "kind": "node", "name": name, "uid": name });
        let lease = serde_json::json!({ "kind": "lease", "node": "a", "uid": "a", "instance": "i" });
        assert_eq!(problems(&entries(&[node("a"), node("b")])), Vec::new());
        let found = problems(&entries(&[node("a"), node("b"), lease]));
        assert_eq!(found.iter().map(|problem| problem.subject.as_str()).collect::<Vec<_>>(), ["node b"]);
        assert!(found[0].cause.contains("no sign of life"), "{}", found[0]);
    }
}
