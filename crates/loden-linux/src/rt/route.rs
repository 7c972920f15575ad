//! Routes in table `main` as messages.

use std::net::IpAddr;

use loden_core::kernel::{PROTOCOL, TABLE_MAIN};
use loden_core::model::{Family, PodRoute, Prefix, RouteExtras};

use super::af;
use crate::error::LinuxError;
use crate::netlink::Socket;
use crate::netlink::attr::{Attrs, Writer, ip, u32_at};
use crate::netlink::socket::{CREATE, DUMP, EXCL, REPLACE};

/// `RTM_NEWROUTE`.
pub const NEW: u16 = 24;
/// `RTM_DELROUTE`.
pub const DEL: u16 = 25;
/// `RTM_GETROUTE`.
pub const GET: u16 = 26;

/// Length of `struct rtmsg`.
pub const INFO: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
/// `RTAX_*`, within the metrics.
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_NH_ID: u16 = 30;
/// `RTPROT_BOOT`: what programs give that name no protocol, flanneld among them.
pub const BOOT: u8 = 3;
/// `RTPROT_STATIC`.
const STATIC: u8 = 4;
const SCOPE_LINK: u8 = 253;
/// `RT_TABLE_UNSPEC`.
const ALL_TABLES: u32 = 0;
const UNICAST: u8 = 1;
const BLACKHOLE: u8 = 6;

/// Where a route leads, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// Through a nexthop object.
    Nexthop(u32),
    /// Through a gateway behind a link.
    Gateway(u32, IpAddr),
    /// Straight out of a link.
    Link(u32),
    /// Nowhere.
    Blackhole,
}

/// A route as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Destination.
    pub prefix: Prefix,
    /// Priority (metric).
    pub priority: u32,
    /// Where it leads; `None`: a form that loden does not make.
    pub to: Option<To>,
    /// The link that packets leave by; of one over several gateways the first's.
    pub link: Option<u32>,
    /// The nexthop object it hangs on, if it does.
    pub nexthop: Option<u32>,
    /// Who made it: a route protocol number.
    pub protocol: u8,
    /// Its table.
    pub table: u32,
    /// The source address that it prefers.
    pub source: Option<IpAddr>,
    /// MTU in bytes, where it has its own.
    pub mtu: Option<u32>,
    /// The segment size that TCP announces, in bytes, where it has its own.
    pub advmss: Option<u32>,
}

fn info(family: Family, dst_len: u8, protocol: u8, scope: u8, kind: u8) -> [u8; INFO] {
    info_in(TABLE_MAIN, family, dst_len, protocol, scope, kind)
}

fn info_in(table: u32, family: Family, dst_len: u8, protocol: u8, scope: u8, kind: u8) -> [u8; INFO] {
    // A number of more than a byte stands in an attribute (`RT_TABLE_UNSPEC` here).
    let table = u8::try_from(table).unwrap_or(0);
    [af(family), dst_len, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0]
}

/// Reads the routes of a family in table `main`, of one protocol or (0) of all. A table that was never used is not there yet.
///
/// # Errors
/// [`LinuxError`].
pub fn read(socket: &mut Socket, family: Family, protocol: u8) -> Result<Vec<Seen>, LinuxError> {
    // An older kernel does not heed the table that is asked for.
    let all = dump(socket, TABLE_MAIN, family, protocol, None)?;
    Ok(all.into_iter().filter(|seen| seen.table == TABLE_MAIN).collect())
}

/// The same in all tables.
///
/// # Errors
/// [`LinuxError`].
pub fn read_all(socket: &mut Socket, family: Family, protocol: u8) -> Result<Vec<Seen>, LinuxError> {
    dump(socket, ALL_TABLES, family, protocol, None)
}

/// Reads what a predecessor that gave its routes no protocol has led out of a link.
///
/// # Errors
/// [`LinuxError`].
pub fn read_unmarked(socket: &mut Socket, family: Family, link: u32) -> Result<Vec<Seen>, LinuxError> {
    let all = dump(socket, TABLE_MAIN, family, BOOT, Some(link))?;
    // An older kernel does not heed the link that is asked for.
    Ok(all
        .into_iter()
        .filter(|seen| (seen.table, seen.protocol, seen.link) == (TABLE_MAIN, BOOT, Some(link)))
        .collect())
}

fn dump(
    socket: &mut Socket,
    table: u32,
    family: Family,
    protocol: u8,
    link: Option<u32>,
) -> Result<Vec<Seen>, LinuxError> {
    let mut w = Writer::default();
    w.begin(GET, DUMP);
    w.raw(&info_in(table, family, 0, protocol, 0, 0));
    if let Some(link) = link {
        w.u32(RTA_OIF, link);
    }
    w.end();
    let listed = socket.dump("list routes", &mut w, Vec::new, |all: &mut Vec<_>, message| {
        all.extend(parse(message.payload));
    });
    match listed {
        Err(error) if error.errno() == libc::ENOENT => Ok(Vec::new()),
        other => other,
    }
}

/// Asks how an address is reached.
pub fn ask(w: &mut Writer, addr: IpAddr) {
    w.begin(GET, 0);
    let mut bytes = info(Family::of(addr), Family::of(addr).bits(), 0, 0, 0);
    bytes[4] = 0;
    w.raw(&bytes);
    w.ip(RTA_DST, addr);
    w.end();
}

/// Makes a route that is not marked as loden's: what a lab's host has by itself, as if an administrator had made it.
pub fn add_foreign(w: &mut Writer, prefix: Prefix, priority: u32, to: To) {
    put(w, prefix, priority, to, STATIC, EXCL, RouteExtras::default());
}

