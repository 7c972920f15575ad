//! Neighbours (ARP, NDP) and forwarding entries of VXLAN devices: one message type serves both.

use std::net::IpAddr;

use loden_core::kernel::PROTOCOL;
use loden_core::model::{Family, Mac};

use super::af;
use crate::netlink::attr::{Attrs, Writer, ip, mac, u16_at, u32_at};
use crate::netlink::socket::{CREATE, DUMP, REPLACE};

/// `RTM_NEWNEIGH`.
pub const NEW: u16 = 28;
/// `RTM_DELNEIGH`.
pub const DEL: u16 = 29;
/// `RTM_GETNEIGH`.
pub const GET: u16 = 30;

/// Length of `struct ndmsg`.
pub const INFO: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A permanent neighbour on the link with this number.
    Neighbour(u32, IpAddr, Mac),
    /// A static forwarding entry on the VXLAN device with this number.
    Fdb(u32, Mac, IpAddr),
}

fn info(family: u8, index: u32, state: u16, flags: u8) -> [u8; INFO] {
    let mut bytes = [0; INFO];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

/// Asks for a family's neighbours on one link.
pub fn list(w: &mut Writer, family: Family, index: u32) {
    w.begin(GET, DUMP);
    w.raw(&info(af(family), 0, 0, 0));
    w.u32(NDA_IFINDEX, index);
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

/// Makes a forwarding entry, or changes where it leads.
pub fn put_fdb(w: &mut Writer, index: u32, lladdr: Mac, dst: IpAddr) {
    w.begin(NEW, CREATE | REPLACE);
    w.raw(&info(libc::AF_BRIDGE as u8, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF));
    w.mac(NDA_LLADDR, lladdr);
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

/// Reads an entry; `None` for one that comes and goes by itself.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Seen> {
    let attrs = Attrs::behind(payload, INFO);
    let index = u32_at(payload, 4)?;
    if u16_at(payload, 8)? & NUD_PERMANENT == 0 {
        return None;
    }
    let dst = attrs.find(NDA_DST).and_then(ip)?;
    let lladdr = attrs.find(NDA_LLADDR).and_then(mac)?;
    match i32::from(*payload.first()?) {
        libc::AF_BRIDGE => Some(Seen::Fdb(index, lladdr, dst)),
        _ => Some(Seen::Neighbour(index, dst, lladdr)),
    }
}
