//! Frames as what they say: enough of ARP (RFC 826), neighbour discovery (RFC 4861) and UDP to follow a packet's way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loden_core::model::Mac;

/// A frame's Ethernet addresses, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Source.
    pub from: Mac,
    /// Destination.
    pub to: Mac,
    /// What is inside.
    pub what: What,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Who has the address? An ARP request, or a neighbour solicitation.
    Asks { asker: IpAddr, wanted: IpAddr },
    /// The address is at this Ethernet address. An ARP reply, or a neighbour advertisement.
    Answers { wanted: IpAddr, at: Mac },
    /// A datagram to a port; how many more hops it may take.
    Datagram { from: IpAddr, to: IpAddr, port: u16, hops: u8 },
}

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Reads a frame; `None` when it says something else.
pub fn read(frame: &[u8]) -> Option<Said> {
    let inner = frame.get(14..)?;
    let what = match u16_at(frame, 12)? {
        ARP => arp(inner)?,
        IPV4 | IPV6 => read_packet(inner)?,
        _ => return None,
    };
    Some(Said { from: mac(frame, 6)?, to: mac(frame, 0)?, what })
}

/// Reads a packet, which has no frame on a TUN device and in a tunnel of bare packets.
pub fn read_packet(packet: &[u8]) -> Option<What> {
    if packet.first()? >> 4 == 4 {
        return datagram(v4(packet, 12)?, v4(packet, 16)?, *packet.get(8)?, *packet.get(9)?, packet.get(20..)?);
    }
    let (from, to, payload) = (v6(packet, 8)?, v6(packet, 24)?, packet.get(40..)?);
    let (next, hops) = (*packet.get(6)?, *packet.get(7)?);
    if next == ICMPV6 { neighbour(from, payload) } else { datagram(from, to, hops, next, payload) }
}

/// What is in the datagram that a frame carries.
pub fn payload(frame: &[u8]) -> Option<&[u8]> {
    let header = if u16_at(frame, 12)? == IPV4 { 20 } else { 40 };
    frame.get(14 + header + 8..)
}

fn arp(packet: &[u8]) -> Option<What> {
    let (sender, wanted) = (v4(packet, 14)?, v4(packet, 24)?);
    match u16_at(packet, 6)? {
        1 => Some(What::Asks { asker: sender, wanted }),
        2 => Some(What::Answers { wanted: sender, at: mac(packet, 8)? }),
        _ => None,
    }
}

/// Solicitation 135 and advertisement 136, the latter with the option of the target's Ethernet address (type 2) behind the target.
fn neighbour(from: IpAddr, message: &[u8]) -> Option<What> {
    let wanted = v6(message, 8)?;
    match message.first()? {
        135 => Some(What::Asks { asker: from, wanted }),
        136 if message.get(24) == Some(&2) => Some(What::Answers { wanted, at: mac(message, 26)? }),
        _ => None,
    }
}

fn datagram(from: IpAddr, to: IpAddr, hops: u8, protocol: u8, segment: &[u8]) -> Option<What> {
    (protocol == UDP).then(|| Some(What::Datagram { from, to, port: u16_at(segment, 2)?, hops })).flatten()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn mac(bytes: &[u8], at: usize) -> Option<Mac> {
    Some(Mac(bytes.get(at..at + 6)?.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?).into())
}

/// An IPv4 packet with a UDP datagram to a port; the datagram's checksum is left out (RFC 768).
pub fn ipv4_datagram(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let segment = 8 + payload.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + segment).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) as u16).wrapping_add((sum >> 16) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(segment.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// A packet as VXLAN has it (RFC 7348 section 5), in a frame to a VTEP.
pub fn vxlan(vni: u32, vtep: Mac, packet: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0x08, 0, 0, 0];
    datagram.extend((vni << 8).to_be_bytes());
    datagram.extend(vtep.octets());
    datagram.extend([2, 0, 0, 0, 0, 0x66]);
    datagram.extend(IPV4.to_be_bytes());
    datagram.extend(packet);
    datagram
}
