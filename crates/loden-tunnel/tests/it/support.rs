//! Packets, written and checked by other code than the tunnel's, and two engines that know each other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use loden_core::kernel::tunnel::{Destination, Peer, Wire};
use loden_core::model::{PerFamily, Prefix};
use loden_tunnel::engine::{Arrival, Inbound, Outbound, Picture};
use loden_tunnel::group::{Group, Place, Span};
use loden_tunnel::peers::{Own, Peers};
use loden_tunnel::vnet;

/// The MTU inside.
pub const MTU: u32 = 1472;
/// The hosts' ports.
pub const WIRE: Wire = Wire::Udp { port: 8285 };

/// TCP's flags.
pub const FIN: u8 = 1;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const ECE: u8 = 64;
pub const CWR: u8 = 128;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// The host's underlay address.
pub fn at(host: u8) -> IpAddr {
    IpAddr::from([192, 168, 7, host])
}

/// An address of a pod on a host.
pub fn pod(host: u8, is_v6: bool) -> IpAddr {
    if is_v6 { ip(&format!("fd00:244:{host}::9")) } else { IpAddr::from([10, 244, host, 9]) }
}

/// Blocks of a host.
pub fn blocks(host: u8) -> [Prefix; 2] {
    [prefix(&format!("10.244.{host}.0/24")), prefix(&format!("fd00:244:{host}::/48"))]
}

/// What `own` knows of hosts 1 to 3. The third one is no loden.
pub fn peers(own: u8) -> Arc<Peers> {
    let mut known = BTreeMap::new();
    for host in (1..=3).filter(|host| *host != own) {
        let to = Some(Destination { addr: at(host), port: 8285, bursts: host != 3 });
        let peer = Peer { node: format!("n{host}").parse().expect("name"), from: vec![at(host)], to };
        known.extend(blocks(host).map(|block| (block, peer.clone())));
    }
    let [v4, v6] = blocks(own);
    let addresses = PerFamily { v4: Some(v4.network()), v6: Some(v6.network()) };
    Arc::new(Peers::build(Own { addresses, blocks: [v4, v6].into(), mtu: MTU }, &known))
}

pub fn picture(own: u8) -> Arc<Picture> {
    Arc::new(Picture::alone(peers(own)))
}

/// A packet to be: what its headers say, and what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ports: (u16, u16),
    /// `Some`: TCP with this sequence number and these flags. `None`: UDP.
    pub tcp: Option<(u32, u8)>,
    /// A multiple of four, in TCP.
    pub options: Vec<u8>,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub payload: Vec<u8>,
}

impl Spec {
    /// A UDP datagram from a pod of one host to one of another.
    pub fn udp(from: u8, to: u8, is_v6: bool, payload: &[u8]) -> Self {
        Self {
            src: pod(from, is_v6),
            dst: pod(to, is_v6),
            ports: (40_000, 53),
            tcp: None,
            options: Vec::new(),
            ttl: 64,
            tos: 0,
            id: 7,
            dont_fragment: true,
            payload: payload.to_vec(),
        }
    }

    /// A TCP segment.
    pub fn tcp(from: u8, to: u8, is_v6: bool, payload: &[u8]) -> Self {
        // As Linux sends them: two of nothing and the timestamps.
        let options = [&[1, 1, 8, 10][..], &[9; 8]].concat();
        Self { tcp: Some((1000, ACK)), options, ..Self::udp(from, to, is_v6, payload) }
    }

    /// All headers.
    pub fn header_len(&self) -> usize {
        self.ip_len() + if self.tcp.is_some() { 20 + self.options.len() } else { 8 }
    }

    /// The IP header.
    pub fn ip_len(&self) -> usize {
        if self.src.is_ipv4() { 20 } else { 40 }
    }

