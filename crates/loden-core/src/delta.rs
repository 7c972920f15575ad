//! Desired against observed: both sides of each key in one place, and always exactly the keys in which they differ.
//!
//! The set of differences is kept up at every change, so that asking for it costs what has changed and not what there is:
//! one peer more among ten thousand is four objects. The slots lie one behind the other in the order in which their keys
//! came, and a difference is a slot's number: ten thousand peers are walked, not searched for.

use std::collections::BTreeSet;
use std::hash::Hash;

use foldhash::fast::FixedState;
use indexmap::IndexMap;

/// Which key is wanted how, is there how, and where the two differ.
#[derive(Debug, Clone)]
pub struct DeltaMap<K, W, A> {
    /// Hashed without a random seed: what is iterated in its order is the same in every run.
    slots: IndexMap<K, Slot<W, A>, FixedState>,
    /// The numbers of the slots whose two sides differ.
    differing: BTreeSet<usize>,
    is_met: fn(&W, &A) -> bool,
    wanted: usize,
    seen: usize,
}

/// What is known of a key; one of the two at least.
#[derive(Debug, Clone)]
struct Slot<W, A> {
    desired: Option<W>,
    actual: Option<A>,
    differs: bool,
}

impl<K: Hash + Eq, W, A> DeltaMap<K, W, A> {
    /// An empty map; `is_met` says whether what is there satisfies what is wanted.
    #[must_use]
    pub fn new(is_met: fn(&W, &A) -> bool) -> Self {
        let slots = IndexMap::with_hasher(FixedState::default());
        Self { slots, differing: BTreeSet::new(), is_met, wanted: 0, seen: 0 }
    }

    /// Makes room for so many keys more.
    pub fn reserve(&mut self, more: usize) {
        self.slots.reserve(more);
    }

    /// Wants the key to be so. Here and below: says whether that makes it differ when it did not.
    pub fn want(&mut self, key: K, value: W) -> bool {
        self.change(key, |slot| slot.desired = Some(value))
    }

    /// Wants the key to be so, or not, as `decide` says, which is shown how it is wanted now.
    pub fn want_if(&mut self, key: K, value: W, decide: impl FnOnce(&mut Option<W>, W)) -> bool {
        self.change(key, |slot| decide(&mut slot.desired, value))
    }

    /// Wants the key no more.
    pub fn unwant(&mut self, key: &K) -> bool {
        self.change_known(key, |slot| slot.desired = None)
    }

    /// Notes that the key is there.
    pub fn saw(&mut self, key: K, value: A) -> bool {
        self.change(key, |slot| slot.actual = Some(value))
    }

    /// Notes that the key is not there.
    pub fn missed(&mut self, key: &K) -> bool {
        self.change_known(key, |slot| slot.actual = None)
    }

    /// How the key is wanted.
    #[must_use]
    pub fn desired(&self, key: &K) -> Option<&W> {
        self.slots.get(key)?.desired.as_ref()
    }

    /// How the key is.
    #[must_use]
    pub fn actual(&self, key: &K) -> Option<&A> {
        self.slots.get(key)?.actual.as_ref()
    }

    /// All that is wanted, in no order.
    pub fn all_desired(&self) -> impl Iterator<Item = (&K, &W)> {
        self.slots.iter().filter_map(|(key, slot)| Some((key, slot.desired.as_ref()?)))
    }

    /// All that is there, in no order.
    pub fn all_actual(&self) -> impl Iterator<Item = (&K, &A)> {
        self.slots.iter().filter_map(|(key, slot)| Some((key, slot.actual.as_ref()?)))
    }

    /// How many are wanted.
    #[must_use]
    pub fn count_desired(&self) -> usize {
        self.wanted
    }

    /// How many are there.
    #[must_use]
    pub fn count_actual(&self) -> usize {
        self.seen
    }

    /// How many differ.
    #[must_use]
    pub fn count_differences(&self) -> usize {
        self.differing.len()
    }

    /// The keys in which the two differ, in no order, with both sides.
    pub fn differences(&self) -> impl Iterator<Item = (&K, Option<&W>, Option<&A>)> {
        let slots = self.differing.iter().filter_map(|at| self.slots.get_index(*at));
        slots.map(|(key, slot)| (key, slot.desired.as_ref(), slot.actual.as_ref()))
    }

    fn change(&mut self, key: K, change: impl FnOnce(&mut Slot<W, A>)) -> bool {
        let entry = self.slots.entry(key);
        let at = entry.index();
        entry.or_insert(Slot { desired: None, actual: None, differs: false });
        self.change_at(at, change)
    }

    fn change_known(&mut self, key: &K, change: impl FnOnce(&mut Slot<W, A>)) -> bool {
        self.slots.get_index_of(key).is_some_and(|at| self.change_at(at, change))
    }

    fn change_at(&mut self, at: usize, change: impl FnOnce(&mut Slot<W, A>)) -> bool {
        let Some((_, slot)) = self.slots.get_index_mut(at) else { return false };
        let before = (slot.desired.is_some(), slot.actual.is_some());
        change(slot);
        let after = (slot.desired.is_some(), slot.actual.is_some());
        self.wanted = self.wanted + usize::from(after.0) - usize::from(before.0);
        self.seen = self.seen + usize::from(after.1) - usize::from(before.1);
        let differs = match (&slot.desired, &slot.actual) {
            (Some(wanted), Some(actual)) => !(self.is_met)(wanted, actual),
            (None, None) => false,
            _ => true,
        };
        let differed = std::mem::replace(&mut slot.differs, differs);
        match (differed, differs) {
            (false, true) => drop(self.differing.insert(at)),
            (true, false) => drop(self.differing.remove(&at)),
            _ => {}
        }
        if after == (false, false) {
            self.slots.swap_remove_index(at);
            // The last slot has moved into the gap.
            if self.differing.remove(&self.slots.len()) {
                self.differing.insert(at);
            }
        }
        !differed && differs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Want(u8, u8),
        Unwant(u8),
        Saw(u8, u8),
        Missed(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (k, v) = (0_u8..8, 0_u8..3);
        prop_oneof![
            (k.clone(), v.clone()).prop_map(|(k, v)| Op::Want(k, v)),
            k.clone().prop_map(Op::Unwant),
            (k.clone(), v).prop_map(|(k, v)| Op::Saw(k, v)),
            k.prop_map(Op::Missed),
        ]
    }

    proptest! {
        #[test]
        fn differences_are_always_exact(ops in prop::collection::vec(op(), 0..60)) {
            let mut map = DeltaMap::new(|a: &u8, b: &u8| a == b);
            for op in ops {
                let (Op::Want(k, _) | Op::Unwant(k) | Op::Saw(k, _) | Op::Missed(k)) = op;
                let differs = |map: &DeltaMap<u8, u8, u8>| map.desired(&k) != map.actual(&k);
                let differed = differs(&map);
                let begins = match op {
                    Op::Want(k, v) => map.want(k, v),
                    Op::Unwant(k) => map.unwant(&k),
                    Op::Saw(k, v) => map.saw(k, v),
                    Op::Missed(k) => map.missed(&k),
                };
                prop_assert_eq!(begins, !differed && differs(&map));
                let expected: Vec<u8> =
                    (0..8).filter(|k| map.desired(k) != map.actual(k)).collect();
                let mut found: Vec<u8> = map.differences().map(|(k, _, _)| *k).collect();
                found.sort_unstable();
                prop_assert_eq!(found, expected);
                prop_assert_eq!(map.all_desired().count(), map.count_desired());
                prop_assert_eq!(map.all_actual().count(), map.count_actual());
            }
        }
    }
}
