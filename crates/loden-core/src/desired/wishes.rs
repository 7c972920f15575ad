//! The wishes of one source, while they are being collected.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Source, Why};
use crate::kernel::{Key, Object};
use crate::model::{BackendConfig, PoolName};
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
    source: Source,
    /// The pool that is being served while wishes are added.
    pub pool: Option<PoolName>,
    /// The objects.
    pub objects: BTreeMap<Key, Wanted>,
    /// What could not be wished for.
    pub problems: Vec<Problem>,
    /// The backends that packets to this source's peer take.
    pub uses: Vec<(PoolName, BackendConfig)>,
    /// Set when what is asked for is faulty: the source's former wishes go on.
    pub hold: bool,
}

impl Wishes {
    /// No wishes yet.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            pool: None,
            objects: BTreeMap::new(),
            problems: Vec::new(),
            uses: Vec::new(),
            hold: false,
        }
    }

    /// Adds a wish. Two pools may want one object (one VTEP device carries both families): the first has it, and where
    /// they differ in the MTU the smaller does for both.
    pub fn want(&mut self, key: Key, object: Object, role: &'static str) {
        let why = Why { source: self.source.clone(), pool: self.pool.clone(), role };
        match self.objects.get_mut(&key) {
            None => drop(self.objects.insert(key, Wanted { object, why })),
            Some(first) => {
                if let (Object::Link(first), Object::Link(second)) = (&mut first.object, object) {
                    first.mtu = first.mtu.min(second.mtu);
                }
            }
        }
    }

    /// Adds a problem.
    pub fn problem(&mut self, subject: impl Into<String>, cause: impl Into<String>) {
        self.problems.push(Problem::new(subject, cause));
    }
}
