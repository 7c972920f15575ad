//! Desired against observed: both sides of each key in one place, and always exactly the keys in which they differ.
//!
//! The set of differences is kept up at every change, so that asking for it costs what has changed and not what there is:
//! one peer more among ten thousand is four objects. A change costs one look-up.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hash};

/// Which key is wanted how, is there how, and where the two differ.
#[derive(Debug, Clone)]
pub struct DeltaMap<K, W, A> {
    /// Without a random seed: what is iterated in its order is the same in every run.
    slots: HashMap<K, Slot<W, A>, BuildHasherDefault<DefaultHasher>>,
    differing: BTreeSet<K>,
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

impl<K: Ord + Hash + Clone, W, A> DeltaMap<K, W, A> {
    /// An empty map; `is_met` says whether what is there satisfies what is wanted.
    #[must_use]
    pub fn new(is_met: fn(&W, &A) -> bool) -> Self {
        Self { slots: HashMap::default(), differing: BTreeSet::new(), is_met, wanted: 0, seen: 0 }
    }

    /// Wants the key to be so.
    pub fn want(&mut self, key: K, value: W) {
        self.change(key, |slot| slot.desired = Some(value));
    }

    /// Wants the key no more.
    pub fn unwant(&mut self, key: &K) {
        if self.desired(key).is_some() {
            self.change(key.clone(), |slot| slot.desired = None);
        }
    }

    /// Notes that the key is there.
    pub fn saw(&mut self, key: K, value: A) {
        self.change(key, |slot| slot.actual = Some(value));
    }

    /// Notes that the key is not there.
    pub fn missed(&mut self, key: &K) {
        if self.actual(key).is_some() {
            self.change(key.clone(), |slot| slot.actual = None);
        }
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
    #[expect(clippy::disallowed_methods, reason = "the documentation says that there is no order")]
    pub fn all_desired(&self) -> impl Iterator<Item = (&K, &W)> {
        self.slots.iter().filter_map(|(key, slot)| Some((key, slot.desired.as_ref()?)))
    }

    /// All that is there, in no order.
    #[expect(clippy::disallowed_methods, reason = "the documentation says that there is no order")]
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

    /// The keys in which the two differ, in order, with both sides.
    pub fn differences(&self) -> impl Iterator<Item = (&K, Option<&W>, Option<&A>)> {
        self.differing.iter().map(|key| (key, self.desired(key), self.actual(key)))
    }

    fn change(&mut self, key: K, change: impl FnOnce(&mut Slot<W, A>)) {
        let slot = self.slots.entry(key.clone()).or_insert(Slot { desired: None, actual: None, differs: false });
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
        if after == (false, false) {
            self.slots.remove(&key);
        }
        match (differed, differs) {
            (false, true) => drop(self.differing.insert(key)),
            (true, false) => drop(self.differing.remove(&key)),
            _ => {}
        }
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
                match op {
                    Op::Want(k, v) => map.want(k, v),
                    Op::Unwant(k) => map.unwant(&k),
                    Op::Saw(k, v) => map.saw(k, v),
                    Op::Missed(k) => map.missed(&k),
                }
                let expected: Vec<u8> =
                    (0..8).filter(|k| map.desired(k) != map.actual(k)).collect();
                let found: Vec<u8> = map.differences().map(|(k, _, _)| *k).collect();
                prop_assert_eq!(found, expected);
                prop_assert_eq!(map.all_desired().count(), map.count_desired());
                prop_assert_eq!(map.all_actual().count(), map.count_actual());
            }
        }
    }
}
