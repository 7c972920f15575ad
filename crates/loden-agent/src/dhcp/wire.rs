//! DHCP messages in their wire format (RFC 2131 section 2), alone and in Ethernet frames. What comes in is not trusted: every length and checksum
//! is looked at.

use std::net::Ipv4Addr;

use loden_core::dhcp::LeaseRequest;
use loden_core::dhcp::client::{Kind, Message, Reply, Way};
use loden_core::model::Mac;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, ArpRepr, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket,
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
    UdpRepr,
};

use super::options::{self, Options};

/// A server's port.
pub const SERVER_PORT: u16 = 67;
/// A client's port.
pub const CLIENT_PORT: u16 = 68;
/// The first bytes of the options.
const MAGIC: u32 = 0x6382_5363;
/// Bytes before the options.
const HEADER: usize = 240;
/// BOOTP's least length: there are relays that drop what is shorter (RFC 1542 section 2.1).
const LEAST: usize = 300;
/// What a client takes in one message, in bytes (option 57).
const LARGEST: u16 = 1472;

/// Why what was heard is passed over, in words behind "a reply".
pub type Fault = &'static str;

/// The message without what is around it.
pub fn payload(message: &Message, request: &LeaseRequest) -> Vec<u8> {
    let options = sent_options(message, request);
    let len = HEADER + options.iter().map(|(_, data)| 2 + data.len()).sum::<usize>() + 1;
    let mut bytes = vec![0; len.max(LEAST)];
    let mut packet = DhcpPacket::new_unchecked(bytes.as_mut_slice());
    packet.set_opcode(DhcpOpCode::Request);
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_hardware_len(6);
    packet.set_transaction_id(message.xid);
    packet.set_client_hardware_address(EthernetAddress(request.mac.0));
    packet.set_secs(message.secs);
    packet.set_magic_number(MAGIC);
    packet.set_client_ip(message.has.unwrap_or(Ipv4Addr::UNSPECIFIED));
    // Without an address a frame to it would not be taken in.
    if message.way == Way::Broadcast {
        packet.set_flags(DhcpFlags::BROADCAST);
    }
    let mut writer = packet.options_mut();
    for (kind, data) in &options {
        // There is room: the length was counted above, and no option is longer than its length can say.
        let _ = writer.emit(DhcpOption { kind: *kind, data });
    }
    let _ = writer.end();
    bytes
}

fn sent_options(message: &Message, request: &LeaseRequest) -> Vec<(u8, Vec<u8>)> {
    let kind = match message.kind {
        Kind::Discover => DhcpMessageType::Discover,
        Kind::Request => DhcpMessageType::Request,
        Kind::Decline => DhcpMessageType::Decline,
        Kind::Release => DhcpMessageType::Release,
    };
    let mut all = vec![(53, vec![u8::from(kind)])];
    all.extend(message.asks_for.map(|addr| (50, addr.octets().to_vec())));
    all.extend(message.server.map(|addr| (54, addr.octets().to_vec())));
    if !request.provide.iter().any(|(code, _)| *code == 61) {
        all.push((61, request.client_id()));
    }
    // RFC 2131 table 5: a client that gives something back asks for nothing.
    let is_asking = matches!(message.kind, Kind::Discover | Kind::Request);
    for (code, value) in request.provide.iter().filter(|(code, _)| is_asking || *code == 61) {
        all.push((*code, value.as_bytes().iter().take(255).copied().collect()));
    }
    if is_asking {
        all.push((57, LARGEST.to_be_bytes().to_vec()));
        all.push((55, request.request.iter().take(255).copied().collect()));
    }
    all
}

/// The message in a frame. Without a known server's Ethernet address it goes to all on the wire.
pub fn frame(message: &Message, request: &LeaseRequest, to: Option<Mac>) -> Vec<u8> {
    let payload = payload(message, request);
    let (source, destination) = match message.way {
        Way::Broadcast => (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST),
        Way::Server(server) => (message.has.unwrap_or(Ipv4Addr::UNSPECIFIED), server),
        Way::Rebind => (message.has.unwrap_or(Ipv4Addr::UNSPECIFIED), Ipv4Addr::BROADCAST),
    };
    let udp = UdpRepr { src_port: CLIENT_PORT, dst_port: SERVER_PORT };
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(request.mac.0),
        dst_addr: to.map_or(EthernetAddress::BROADCAST, |mac| EthernetAddress(mac.0)),
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    let fill = |space: &mut [u8]| space.copy_from_slice(&payload);
    udp.emit(&mut datagram, &source.into(), &destination.into(), payload.len(), fill, &ChecksumCapabilities::default());
    bytes
}

/// Takes a server's message out of a frame; with the Ethernet address that it came from. `None` for traffic of others.
pub fn read_frame(bytes: &[u8], is_checksum_missing: bool) -> Option<Result<(&[u8], Mac), Fault>> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.next_header() != IpProtocol::Udp || packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    if (datagram.src_port(), datagram.dst_port()) != (SERVER_PORT, CLIENT_PORT) {
        return None;
    }
    if !packet.verify_checksum() {
        return Some(Err("has a wrong IPv4 checksum"));
    }
    if !is_checksum_missing && !datagram.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()) {
        return Some(Err("has a wrong UDP checksum"));
    }
    Some(Ok((datagram.payload(), Mac(frame.src_addr().0))))
}

