//! The two directions, without a system call: packets of the device to groups for the wire, datagrams of the wire to packets for the
//! device. Memory, time and the picture of the peers are given; what comes out are places in that memory.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use loden_core::kernel::tunnel::Wire;
use loden_core::model::Family;

use crate::counters::{Cause, Cells};
use crate::group::{Place, Span};
use crate::packet::Packet;
use crate::peers::Peers;
use crate::router::{self, Bucket, Refusal};

mod inbound;
mod outbound;

pub use inbound::{Arrival, Inbound};
pub use outbound::Outbound;

/// The peers, and the cells of one thread for each of them.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Who they are.
    pub peers: Arc<Peers>,
    /// A cell for each, in the order of their numbers.
    pub cells: Vec<Arc<Cells>>,
    /// For what belongs to none of them.
    pub nobody: Arc<Cells>,
}

impl Picture {
    /// One whose cells nobody else has.
    #[must_use]
    pub fn alone(peers: Arc<Peers>) -> Self {
        let cells = peers.list().iter().map(|_| Arc::default()).collect();
        Self { peers, cells, nobody: Arc::default() }
    }
}

/// Answers to senders, at most so many in a time.
#[derive(Debug, Default)]
struct Answers {
    bytes: Vec<u8>,
    list: Vec<Range<usize>>,
    bucket: Bucket,
}

impl Answers {
    /// Makes one if there may be one; says where it is.
    fn make(
        &mut self,
        refusal: Refusal,
        packet: &Packet,
        bytes: &[u8],
        peers: &Peers,
        now: Duration,
    ) -> Option<Range<usize>> {
        let from = peers.own_address(packet.family())?;
        if !router::is_answerable(packet, bytes) || !self.bucket.take(now) {
            return None;
        }
        let begin = self.bytes.len();
        router::answer(refusal, packet, bytes, from, &mut self.bytes);
        let range = begin..self.bytes.len();
        self.list.push(range.clone());
        Some(range)
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.list.clear();
    }
}

impl Refusal {
    fn cause(self) -> Cause {
        match self {
            Self::NoRoute => Cause::NoRoute,
            Self::HopsSpent => Cause::HopsSpent,
            Self::TooBig(_) => Cause::TooBig,
        }
    }
}

/// Whether packets of a family can be inside. Protocol 4 is IPv4 within IPv4.
fn carries(wire: Wire, family: Family) -> bool {
    wire != Wire::Ipip || family == Family::V4
}

fn span(place: Place, start: usize, len: usize) -> Span {
    Span { place, start: start as u32, len: len as u32 }
}
