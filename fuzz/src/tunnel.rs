//! What must hold for any bytes that come to the tunnel, from the wire or from the device. The targets call these functions, and so does an
//! ordinary test of the tunnel's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use loden_core::kernel::tunnel::{Destination, Peer, Wire};
use loden_core::model::{Family, PerFamily, Prefix};
use loden_tunnel::engine::{Arrival, Inbound, Outbound, Picture};
use loden_tunnel::group::{Place, Span};
use loden_tunnel::packet::{self, Packet};
use loden_tunnel::peers::{Own, Peers};
use loden_tunnel::split::{self, Split};
use loden_tunnel::table::Addr;
use loden_tunnel::vnet::Vnet;

const MTU: u32 = 1472;
const WIRE: Wire = Wire::Udp { port: 8285 };

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn blocks(host: u8) -> [Prefix; 2] {
    [prefix(&format!("10.244.{host}.0/24")), prefix(&format!("fd00:244:{host}::/48"))]
}

fn at(host: u8) -> IpAddr {
    Ipv4Addr::new(192, 168, 7, host).into()
}

/// Host 1 or 2, and what it knows of the other.
fn picture(own: u8) -> Arc<Picture> {
    let other = 3 - own;
    let to = Some(Destination { addr: at(other), port: 8285, bursts: true });
    let peer = Peer { node: "other".parse().expect("a name"), from: vec![at(other)], to };
    let known: BTreeMap<Prefix, Peer> = blocks(other).map(|block| (block, peer.clone())).into();
    let [v4, v6] = blocks(own);
    let addresses = PerFamily { v4: Some(v4.network()), v6: Some(v6.network()) };
    let own = Own { addresses, blocks: [v4, v6].into(), mtu: MTU };
    Arc::new(Picture::alone(Arc::new(Peers::build(own, &known))))
}

fn is_of(host: u8, addr: Addr) -> bool {
    blocks(host).iter().any(|block| block.contains(addr.into()))
}

/// Datagrams from a known host: what comes in is a packet from one of its pods to one of ours, and what goes back are whole packets.
pub fn frame(data: &[u8]) {
    let [wire, tos, segment, rest @ ..] = data else { return };
    let wire = if wire & 1 == 0 { WIRE } else { Wire::Ipip };
    let mut memory = rest.to_vec();
    let mut engine = Inbound::new(picture(2), wire, true);
    let segment = if *segment == 0 { memory.len() } else { usize::from(*segment) * 8 };
    let arrival = Arrival { at: 0..memory.len(), segment, from: at(1), tos: *tos };
    engine.take(&mut memory, &arrival, Duration::ZERO);
    for (_, bytes) in frames(&mut engine, &mut memory) {
        let packet = Packet::parse(&bytes).expect("a packet");
        assert!(is_of(1, packet.src) && is_of(2, packet.dst), "{bytes:x?}");
    }
    for group in engine.replies().list() {
        for spans in group.packets() {
            let [Span { place: Place::Headers, start, len }] = spans else { panic!("{spans:?}") };
            let reply = &engine.headers()[*start as usize..][..*len as usize];
            whole(reply);
        }
    }
}

/// A frame of the device: what is sent are packets that fit, and of a large one they are what it stands for.
pub fn split(data: &[u8]) {
    let mut memory = data.to_vec();
    let mut engine = Outbound::new(picture(1), WIRE, true);
    engine.take(&mut memory, 0..data.len(), Duration::ZERO);
    engine.answers().for_each(whole);
    let was = data.split_first_chunk().and_then(|(header, bytes)| {
        let (vnet, packet) = (Vnet::parse(header)?, Packet::parse(bytes)?);
        Some((Split::of(&vnet, &packet, bytes), bytes))
    });
    let mut payload = Vec::new();
    for group in engine.groups().list() {
        assert!(group.count <= 64 && group.bytes <= 65_000);
        for spans in group.packets() {
            let bytes: Vec<u8> = spans.iter().flat_map(|span| of(span, &memory, engine.headers())).copied().collect();
            assert!(bytes.len() <= MTU as usize && bytes.len() <= usize::from(group.segment));
            let packet = Packet::parse(&bytes).expect("a packet");
            let Some((Some(split), _)) = was else { continue };
            assert!(packet.is_header_intact(&bytes) && packet.is_intact(&bytes), "{bytes:x?}");
            payload.extend_from_slice(&bytes[split.header..]);
        }
    }
    if let Some((Some(split), bytes)) = was
        && !engine.groups().list().is_empty()
    {
        assert_eq!(payload, bytes[split.header..]);
    }
}

