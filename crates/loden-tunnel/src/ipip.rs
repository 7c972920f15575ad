//! Packets as a raw socket of IP in IP gets them. The kernel may have put segments together already, or have left a checksum to hardware
//! that there is none of between hosts of one machine.

use crate::counters::Cause;
use crate::packet::{self, Packet, be16};
use crate::vnet::{Gso, Vnet};
use loden_core::model::Family;

/// What must be told of a packet that the kernel has worked on; `None` of one that is as it was sent.
///
/// # Errors
/// [`Cause::Malformed`] for a large one that nobody knows how to cut.
pub fn merged(packet: &Packet, bytes: &[u8], mtu: usize) -> Result<Option<Vnet>, Cause> {
    let is_large = packet.len > mtu;
    let transport = &bytes[packet.transport..];
    let (header, offset) = match packet.protocol {
        packet::TCP => (packet::tcp_header(transport).ok_or(Cause::Malformed)?, 16),
        packet::UDP if transport.len() >= 8 => (8, 6),
        _ if is_large => return Err(Cause::Malformed),
        _ => return Ok(None),
    };
    if packet.fragment.is_some() {
        return if is_large { Err(Cause::Malformed) } else { Ok(None) };
    }
    // A checksum that is only begun is the sum of the pseudo-header. One that is right and looks so is made again, and is the same.
    if be16(transport, offset) != packet.pseudo(bytes, packet.len - packet.transport) {
        return if is_large { Err(Cause::Malformed) } else { Ok(None) };
    }
    let header = packet.transport + header;
    let gso = match (packet.protocol, packet.family()) {
        _ if !is_large => None,
        // How large the segments were is not said: as large as they may be.
        (packet::TCP, Family::V4) => Some((Gso::TcpV4, mtu.saturating_sub(header).max(1) as u16)),
        (packet::TCP, Family::V6) => Some((Gso::TcpV6, mtu.saturating_sub(header).max(1) as u16)),
        // Datagrams cannot be told apart.
        _ => return Err(Cause::Malformed),
    };
    Ok(Some(Vnet { checksum: Some((packet.transport as u16, offset as u16)), gso, header_len: header as u16 }))
}
