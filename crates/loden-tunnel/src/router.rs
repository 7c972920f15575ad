//! What a router owes to senders: word of a packet that it cannot send on (ICMP, ICMPv6), not too often, and the marks of congestion
//! carried over (RFC 6040).

use std::time::Duration;

use loden_core::model::Family;
use loden_linux::checksum;

use crate::packet::{self, Fragment, Packet, put16, put32};
use crate::table::Addr;

/// Answers in a second at most, as the kernel has them for all hosts together (`icmp_msgs_per_sec`).
const RATE: u32 = 1000;
/// Answers at once after a pause (`icmp_msgs_burst`).
const BURST: u32 = 50;
/// Hops that an answer may go.
const TTL: u8 = 64;

/// Why a packet is not sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody has its destination.
    NoRoute,
    /// It has gone as many hops as it may.
    HopsSpent,
    /// It is larger than this many bytes, the most that the way takes.
    TooBig(u32),
}

/// Whether the sender of a packet may be told (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4).
#[must_use]
pub fn is_answerable(packet: &Packet, bytes: &[u8]) -> bool {
    // Of ICMPv6 the first half of the types are errors.
    let is_error = match (packet.protocol, bytes.get(packet.transport)) {
        (packet::ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (packet::ICMP6, Some(kind)) => *kind < 128,
        // Too short to say.
        (packet::ICMP | packet::ICMP6, None) => true,
        _ => false,
    };
    packet.fragment != Some(Fragment::Later) && !is_error && is_one_host(packet.src) && !packet.dst.is_multicast()
}

/// Writes the answer to a packet: from `from`, of the same family, behind what `into` holds.
pub fn answer(refusal: Refusal, packet: &Packet, bytes: &[u8], from: Addr, into: &mut Vec<u8>) {
    let begin = into.len();
    let family = packet.family();
    // The whole answer has at most 576 bytes (RFC 1812 section 4.3.2.3), 1280 with IPv6 (RFC 4443 section 2.4 c).
    let (header, most) = if family == Family::V4 { (20, 576) } else { (40, 1280) };
    let quote = &bytes[..bytes.len().min(most - header - 8)];
    into.resize(begin + header + 8, 0);
    into.extend_from_slice(quote);
    let answer = &mut into[begin..];
    let (kind, code, rest) = match (family, refusal) {
        (Family::V4, Refusal::NoRoute) => (3, 0, 0),
        (Family::V4, Refusal::HopsSpent) => (11, 0, 0),
        (Family::V4, Refusal::TooBig(mtu)) => (3, 4, mtu.min(0xffff)),
        (Family::V6, Refusal::NoRoute) => (1, 0, 0),
        (Family::V6, Refusal::HopsSpent) => (3, 0, 0),
        (Family::V6, Refusal::TooBig(mtu)) => (2, 0, mtu),
    };
    answer[header] = kind;
    answer[header + 1] = code;
    put32(answer, header + 4, rest);
    let len = answer.len();
    match family {
        Family::V4 => {
            // Precedence 6, as for all that routers say (RFC 1812 section 4.3.2.5); never to be cut.
            answer[..10].copy_from_slice(&[0x45, 0xc0, 0, 0, 0, 0, 0x40, 0, TTL, packet::ICMP]);
            put32(answer, 12, from.bits as u32);
            put32(answer, 16, packet.src.bits as u32);
            put16(answer, header + 2, !checksum::sum(&answer[header..]));
        }
        Family::V6 => {
            answer[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, packet::ICMP6, TTL]);
            answer[8..24].copy_from_slice(&from.bits.to_be_bytes());
            answer[24..40].copy_from_slice(&packet.src.bits.to_be_bytes());
            let pseudo = Packet { protocol: packet::ICMP6, ..*packet }.pseudo(answer, len - header);
            put16(answer, header + 2, !checksum::add(pseudo, checksum::sum(&answer[header..])));
        }
    }
    packet::set_len(answer, family, len);
}

/// Whether an address can be one host's, to be answered.
fn is_one_host(addr: Addr) -> bool {
    let is_special = match addr.family {
        // This network, loopback; class E and broadcast lie behind multicast.
        Family::V4 => matches!(addr.bits >> 24, 0 | 127) || addr.bits >> 28 == 0xf,
        Family::V6 => addr.bits <= 1,
    };
    !is_special && !addr.is_multicast()
}

/// So many answers may go out, and no more until time has passed.
#[derive(Debug, Clone)]
pub struct Bucket {
    left: u32,
    filled: Duration,
}

impl Default for Bucket {
    fn default() -> Self {
        Self { left: BURST, filled: Duration::ZERO }
    }
}

impl Bucket {
    /// Takes one out; says whether there was one. `now` is the time since some beginning, and never goes back.
    pub fn take(&mut self, now: Duration) -> bool {
        let since = now.saturating_sub(self.filled);
        let more = since.as_millis().saturating_mul(u128::from(RATE)) / 1000;
        if more > 0 {
            self.left = u32::try_from(more).unwrap_or(BURST).saturating_add(self.left).min(BURST);
            self.filled = now;
        }
        let is_one = self.left > 0;
        self.left -= u32::from(is_one);
        is_one
    }
}

/// The ECN bits that a packet has when it leaves the tunnel (RFC 6040 figure 4); `None`: it is dropped, since its sender would not
/// understand the mark.
#[must_use]
pub fn ecn_behind(inner: u8, outer: u8) -> Option<u8> {
    const NOT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    match (inner & 3, outer & 3) {
        (NOT, CE) => None,
        (NOT, _) => Some(NOT),
        (_, CE) => Some(CE),
        (ECT0, ECT1) => Some(ECT1),
        (inner, _) => Some(inner),
    }
}
