//! VXLAN network identifiers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A VXLAN network identifier: 24 bits (RFC 7348 section 5), 1 to 16777215 (0 is left to nobody, as in flannel).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

/// A number outside 1 to 16777215.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a VXLAN network identifier: 1 to 16777215 (24 bits)")]
pub struct VniError(u32);

impl Vni {
    /// Checks the range.
    ///
    /// # Errors
    /// [`VniError`] for 0 and for anything over 24 bits.
    pub fn new(vni: u32) -> Result<Self, VniError> {
        if (1..1 << 24).contains(&vni) { Ok(Self(vni)) } else { Err(VniError(vni)) }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniError;
    fn try_from(vni: u32) -> Result<Self, VniError> {
        Self::new(vni)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}
