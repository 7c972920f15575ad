//! Which block, and which address in it. Pure: what is taken, the time and the seed are arguments.

mod address;
mod blocks;
mod demand;
mod range;

use std::collections::BTreeMap;

use crate::model::{Pool, Prefix, overlapping};

pub use address::{Choice, Exhausted, RangeState};
pub use blocks::{Load, OwnBlock, is_selected, lacking, preferred, surplus};
pub use demand::{Demand, Offer};
pub use range::{Range, RangeError, Supply};

/// How many addresses of a block pods can have: all but the network's own, the gateway, and in IPv4 the broadcast address;
/// at most 65,536 are counted.
#[must_use]
pub fn capacity(block: Prefix) -> u64 {
    Range::of_block(block).map_or(0, |range| range.size().into())
}

/// A block of the pool that nobody has, or `None` when all are taken. Nodes with other seeds look at other places first, so
/// that they seldom race; the result depends on the arguments alone.
#[must_use]
pub fn choose_block<T>(pool: &Pool, taken: &BTreeMap<Prefix, T>, seed: u64) -> Option<Prefix> {
    let (first, last) = pool.block_bounds()?;
    let index = |block: Prefix| pool.cidr.index_of(block.network()).map(|offset| offset >> block_bits(pool));
    let (low, high) = (index(first)?, index(last)?);
    let count = high.checked_sub(low)?.checked_add(1)?;
    let mut n = low + u128::from(seed) % count;
    let mut tried: u128 = 0;
    while tried < count {
        let candidate = pool.cidr.nth_subnet(pool.block_len, n)?;
        let Some((other, _)) = overlapping(taken, candidate) else { return Some(candidate) };
        // A larger one covers several: none of them is worth a look.
        let behind =
            if other.len() < pool.block_len { index(*other)? + other.count_subnets(pool.block_len) } else { n + 1 };
        tried += behind - n;
        n = if behind > high { low } else { behind };
    }
    None
}

fn block_bits(pool: &Pool) -> u32 {
    u32::from(pool.cidr.family().bits() - pool.block_len).min(127)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn p(s: &str) -> Prefix {
        s.parse().expect(s)
    }

    fn pool(cidr: &str, block_len: u8) -> Pool {
        let value = serde_json::json!({"name": "p", "cidr": cidr, "blockLen": block_len, "backend": {"type": "host-gw"},
            "natOutgoing": true});
        serde_json::from_value(value).expect("a pool")
    }

    fn taken(blocks: &[&str]) -> BTreeMap<Prefix, ()> {
        blocks.iter().map(|block| (p(block), ())).collect()
    }

    #[test]
    fn blocks_of_other_lengths_are_stepped_over() {
        let others = taken(&["10.0.0.0/17", "10.0.128.0/26"]);
        assert_eq!(choose_block(&pool("10.0.0.0/16", 24), &others, 0), Some(p("10.0.129.0/24")));
        assert_eq!(choose_block(&pool("10.0.0.0/16", 24), &taken(&["10.0.0.0/16"]), 7), None);
        assert_eq!(choose_block(&pool("10.0.0.0/24", 16), &taken(&[]), 0), None);
    }

    #[test]
    fn only_blocks_within_the_bounds_are_chosen() {
        let mut pool = pool("10.0.0.0/16", 24);
        (pool.first_block, pool.last_block) = (Some(p("10.0.3.0/24")), Some(p("10.0.5.0/24")));
        let mut taken = BTreeMap::new();
        for seed in 100..103 {
            taken.insert(choose_block(&pool, &taken, seed).expect("one is free"), ());
        }
        assert_eq!(taken.keys().copied().collect::<Vec<_>>(), [p("10.0.3.0/24"), p("10.0.4.0/24"), p("10.0.5.0/24")]);
        assert_eq!(choose_block(&pool, &taken, 0), None);
        pool.first_block = Some(p("10.0.6.0/24"));
        assert_eq!(choose_block(&pool, &taken, 0), None, "bounds that are the wrong way round");
    }

    proptest! {
        #[test]
        fn every_block_is_given_once_and_then_none(seed in any::<u64>()) {
            let pool = pool("10.0.0.0/20", 24);
            let mut taken = BTreeMap::new();
            for _ in 0..16 {
                let block = choose_block(&pool, &taken, seed).expect("there is room");
                prop_assert!(pool.cidr.covers(block));
                prop_assert!(taken.insert(block, ()).is_none());
            }
            prop_assert_eq!(choose_block(&pool, &taken, seed), None);
        }
    }
}