/// Reads a server's message to the interface with this Ethernet address: its transaction and what it says. `None` for those to
/// others.
pub fn read_payload(bytes: &[u8], mac: Mac) -> Option<Result<(u32, Reply), Fault>> {
    let Ok(packet) = DhcpPacket::new_checked(bytes) else { return Some(Err("is cut short")) };
    if packet.client_hardware_address().0 != mac.0 || packet.hardware_len() != 6 {
        return None;
    }
    if packet.opcode() != DhcpOpCode::Reply || packet.magic_number() != MAGIC {
        return Some(Err("is none of a DHCP server"));
    }
    let options = Options::read(bytes);
    let kind = options.get(53).and_then(|data| data.first().copied());
    let reply = match kind.map(DhcpMessageType::from) {
        Some(DhcpMessageType::Offer) => options::terms(&options, packet.your_ip()).map(Reply::Offer),
        Some(DhcpMessageType::Ack) => options::terms(&options, packet.your_ip()).map(Reply::Ack),
        Some(DhcpMessageType::Nak) => Ok(Reply::Nak { server: options.addr(54), text: options.text(56) }),
        _ => Err("has no type that a server's has"),
    };
    Some(reply.map(|reply| (packet.transaction_id(), reply)))
}

/// Asks the wire who has an address, from nobody (RFC 5227 section 2.1.1).
pub fn probe(addr: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: Ipv4Addr::UNSPECIFIED,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: addr,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(mac.0),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + arp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

/// Who says in an ARP frame that an address is its own, if it is another than this interface.
pub fn owner(bytes: &[u8], addr: Ipv4Addr, mac: Mac) -> Option<Mac> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, .. } = ArpRepr::parse(&packet).ok()? else {
        return None;
    };
    let by = Mac(source_hardware_addr.0);
    (source_protocol_addr == addr && by != mac).then_some(by)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> LeaseRequest {
        let text = serde_json::json!({
            "key": { "network": "net", "container": "c", "ifname": "eth0" }, "netns": "/n", "mac": "02:00:00:00:00:01",
            "provide": [[12, "name"]], "request": [1, 3], "timeoutS": 10,
        });
        serde_json::from_value(text).unwrap_or_else(|error| unreachable!("{error}"))
    }

    fn message(way: Way) -> Message {
        let addr = Ipv4Addr::new(192, 0, 2, 9);
        Message { kind: Kind::Request, xid: 7, secs: 1, has: Some(addr), asks_for: None, server: None, way }
    }

    #[test]
    fn a_frame_is_whole_and_a_bent_one_is_seen() {
        let bytes = frame(&message(Way::Server(Ipv4Addr::new(192, 0, 2, 1))), &request(), Some(Mac([2; 6])));
        // To a server: turned round it is one of a server.
        let mut turned = bytes.clone();
        turned[34..36].copy_from_slice(&bytes[36..38]);
        turned[36..38].copy_from_slice(&bytes[34..36]);
        let (inner, from) = read_frame(&turned, false).and_then(Result::ok).unwrap_or((&[], Mac([0; 6])));
        assert_eq!((inner.len(), from), (LEAST, Mac([2, 0, 0, 0, 0, 1])));
        for (place, missing, expected) in
            [(16, false, Some(Err("has a wrong IPv4 checksum"))), (100, false, Some(Err("has a wrong UDP checksum")))]
        {
            let mut bent = turned.clone();
            bent[place + 8] ^= 0x40;
            let read = read_frame(&bent, missing);
            assert_eq!(read.map(|read| read.map(|_| ())), expected, "{place}");
        }
        for len in 0..turned.len() {
            assert!(read_frame(&turned[..len], false).is_none_or(|read| read.is_err()), "{len} bytes");
        }
    }

    #[test]
    fn what_is_not_for_this_interface_is_not_read() {
        let mut bytes = payload(&message(Way::Broadcast), &request());
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        assert_eq!(read_payload(&bytes, mac), Some(Err("is none of a DHCP server")));
        bytes[0] = 2;
        assert_eq!(read_payload(&bytes, mac), Some(Err("has no type that a server's has")));
        assert_eq!(read_payload(&bytes, Mac([2; 6])), None);
        assert_eq!(read_payload(&bytes[..100], mac), Some(Err("is cut short")));
    }

    #[test]
    fn an_owner_is_another() {
        let (addr, mac) = (Ipv4Addr::new(192, 0, 2, 9), Mac([2, 0, 0, 0, 0, 1]));
        let mut frame = probe(addr, mac);
        assert_eq!(owner(&frame, addr, mac), None);
        // The other's own announcement.
        frame[28..32].copy_from_slice(&addr.octets());
        assert_eq!(owner(&frame, addr, mac), None);
        frame[22..28].copy_from_slice(&[2; 6]);
        assert_eq!(owner(&frame, addr, mac), Some(Mac([2; 6])));
        assert_eq!(owner(&frame[..30], addr, mac), None);
    }
}
