//! Something that is not as it should be, told to the operator.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A problem: what it is about, and its cause with what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The object: `pool default`, `node b`, `link flannel.1`.
    pub subject: String,
    /// The cause, and what to do about it.
    pub cause: String,
}

impl Problem {
    /// A problem.
    #[must_use]
    pub fn new(subject: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { subject: subject.into(), cause: cause.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.cause)
    }
}