/// Packets one after the other, each behind its length in two bytes: together they come out as they do alone, in the order of their flows.
pub fn coalesce(data: &[u8]) {
    let mut datagrams = Vec::new();
    let mut rest = data;
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let (datagram, behind) = behind.split_at(usize::from(u16::from_le_bytes(*len)).min(behind.len()));
        datagrams.push(datagram);
        rest = behind;
    }
    let alone: Vec<Vec<u8>> = datagrams.iter().flat_map(|datagram| taken(&[datagram])).collect();
    let together = taken(&datagrams);
    assert_eq!(by_flow(&alone), by_flow(&together));
}

/// What the kernel would have of these datagrams, once it had cut what was put together.
fn taken(datagrams: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut memory = datagrams.concat();
    let mut engine = Inbound::new(picture(2), WIRE, true);
    let mut start = 0;
    for datagram in datagrams {
        let arrival = Arrival { at: start..start + datagram.len(), segment: datagram.len(), from: at(1), tos: 0 };
        engine.take(&mut memory, &arrival, Duration::ZERO);
        start += datagram.len();
    }
    frames(&mut engine, &mut memory).into_iter().flat_map(|(vnet, bytes)| cut(&vnet, bytes)).collect()
}

/// What an engine has for the device.
fn frames(engine: &mut Inbound, memory: &mut [u8]) -> Vec<(Vnet, Vec<u8>)> {
    let slots = engine.packets(memory).iter().map(|slot| (slot.vnet, slot.spans.clone()));
    let slots: Vec<(Vnet, Vec<Span>)> = slots.collect();
    let bytes = |spans: &[Span]| spans.iter().flat_map(|span| of(span, memory, &[])).copied().collect();
    slots.iter().map(|(vnet, spans)| (*vnet, bytes(spans))).collect()
}

fn cut(vnet: &Vnet, mut bytes: Vec<u8>) -> Vec<Vec<u8>> {
    let packet = Packet::parse(&bytes).expect("a packet");
    let Some(split) = Split::of(vnet, &packet, &bytes) else {
        assert_eq!(vnet.gso, None);
        if let Some((start, offset)) = vnet.checksum {
            assert!(split::complete(&mut bytes, start, offset));
        }
        return vec![bytes];
    };
    let segment = |n| {
        let (from, to) = split.payload(n);
        let mut segment = bytes[..split.header].to_vec();
        split.finish(&mut segment, n, &bytes[from..to]);
        segment.extend_from_slice(&bytes[from..to]);
        segment
    };
    assert!(split.count > 1, "what is put together is more than one");
    (0..split.count).map(segment).collect()
}

/// Source, destination, protocol and ports.
type Flow = (Addr, Addr, u8, Vec<u8>);

/// Packets by all that tells flows apart. The number of one that cannot be cut says nothing, and is left out.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Flow, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for bytes in packets {
        let packet = Packet::parse(bytes).expect("a packet");
        let has_ports = matches!(packet.protocol, packet::TCP | packet::UDP)
            && packet.fragment != Some(packet::Fragment::Later)
            && packet.len >= packet.transport + 4;
        let ports = if has_ports { bytes[packet.transport..packet.transport + 4].to_vec() } else { Vec::new() };
        let mut bytes = bytes.clone();
        if packet.family() == Family::V4 && !packet.may_fragment {
            bytes[4..6].fill(0);
            bytes[10..12].fill(0);
        }
        flows.entry((packet.src, packet.dst, packet.protocol, ports)).or_default().push(bytes);
    }
    flows
}

/// Sees that a packet's checksums are right.
fn whole(bytes: &[u8]) {
    let packet = Packet::parse(bytes).expect("a packet");
    let header = packet.transport;
    let is_right = match packet.protocol {
        // Without a pseudo-header.
        packet::ICMP => loden_linux::checksum::sum(&bytes[header..]) == 0xffff,
        _ => packet.is_intact(bytes),
    };
    assert!(is_right && packet.is_header_intact(bytes), "{bytes:x?}");
}

fn of<'a>(span: &Span, packets: &'a [u8], headers: &'a [u8]) -> &'a [u8] {
    let place = if span.place == Place::Packets { packets } else { headers };
    &place[span.start as usize..][..span.len as usize]
}
