//! Cuts a large packet into the segments that it stands for (TSO, USO). The payload stays where it is: a segment is a header of its own
//! and a piece of it.

use loden_core::model::Family;
use loden_linux::checksum;

use crate::packet::{self, Packet, be16, be32, put16, put32};
use crate::vnet::{Gso, Vnet};

/// The longest headers that are handled, in bytes: those of IPv6 with a few extensions and of TCP with all its options.
pub const MOST_HEADER: usize = 192;
/// The most segments of one packet: more than the smallest ones that TCP makes come to (`TCP_MIN_SND_MSS`). A pod that may write what
/// frames it likes could ask for one a byte.
pub const MOST_SEGMENTS: usize = 2048;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// How a packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    packet: Packet,
    /// The length of all headers together, in bytes.
    pub header: usize,
    /// How much payload each segment has; the last one may have less.
    pub size: usize,
    /// How many there are.
    pub count: usize,
}

impl Split {
    /// Looks how a packet is to be cut; `None` when the kernel's header and the packet do not agree.
    #[must_use]
    pub fn of(vnet: &Vnet, packet: &Packet, bytes: &[u8]) -> Option<Self> {
        let (gso, size) = vnet.gso?;
        let transport = &bytes[packet.transport..];
        let header = match (gso, packet.family(), packet.protocol) {
            (Gso::TcpV4, Family::V4, packet::TCP) | (Gso::TcpV6, Family::V6, packet::TCP) => {
                packet::tcp_header(transport)?
            }
            (Gso::Udp, _, packet::UDP) if transport.len() >= 8 => 8,
            _ => return None,
        };
        let is_elsewhere = vnet.checksum.is_some_and(|(start, _)| usize::from(start) != packet.transport);
        let (header, size) = (packet.transport + header, usize::from(size));
        if size == 0 || header > MOST_HEADER || packet.fragment.is_some() || is_elsewhere {
            return None;
        }
        let count = (packet.len - header).div_ceil(size).max(1);
        (count <= MOST_SEGMENTS).then_some(Self { packet: *packet, header, size, count })
    }

    /// Where in the packet the payload of a segment is: from, to.
    #[must_use]
    pub fn payload(&self, n: usize) -> (usize, usize) {
        let from = self.header + n * self.size;
        (from, (from + self.size).min(self.packet.len))
    }

    /// Makes `header`, the packet's own or a copy of it, the header of segment `n`, whose payload is given.
    pub fn finish(&self, header: &mut [u8], n: usize, payload: &[u8]) {
        let family = self.packet.family();
        if family == Family::V4 {
            put16(header, 4, be16(header, 4).wrapping_add(n as u16));
        }
        let len = header.len() + payload.len();
        packet::set_len(header, family, len);
        let transport = self.packet.transport;
        let field = match self.packet.protocol {
            packet::TCP => {
                let sequence = be32(header, transport + 4).wrapping_add((n * self.size) as u32);
                put32(header, transport + 4, sequence);
                // What says that this is all belongs to the last one, that the window was reduced to the first (RFC 3168 section 6.1.2).
                header[transport + 13] &= !(if n + 1 < self.count { FIN | PSH } else { 0 });
                header[transport + 13] &= !(if n > 0 { CWR } else { 0 });
                transport + 16
            }
            _ => {
                put16(header, transport + 4, (len - transport) as u16);
                transport + 6
            }
        };
        put16(header, field, 0);
        let sum = checksum::add(self.packet.pseudo(header, len - transport), checksum::sum(&header[transport..]));
        put16(header, field, !checksum::add(sum, checksum::sum(payload)));
        if self.packet.protocol == packet::UDP && be16(header, field) == 0 {
            // Nought would say that there is none (RFC 768).
            put16(header, field, 0xffff);
        }
    }
}

/// Completes a checksum that the kernel has only begun. Says whether its place is within the packet.
pub fn complete(bytes: &mut [u8], start: u16, offset: u16) -> bool {
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    if field + 2 > bytes.len() {
        return false;
    }
    // The field holds the sum of the pseudo-header, and so it is part of what is summed up.
    let sum = !checksum::sum(&bytes[start..]);
    // That of UDP, whose place no other protocol has its own in, is never nought.
    put16(bytes, field, if sum == 0 && offset == 6 { 0xffff } else { sum });
    true
}
