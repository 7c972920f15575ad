//! The host's links, addresses and routes, for choosing the external interface (the choice is made in `loden_core`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_core::model::Family;
use loden_core::underlay::{AddressFacts, HostFacts, LinkFacts};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::rt::{address, link, route};

/// Route protocols whose gateway-less routes say what is on the wire: kernel (2), boot (3), static (4), DHCP (16), RA (9).
const OF_THE_HOST: [u8; 5] = [2, 3, 4, 9, 16];

/// Reads them. With `can_reach` also where a packet to that address would leave.
///
/// # Errors
/// [`LinuxError`] when a listing fails.
pub fn facts(can_reach: Option<IpAddr>) -> Result<HostFacts, LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let mut w = Writer::default();
    link::list(&mut w);
    let links = socket.dump("list links", &mut w, BTreeMap::new, |all: &mut BTreeMap<_, _>, message| {
        if let Some(seen) = link::parse(message.payload) {
            all.insert(seen.index, seen);
        }
    })?;
    w.clear();
    address::list(&mut w);
    let addresses = socket.dump("list addresses", &mut w, Vec::new, |all: &mut Vec<_>, message| {
        all.extend(address::parse(message.payload).filter(|seen| seen.is_global));
    })?;
    let mut routes = Vec::new();
    for family in Family::ALL {
        routes.extend(route::read(&mut socket, family, 0)?);
    }
    let name_of = |index: u32| links.get(&index).map(|seen| seen.name);
    let mut defaults: Vec<_> = routes
        .iter()
        .filter(|route| route.prefix.len() == 0)
        .filter_map(|route| Some((route.priority, route.prefix.family(), name_of(route.link?)?)))
        .collect();
    defaults.sort_by_key(|(priority, family, _)| (*family, *priority));
    let can_reach = match can_reach {
        Some(addr) => way_to(&mut socket, addr)?.and_then(name_of),
        None => None,
    };
    let link_facts = |seen: &link::Seen| LinkFacts {
        name: seen.name,
        mtu: seen.link.mtu,
        up: seen.link.up,
        addresses: addresses
            .iter()
            .filter(|a| a.index == seen.index)
            .map(|a| AddressFacts { net: a.net, temporary: a.is_temporary })
            .collect(),
        onlink: routes
            .iter()
            .filter(|r| r.to == Some(route::To::Link(seen.index)) && r.prefix.len() > 0)
            .filter(|r| OF_THE_HOST.contains(&r.protocol) && !is_link_local(r.prefix.network()))
            .map(|r| r.prefix)
            .collect(),
    };
    Ok(HostFacts {
        links: links.values().map(link_facts).collect(),
        default_routes: defaults.into_iter().map(|(_, family, name)| (family, name)).collect(),
        can_reach,
    })
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local() || addr.is_multicast(),
    }
}

/// The link that a packet to the address leaves by; `None` when there is no way.
fn way_to(socket: &mut Socket, addr: IpAddr) -> Result<Option<u32>, LinuxError> {
    let mut w = Writer::default();
    route::ask(&mut w, addr);
    let mut found = None;
    let results = socket.batch_with_echo(&mut w, |_, message| {
        found = route::parse(message.payload).and_then(|seen| seen.link);
    })?;
    match results.into_iter().collect::<Result<(), _>>() {
        Ok(()) => Ok(found),
        Err(error) if matches!(error.errno(), libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES) => Ok(None),
        Err(error) => Err(error),
    }
}
