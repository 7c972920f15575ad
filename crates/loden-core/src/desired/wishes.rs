//! The wishes of one source, while they are being collected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::{Origin, Source, Why};
use crate::backend::TunnelEnd;
use crate::kernel::{Key, Object};
use crate::model::{BackendConfig, IfName, PoolName};
use crate::view::Problem;

/// An object that is wanted, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// How it should be.
    pub object: Object,
    /// Why.
    pub why: Why,
}

/// What a source wants, and what stands against it.
#[derive(Debug)]
pub struct Wishes {
    origin: Arc<Origin>,
    /// The objects, as they came; [`Wishes::ordered`] has each once.
    objects: Vec<(Key, Wanted)>,
    /// What could not be wished for.
    pub problems: Vec<Problem>,
    /// What people should know although nothing is missing.
    pub notices: Vec<Problem>,
    /// The backends that packets to this source's peer take, and those that they will take once that has been announced.
    pub uses: Vec<(PoolName, BackendConfig)>,
    /// Set when what is asked for is faulty: the source's former wishes go on.
    pub hold: bool,
    /// Set when something of what is asked for cannot be known, so that there may be more to wish for.
    pub partial: bool,
    /// The tunnels' devices that this node's record promises to its peers, with what each takes in: such a device is not removed
    /// before the promise has been taken back.
    pub promised: BTreeMap<IfName, TunnelEnd>,
    /// Those of them that it promises as ports of an extended bridge.
    pub promised_segments: BTreeSet<IfName>,
    /// Set while this node's record lags behind what it is to promise: the tunnels of that. An older promise may be on its way
    /// through the datastore, so no other tunnel's device is removed either.
    pub unsaid: Option<BTreeSet<TunnelEnd>>,
}

impl Wishes {
    /// No wishes yet.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            origin: Arc::new(Origin { source, pool: None }),
            objects: Vec::new(),
            problems: Vec::new(),
            notices: Vec::new(),
            uses: Vec::new(),
            hold: false,
            partial: false,
            promised: BTreeMap::new(),
            promised_segments: BTreeSet::new(),
            unsaid: None,
        }
    }

    /// What is wished for from now on serves this pool, or none.
    pub fn serve(&mut self, pool: Option<PoolName>) {
        self.origin = Arc::new(Origin { source: self.origin.source.clone(), pool });
    }

    /// Adds a wish.
    pub fn want(&mut self, key: Key, object: Object, role: &'static str) {
        let why = Why { origin: Arc::clone(&self.origin), role };
        self.objects.push((key, Wanted { object, why }));
    }

    /// Whether nothing is wished for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// How many wishes were made: what [`Wishes::take_back`] goes back to.
    #[must_use]
    pub fn count(&self) -> usize {
        self.objects.len()
    }

    /// Takes back all wishes but the first `count`.
    pub fn take_back(&mut self, count: usize) -> Vec<(Key, Wanted)> {
        self.objects.split_off(count)
    }

    /// Makes wishes that were taken back.
    pub fn renew(&mut self, wishes: Vec<(Key, Wanted)>) {
        self.objects.extend(wishes);
    }

    /// Every object once, by key. Two pools may want one object (one device carries both families): the first has it, and where
    /// they differ in the MTU the smaller does for both.
    #[must_use]
    pub fn ordered(&mut self) -> Vec<(Key, Wanted)> {
        let mut objects = std::mem::take(&mut self.objects);
        objects.sort_by_key(|(key, _)| *key);
        objects.dedup_by(|(key, second), (first_key, first)| {
            let is_twice = key == first_key;
            match (is_twice, &mut first.object, &second.object) {
                (true, Object::Link(first), Object::Link(second)) => first.merge(second),
                (true, Object::Tunnel(first), Object::Tunnel(second)) => first.merge(second),
                _ => {}
            }
            is_twice
        });
        objects
    }

    /// Adds a problem.
    pub fn problem(&mut self, subject: impl Into<String>, cause: impl Into<String>) {
        self.problems.push(Problem::new(subject, cause));
    }
}