/// Makes a route, or with `replace` puts it in the place of one of the same prefix and priority.
pub fn add(w: &mut Writer, prefix: Prefix, priority: u32, to: To, replace: bool) {
    put(w, prefix, priority, to, PROTOCOL, if replace { REPLACE } else { EXCL }, RouteExtras::default());
}

/// Makes a pod's route.
pub fn add_in_pod(w: &mut Writer, route: &PodRoute, to: To) {
    put(w, route.prefix, route.priority, to, PROTOCOL, EXCL, route.extras);
}

fn put(w: &mut Writer, prefix: Prefix, priority: u32, to: To, protocol: u8, how: u16, extras: RouteExtras) {
    w.begin(NEW, CREATE | how);
    let table = extras.table.unwrap_or(TABLE_MAIN);
    let (scope, kind) = match to {
        To::Link(_) if prefix.family() == Family::V4 => (SCOPE_LINK, UNICAST),
        To::Blackhole => (0, BLACKHOLE),
        _ => (0, UNICAST),
    };
    w.raw(&info_in(table, prefix.family(), prefix.len(), protocol, extras.scope.unwrap_or(scope), kind));
    w.ip(RTA_DST, prefix.network());
    w.u32(RTA_PRIORITY, priority);
    if table > u32::from(u8::MAX) {
        w.u32(RTA_TABLE, table);
    }
    if extras.mtu.is_some() || extras.advmss.is_some() {
        let metrics = w.nest(RTA_METRICS);
        for (kind, value) in [(RTAX_MTU, extras.mtu), (RTAX_ADVMSS, extras.advmss)] {
            if let Some(value) = value {
                w.u32(kind, value);
            }
        }
        w.close(metrics);
    }
    match to {
        To::Nexthop(id) => w.u32(RTA_NH_ID, id),
        To::Gateway(index, gateway) => {
            w.u32(RTA_OIF, index);
            w.ip(RTA_GATEWAY, gateway);
        }
        To::Link(index) => w.u32(RTA_OIF, index),
        To::Blackhole => {}
    }
    w.end();
}

/// Deletes a route of loden's.
pub fn delete(w: &mut Writer, prefix: Prefix, priority: u32) {
    delete_from(w, TABLE_MAIN, prefix, priority);
}

/// Deletes a route to a gateway, whoever made it.
pub fn delete_by_way(w: &mut Writer, prefix: Prefix, priority: u32, link: u32, gateway: IpAddr) {
    w.begin(DEL, 0);
    w.raw(&info(prefix.family(), prefix.len(), 0, any_scope(prefix.family()), 0));
    w.ip(RTA_DST, prefix.network());
    w.u32(RTA_PRIORITY, priority);
    w.u32(RTA_OIF, link);
    w.ip(RTA_GATEWAY, gateway);
    w.end();
}

/// `RT_SCOPE_NOWHERE`, which stands for any scope; IPv6 has none.
fn any_scope(family: Family) -> u8 {
    if family == Family::V4 { 255 } else { 0 }
}

/// Deletes a pod's route, in the pod.
pub fn delete_in_pod(w: &mut Writer, route: &PodRoute) {
    delete_from(w, route.extras.table.unwrap_or(TABLE_MAIN), route.prefix, route.priority);
}

fn delete_from(w: &mut Writer, table: u32, prefix: Prefix, priority: u32) {
    w.begin(DEL, 0);
    w.raw(&info_in(table, prefix.family(), prefix.len(), PROTOCOL, any_scope(prefix.family()), 0));
    w.ip(RTA_DST, prefix.network());
    w.u32(RTA_PRIORITY, priority);
    if table > u32::from(u8::MAX) {
        w.u32(RTA_TABLE, table);
    }
    w.end();
}

/// Reads a route.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Seen> {
    let attrs = Attrs::behind(payload, INFO);
    let family = match i32::from(*payload.first()?) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let number = |kind| attrs.find(kind).and_then(|b| u32_at(b, 0));
    let dst = match attrs.find(RTA_DST) {
        Some(bytes) => ip(bytes)?,
        None if family == Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        None => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let gateway = attrs.find(RTA_GATEWAY).and_then(ip);
    let nexthop = number(RTA_NH_ID);
    let metric = |kind| attrs.find(RTA_METRICS).and_then(|all| u32_at(Attrs::new(all).find(kind)?, 0));
    let to = match (*payload.get(7)?, number(RTA_OIF), gateway) {
        (BLACKHOLE, ..) => Some(To::Blackhole),
        (UNICAST, Some(index), Some(gateway)) => Some(To::Gateway(index, gateway)),
        (UNICAST, Some(index), None) => Some(To::Link(index)),
        (UNICAST, None, _) => nexthop.map(To::Nexthop),
        _ => None,
    };
    Some(Seen {
        prefix: Prefix::holding(dst, *payload.get(1)?),
        priority: number(RTA_PRIORITY).unwrap_or(0),
        to,
        // `struct rtnexthop` has the link's number at offset 4.
        link: number(RTA_OIF).or_else(|| attrs.find(RTA_MULTIPATH).and_then(|hops| u32_at(hops, 4))),
        nexthop,
        protocol: *payload.get(5)?,
        table: number(RTA_TABLE).unwrap_or_else(|| u32::from(payload[4])),
        source: attrs.find(RTA_PREFSRC).and_then(ip),
        mtu: metric(RTAX_MTU),
        advmss: metric(RTAX_ADVMSS),
    })
}
