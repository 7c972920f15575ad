//! Desired against observed: one map of each, and always exactly the keys in which they differ.
//!
//! The set of differences is kept up at every change, so that asking for it costs what has changed and not what there is:
//! one peer more among ten thousand is four objects.

use std::collections::{BTreeMap, BTreeSet};

/// Which key is wanted how, is there how, and where the two differ.
#[derive(Debug, Clone)]
pub struct DeltaMap<K, W, A> {
    desired: BTreeMap<K, W>,
    actual: BTreeMap<K, A>,
    differing: BTreeSet<K>,
    is_met: fn(&W, &A) -> bool,
}

impl<K: Ord + Clone, W, A> DeltaMap<K, W, A> {
    /// An empty map; `is_met` says whether what is there satisfies what is wanted.
    #[must_use]
    pub fn new(is_met: fn(&W, &A) -> bool) -> Self {
        Self { desired: BTreeMap::new(), actual: BTreeMap::new(), differing: BTreeSet::new(), is_met }
    }

    /// Wants the key to be so.
    pub fn want(&mut self, key: K, value: W) {
        self.desired.insert(key.clone(), value);
        self.compare(key);
    }

    /// Wants the key no more.
    pub fn unwant(&mut self, key: &K) {
        if self.desired.remove(key).is_some() {
            self.compare(key.clone());
        }
    }

    /// Notes that the key is there.
    pub fn saw(&mut self, key: K, value: A) {
        self.actual.insert(key.clone(), value);
        self.compare(key);
    }

    /// Notes that the key is not there.
    pub fn missed(&mut self, key: &K) {
        if self.actual.remove(key).is_some() {
            self.compare(key.clone());
        }
    }

    /// How the key is wanted.
    #[must_use]
    pub fn desired(&self, key: &K) -> Option<&W> {
        self.desired.get(key)
    }

    /// How the key is.
    #[must_use]
    pub fn actual(&self, key: &K) -> Option<&A> {
        self.actual.get(key)
    }

    /// All that is wanted.
    #[must_use]
    pub fn all_desired(&self) -> &BTreeMap<K, W> {
        &self.desired
    }

    /// All that is there.
    #[must_use]
    pub fn all_actual(&self) -> &BTreeMap<K, A> {
        &self.actual
    }

    /// The keys in which the two differ, with both sides.
    pub fn differences(&self) -> impl Iterator<Item = (&K, Option<&W>, Option<&A>)> {
        self.differing.iter().map(|key| (key, self.desired.get(key), self.actual.get(key)))
    }

    fn compare(&mut self, key: K) {
        let same = match (self.desired.get(&key), self.actual.get(&key)) {
            (Some(wanted), Some(actual)) => (self.is_met)(wanted, actual),
            (None, None) => true,
            _ => false,
        };
        if same {
            self.differing.remove(&key);
        } else {
            self.differing.insert(key);
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
            }
        }
    }
}
