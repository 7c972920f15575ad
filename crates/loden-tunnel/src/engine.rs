//! The two directions, without a system call: packets of the device to groups for the wire, datagrams of the wire to packets for the
//! device. Memory, time and the picture of the peers are given; what comes out are places in that memory.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use loden_core::kernel::tunnel::Wire;
use loden_core::model::Family;

use crate::coalesce::{Coalescer, Slot};
use crate::counters::{Cause, Cells};
use crate::group::{Groups, Place, Span};
use crate::inbound::Guard;
use crate::ipip;
use crate::packet::{self, Packet};
use crate::peers::{Owner, Peers};
use crate::router::{self, Bucket, Refusal};
use crate::split::{self, Split};
use crate::table::Memory;
use crate::vnet::{self, Vnet};

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

/// From the device to the wire.
#[derive(Debug)]
pub struct Outbound {
    picture: Arc<Picture>,
    owners: Memory<Owner>,
    wire: Wire,
    /// The kernel cuts what is sent by one call.
    has_segmentation: bool,
    headers: Vec<u8>,
    groups: Groups,
    answers: Answers,
}

impl Outbound {
    /// One that has sent nothing yet, on a wire where the kernel can cut what is sent by one call or not.
    #[must_use]
    pub fn new(picture: Arc<Picture>, wire: Wire, has_segmentation: bool) -> Self {
        let (groups, answers) = (Groups::default(), Answers::default());
        Self { picture, owners: Memory::default(), wire, has_segmentation, headers: Vec::new(), groups, answers }
    }

    /// The picture that it goes by.
    #[must_use]
    pub fn picture(&self) -> &Arc<Picture> {
        &self.picture
    }

    /// Goes by another picture. Nothing of the last batch may be left ([`Self::clear`]).
    pub fn look_at(&mut self, picture: Arc<Picture>) {
        (self.picture, self.owners) = (picture, Memory::default());
    }

    /// Takes what was read from the device: a header of [`vnet::LEN`] bytes and a packet, which is changed where it lies. `now` is the
    /// time since some beginning.
    pub fn take(&mut self, memory: &mut [u8], frame: Range<usize>, now: Duration) {
        let Some((vnet, bytes)) = memory[frame.clone()].split_first_chunk_mut::<{ vnet::LEN }>() else {
            return self.picture.nobody.dropped(Cause::Malformed);
        };
        let Some((vnet, packet)) = Vnet::parse(vnet).zip(Packet::parse(bytes)) else {
            return self.picture.nobody.dropped(Cause::Malformed);
        };
        if packet.dst.is_multicast() || packet.src.is_link_local() || packet.dst.is_link_local() {
            return self.picture.nobody.dropped(Cause::LinkOnly);
        }
        let split = Split::of(&vnet, &packet, bytes);
        if vnet.gso.is_some() && split.is_none() {
            return self.picture.nobody.dropped(Cause::Malformed);
        }
        let peers = &*self.picture.peers;
        let largest = split.map_or(packet.len, |split| split.payload(0).1);
        let owner = self.owners.get(peers.owners(), packet.dst);
        let is_led_to = |peer| carries(self.wire, packet.family()) && peers.get(peer).to().is_some();
        let peer = match owner {
            _ if packet.ttl <= 1 => Err(Refusal::HopsSpent),
            Some(Owner::Peer(peer)) if !is_led_to(peer) => Err(Refusal::NoRoute),
            Some(Owner::Peer(_)) if largest > peers.own().mtu as usize => Err(Refusal::TooBig(peers.own().mtu)),
            Some(Owner::Peer(peer)) => Ok(peer),
            // What is this host's own and still comes here has no route behind the device.
            Some(Owner::Own) | None => Err(Refusal::NoRoute),
        };
        let peer = match peer {
            Ok(peer) => peer,
            Err(refusal) => {
                self.answers.make(refusal, &packet, bytes, peers, now);
                let cells = match owner {
                    Some(Owner::Peer(peer)) => &self.picture.cells[peer as usize],
                    _ => &self.picture.nobody,
                };
                return cells.dropped(refusal.cause());
            }
        };
        packet::take_hop(bytes, packet.family());
        let start = frame.start + vnet::LEN;
        if let Some(split) = split {
            return self.cut(&split, start, bytes, peer, packet.tos);
        }
        if let Some((start, offset)) = vnet.checksum
            && (usize::from(start) < packet.transport || !split::complete(bytes, start, offset))
        {
            return self.picture.cells[peer as usize].dropped(Cause::Malformed);
        }
        self.send(peer, packet.tos, &[span(Place::Packets, start, packet.len)]);
    }

    /// Each segment is a header, made for it, and its payload where it lies; the first one keeps the packet's own.
    fn cut(&mut self, split: &Split, start: usize, bytes: &mut [u8], peer: u32, tos: u8) {
        let begin = self.headers.len();
        for _ in 1..split.count {
            self.headers.extend_from_slice(&bytes[..split.header]);
        }
        let (own, payload) = bytes.split_at_mut(split.header);
        let payload_of = |n| {
            let (from, to) = split.payload(n);
            &payload[from - split.header..to - split.header]
        };
        for (n, header) in self.headers[begin..].chunks_exact_mut(split.header).enumerate() {
            split.finish(header, n + 1, payload_of(n + 1));
        }
        split.finish(own, 0, payload_of(0));
        self.send(peer, tos, &[span(Place::Packets, start, split.payload(0).1)]);
        for n in 1..split.count {
            let (from, to) = split.payload(n);
            let header = span(Place::Headers, begin + (n - 1) * split.header, split.header);
            self.send(peer, tos, &[header, span(Place::Packets, start + from, to - from)]);
        }
    }

    fn send(&mut self, peer: u32, tos: u8, parts: &[Span]) {
        let limit = if self.has_segmentation { self.picture.peers.get(peer).most_packets() } else { 1 };
        // The outer header has the mark of the inner one (RFC 6040 section 4.1), and nothing else of it.
        self.groups.push(peer, limit, tos & 3, parts);
    }

    /// Learns that a packet was larger than its way, which takes `mtu` bytes of it at most.
    pub fn too_big(&mut self, bytes: &[u8], mtu: u32, now: Duration) {
        if let Some(packet) = Packet::parse(bytes) {
            self.answers.make(Refusal::TooBig(mtu), &packet, bytes, &self.picture.peers, now);
        }
    }

    /// What is to be sent.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The memory of [`Place::Headers`].
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        &self.headers
    }

    /// Answers to senders behind this host: packets for the device.
    pub fn answers(&self) -> impl Iterator<Item = &[u8]> {
        self.answers.list.iter().map(|range| &self.answers.bytes[range.clone()])
    }

    /// Forgets all that was taken, but keeps the memory.
    pub fn clear(&mut self) {
        self.headers.clear();
        self.groups.clear();
        self.answers.clear();
    }
}

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

/// Whether packets of a family can be inside. Protocol 4 is IPv4 within IPv4.
fn carries(wire: Wire, family: Family) -> bool {
    wire != Wire::Ipip || family == Family::V4
}

fn span(place: Place, start: usize, len: usize) -> Span {
    Span { place, start: start as u32, len: len as u32 }
}
