//! The rules that all stores share: what a compare-and-swap asks for.

use loden_core::model::{Entry, Key};

use crate::{Expect, StoreError};

/// Whether what is there is what was expected.
///
/// # Errors
/// [`StoreError::Conflict`] when not.
pub fn check(key: &Key, expect: Expect, found: Option<&Entry>) -> Result<(), StoreError> {
    let holds = match (expect, found) {
        (Expect::Any, _) | (Expect::Absent, None) => true,
        (Expect::Revision(revision), Some(entry)) => entry.revision == revision,
        (Expect::Absent, Some(_)) | (Expect::Revision(_), None) => false,
    };
    if holds { Ok(()) } else { Err(StoreError::Conflict { key: key.clone(), found: found.cloned().map(Box::new) }) }
}
