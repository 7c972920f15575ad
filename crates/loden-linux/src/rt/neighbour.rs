//! Neighbours (ARP, NDP) and forwarding entries of VXLAN devices: one message type serves both.

use std::net::IpAddr;

use loden_core::kernel::PROTOCOL;
use loden_core::model::{Family, Mac};

use super::af;
use crate::netlink::attr::{Attrs, Writer, ip, mac, u16_at, u32_at};
use crate::netlink::socket::{APPEND, CREATE, DUMP, REPLACE};

/// `RTM_NEWNEIGH`.
pub const NEW: u16 = 28;
/// `RTM_DELNEIGH`.
pub const DEL: u16 = 29;
/// `RTM_GETNEIGH`.
pub const GET: u16 = 30;

/// The underlay address of a forwarding entry that leads to several places at once, or elsewhere than loden's do: it
/// equals no wish, so that it is put right.
pub const UNSPECIFIED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// Length of `struct ndmsg`.
pub const INFO: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;

/// An entry as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The link's number.
    pub index: u32,
    /// Which entry.
    pub entry: Entry,
    /// Whether it stays: an entry of any other state comes and goes by itself and is not loden's.
    pub is_permanent: bool,
}

/// What an entry says, as far as the report has it: one that is about to go may lack what it led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A neighbour and its Ethernet address.
    Neighbour(IpAddr, Option<Mac>),
    /// A forwarding entry of a VXLAN device and the VTEP's underlay address; unspecified for one that loden does not make.
    Fdb(Mac, IpAddr),
}

fn info(family: u8, index: u32, state: u16, flags: u8) -> [u8; INFO] {
    let mut bytes = [0; INFO];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

/// Asks for a family's neighbours on all links: one walk of the kernel's table, which a filter by link would not shorten.
pub fn list(w: &mut Writer, family: Family) {
    w.begin(GET, DUMP);
    w.raw(&info(af(family), 0, 0, 0));
    w.end();
}

/// Asks for the forwarding entries of one device.
pub fn list_fdb(w: &mut Writer, index: u32) {
    w.begin(GET, DUMP);
    w.raw(&info(libc::AF_BRIDGE as u8, index, 0, 0));
    w.end();
}

/// Makes a permanent neighbour, or changes its Ethernet address.
pub fn put(w: &mut Writer, index: u32, addr: IpAddr, lladdr: Mac) {
    w.begin(NEW, CREATE | REPLACE);
    w.raw(&info(af(Family::of(addr)), index, NUD_PERMANENT, 0));
    w.ip(NDA_DST, addr);
    w.mac(NDA_LLADDR, lladdr);
    w.u8(NDA_PROTOCOL, PROTOCOL);
    w.end();
}

/// Deletes a neighbour.
pub fn delete(w: &mut Writer, index: u32, addr: IpAddr) {
    w.begin(DEL, 0);
    w.raw(&info(af(Family::of(addr)), index, 0, 0));
    w.ip(NDA_DST, addr);
    w.end();
}

/// Whether an entry may lead to several places at once, each of which gets a copy: that of a group, or of all that is
/// unknown. The kernel never replaces such a one (`vxlan_fdb_update_existing`, drivers/net/vxlan/vxlan_core.c): it has to
/// be deleted before it can lead elsewhere alone.
#[must_use]
pub fn leads_to_many(lladdr: Mac) -> bool {
    lladdr.octets() == [0; 6] || lladdr.octets()[0] & 1 != 0
}

/// Makes a forwarding entry, or changes where it leads.
pub fn put_fdb(w: &mut Writer, index: u32, lladdr: Mac, dst: IpAddr) {
    w.begin(NEW, CREATE | if leads_to_many(lladdr) { APPEND } else { REPLACE });
    w.raw(&info(libc::AF_BRIDGE as u8, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF));
    w.mac(NDA_LLADDR, lladdr);
    w.ip(NDA_DST, dst);
    w.end();
}

/// The Ethernet address whose entries are for frames that have none of their own.
pub const UNKNOWN: Mac = Mac([0; 6]);

/// Adds a VTEP to those that get frames of unknown destination.
pub fn put_flood(w: &mut Writer, index: u32, dst: IpAddr) {
    put_fdb(w, index, UNKNOWN, dst);
}

/// Takes it out.
pub fn delete_flood(w: &mut Writer, index: u32, dst: IpAddr) {
    w.begin(DEL, 0);
    w.raw(&info(libc::AF_BRIDGE as u8, index, 0, NTF_SELF));
    w.mac(NDA_LLADDR, UNKNOWN);
    w.ip(NDA_DST, dst);
    w.end();
}

/// Deletes a forwarding entry.
pub fn delete_fdb(w: &mut Writer, index: u32, lladdr: Mac) {
    w.begin(DEL, 0);
    w.raw(&info(libc::AF_BRIDGE as u8, index, 0, NTF_SELF));
    w.mac(NDA_LLADDR, lladdr);
    w.end();
}

/// Reads which neighbour the kernel asks for: the link's number, and the address.
#[must_use]
pub fn parse_miss(payload: &[u8]) -> Option<(u32, IpAddr)> {
    Some((u32_at(payload, 4)?, Attrs::behind(payload, INFO).find(NDA_DST).and_then(ip)?))
}

/// Reads an entry.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Seen> {
    let attrs = Attrs::behind(payload, INFO);
    let dst = attrs.find(NDA_DST).and_then(ip);
    let lladdr = attrs.find(NDA_LLADDR).and_then(mac);
    let entry = if i32::from(*payload.first()?) == libc::AF_BRIDGE {
        // A port, a VNI or a link of its own makes it lead elsewhere than loden's entries do.
        let is_odd = attrs.into_iter().any(|(kind, _)| matches!(kind, NDA_PORT | NDA_VNI | NDA_IFINDEX));
        let dst = dst?;
        Entry::Fdb(lladdr?, if is_odd { UNSPECIFIED } else { dst })
    } else {
        Entry::Neighbour(dst?, lladdr)
    };
    Some(Seen { index: u32_at(payload, 4)?, entry, is_permanent: u16_at(payload, 8)? & NUD_PERMANENT != 0 })
}
