//! The underlay: segments as bridges, hosts and a router on them, the outside behind the router. Nothing of it is in the
//! machine's own namespace.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use loden_core::kernel::NO_GROUP;
use loden_core::kernel::default_priority;
use loden_core::model::{Family, IfName, PerFamily, Prefix};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::NetNs;
use loden_linux::rt::link::{self, VethEnd};
use loden_linux::rt::{address, route};
use loden_linux::{LinuxError, sysctl};
use std::os::fd::{AsFd, AsRawFd};

use crate::LabError;
use crate::topology::Topology;

/// The namespace that joins the segments.
pub const ROUTER: &str = "router";
/// The namespace of the rest of the world.
pub const OUTSIDE: &str = "outside";

/// The outside's addresses (RFC 5737, RFC 3849).
pub fn outside_addresses() -> PerFamily<IpAddr> {
    PerFamily { v4: Some([198, 51, 100, 1].into()), v6: Some([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1].into()) }
}

/// The names of all namespaces of the underlay, in the order in which they are made.
pub fn namespaces(topology: &Topology) -> Vec<String> {
    let segments = (0..topology.segments.len()).map(segment_name);
    let hosts = topology.hosts.iter().chain(&topology.servers).map(|host| host.name.clone());
    [ROUTER.to_owned(), OUTSIDE.to_owned()].into_iter().chain(segments).chain(hosts).collect()
}

fn segment_name(n: usize) -> String {
    format!("segment{n}")
}

/// Makes it all; namespaces are bound below `dir`.
pub fn make(topology: &Topology, dir: &Path) -> Result<(), LabError> {
    let mut spaces = std::collections::BTreeMap::new();
    for name in namespaces(topology) {
        let ns = NetNs::create(&dir.join(&name)).map_err(LabError::linux(format!("namespace {name}")))?;
        in_ns(&ns, "loopback", || {
            let lo = name_of("lo")?;
            send(|w| {
                link::set_up(w, lo, true);
                Ok(())
            })
        })?;
        spaces.insert(name, ns);
    }
    let space = |name: &str| &spaces[name];
    in_ns(space(ROUTER), "router", forward)?;
    let families: Vec<Family> =
        Family::ALL.into_iter().filter(|f| topology.segments.iter().any(|s| s.prefixes.get(*f).is_some())).collect();

    for (n, segment) in topology.segments.iter().enumerate() {
        let bridge = space(&segment_name(n));
        in_ns(bridge, "segment", || make_bridge(segment.mtu))?;
        let leg = format!("leg{n}");
        wire(space(ROUTER), &leg, bridge, "router", segment.mtu, true)?;
        let nets = segment.prefixes.iter().filter_map(|(_, prefix)| net(router_address(prefix)?, prefix.len()));
        let nets: Vec<IpNet> = nets.collect();
        in_ns(space(ROUTER), &leg, || addresses(&leg, &nets))?;
    }
    wire(space(ROUTER), "out", space(OUTSIDE), "eth0", 1500, false)?;
    let outside = outside_addresses();
    for (ns, dev, last) in [(space(OUTSIDE), "eth0", 1), (space(ROUTER), "out", 254)] {
        let nets: Vec<IpNet> = families
            .iter()
            .filter_map(|f| outside_prefix(*f).nth(last).and_then(|addr| net(addr, outside_prefix(*f).len())))
            .collect();
        in_ns(ns, dev, || addresses(dev, &nets))?;
    }
    debug_assert!(families.iter().all(|f| outside.get(*f).is_some_and(|addr| outside_prefix(*f).contains(addr))));
    let back: Vec<IpAddr> = families.iter().filter_map(|f| outside_prefix(*f).nth(254)).collect();
    in_ns(space(OUTSIDE), "outside", || default_routes("eth0", &back))?;

    for host in topology.hosts.iter().chain(&topology.servers) {
        let (ns, segment) = (space(&host.name), &topology.segments[host.segment]);
        wire(ns, "eth0", space(&segment_name(host.segment)), &format!("to-{}", host.name), segment.mtu, true)?;
        let nets: Vec<IpNet> = host.addresses.iter().map(|(_, net)| net).collect();
        let gateways: Vec<IpAddr> = segment.prefixes.iter().filter_map(|(_, p)| router_address(p)).collect();
        in_ns(ns, &host.name, || {
            addresses("eth0", &nets)?;
            default_routes("eth0", &gateways)
        })?;
    }
    Ok(())
}

fn outside_prefix(family: Family) -> Prefix {
    match family {
        Family::V4 => Prefix::holding([198, 51, 100, 0].into(), 24),
        Family::V6 => Prefix::holding([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0].into(), 64),
    }
}

