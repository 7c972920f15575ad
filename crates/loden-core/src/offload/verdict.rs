//! What a test has found, for people.

use std::fmt;

use super::By;
use crate::model::{IfName, NodeName};
use crate::view::Problem;

/// Who computes the checksums of what is sent by a device, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Left to the card, unasked: no peer is reached by the device yet, or none has been asked.
    Untried,
    /// Left to the card, with which they arrive right.
    Card {
        /// Who has answered.
        peer: NodeName,
    },
    /// Computed here: otherwise they arrive wrong.
    Host {
        /// Who answers only now.
        peer: NodeName,
        /// Only those of packets that are marked to be masqueraded.
        is_marked: bool,
    },
    /// Computed here since before the agent looked, or because somebody has set it so.
    Found,
    /// Left to the card: nobody answers in a way that tells whether they arrive right.
    Undecided {
        /// Who was asked last.
        peer: NodeName,
    },
    /// The kernel does not let it be set.
    Stuck {
        /// Who gets them wrong, if that is why it was to be set.
        peer: Option<NodeName>,
        /// The kernel's words.
        cause: String,
    },
}

impl Verdict {
    /// Who computes; `None` when the kernel has refused to be told.
    #[must_use]
    pub fn by(&self) -> Option<By> {
        match self {
            Self::Untried | Self::Card { .. } | Self::Undecided { .. } => Some(By::Card),
            Self::Host { .. } | Self::Found => Some(By::Host),
            Self::Stuck { .. } => None,
        }
    }

    /// The peer that was asked.
    #[must_use]
    pub fn peer(&self) -> Option<&NodeName> {
        match self {
            Self::Card { peer } | Self::Host { peer, .. } | Self::Undecided { peer } => Some(peer),
            Self::Stuck { peer, .. } => peer.as_ref(),
            Self::Untried | Self::Found => None,
        }
    }

    /// What the operator of the host should know of.
    #[must_use]
    pub fn problem(&self, dev: IfName) -> Option<Problem> {
        let cause = match self {
            Self::Host { peer, is_marked } => {
                let which = if *is_marked { "marked packets (0x4000, as kube-proxy does)" } else { "packets" };
                format!(
                    "the checksums of {which} inside the tunnel arrive wrong at {peer} when they are left to the network card, so \
                     this host computes them itself: that takes processor time, as large packets are cut apart here too. Mostly \
                     the card's driver, its firmware or an old kernel is at fault; `ethtool -K {dev} tx on` has it tried again"
                )
            }
            Self::Stuck { peer: Some(peer), cause } => format!(
                "the checksums of packets inside the tunnel arrive wrong at {peer} when they are left to the network card, and the \
                 kernel refuses to compute them itself: {cause}. Nothing but ping gets through"
            ),
            Self::Stuck { peer: None, cause } => {
                format!("checksums are to be left to the network card again, and the kernel refuses: {cause}")
            }
            Self::Untried | Self::Card { .. } | Self::Found | Self::Undecided { .. } => return None,
        };
        Some(Problem::new(format!("link {dev}"), cause))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untried => write!(f, "left to the card; not tried yet: there is no peer to ask"),
            Self::Card { peer } => write!(f, "left to the card (tried with {peer})"),
            Self::Host { peer, is_marked: false } => {
                write!(f, "computed here: the card leaves them wrong (tried with {peer})")
            }
            Self::Host { peer, is_marked: true } => {
                write!(f, "computed here: those of marked packets arrive wrong otherwise (tried with {peer})")
            }
            Self::Found => write!(f, "computed here: it was found so, or set so by somebody else"),
            Self::Undecided { peer } => {
                write!(f, "left to the card; undecided: {peer} and others give no answer that tells; tried again later")
            }
            Self::Stuck { cause, .. } => write!(f, "cannot be set: {cause}"),
        }
    }
}
