//! Which block, and which address in it. Pure: what is taken, the time and the seed are arguments.

mod address;
mod demand;
mod range;

use std::collections::BTreeSet;

use crate::model::Prefix;

pub use address::{Choice, Exhausted, RangeState};
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
pub fn choose_block(pool: Prefix, block_len: u8, taken: &BTreeSet<Prefix>, seed: u64) -> Option<Prefix> {
    let count = pool.count_subnets(block_len);
    if block_len < pool.len() || block_len > pool.family().bits() {
        return None;
    }
    let start = u128::from(seed) % count;
    let mut n = start;
    let mut tried: u128 = 0;
    while tried < count {
        let candidate = pool.nth_subnet(block_len, n)?;
        match taken.iter().find(|other| other.overlaps(candidate)) {
            None => return Some(candidate),
            Some(other) => {
                // A larger one covers several: none of them is worth a look.
                let step = other.count_subnets(block_len).max(1);
                let first = pool.index_of(other.network()).map_or(n, |index| index >> block_bits(pool, block_len));
                let skip = if other.len() < block_len { first + step - n } else { 1 };
                tried += skip;
                n += skip;
                if n >= count {
                    n = 0;
                }
            }
        }
    }
    None
}

fn block_bits(pool: Prefix, block_len: u8) -> u32 {
    u32::from(pool.family().bits() - block_len).min(127)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn p(s: &str) -> Prefix {
        s.parse().expect(s)
    }

    #[test]
    fn blocks_of_other_lengths_are_stepped_over() {
        let taken = BTreeSet::from([p("10.0.0.0/17"), p("10.0.128.0/26")]);
        assert_eq!(choose_block(p("10.0.0.0/16"), 24, &taken, 0), Some(p("10.0.129.0/24")));
        assert_eq!(choose_block(p("10.0.0.0/16"), 24, &BTreeSet::from([p("10.0.0.0/16")]), 7), None);
        assert_eq!(choose_block(p("10.0.0.0/24"), 16, &BTreeSet::new(), 0), None);
    }

    proptest! {
        #[test]
        fn every_block_is_given_once_and_then_none(seed in any::<u64>()) {
            let pool = p("10.0.0.0/20");
            let mut taken = BTreeSet::new();
            for _ in 0..16 {
                let block = choose_block(pool, 24, &taken, seed).expect("there is room");
                prop_assert!(pool.covers(block));
                prop_assert!(taken.insert(block));
            }
            prop_assert_eq!(choose_block(pool, 24, &taken, seed), None);
        }
    }
}
