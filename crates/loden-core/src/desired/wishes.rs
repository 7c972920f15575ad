//! The wishes of one source, while they are being collected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::{Origin, Source, Why};
use crate::kernel::{Key, Object};
use crate::model::{BackendConfig, IfName, PoolName, Vni};
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
    /// The objects.
    pub objects: BTreeMap<Key, Wanted>,
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
    /// The VXLAN devices that this node's record promises to its peers, with VNI and port: such a device is not removed
    /// before the promise has been taken back.
    pub promised: BTreeMap<IfName, (Vni, u16)>,
    /// Set while this node's record lags behind what it is to promise: the VNIs and ports of that. An older promise may
    /// be on its way through the datastore, so no other VTEP device is removed either.
    pub unsaid: Option<BTreeSet<(Vni, u16)>>,
}

impl Wishes {
    /// No wishes yet.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            origin: Arc::new(Origin { source, pool: None }),
            objects: BTreeMap::new(),
            problems: Vec::new(),
            notices: Vec::new(),
            uses: Vec::new(),
            hold: false,
            partial: false,
            promised: BTreeMap::new(),
            unsaid: None,
        }
    }

    /// What is wished for from now on serves this pool, or none.
    pub fn serve(&mut self, pool: Option<PoolName>) {
        self.origin = Arc::new(Origin { source: self.origin.source.clone(), pool });
    }

    /// Adds a wish. Two pools may want one object (one VTEP device carries both families): the first has it, and where
    /// they differ in the MTU the smaller does for both.
    pub fn want(&mut self, key: Key, object: Object, role: &'static str) {
        let why = Why { origin: Arc::clone(&self.origin), role };
        match self.objects.get_mut(&key) {
            None => drop(self.objects.insert(key, Wanted { object, why })),
            Some(first) => {
                if let (Object::Link(first), Object::Link(second)) = (&mut first.object, object) {
                    first.mtu = first.mtu.min(second.mtu);
                }
            }
        }
    }

    /// No wishes yet, for the same source and pool: to try something out.
    #[must_use]
    pub fn scratch(&self) -> Self {
        Self { origin: Arc::clone(&self.origin), ..Self::new(Source::Local) }
    }

    /// Adds all objects of another, as [`Wishes::want`] would.
    pub fn absorb(&mut self, other: Self) {
        for (key, wanted) in other.objects {
            self.objects.entry(key).or_insert(wanted);
        }
    }

    /// Adds a problem.
    pub fn problem(&mut self, subject: impl Into<String>, cause: impl Into<String>) {
        self.problems.push(Problem::new(subject, cause));
    }
}
