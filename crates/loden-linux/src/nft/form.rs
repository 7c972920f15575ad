//! Keys and values of sets as bytes: parts one behind the other, each filled up to 4 bytes. Types are `nft`'s own numbers, by which it
//! knows how to show them (`enum datatypes`, include/datatype.h of nftables).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use loden_core::kernel::nft::{Element, SetData, SetKey};
use loden_core::model::{Family, IfName, Mac, Transport};

use super::encode::{DATA_VERDICT, padded};

const IPV4_ADDR: u32 = 7;
const IPV6_ADDR: u32 = 8;
const ETHER_ADDR: u32 = 9;
const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;
const IFNAME: u32 = 41;
/// A type of several parts has 6 bits for each.
const PART: u32 = 6;

fn address(family: Family) -> (u32, u32) {
    if family == Family::V4 { (IPV4_ADDR, 4) } else { (IPV6_ADDR, 16) }
}

fn joined(parts: &[(u32, u32)]) -> (u32, u32) {
    parts.iter().fold((0, 0), |(kind, len), (part, part_len)| (kind << PART | part, len + part_len))
}

/// Type and length in bytes of a set's keys.
pub fn key_form(key: SetKey) -> (u32, u32) {
    let (proto, service, link) = ((INET_PROTO, 4), (INET_SERVICE, 4), (IFNAME, 16));
    match key {
        SetKey::Prefix(family) | SetKey::Address(family) => address(family),
        SetKey::Port => joined(&[proto, service]),
        SetKey::AddressPort(family) => joined(&[address(family), proto, service]),
        SetKey::Input => link,
        SetKey::InputMac => joined(&[link, (ETHER_ADDR, 8)]),
        SetKey::InputAddress(family) => joined(&[link, address(family)]),
        SetKey::AddressPair(family) => joined(&[address(family), address(family)]),
    }
}

/// Type and length in bytes of an address with a port.
pub fn target_form(family: Family) -> (u32, u32) {
    joined(&[address(family), (INET_SERVICE, 4)])
}

/// The keys that a type means.
pub fn key_of(kind: u32, is_interval: bool) -> Option<SetKey> {
    let all = Family::ALL.into_iter().flat_map(|family| {
        let plain = if is_interval { SetKey::Prefix(family) } else { SetKey::Address(family) };
        [plain, SetKey::Port, SetKey::AddressPort(family), SetKey::InputAddress(family), SetKey::AddressPair(family)]
    });
    all.chain([SetKey::Input, SetKey::InputMac]).find(|key| key_form(*key).0 == kind)
}

/// The values that a type means.
pub fn data_of(kind: u32) -> SetData {
    if kind == DATA_VERDICT {
        return SetData::Verdict;
    }
    let family = Family::ALL.into_iter().find(|family| target_form(*family).0 == kind);
    family.map_or(SetData::None, SetData::Target)
}

/// An element's key; of an interval its beginning.
pub fn key_bytes(element: &Element) -> Vec<u8> {
    match element {
        Element::Prefix(prefix) => octets(prefix.network()),
        Element::Address(addr) => octets(*addr),
        Element::Port(transport, port) => port_bytes(*transport, *port),
        Element::AddressPort(addr, transport, port) => [octets(*addr), port_bytes(*transport, *port)].concat(),
        Element::Input(name) => padded(*name).to_vec(),
        Element::InputMac(name, mac) => [&padded(*name)[..], &mac.0, &[0; 2]].concat(),
        Element::InputAddress(name, addr) => [padded(*name).to_vec(), octets(*addr)].concat(),
        Element::AddressPair(from, to) => [octets(*from), octets(*to)].concat(),
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn port_bytes(transport: Transport, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![transport.number(), 0, 0, 0, high, low, 0, 0]
}

/// The element of a key; of an interval only its beginning is known.
pub fn element_of(key: SetKey, bytes: &[u8]) -> Option<Element> {
    match key {
        SetKey::Prefix(family) | SetKey::Address(family) => ip(family, bytes).map(Element::Address),
        SetKey::Port => port(bytes).map(|(transport, port)| Element::Port(transport, port)),
        SetKey::AddressPort(family) => {
            let (addr, rest) = bytes.split_at_checked(usize::from(family.bits() / 8))?;
            let (transport, port) = port(rest)?;
            Some(Element::AddressPort(ip(family, addr)?, transport, port))
        }
        SetKey::InputAddress(family) => {
            let (name, addr) = link(bytes)?;
            Some(Element::InputAddress(name, ip(family, addr)?))
        }
        SetKey::Input => Some(Element::Input(link(bytes)?.0)),
        SetKey::InputMac => {
            let (name, mac) = link(bytes)?;
            Some(Element::InputMac(name, Mac(mac.get(..6)?.try_into().ok()?)))
        }
        SetKey::AddressPair(family) => {
            let (from, to) = bytes.split_at_checked(usize::from(family.bits() / 8))?;
            Some(Element::AddressPair(ip(family, from)?, ip(family, to)?))
        }
    }
}

/// A link's name, and what stands behind it.
fn link(bytes: &[u8]) -> Option<(IfName, &[u8])> {
    let (name, rest) = bytes.split_at_checked(16)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Some((IfName::new(std::str::from_utf8(&name[..end]).ok()?).ok()?, rest))
}

fn ip(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
    }
}

fn port(bytes: &[u8]) -> Option<(Transport, u16)> {
    let &[number, _, _, _, high, low, ..] = bytes else { return None };
    Some((Transport::of_number(number)?, u16::from_be_bytes([high, low])))
}

/// An address with a port.
pub fn target_bytes(target: SocketAddr) -> Vec<u8> {
    let [high, low] = target.port().to_be_bytes();
    [octets(target.ip()), vec![high, low, 0, 0]].concat()
}

/// The address with a port that bytes mean.
pub fn target_of(family: Family, bytes: &[u8]) -> Option<SocketAddr> {
    let (addr, rest) = bytes.split_at_checked(usize::from(family.bits() / 8))?;
    let &[high, low, ..] = rest else { return None };
    Some(SocketAddr::new(ip(family, addr)?, u16::from_be_bytes([high, low])))
}