    /// The packet, with its checksums. With `is_begun` that of the transport is left as the kernel leaves it.
    pub fn bytes(&self, is_begun: bool) -> Vec<u8> {
        let mut transport = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        let (protocol, field) = match self.tcp {
            Some((sequence, flags)) => {
                transport.extend(sequence.to_be_bytes());
                transport.extend(77_u32.to_be_bytes());
                transport.extend([((20 + self.options.len()) << 2) as u8, flags, 1, 0, 0, 0, 0, 0]);
                transport.extend(&self.options);
                (6, 16)
            }
            None => {
                transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                transport.extend([0, 0]);
                (17, 6)
            }
        };
        transport.extend(&self.payload);
        let addresses = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => panic!("one family"),
        };
        let pseudo = [&addresses[..], &(transport.len() as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat();
        let sum = if is_begun { total(&pseudo) } else { !total(&[&pseudo[..], &transport].concat()) };
        let sum = if sum == 0 && protocol == 17 { 0xffff } else { sum };
        transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let mut header = if self.src.is_ipv4() {
            let mut header = vec![0x45, self.tos];
            header.extend(((20 + transport.len()) as u16).to_be_bytes());
            header.extend(self.id.to_be_bytes());
            header.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            header
        } else {
            let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, 0x12, 0x34];
            header.extend((transport.len() as u16).to_be_bytes());
            header.extend([protocol, self.ttl]);
            header
        };
        header.extend(addresses);
        if self.src.is_ipv4() {
            let sum = !total(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        [header, transport].concat()
    }

    /// Reads a packet that must be right in every respect.
    pub fn read(bytes: &[u8]) -> Self {
        let is_v4 = bytes[0] >> 4 == 4;
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (header, protocol, ttl) = if is_v4 { (20, bytes[9], bytes[8]) } else { (40, bytes[6], bytes[7]) };
        let (src, dst) = if is_v4 {
            let addr = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
            (addr(12), addr(16))
        } else {
            let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
            (addr(8), addr(24))
        };
        let len = if protocol == 6 { usize::from(bytes[header + 12] >> 4) * 4 } else { 8 };
        let tcp = (protocol == 6).then(|| {
            let sequence = u32::from(word(header + 4)) << 16 | u32::from(word(header + 6));
            (sequence, bytes[header + 13])
        });
        let spec = Self {
            src,
            dst,
            ports: (word(header), word(header + 2)),
            tcp,
            options: if protocol == 6 { bytes[header + 20..header + len].to_vec() } else { Vec::new() },
            ttl,
            tos: if is_v4 { bytes[1] } else { (word(0) >> 4) as u8 },
            id: if is_v4 { word(4) } else { 7 },
            dont_fragment: if is_v4 { bytes[6] & 0x40 != 0 } else { true },
            payload: bytes[header + len..].to_vec(),
        };
        // Whatever was not looked at, and all lengths and checksums.
        assert_eq!(spec.bytes(false), bytes, "a packet that is right: {spec:?}");
        spec
    }
}

/// The sum in one's complement, a word after the other.
pub fn total(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0))).sum::<u64>();
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// What the kernel puts before a packet: the checksum is begun at an offset, and it is to be cut so and so.
pub fn frame(gso: u8, size: u16, checksum: Option<(usize, usize)>, packet: &[u8]) -> Vec<u8> {
    let (start, offset) = checksum.unwrap_or_default();
    let words = [0, size, start as u16, offset as u16];
    let header = [&[u8::from(checksum.is_some()), gso][..], &words.map(u16::to_ne_bytes).concat()].concat();
    [&header, packet].concat()
}

/// A large packet as the kernel hands it over, its checksum begun; not large, if there is one segment's worth.
pub fn large(spec: &Spec, size: u16) -> Vec<u8> {
    let gso = match (&spec.tcp, spec.src.is_ipv4()) {
        (Some(_), true) => 1,
        (Some(_), false) => 4,
        (None, _) => 5,
    };
    let is_large = spec.payload.len() > usize::from(size);
    let checksum = Some((spec.ip_len(), if spec.tcp.is_some() { 16 } else { 6 }));
    let mut frame = frame(if is_large { gso } else { 0 }, if is_large { size } else { 0 }, checksum, &spec.bytes(true));
    frame[2..4].copy_from_slice(&(spec.header_len() as u16).to_ne_bytes());
    frame
}