/// The router's address on a segment: the 254th.
fn router_address(prefix: Prefix) -> Option<IpAddr> {
    prefix.nth(254)
}

fn net(addr: IpAddr, len: u8) -> Option<IpNet> {
    IpNet::new(addr, len).ok()
}

fn in_ns<T: Send>(ns: &NetNs, what: &str, work: impl FnOnce() -> Result<T, LinuxError> + Send) -> Result<T, LabError> {
    ns.run(work).and_then(|done| done).map_err(LabError::linux(what.to_owned()))
}

fn name_of(name: &str) -> Result<IfName, LinuxError> {
    name.parse().map_err(|error: loden_core::model::NameError| LinuxError::File {
        path: name.to_owned(),
        cause: error.to_string(),
    })
}

/// Sends messages in the calling thread's namespace; all must succeed.
fn send(fill: impl FnOnce(&mut Writer) -> Result<(), LinuxError>) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    fill(&mut w)?;
    Socket::open(Protocol::Route)?.batch(&mut w)?.into_iter().collect()
}

fn forward() -> Result<(), LinuxError> {
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        sysctl::write(path, 1)?;
    }
    Ok(())
}

fn make_bridge(mtu: u32) -> Result<(), LinuxError> {
    let name = name_of("br0")?;
    send(|w| {
        // NLM_F_CREATE | NLM_F_EXCL
        w.begin(link::NEW, 0x600);
        w.raw(&link::info(0, 0, 0));
        w.text(link::ifla::IFNAME, name.as_str());
        w.u32(link::ifla::MTU, mtu);
        let info = w.nest(link::ifla::LINKINFO);
        w.text(link::ifla::INFO_KIND, "bridge");
        let data = w.nest(link::ifla::INFO_DATA);
        // Without a querier snooping would keep neighbour discovery from its group.
        w.u8(link::ifla::BR_MCAST_SNOOPING, 0);
        w.close(data);
        w.close(info);
        w.end();
        link::no_made_up_address(w, name);
        link::set_up(w, name, true);
        Ok(())
    })
}

/// A wire between two namespaces; with `bridged` its far end becomes a port of `br0` there.
fn wire(near: &NetNs, near_name: &str, far: &NetNs, far_name: &str, mtu: u32, bridged: bool) -> Result<(), LabError> {
    let far_fd = far.as_fd().as_raw_fd().cast_unsigned();
    in_ns(near, near_name, || {
        let near_name = name_of(near_name)?;
        send(|w| {
            let end = |name| VethEnd { name, mtu, mac: None, group: NO_GROUP, master: None };
            link::create_veth(w, end(near_name), end(name_of(far_name)?), far_fd);
            link::no_made_up_address(w, near_name);
            link::set_up(w, near_name, true);
            Ok(())
        })
    })?;
    in_ns(far, far_name, || {
        let far_name = name_of(far_name)?;
        let bridge = if bridged { Some(number_of("br0")?) } else { None };
        send(|w| {
            if let Some(bridge) = bridge {
                link::set_master(w, far_name, bridge);
            }
            link::no_made_up_address(w, far_name);
            link::set_up(w, far_name, true);
            Ok(())
        })
    })
}

fn addresses(dev: &str, nets: &[IpNet]) -> Result<(), LinuxError> {
    let number = number_of(dev)?;
    send(|w| {
        for net in nets {
            address::add(w, *net, number);
            // What forwards IPv6 needs a link-local address to ask for neighbours with.
            if let IpAddr::V6(addr) = net.addr() {
                let local = u128::from(addr) & u128::from(u64::MAX) | 0xfe80 << 112;
                if let Some(net) = self::net(IpAddr::V6(local.into()), 64) {
                    address::add(w, net, number);
                }
            }
        }
        Ok(())
    })
}

fn default_routes(dev: &str, gateways: &[IpAddr]) -> Result<(), LinuxError> {
    let number = number_of(dev)?;
    send(|w| {
        for gateway in gateways {
            let family = Family::of(*gateway);
            let anywhere = match family {
                Family::V4 => Prefix::holding([0, 0, 0, 0].into(), 0),
                Family::V6 => Prefix::holding([0_u16; 8].into(), 0),
            };
            route::add_foreign(w, anywhere, default_priority(family), route::To::Gateway(number, *gateway));
        }
        Ok(())
    })
}

/// The number of a link of the calling thread's namespace.
fn number_of(dev: &str) -> Result<u32, LinuxError> {
    let found = link::number_of(&Socket::open(Protocol::Route)?, name_of(dev)?)?;
    found.ok_or_else(|| LinuxError::File { path: dev.to_owned(), cause: "there is no such link".to_owned() })
}
