//! Addresses as messages.

use std::net::IpAddr;

use ipnet::IpNet;
use loden_core::kernel::PROTOCOL;
use loden_core::model::Family;

use super::af;
use crate::netlink::attr::{Attrs, Writer, ip, u32_at};
use crate::netlink::socket::{CREATE, DUMP, EXCL};

/// `RTM_NEWADDR`.
pub const NEW: u16 = 20;
/// `RTM_DELADDR`.
pub const DEL: u16 = 21;
/// `RTM_GETADDR`.
pub const GET: u16 = 22;

/// Length of `struct ifaddrmsg`.
pub const INFO: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
/// `IFA_F_NODAD`: loden's addresses are unique by construction; nobody waits for duplicate detection.
const NODAD: u32 = 0x02;
const TEMPORARY: u32 = 0x01;
const DAD_FAILED: u32 = 0x08;
const DEPRECATED: u32 = 0x20;
const TENTATIVE: u32 = 0x40;
const PERMANENT: u32 = 0x80;
const NOPREFIXROUTE: u32 = 0x200;

/// An address as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The link's number.
    pub index: u32,
    /// The address with its prefix length.
    pub net: IpNet,
    /// Whether loden made it.
    pub ours: bool,
    /// Whether it is of global scope.
    pub is_global: bool,
    /// Whether it may change by itself.
    pub is_temporary: bool,
    /// Whether the kernel is still asking if somebody else has it.
    pub is_tentative: bool,
    /// Whether somebody else has it: it is of no use then.
    pub is_duplicate: bool,
}

fn info(net: IpNet, index: u32) -> [u8; INFO] {
    let mut bytes = [af(Family::of(net.addr())), net.prefix_len(), 0, 0, 0, 0, 0, 0];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes
}

/// Asks for all addresses of both families.
pub fn list(w: &mut Writer) {
    w.begin(GET, DUMP);
    w.raw(&[0; INFO]);
    w.end();
}

/// Makes an address on a link, marked as loden's.
pub fn add(w: &mut Writer, net: IpNet, index: u32) {
    put(w, net, index, if net.addr().is_ipv6() { NODAD } else { 0 });
}

/// The same, and in IPv6 the kernel asks first whether somebody else has it.
pub fn add_detected(w: &mut Writer, net: IpNet, index: u32) {
    put(w, net, index, 0);
}

/// The same as [`add`] without the route to its subnet that the kernel would make.
pub fn add_alone(w: &mut Writer, net: IpNet, index: u32) {
    put(w, net, index, NOPREFIXROUTE | if net.addr().is_ipv6() { NODAD } else { 0 });
}

fn put(w: &mut Writer, net: IpNet, index: u32, flags: u32) {
    w.begin(NEW, CREATE | EXCL);
    w.raw(&info(net, index));
    both(w, net.addr());
    if flags != 0 {
        w.u32(IFA_FLAGS, flags);
    }
    w.u8(IFA_PROTO, PROTOCOL);
    w.end();
}

/// Deletes it.
pub fn delete(w: &mut Writer, net: IpNet, index: u32) {
    w.begin(DEL, 0);
    w.raw(&info(net, index));
    both(w, net.addr());
    w.end();
}

fn both(w: &mut Writer, addr: IpAddr) {
    w.ip(IFA_LOCAL, addr);
    w.ip(IFA_ADDRESS, addr);
}

/// Reads an address.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Seen> {
    let attrs = Attrs::behind(payload, INFO);
    let addr = attrs.find(IFA_LOCAL).or_else(|| attrs.find(IFA_ADDRESS)).and_then(ip)?;
    let net = IpNet::new(addr, *payload.get(1)?).ok()?;
    let flags = attrs.find(IFA_FLAGS).and_then(|b| u32_at(b, 0)).unwrap_or_else(|| u32::from(payload[2]));
    Some(Seen {
        index: u32_at(payload, 4)?,
        net,
        ours: attrs.find(IFA_PROTO).and_then(|b| b.first().copied()) == Some(PROTOCOL),
        is_global: payload.get(3) == Some(&0),
        is_temporary: flags & (TEMPORARY | DEPRECATED) != 0 || flags & PERMANENT == 0,
        is_tentative: flags & (TENTATIVE | DAD_FAILED) == TENTATIVE,
        is_duplicate: flags & DAD_FAILED != 0,
    })
}
