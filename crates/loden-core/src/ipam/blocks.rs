//! How many blocks a node should have: when it claims a further one, which it claims first, which it gives back.

use std::collections::{BTreeMap, BTreeSet};

use super::capacity;
use crate::model::{Pool, PoolName, Prefix, overlapping};

/// What pods of a node use of a pool, and wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Addresses that pods have.
    pub used: u64,
    /// Pods that found no free address and wait for one.
    pub waiting: u64,
}

/// How many blocks more of the pool a node should claim, by the blocks of it that it has: one if it has none or less than a quarter of
/// the addresses is free; and as many as those need that wait, since what is free by the count rests, or they would not wait.
#[must_use]
pub fn lacking(pool: &Pool, labels: &BTreeMap<String, String>, own: &[Prefix], load: Load) -> u64 {
    if !is_selected(pool, labels) {
        return 0;
    }
    let Some((first, _)) = pool.block_bounds() else { return u64::from(own.is_empty()) };
    let there = own.iter().map(|block| capacity(*block)).sum();
    let crowded = own.is_empty() || is_crowded(load.used, there);
    u64::from(crowded).max(load.waiting.div_ceil(capacity(first).max(1)))
}

/// Whether a node with these labels is to have blocks of the pool.
#[must_use]
pub fn is_selected(pool: &Pool, labels: &BTreeMap<String, String>) -> bool {
    pool.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn is_crowded(used: u64, capacity: u64) -> bool {
    used * 4 > capacity * 3
}

/// The blocks to try first, in the order given, each once: those that can still be claimed of this pool.
#[must_use]
pub fn preferred<T>(pool: &Pool, former: &[Prefix], taken: &BTreeMap<Prefix, T>) -> Vec<Prefix> {
    let Some((first, last)) = pool.block_bounds() else { return Vec::new() };
    let mut seen = BTreeSet::new();
    let fits = |block: &Prefix| block.len() == pool.block_len && (first..=last).contains(block);
    let is_free = |block: &Prefix| fits(block) && overlapping(taken, *block).is_none();
    former.iter().copied().filter(is_free).filter(|block| seen.insert(*block)).collect()
}

/// A block of this node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnBlock {
    /// Its addresses.
    pub cidr: Prefix,
    /// The pool that it was cut from.
    pub pool: PoolName,
    /// Addresses that pods have.
    pub used: u64,
    /// For how long no pod has had any, in seconds.
    pub idle_s: u64,
    /// Whether there is such a pool, and it is for this node.
    pub is_wanted: bool,
}

