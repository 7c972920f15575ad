//! How fast a pod's packets may go.

use serde::{Deserialize, Serialize};

/// The bounds of both directions, named as the CNI conventions name them: from the pod's side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Towards the pod; `None`: unbounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Shape>,
    /// From the pod; `None`: unbounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Shape>,
}

impl Bandwidth {
    /// Whether neither direction is bounded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The bound of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Bits a second, of whole frames.
    pub rate: u64,
    /// Bits that may go at once after a silence; `None`: as the rate makes sensible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}
