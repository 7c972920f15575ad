//! Puts segments of one flow together again, so that the kernel has one large packet to look at instead of forty.
//!
//! A packet is appended to the newest one of its flow or to none, and so nothing is overtaken within a flow. What is put together was
//! whole, and can be cut again into exactly what came; anything else is passed on as it is.

use loden_core::model::Family;

use crate::group::{Place, Span};
use crate::packet::{self, Packet, be16, be32, put16};
use crate::table::Addr;
use crate::vnet::{Gso, Vnet};

/// How many of the newest packets are looked at for one of the same flow.
const LOOK_BACK: usize = 16;
/// The largest packet, in bytes: what the length field of IPv4 can say.
const MOST_BYTES: usize = 65_535;
/// Segments of TCP in one: with the header before it, it must be written by one call (`UIO_MAXIOV`, 1024 pieces).
const MOST_SEGMENTS: usize = 1000;
/// Datagrams of UDP in one: the kernel refuses more (`UDP_MAX_SEGMENTS`: 128, before Linux 6.9 64).
const MOST_DATAGRAMS: usize = 64;

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Whose packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    ports: u32,
    protocol: u8,
    src: Addr,
    dst: Addr,
}

/// A packet for the device, put together or as it came.
#[derive(Debug)]
pub struct Slot {
    /// What the kernel is told of it.
    pub vnet: Vnet,
    /// Its pieces: the first packet, then the payload of the others.
    pub spans: Vec<Span>,
    /// How many packets it was.
    pub count: usize,
    packet: Packet,
    flow: Option<Flow>,
    /// The length of all headers together; of no account when it is closed.
    header: usize,
    /// The payload of the first packet, in bytes.
    size: usize,
    /// How long it is by now, in bytes.
    len: usize,
    is_open: bool,
    is_checked: bool,
    is_pushed: bool,
}

/// The packets of a batch, in the order in which they are written.
#[derive(Debug, Default)]
pub struct Coalescer {
    slots: Vec<Slot>,
    used: usize,
    /// Whether the device cuts datagrams of UDP.
    has_uso: bool,
}

impl Coalescer {
    /// An empty one, for a device that can cut datagrams of UDP or not.
    #[must_use]
    pub fn new(has_uso: bool) -> Self {
        Self { has_uso, ..Self::default() }
    }

    /// Adds a packet that lies at `start` in the memory.
    pub fn push(&mut self, memory: &[u8], start: usize, packet: &Packet) {
        let bytes = &memory[start..start + packet.len];
        let flow = flow(packet, bytes);
        let shape = self.shape(packet, bytes);
        let mut is_checked = false;
        if let Some(slot) = self.before(packet, flow)
            && let Some((header, size)) = shape
            && slot.is_open
            && slot.is_followed_by(memory, bytes, packet, header, size)
        {
            is_checked = packet.is_intact(bytes);
            if is_checked && slot.check(memory) {
                slot.append(start + header, size, is_pushed(packet, bytes));
                return;
            }
        }
        let slot = self.next();
        slot.begin(packet, flow, start);
        if let Some((header, size)) = shape {
            (slot.header, slot.size, slot.is_checked) = (header, size, is_checked);
            slot.is_open = !is_pushed(packet, bytes);
        }
    }

    /// Adds a packet that the kernel is told something of, and that nothing is appended to.
    pub fn push_as_is(&mut self, memory: &[u8], start: usize, packet: &Packet, vnet: Vnet) {
        let flow = flow(packet, &memory[start..start + packet.len]);
        let slot = self.next();
        slot.begin(packet, flow, start);
        slot.vnet = vnet;
    }

    /// The newest packet of the same flow, if it is not too long ago: those before it are never seen again. What may be of any flow closes
    /// them all.
    fn before(&mut self, packet: &Packet, flow: Option<Flow>) -> Option<&mut Slot> {
        let slots = &mut self.slots[..self.used];
        if flow.is_some() {
            return slots.iter_mut().rev().take(LOOK_BACK).find(|slot| slot.flow == flow);
        }
        if matches!(packet.protocol, packet::TCP | packet::UDP) {
            slots.iter_mut().for_each(|slot| slot.is_open = false);
        }
        None
    }

    /// All of them, with their headers as they must be.
    pub fn finish(&mut self, memory: &mut [u8]) -> &[Slot] {
        for slot in &mut self.slots[..self.used] {
            if slot.count > 1 {
                slot.finish(memory);
            }
        }
        &self.slots[..self.used]
    }

    /// Forgets them, but keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    fn next(&mut self) -> &mut Slot {
        if self.used == self.slots.len() {
            self.slots.push(Slot::empty());
        }
        self.used += 1;
        &mut self.slots[self.used - 1]
    }

    /// The length of the headers and of the payload of a packet that others may be appended to, or that may be appended.
    fn shape(&self, packet: &Packet, bytes: &[u8]) -> Option<(usize, usize)> {
        if !packet.is_plain || packet.fragment.is_some() {
            return None;
        }
        let transport = &bytes[packet.transport..];
        let header = match packet.protocol {
            packet::TCP => {
                let header = packet::tcp_header(transport)?;
                // Nothing but data: not even a mark of congestion seen.
                (transport[13] & !PSH == ACK).then_some(header)?
            }
            packet::UDP if self.has_uso && transport.len() > 8 => {
                let is_whole = usize::from(be16(transport, 4)) == transport.len() && be16(transport, 6) != 0;
                is_whole.then_some(8)?
            }
            _ => return None,
        };
        let size = transport.len() - header;
        (size > 0).then_some((packet.transport + header, size))
    }
}