/// The block to give back, if there is one: empty for `most_idle_s`, and of no use, or spared by another of its pool of which at least
/// half is free. The highest goes first: peers send by the lowest. What stays is not so full that a block would be claimed again.
#[must_use]
pub fn surplus(blocks: &[OwnBlock], most_idle_s: u64) -> Option<Prefix> {
    let is_spared = |block: &OwnBlock| {
        let others: Vec<_> = blocks.iter().filter(|o| o.pool == block.pool && o.cidr != block.cidr).collect();
        let has_room = others.iter().any(|other| other.used * 2 <= capacity(other.cidr));
        let used = others.iter().map(|other| other.used).sum();
        has_room && !is_crowded(used, others.iter().map(|other| capacity(other.cidr)).sum())
    };
    let is_surplus =
        |block: &&OwnBlock| block.used == 0 && block.idle_s >= most_idle_s && (!block.is_wanted || is_spared(block));
    blocks.iter().filter(is_surplus).map(|block| block.cidr).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        let value = serde_json::json!({"name": "p", "cidr": "10.0.0.0/24", "blockLen": 28, "backend": {"type": "host-gw"},
            "natOutgoing": true, "nodeSelector": {"zone": "a"}});
        serde_json::from_value(value).expect("a pool")
    }

    fn blocks(list: &[&str]) -> Vec<Prefix> {
        list.iter().map(|block| block.parse().expect("a prefix")).collect()
    }

    #[test]
    fn blocks_are_claimed_before_the_last_address_is_taken_and_for_those_that_wait() {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let one = blocks(&["10.0.0.0/28"]);
        let two = blocks(&["10.0.0.0/28", "10.0.0.16/28"]);
        // A /28 has 13 addresses for pods.
        for (own, used, waiting, wanted) in [
            (&[][..], 0, 0, 1),
            (&one, 0, 0, 0),
            (&one, 9, 0, 0),
            (&one, 10, 0, 1),
            (&two, 10, 0, 0),
            (&two, 20, 0, 1),
            (&one, 0, 1, 1),
            (&one, 13, 13, 1),
            (&one, 13, 14, 2),
            (&[], 0, 500, 39),
        ] {
            let load = Load { used, waiting };
            assert_eq!(lacking(&pool(), &labels, own, load), wanted, "{own:?} {load:?}");
        }
        let load = Load { used: 13, waiting: 5 };
        assert_eq!(lacking(&pool(), &BTreeMap::new(), &one, load), 0, "the pool is not for this node");
    }

    #[test]
    fn what_was_ours_is_tried_first_if_it_can_be_had() {
        let taken: BTreeMap<Prefix, ()> =
            blocks(&["10.0.0.0/28", "10.0.0.64/27"]).into_iter().map(|b| (b, ())).collect();
        let former = [
            "10.0.0.48/28",
            "10.0.0.0/28",
            "10.0.0.16/28",
            "10.0.0.80/28",
            "10.0.0.0/24",
            "10.9.0.0/28",
            "10.0.0.48/28",
        ];
        assert_eq!(preferred(&pool(), &blocks(&former), &taken), blocks(&["10.0.0.48/28", "10.0.0.16/28"]));
    }

    fn own(cidr: &str, used: u64, idle_s: u64, is_wanted: bool) -> OwnBlock {
        let cidr: Prefix = cidr.parse().expect("a prefix");
        OwnBlock { cidr, pool: "p".parse().expect("a name"), used, idle_s, is_wanted }
    }

    #[test]
    fn only_an_idle_block_that_is_not_missed_is_given_back() {
        let (a, b, c) = ("10.0.0.0/28", "10.0.0.16/28", "10.0.0.32/28");
        let check = |what: &str, list: &[OwnBlock], expected: Option<&str>| {
            let found = surplus(list, 600);
            assert_eq!(found, expected.map(|text| text.parse().expect("a prefix")), "{what}");
        };
        check("the last one stays", &[own(a, 0, 9999, true)], None);
        check("one of two", &[own(a, 6, 0, true), own(b, 0, 600, true)], Some(b));
        check("not yet", &[own(a, 6, 0, true), own(b, 0, 599, true)], None);
        check("it is in use", &[own(a, 6, 0, true), own(b, 1, 9999, true)], None);
        check("the other is more than half full", &[own(a, 7, 0, true), own(b, 0, 9999, true)], None);
        check("of two that are empty the highest", &[own(a, 0, 9999, true), own(b, 0, 700, true)], Some(b));
        let full = [own(a, 13, 0, true), own(c, 13, 0, true), own("10.0.0.48/28", 6, 0, true), own(b, 0, 9999, true)];
        check("it would be claimed again at once", &full, None);
        check("its pool is gone", &[own(a, 0, 600, false)], Some(a));
        check("its pool is gone, pods are not", &[own(a, 1, 600, false)], None);
        let other = OwnBlock { pool: "q".parse().expect("a name"), ..own(b, 0, 0, true) };
        check("another pool's does not spare it", &[own(a, 0, 9999, true), other], None);
    }

    #[test]
    fn claiming_and_giving_back_come_to_rest() {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        for used in 0..=13 {
            let list = [own("10.0.0.0/28", used, 0, true), own("10.0.0.16/28", 0, 9999, true)];
            let Some(gone) = surplus(&list, 0) else { continue };
            let stays: Vec<Prefix> = list.iter().map(|block| block.cidr).filter(|cidr| *cidr != gone).collect();
            assert_eq!(lacking(&pool(), &labels, &stays, Load { used, waiting: 0 }), 0, "{used} in use");
        }
    }
}
