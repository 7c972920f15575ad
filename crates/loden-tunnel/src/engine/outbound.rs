//! From the device to the wire: each packet read becomes one or more that are sent.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use loden_core::kernel::tunnel::Wire;

use super::{Answers, Picture, carries, span};
use crate::counters::Cause;
use crate::group::{Groups, Place, Span};
use crate::packet::{self, Packet};
use crate::peers::Owner;
use crate::router::Refusal;
use crate::split::{self, Split};
use crate::table::Memory;
use crate::vnet::{self, Vnet};

/// Headers of one batch, in bytes: more than those of full segments come to.
const ENOUGH_HEADERS: usize = 256 << 10;

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

    /// Whether what was taken is enough for one batch, however few packets it was: small segments have more headers than payload.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.headers.len() >= ENOUGH_HEADERS
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
