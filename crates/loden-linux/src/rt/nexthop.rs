//! Nexthop objects as messages (`linux/nexthop.h`, since 5.3).
//!
//! A peer's routes hang on one, since routes that name an on-link gateway themselves cost the kernel time that grows
//! with the square of their number on one device.

use std::net::IpAddr;

use loden_core::kernel::PROTOCOL;
use loden_core::model::Family;

use super::af;
use crate::netlink::attr::{Attrs, Writer, ip, u32_at};
use crate::netlink::socket::{CREATE, DUMP, EXCL};

/// `RTM_NEWNEXTHOP`.
pub const NEW: u16 = 104;
/// `RTM_DELNEXTHOP`.
pub const DEL: u16 = 105;
/// `RTM_GETNEXTHOP`.
pub const GET: u16 = 106;

/// Length of `struct nhmsg`.
pub const INFO: usize = 8;
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
/// `RTNH_F_ONLINK`: the gateway is behind the link though no prefix of the link holds it.
const ONLINK: u32 = 4;

/// A nexthop object as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub id: u32,
    /// The link's number and the gateway, for one of that form.
    pub leads_to: Option<(u32, IpAddr)>,
    /// Whether loden made it.
    pub ours: bool,
}

/// Asks for all nexthop objects.
pub fn list(w: &mut Writer) {
    w.begin(GET, DUMP);
    w.raw(&[0; INFO]);
    w.end();
}

/// Makes one.
pub fn add(w: &mut Writer, id: u32, index: u32, gateway: IpAddr, onlink: bool) {
    w.begin(NEW, CREATE | EXCL);
    let mut info = [af(Family::of(gateway)), 0, PROTOCOL, 0, 0, 0, 0, 0];
    info[4..8].copy_from_slice(&(if onlink { ONLINK } else { 0 }).to_ne_bytes());
    w.raw(&info);
    w.u32(NHA_ID, id);
    w.u32(NHA_OIF, index);
    w.ip(NHA_GATEWAY, gateway);
    w.end();
}

/// Deletes one; the kernel deletes its routes with it.
pub fn delete(w: &mut Writer, id: u32) {
    w.begin(DEL, 0);
    w.raw(&[0; INFO]);
    w.u32(NHA_ID, id);
    w.end();
}

/// Reads one.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Seen> {
    let attrs = Attrs::behind(payload, INFO);
    let number = |kind| attrs.find(kind).and_then(|b| u32_at(b, 0));
    let leads_to = number(NHA_OIF).zip(attrs.find(NHA_GATEWAY).and_then(ip));
    Some(Seen { id: number(NHA_ID)?, leads_to, ours: *payload.get(2)? == PROTOCOL })
}