/// What was cut to be the packet that it was, as the next kernel would: the other way round.
pub fn whole(frame: &[u8]) -> Vec<Vec<u8>> {
    let (header, packet) = frame.split_at(vnet::LEN);
    if header[1] == 0 && header[0] == 0 {
        return vec![packet.to_vec()];
    }
    let size = usize::from(u16::from_ne_bytes([header[4], header[5]]));
    let is_v4 = packet[0] >> 4 == 4;
    let ip_len = if is_v4 { 20 } else { 40 };
    let is_tcp = header[1] != 5;
    let field = ip_len + if is_tcp { 16 } else { 6 };
    // What is begun must be begun right.
    let mut complete = packet.to_vec();
    let sum = !total(&complete[ip_len..]);
    complete[field..field + 2].copy_from_slice(&(if sum == 0 && !is_tcp { 0xffff } else { sum }).to_be_bytes());
    let spec = Spec::read(&complete);
    let kind = if !is_tcp {
        5
    } else if is_v4 {
        1
    } else {
        4
    };
    assert_eq!((header[0], header[1]), (1, kind), "the device's header");
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    assert_eq!((word(2), word(6), word(8)), (spec.header_len(), ip_len, field - ip_len), "the device's header");
    let count = spec.payload.chunks(size).count();
    let cut = |(n, payload): (usize, &[u8])| {
        let tcp = spec.tcp.map(|(sequence, flags)| {
            let flags = if n + 1 < count { flags & !(FIN | PSH) } else { flags };
            (sequence.wrapping_add((n * size) as u32), if n > 0 { flags & !CWR } else { flags })
        });
        let id = if is_v4 { spec.id.wrapping_add(n as u16) } else { spec.id };
        Spec { tcp, id, payload: payload.to_vec(), ..spec.clone() }.bytes(false)
    };
    spec.payload.chunks(size).enumerate().map(cut).collect()
}

/// What is sent of frames: to whom, with which mark, and the packets.
pub fn sent(engine: &mut Outbound, frames: &[Vec<u8>]) -> Vec<(u32, u8, Vec<Vec<u8>>)> {
    let mut memory = Vec::new();
    for frame in frames {
        let begin = memory.len();
        memory.extend_from_slice(frame);
        let end = memory.len();
        engine.take(&mut memory, begin..end, Duration::ZERO);
    }
    let bytes = |span: &Span| {
        let place = if span.place == Place::Packets { &memory[..] } else { engine.headers() };
        place[span.start as usize..][..span.len as usize].to_vec()
    };
    let group = |group: &Group| {
        let packets: Vec<Vec<u8>> = group.packets().map(|spans| spans.iter().flat_map(bytes).collect()).collect();
        // The kernel cuts by length alone.
        assert_eq!(packets.len(), usize::from(group.count));
        assert_eq!(packets.iter().map(Vec::len).sum::<usize>(), group.bytes);
        assert!(packets.iter().rev().skip(1).all(|packet| packet.len() == usize::from(group.segment)));
        assert!(packets.last().is_some_and(|last| last.len() <= usize::from(group.segment)));
        assert!(group.bytes <= 65_000 && group.count <= 64);
        (group.peer, group.ecn, packets)
    };
    engine.groups().list().iter().map(group).collect()
}

/// What the device gets of datagrams from a host, each with its header.
pub fn received(engine: &mut Inbound, from: IpAddr, tos: u8, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut memory = Vec::new();
    for datagram in datagrams {
        let begin = memory.len();
        memory.extend_from_slice(datagram);
        let arrival = Arrival { at: begin..memory.len(), segment: datagram.len(), from, tos };
        engine.take(&mut memory, &arrival, Duration::ZERO);
    }
    frames(engine, &mut memory)
}

/// What an engine has for the device.
pub fn frames(engine: &mut Inbound, memory: &mut [u8]) -> Vec<Vec<u8>> {
    let slots: Vec<_> = engine.packets(memory).iter().map(|slot| (slot.vnet.to_bytes(), slot.spans.clone())).collect();
    let bytes = |span: &Span| memory[span.start as usize..][..span.len as usize].to_vec();
    slots.iter().map(|(header, spans)| [header.to_vec(), spans.iter().flat_map(bytes).collect()].concat()).collect()
}

/// The same packet after it has gone so many hops more.
pub fn hops_later(packet: &[u8], hops: u8) -> Vec<u8> {
    let spec = Spec::read(packet);
    Spec { ttl: spec.ttl - hops, ..spec }.bytes(false)
}
