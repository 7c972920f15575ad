//! From the wire to the device: datagrams that may come in, put together.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use loden_core::kernel::tunnel::Wire;

use super::{Answers, Picture, carries, span};
use crate::coalesce::{Coalescer, Slot};
use crate::counters::Cause;
use crate::group::{Groups, Place};
use crate::guard::Guard;
use crate::ipip;
use crate::packet::{self, Packet};
use crate::router::{self, Refusal};

/// What was received in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Where it lies.
    pub at: Range<usize>,
    /// How long each datagram in it is, in bytes; the last one may be shorter.
    pub segment: usize,
    /// Who sent it.
    pub from: IpAddr,
    /// The traffic class of the outer header.
    pub tos: u8,
}

/// From the wire to the device.
#[derive(Debug)]
pub struct Inbound {
    picture: Arc<Picture>,
    guard: Guard,
    wire: Wire,
    packets: Coalescer,
    answers: Answers,
    replies: Groups,
}

impl Inbound {
    /// One that has received nothing yet, for a device that cuts datagrams of UDP or not.
    #[must_use]
    pub fn new(picture: Arc<Picture>, wire: Wire, has_uso: bool) -> Self {
        Self {
            picture,
            guard: Guard::default(),
            wire,
            packets: Coalescer::new(has_uso),
            answers: Answers::default(),
            replies: Groups::default(),
        }
    }

    /// The picture that it goes by.
    #[must_use]
    pub fn picture(&self) -> &Arc<Picture> {
        &self.picture
    }

    /// Goes by another picture. Nothing of the last batch may be left ([`Self::clear`]).
    pub fn look_at(&mut self, picture: Arc<Picture>) {
        (self.picture, self.guard) = (picture, Guard::default());
    }

    /// Takes what was received in one piece. The packets are changed where they lie. `now` is the time since some beginning.
    pub fn take(&mut self, memory: &mut [u8], arrival: &Arrival, now: Duration) {
        let Ok(sender) = self.guard.sender(&self.picture.peers, arrival.from) else {
            return self.picture.nobody.dropped(Cause::UnknownSender);
        };
        let (mut start, end) = (arrival.at.start, arrival.at.end);
        while start < end {
            let len = arrival.segment.clamp(1, end - start);
            match self.packet(memory, start..start + len, sender, arrival, now) {
                Ok(peer) => self.picture.cells[peer as usize].carried(1, len),
                Err(cause) => self.picture.cells[sender as usize].dropped(cause),
            }
            start += len;
        }
    }

    /// Takes one of them; gives the peer that it is from.
    fn packet(
        &mut self,
        memory: &mut [u8],
        at: Range<usize>,
        sender: u32,
        arrival: &Arrival,
        now: Duration,
    ) -> Result<u32, Cause> {
        let (start, bytes) = (at.start, &mut memory[at]);
        let is_good = |packet: &Packet| packet.is_header_intact(bytes) && carries(self.wire, packet.family());
        let mut packet = Packet::parse(bytes).filter(is_good).ok_or(Cause::Malformed)?;
        let peers = &self.picture.peers;
        let peer = self.guard.admit(peers, sender, arrival.from, &packet)?;
        if packet.ttl <= 1 {
            let answer = self.answers.make(Refusal::HopsSpent, &packet, bytes, peers, now);
            if let Some(range) = answer {
                self.replies.push(peer, 1, 0, &[span(Place::Headers, range.start, range.len())]);
            }
            return Err(Cause::HopsSpent);
        }
        let ecn = router::ecn_behind(packet.tos, arrival.tos).ok_or(Cause::Congested)?;
        packet.ttl = packet::take_hop(bytes, packet.family());
        if ecn != packet.tos & 3 {
            packet::set_ecn(bytes, packet.family(), ecn);
            packet.tos = packet.tos & !3 | ecn;
        }
        if self.wire == Wire::Ipip
            && let Some(vnet) = ipip::merged(&packet, bytes, peers.own().mtu as usize)?
        {
            self.packets.push_as_is(memory, start, &packet, vnet);
        } else {
            self.packets.push(memory, start, &packet);
        }
        Ok(peer)
    }

    /// Packets for the device, which lie in the memory; their headers are completed.
    pub fn packets(&mut self, memory: &mut [u8]) -> &[Slot] {
        self.packets.finish(memory)
    }

    /// Answers to senders behind peers.
    #[must_use]
    pub fn replies(&self) -> &Groups {
        &self.replies
    }

    /// The memory of [`Place::Headers`].
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        &self.answers.bytes
    }

    /// Forgets all that was taken, but keeps the memory.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.answers.clear();
        self.replies.clear();
    }
}
