//! ICMP and ICMPv6 echo with a chosen size, not to be fragmented.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use loden_core::model::Family;
use loden_linux::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use super::{PATIENCE, silence};

/// Every raw socket of a namespace hears every reply: each request has a number of its own.
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// Echo request and reply: ICMP 8 and 0, ICMPv6 128 and 129.
fn kinds(family: Family) -> (u8, u8) {
    if family == Family::V4 { (8, 0) } else { (128, 129) }
}

/// How long a request is waited for before it is sent again: the first one to a neighbour that has to be found out may be lost, on a
/// busy host for the kernel's whole second between two tries (`retrans_time`).
const AGAIN: Duration = Duration::from_millis(500);

/// Sends echo requests with `payload` bytes and waits for a reply.
///
/// # Errors
/// What went wrong, in the system's words.
pub fn echo(to: IpAddr, payload: usize) -> Result<(), String> {
    let family = Family::of(to);
    let (domain, protocol) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol)).map_err(|error| error.to_string())?;
    sockopt::forbid_fragments(socket.as_fd(), family).map_err(|error| error.to_string())?;
    socket.connect(&SocketAddr::new(to, 0).into()).map_err(|error| error.to_string())?;
    let (request, reply) = kinds(family);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let mut packet = vec![request, 0, 0, 0];
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&1_u16.to_be_bytes());
    packet.resize(8 + payload, b'i');
    // The kernel fills in the checksum of ICMPv6, which covers a pseudo-header (RFC 4443 section 2.3).
    if family == Family::V4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = vec![0; 65536];
    let mut again = Instant::now();
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Err(format!("no answer in {} s", PATIENCE.as_secs()));
        }
        if now >= again {
            socket.send(&packet).map_err(|error| error.to_string())?;
            again = now + AGAIN;
        }
        let left = again.min(deadline).saturating_duration_since(now).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
        let len = match socket.read(&mut bytes) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(silence(&error)),
        };
        let bytes = &bytes[..len];
        // IPv4 hands over the IP header as well.
        let at = if family == Family::V4 { usize::from(bytes.first().copied().unwrap_or(0) & 0x0f) * 4 } else { 0 };
        if let Some(icmp) = bytes.get(at..at + 8)
            && icmp[0] == reply
            && icmp[4..6] == id.to_be_bytes()
        {
            let got = bytes.len() - at - 8;
            return if got == payload { Ok(()) } else { Err(format!("of {payload} bytes {got} came back")) };
        }
    }
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
