//! What can go wrong with a datastore.

use loden_core::config::store::StoreAddressError;
use loden_core::model::{Entry, Key};

/// An error of a store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A compare-and-swap was lost.
    #[error("{key} was written by another meanwhile{}", revision(.found))]
    Conflict {
        /// The record.
        key: Key,
        /// What is there now.
        found: Option<Box<Entry>>,
    },
    /// History that far back is no longer kept.
    #[error("the changes asked for are no longer kept (the oldest is {oldest}): everything has to be listed again")]
    Compacted {
        /// The oldest revision that is.
        oldest: u64,
    },
    /// The data are damaged.
    #[error(
        "{place} is damaged ({cause}): stop the agents, keep a copy of the file, and restore it from a backup or recover it \
             with `sqlite3 FILE .recover`; nothing was written to it"
    )]
    Corrupt {
        /// Where.
        place: String,
        /// The store's own words.
        cause: String,
    },
    /// Somebody holds a lock for too long.
    #[error("{place} is locked by another process ({cause}): it is tried again; find the holder with `fuser {place}`")]
    Locked {
        /// Where.
        place: String,
        /// The store's own words.
        cause: String,
    },
    /// There is no room.
    #[error("{place} has no room to write ({cause}): free some; what is stored is unharmed")]
    Full {
        /// Where.
        place: String,
        /// The store's own words.
        cause: String,
    },
    /// It does not answer, or is not there.
    #[error("{place} is not available: {cause}")]
    Unavailable {
        /// Where.
        place: String,
        /// The cause.
        cause: String,
    },
    /// Its members do not agree.
    #[error(
        "{place} answers, but has no quorum ({cause}): most of its members must be up; `etcdctl endpoint status --cluster` tells"
    )]
    NoQuorum {
        /// Where.
        place: String,
        /// The store's own words.
        cause: String,
    },
    /// Its certificate is not trusted.
    #[error(
        "the certificate of {place} is not trusted ({cause}): `ca` in the store's address must hold the authority that signed \
         it, and it must be of this host and time"
    )]
    Untrusted {
        /// Where.
        place: String,
        /// What is wrong with the certificate.
        cause: String,
    },
    /// It does not let this client in, or not do what it asks for.
    #[error("{place} lets this client not do that ({cause}): {advice}")]
    Denied {
        /// Where.
        place: String,
        /// The store's own words.
        cause: String,
        /// What to do.
        advice: String,
    },
    /// It was written by a newer version.
    #[error("{place} has the layout of version {found}, this version knows {known}: upgrade loden here")]
    TooNew {
        /// Where.
        place: String,
        /// Its version.
        found: i64,
        /// The one that is known.
        known: i64,
    },
    /// A record cannot be read.
    #[error("{key}: {cause}")]
    Unreadable {
        /// Which.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The store does not take such a record, or not from here.
    #[error("{key} is not taken: {cause}")]
    Refused {
        /// The record.
        key: Key,
        /// Why not, and what to do.
        cause: String,
    },
    /// An address that names no store.
    #[error(transparent)]
    Address(#[from] StoreAddressError),
}

fn revision(found: &Option<Box<Entry>>) -> String {
    match found {
        Some(entry) => format!(" (it is at revision {})", entry.revision),
        None => " (it is gone)".to_owned(),
    }
}
