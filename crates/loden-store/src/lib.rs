//! The datastores behind one trait: what the cluster agrees on, revision by revision.
//!
//! [`Store`] is the trait; [`memory`] serves tests, [`sqlite`] one host with several processes, [`etcd`] a cluster.
//! [`conformance`] is the suite that every store passes. Losing a store never changes a kernel: callers keep what they have and try again.

pub mod conformance;
pub mod error;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "etcd")]
pub mod flannel;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod memory;
pub mod sqlite;

mod compare;
mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loden_core::config::store::StoreAddress;
use loden_core::model::{Entry, Key, NodeName, Record};

pub use error::StoreError;
pub use watch::Watch;

/// How many changes are kept for watchers that resume.
pub const HISTORY: u64 = 10_000;

/// What must be so for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// There is no such record.
    Absent,
    /// The record was last written at this revision.
    Revision(u64),
}

/// Everything at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The records, by key.
    pub entries: Vec<Entry>,
    /// The store's revision.
    pub revision: u64,
    /// Which store this is: made once with it. Another one must not be taken for it, or its emptiness for an order to
    /// clear the kernel.
    pub id: String,
    /// What cannot be taken for a record, by its place in the store, with the cause. It hides nothing else and is not lost.
    pub flaws: BTreeMap<String, String>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A record was written.
    Put(Entry),
    /// A record was removed or its time to live ran out.
    Delete {
        /// Which.
        key: Key,
        /// The revision that did it.
        revision: u64,
    },
    /// What stands at a place cannot be taken for a record, or can be again. A change of the record whose key reads as the place
    /// says the latter, too.
    Flaw {
        /// The place, in the store's own words.
        place: String,
        /// What is wrong there; `None`: nothing any more.
        cause: Option<String>,
        /// The revision that did it.
        revision: u64,
    },
}

impl Change {
    /// The revision of the change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Delete { revision, .. } | Self::Flaw { revision, .. } => *revision,
        }
    }
}

/// For how long a block is lent in stores that lend (flannel's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// The time to live that a block is claimed and renewed with.
    pub ttl: Duration,
    /// How long before its end it is renewed.
    pub margin: Duration,
}

/// What a node tells those who look at the cluster from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether pods can be served.
    pub ready: bool,
    /// Why not, or that they can.
    pub message: String,
}

/// A datastore.
#[async_trait]
pub trait Store: Send + Sync {
    /// All records at one revision.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list(&self) -> Result<Listing, StoreError>;

    /// One record.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError>;

    /// Writes a record, with a time to live if one is given. Writing what is there already changes nothing and makes no
    /// revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `expect` is not so, with what is there.
    async fn put(&self, record: Record, expect: Expect, ttl: Option<Duration>) -> Result<Entry, StoreError>;

    /// Removes a record. Removing what is not there is done, unless a revision was expected.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `expect` is not so.
    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError>;

    /// Gives a record with a time to live that time anew, without a new revision. The signs of life of nodes are renewed so, and in
    /// a store that lends blocks (see [`Self::term`]) the blocks by their owners.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is gone or was written by another since.
    async fn renew(&self, key: &Key, revision: u64, ttl: Duration) -> Result<(), StoreError>;

    /// All changes behind a revision, in order, none lost and none twice.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when they are no longer kept: list again.
    async fn watch(&self, after: u64) -> Result<Watch, StoreError>;

    /// For how long a block is lent; `None`: it is its owner's until that gives it back. Who says a term takes blocks by [`Self::put`]
    /// with that time to live, renews them by [`Self::renew`] of their key, and ends their records when the time is over.
    fn term(&self) -> Option<Term> {
        None
    }

    /// Whether the store itself says which node has which block (Kubernetes' podCIDRs): none is claimed or given back there, and a
    /// node's are there once it has said who it is.
    fn gives_blocks(&self) -> bool {
        false
    }

    /// Tells those who look at the cluster from outside how the node is, where the store has a place for that (Kubernetes'
    /// condition NetworkUnavailable). What is said already is not written again.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn announce(&self, _node: &NodeName, _readiness: &Readiness) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Opens the store at an address.
///
/// # Errors
/// [`StoreError`] when it cannot be opened or the address is not understood.
pub async fn open(address: &str) -> Result<Arc<dyn Store>, StoreError> {
    let address: StoreAddress = address.parse()?;
    match &address {
        StoreAddress::Memory => Ok(Arc::new(memory::Memory::new())),
        StoreAddress::Sqlite { path } => Ok(Arc::new(sqlite::Sqlite::open(Path::new(path)).await?)),
        #[cfg(feature = "etcd")]
        StoreAddress::Etcd(etcd) => Ok(Arc::new(etcd::Etcd::new(etcd)?)),
        #[cfg(feature = "etcd")]
        StoreAddress::Flannel(etcd) => Ok(Arc::new(flannel::Flannel::new(etcd)?)),
        #[cfg(not(feature = "etcd"))]
        StoreAddress::Etcd(_) | StoreAddress::Flannel(_) => Err(StoreError::Unavailable {
            place: address.to_string(),
            cause: "this build has no etcd (`cargo build --features etcd`)".to_owned(),
        }),
        #[cfg(feature = "kubernetes")]
        StoreAddress::Kubernetes(kubernetes) => Ok(Arc::new(kubernetes::Kubernetes::open(kubernetes).await?)),
        #[cfg(not(feature = "kubernetes"))]
        StoreAddress::Kubernetes(_) => Err(StoreError::Unavailable {
            place: address.to_string(),
            cause: "this build has no Kubernetes (`cargo build --features kubernetes`)".to_owned(),
        }),
    }
}

/// The node that a pod of Kubernetes is on: what a node's agent that runs in a pod is told of itself when nobody says it.
///
/// # Errors
/// [`StoreError`]; for an address that is not Kubernetes', too.
pub async fn node_of_pod(address: &str, namespace: &str, pod: &str) -> Result<NodeName, StoreError> {
    match address.parse::<StoreAddress>()? {
        #[cfg(feature = "kubernetes")]
        StoreAddress::Kubernetes(kubernetes) => kubernetes::node_of_pod(&kubernetes, namespace, pod).await,
        other => {
            let cause = format!("it cannot say which node pod {namespace}/{pod} is on");
            Err(StoreError::Unavailable { place: other.to_string(), cause })
        }
    }
}
