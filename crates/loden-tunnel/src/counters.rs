//! What was carried for each peer and what was not, and why. Each thread counts in cells of its own, which others only read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use loden_core::model::NodeName;
use serde::Serialize;

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It is no whole packet, or one that says what cannot be.
    Malformed,
    /// It came from an address of the underlay that no peer has.
    UnknownSender,
    /// Its source is not behind the peer that it came from.
    ForeignSource,
    /// Its destination is not behind this host.
    ForeignDestination,
    /// Nobody has its destination.
    NoRoute,
    /// It is for many, or for the link alone: what hosts say on every link, and no tunnel carries.
    LinkOnly,
    /// It has gone as many hops as it may.
    HopsSpent,
    /// It does not fit into the tunnel.
    TooBig,
    /// It was marked on its way, and its sender does not know of marks (RFC 6040).
    Congested,
    /// The kernel would not send it.
    Unsendable,
    /// The tunnel device would not take it.
    Undeliverable,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::UnknownSender,
        Self::ForeignSource,
        Self::ForeignDestination,
        Self::NoRoute,
        Self::LinkOnly,
        Self::HopsSpent,
        Self::TooBig,
        Self::Congested,
        Self::Unsendable,
        Self::Undeliverable,
    ];

    /// As metrics and status say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSender => "unknown-sender",
            Self::ForeignSource => "foreign-source",
            Self::ForeignDestination => "foreign-destination",
            Self::NoRoute => "no-route",
            Self::LinkOnly => "link-only",
            Self::HopsSpent => "hops-spent",
            Self::TooBig => "too-big",
            Self::Congested => "congested",
            Self::Unsendable => "unsendable",
            Self::Undeliverable => "undeliverable",
        }
    }
}

/// What one thread has counted of one peer. Only that thread writes, and so it needs no more than plain loads and stores.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Cells {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: [AtomicU64; Cause::ALL.len()],
}

impl Cells {
    /// Counts packets that were carried, of so many bytes together.
    pub fn carried(&self, packets: usize, bytes: usize) {
        add(&self.packets, packets);
        add(&self.bytes, bytes);
    }

    /// Counts a packet that was not.
    pub fn dropped(&self, cause: Cause) {
        add(&self.dropped[cause as usize], 1);
    }

    /// Adds what is counted here to a sum.
    pub fn add_to(&self, carried: &mut Carried, dropped: &mut BTreeMap<Cause, u64>) {
        carried.packets += self.packets.load(Ordering::Relaxed);
        carried.bytes += self.bytes.load(Ordering::Relaxed);
        for cause in Cause::ALL {
            let count = self.dropped[cause as usize].load(Ordering::Relaxed);
            if count > 0 {
                *dropped.entry(cause).or_default() += count;
            }
        }
    }
}

fn add(cell: &AtomicU64, more: usize) {
    cell.store(cell.load(Ordering::Relaxed) + more as u64, Ordering::Relaxed);
}

/// Packets as they are on the wire, and their bytes without the outer headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// How many.
    pub packets: u64,
    /// How long they were together.
    pub bytes: u64,
}

/// Of one peer, or of nobody in particular.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PeerCounters {
    /// What was sent to it.
    pub sent: Carried,
    /// What was taken in from it.
    pub received: Carried,
    /// What was not, by cause.
    pub dropped: BTreeMap<Cause, u64>,
}

/// All of a tunnel, since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Of each peer that there is now; what was counted of one that has gone is gone.
    pub peers: BTreeMap<NodeName, PeerCounters>,
    /// What no peer has to do with.
    pub others: PeerCounters,
    /// The kernel's words for the last packet that it would not send or the device would not take.
    pub last_refusal: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_has_one_name() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_value(cause).expect("JSON"), cause.as_str());
        }
        let counters = Counters {
            others: PeerCounters { dropped: [(Cause::NoRoute, 2)].into(), ..Default::default() },
            ..Default::default()
        };
        assert_eq!(serde_json::to_value(counters).expect("JSON")["others"]["dropped"]["no-route"], 2);
    }
}
