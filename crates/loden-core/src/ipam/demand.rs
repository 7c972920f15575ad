//! What an attachment needs of addresses, before any is chosen.

use std::net::IpAddr;

use super::Supply;
use crate::model::{PodAddress, Prefix};

/// A supply that an address can be taken of, with the gateway that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The supply.
    pub supply: Supply,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
    /// The subnet that the address is given with, where that is more than the range's.
    pub segment: Option<Prefix>,
}

/// What is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// An address of each of these; which of the offers it comes from is all the same, the first with room is taken.
    pub choices: Vec<Vec<Offer>>,
    /// Addresses that are asked for by name. Each takes the place of a chosen one.
    pub wanted: Vec<IpAddr>,
    /// Addresses that are not chosen but given as they are.
    pub fixed: Vec<PodAddress>,
    /// What is given only to who asks for it.
    pub reserved: Vec<Prefix>,
}

impl Demand {
    /// The wanted address that a choice can serve, if one is.
    #[must_use]
    pub fn wanted_of(&self, choice: &[Offer]) -> Option<IpAddr> {
        let is_offered = |addr: &&IpAddr| choice.iter().any(|offer| offer.supply.range.index_of(**addr).is_some());
        self.wanted.iter().find(is_offered).copied()
    }

    /// The wanted addresses that no choice can serve: outside of every range, or two of one choice.
    #[must_use]
    pub fn unmet(&self) -> Vec<IpAddr> {
        let met: Vec<IpAddr> = self.choices.iter().filter_map(|choice| self.wanted_of(choice)).collect();
        self.wanted.iter().filter(|addr| !met.contains(addr)).copied().collect()
    }

    /// Whether an offer's address is kept for somebody: its gateway's, and what is reserved.
    #[must_use]
    pub fn is_kept(&self, offer: &Offer, addr: IpAddr) -> bool {
        offer.gateway == Some(addr) || self.reserved.iter().any(|prefix| prefix.contains(addr))
    }
}
