//! IP packets as they stand in memory: a strict look at their headers, and the few changes that a router makes to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loden_core::model::Family;
use loden_linux::checksum;

use crate::table::Addr;

/// The protocol number of ICMP.
pub const ICMP: u8 = 1;
/// That of TCP.
pub const TCP: u8 = 6;
/// That of UDP.
pub const UDP: u8 = 17;
/// That of ICMPv6.
pub const ICMP6: u8 = 58;

/// Extension headers of IPv6 that a packet may have before it is taken for an attack.
const MOST_EXTENSIONS: usize = 8;

/// What a packet's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub src: Addr,
    /// Where it goes to, of the same family.
    pub dst: Addr,
    /// Its length, headers and all, in bytes: that of the memory, too.
    pub len: usize,
    /// Where the header behind those of IP begins.
    pub transport: usize,
    /// What that is.
    pub protocol: u8,
    /// How many hops it may still go.
    pub ttl: u8,
    /// The byte of traffic class and ECN.
    pub tos: u8,
    /// Whether it is a part of a packet, and which.
    pub fragment: Option<Fragment>,
    /// Whether a router may cut it.
    pub may_fragment: bool,
    /// Whether there is nothing between the IP header and the transport's.
    pub is_plain: bool,
}

/// A part of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// The one that begins with the transport header.
    First,
    /// Any behind it: there is no transport header.
    Later,
}

impl Packet {
    /// Looks at a packet; `None` when it is none that may be sent on: of another version, cut, longer than it says.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let transport = usize::from(header[0] & 15) * 4;
        let len = usize::from(be16(header, 2));
        if transport < 20 || transport > len || len != bytes.len() {
            return None;
        }
        let offset = be16(header, 6);
        let fragment = match (offset & 0x1fff, offset & 0x2000) {
            (0, 0) => None,
            (0, _) => Some(Fragment::First),
            _ => Some(Fragment::Later),
        };
        let addr = |at: usize| Addr {
            family: Family::V4,
            bits: u128::from(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])),
        };
        Some(Self {
            src: addr(12),
            dst: addr(16),
            len,
            transport,
            protocol: header[9],
            ttl: header[8],
            tos: header[1],
            fragment,
            may_fragment: offset & 0x4000 == 0,
            is_plain: transport == 20,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<40>()?;
        if usize::from(be16(header, 4)) + 40 != bytes.len() {
            return None;
        }
        let addr = |at: usize| {
            let mut bits = [0; 16];
            bits.copy_from_slice(&header[at..at + 16]);
            Addr { family: Family::V6, bits: u128::from_be_bytes(bits) }
        };
        let (mut protocol, mut transport, mut fragment) = (header[6], 40, None);
        for n in 0.. {
            if n == MOST_EXTENSIONS {
                return None;
            }
            let len = match protocol {
                // Hop-by-hop options, routing, destination options (RFC 8200 section 4).
                0 | 43 | 60 => (usize::from(*bytes.get(transport + 1)?) + 1) * 8,
                44 => {
                    let offset = be16(bytes.get(transport..transport + 8)?, 2);
                    fragment = match (offset >> 3, offset & 1) {
                        // Whole, though it has the header (RFC 6946).
                        (0, 0) => fragment,
                        (0, _) => Some(Fragment::First),
                        _ => Some(Fragment::Later),
                    };
                    8
                }
                // Authentication counts words of four (RFC 4302 section 2.2).
                51 => (usize::from(*bytes.get(transport + 1)?) + 2) * 4,
                _ => break,
            };
            protocol = bytes[transport];
            transport += len;
            if transport > bytes.len() {
                return None;
            }
            // What follows are bytes out of the middle.
            if fragment == Some(Fragment::Later) {
                break;
            }
        }
        Some(Self {
            src: addr(8),
            dst: addr(24),
            len: bytes.len(),
            transport,
            protocol,
            ttl: header[7],
            tos: (be16(header, 0) >> 4) as u8,
            fragment,
            may_fragment: false,
            is_plain: transport == 40,
        })
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub fn family(&self) -> Family {
        self.src.family
    }

    /// The sum of the pseudo-header of a transport header and `len` bytes in all from there on (RFC 9293 section 3.1, RFC 8200
    /// section 8.1). `header` is the packet's, or a copy.
    #[must_use]
    pub fn pseudo(&self, header: &[u8], len: usize) -> u16 {
        let addresses = if self.family() == Family::V4 { &header[12..20] } else { &header[8..40] };
        let len = checksum::add((len >> 16) as u16, len as u16);
        checksum::add(checksum::sum(addresses), checksum::add(len, u16::from(self.protocol)))
    }

    /// Whether the sum over the transport header and all behind it is right.
    #[must_use]
    pub fn is_intact(&self, bytes: &[u8]) -> bool {
        let sum = checksum::add(self.pseudo(bytes, self.len - self.transport), checksum::sum(&bytes[self.transport..]));
        sum == 0xffff
    }

    /// Whether the checksum of an IPv4 header is right; IPv6 has none.
    #[must_use]
    pub fn is_header_intact(&self, bytes: &[u8]) -> bool {
        self.family() == Family::V6 || checksum::sum(&bytes[..usize::from(bytes[0] & 15) * 4]) == 0xffff
    }
}

/// Takes one off the hops that are left, and says how many there are then; nothing is changed when there was none.
pub fn take_hop(bytes: &mut [u8], family: Family) -> u8 {
    match family {
        Family::V4 => {
            let before = be16(bytes, 8);
            bytes[8] = bytes[8].saturating_sub(1);
            update(bytes, before, be16(bytes, 8));
            bytes[8]
        }
        Family::V6 => {
            bytes[7] = bytes[7].saturating_sub(1);
            bytes[7]
        }
    }
}

/// Sets the two bits of ECN.
pub fn set_ecn(bytes: &mut [u8], family: Family, ecn: u8) {
    match family {
        Family::V4 => {
            let before = be16(bytes, 0);
            bytes[1] = bytes[1] & !3 | ecn;
            update(bytes, before, be16(bytes, 0));
        }
        Family::V6 => bytes[1] = bytes[1] & 0xcf | ecn << 4,
    }
}

/// The header's checksum after one word has been changed (RFC 1624, equation 3).
fn update(bytes: &mut [u8], before: u16, after: u16) {
    let sum = checksum::add(checksum::add(!be16(bytes, 10), !before), after);
    put16(bytes, 10, !sum);
}

/// Writes the lengths that an IP header has, and in IPv4 its checksum.
pub fn set_len(header: &mut [u8], family: Family, len: usize) {
    match family {
        Family::V4 => {
            put16(header, 2, len as u16);
            put16(header, 10, 0);
            put16(header, 10, !checksum::sum(&header[..usize::from(header[0] & 15) * 4]));
        }
        Family::V6 => put16(header, 4, (len - 40) as u16),
    }
}

/// The length of a TCP header, if there is a whole one.
#[must_use]
pub fn tcp_header(transport: &[u8]) -> Option<usize> {
    let len = usize::from(transport.get(12)? >> 4) * 4;
    (20..=transport.len()).contains(&len).then_some(len)
}

/// Two bytes of a header as a number.
#[must_use]
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Four bytes of a header as a number.
#[must_use]
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes two bytes of a header.
pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes four bytes of a header.
pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        match addr.family {
            Family::V4 => Ipv4Addr::from(addr.bits as u32).into(),
            Family::V6 => Ipv6Addr::from(addr.bits).into(),
        }
    }
}