impl Slot {
    fn empty() -> Self {
        let nobody = Addr { family: Family::V4, bits: 0 };
        let packet = Packet {
            src: nobody,
            dst: nobody,
            len: 0,
            transport: 0,
            protocol: 0,
            ttl: 0,
            tos: 0,
            fragment: None,
            may_fragment: false,
            is_plain: false,
        };
        Self {
            vnet: Vnet::default(),
            spans: Vec::new(),
            count: 0,
            packet,
            flow: None,
            header: 0,
            size: 0,
            len: 0,
            is_open: false,
            is_checked: false,
            is_pushed: false,
        }
    }

    fn begin(&mut self, packet: &Packet, flow: Option<Flow>, start: usize) {
        self.spans.clear();
        self.spans.push(Span { place: Place::Packets, start: start as u32, len: packet.len as u32 });
        (self.vnet, self.count, self.packet, self.flow, self.len) = (Vnet::default(), 1, *packet, flow, packet.len);
        (self.is_open, self.is_checked, self.is_pushed) = (false, false, false);
    }

    fn start(&self) -> usize {
        self.spans[0].start as usize
    }

    /// Whether a packet of the same flow goes on where this one ends, and all else in its headers is the same.
    fn is_followed_by(&self, memory: &[u8], bytes: &[u8], packet: &Packet, header: usize, size: usize) -> bool {
        let first = &memory[self.start()..self.start() + self.header];
        let most = if packet.protocol == packet::UDP { MOST_DATAGRAMS } else { MOST_SEGMENTS };
        if header != self.header || size > self.size || self.len + size > MOST_BYTES || self.count == most {
            return false;
        }
        let is_same_ip = match packet.family() {
            Family::V4 => {
                // The number says nothing where nothing can be cut (RFC 6864), else it must be what cutting would give.
                let is_next = be16(bytes, 4) == be16(first, 4).wrapping_add(self.count as u16);
                let is_same = |range: std::ops::Range<usize>| first[range.clone()] == bytes[range];
                is_same(0..2) && is_same(6..10) && (is_next || !packet.may_fragment)
            }
            Family::V6 => first[..4] == bytes[..4] && first[7] == bytes[7],
        };
        let (first, next) = (&first[packet.transport..], &bytes[packet.transport..header]);
        let is_same_transport = || {
            // Acknowledgement and length; window; urgent pointer and options. The flags are of the right sort already.
            packet.protocol == packet::UDP
                || be32(next, 4) == be32(first, 4).wrapping_add((self.len - self.header) as u32)
                    && first[8..13] == next[8..13]
                    && first[14..16] == next[14..16]
                    && first[18..] == next[18..]
        };
        is_same_ip && is_same_transport()
    }

    /// Whether the first packet was whole, looked at when it matters.
    fn check(&mut self, memory: &[u8]) -> bool {
        self.is_checked =
            self.is_checked || self.packet.is_intact(&memory[self.start()..self.start() + self.packet.len]);
        self.is_checked
    }

    fn append(&mut self, start: usize, size: usize, is_pushed: bool) {
        self.spans.push(Span { place: Place::Packets, start: start as u32, len: size as u32 });
        self.count += 1;
        self.len += size;
        self.is_pushed = is_pushed;
        self.is_open = size == self.size && !is_pushed;
    }

    /// Makes the first header that of the whole.
    fn finish(&mut self, memory: &mut [u8]) {
        let header = &mut memory[self.spans[0].start as usize..][..self.header];
        let (family, transport) = (self.packet.family(), self.packet.transport);
        packet::set_len(header, family, self.len);
        let (offset, gso) = if self.packet.protocol == packet::TCP {
            header[transport + 13] |= if self.is_pushed { PSH } else { 0 };
            (16, if family == Family::V4 { Gso::TcpV4 } else { Gso::TcpV6 })
        } else {
            put16(header, transport + 4, (self.len - transport) as u16);
            (6, Gso::Udp)
        };
        // The kernel sums up the rest.
        let pseudo = self.packet.pseudo(header, self.len - transport);
        put16(header, transport + offset, pseudo);
        self.vnet = Vnet {
            checksum: Some((transport as u16, offset as u16)),
            gso: Some((gso, self.size as u16)),
            header_len: self.header as u16,
        };
    }
}

fn flow(packet: &Packet, bytes: &[u8]) -> Option<Flow> {
    let has_ports = matches!(packet.protocol, packet::TCP | packet::UDP)
        && packet.fragment != Some(packet::Fragment::Later)
        && packet.len >= packet.transport + 4;
    has_ports.then(|| Flow {
        ports: be32(bytes, packet.transport),
        protocol: packet.protocol,
        src: packet.src,
        dst: packet.dst,
    })
}

fn is_pushed(packet: &Packet, bytes: &[u8]) -> bool {
    packet.protocol == packet::TCP && bytes[packet.transport + 13] & PSH != 0
}
