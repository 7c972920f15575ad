//! What others made is neither shown nor touched; what others did to loden's is shown.

use loden_core::kernel::{Kernel, Key, Object, PARKED_GROUP, Scope, Sort, Via};
use loden_core::model::Prefix;
use loden_core::plan::Verb;
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::rt::route::{self, To};
use loden_linux::rt::{address, link, neighbour};

use crate::support::{
    add, apply, bridge, foreign, ifname, in_namespace, index_of, ip, kernel_with_v1, link_key, link_object, mac,
    observe, prefix, step, vxlan,
};

#[test]
fn what_others_made_is_not_seen() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let before = observe(&mut kernel, &[]);
        let eth0 = index_of("eth0");
        foreign(|w| {
            let mut theirs = bridge();
            theirs.group = 0;
            link::create(w, ifname("docker0"), &theirs, None, None);
            let mut parked = bridge();
            parked.group = PARKED_GROUP;
            link::create(w, ifname("parked0"), &parked, None, None);
        });
        foreign(|w| {
            address::add(w, "10.9.0.1/24".parse().expect("net"), index_of("docker0"));
            neighbour::put(w, eth0, ip("192.168.7.77"), mac("02:00:00:00:00:77"));
            neighbour::put(w, eth0, ip("fd07::77"), mac("02:00:00:00:00:77"));
            route::add_foreign(w, prefix("10.77.0.0/16"), 0, To::Link(eth0));
            route::add_foreign(w, prefix("fd77::/64"), 1024, To::Link(eth0));
        });
        assert_eq!(observe(&mut kernel, &["parked0"]), before);
        // Asked for by name, a foreign link is seen with its addresses; they are not loden's until it makes them.
        let seen = observe(&mut kernel, &["eth0"]);
        assert_eq!(
            seen.get(&Key::Address(ifname("eth0"), "192.168.7.1/24".parse().expect("net"))),
            Some(&Object::Address { ours: true }),
            "the tests' own underlay is made by the driver's messages"
        );
        assert!(seen.contains_key(&link_key("eth0")));
        assert_eq!(seen.keys().filter(|key| matches!(key, Key::Neighbour(..) | Key::Route(..))).count(), 0);
    });
}

#[test]
fn addresses_that_others_made_are_told_apart() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let net: ipnet::IpNet = "10.64.9.1/24".parse().expect("net");
        foreign(|w| plain_address(w, net, index_of("v1")));
        let key = Key::Address(ifname("v1"), net);
        assert_eq!(observe(&mut kernel, &[]).get(&key), Some(&Object::Address { ours: false }));
    });
}

/// Without a protocol, as the `ip` program makes it.
fn plain_address(w: &mut loden_linux::netlink::Writer, net: ipnet::IpNet, index: u32) {
    w.begin(address::NEW, 0x600);
    let mut info = [libc::AF_INET as u8, net.prefix_len(), 0, 0, 0, 0, 0, 0];
    info[4..].copy_from_slice(&index.to_ne_bytes());
    w.raw(&info);
    w.ip(1, net.addr());
    w.ip(2, net.addr());
    w.end();
}

#[test]
fn neighbours_that_come_and_go_are_not_seen() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let index = index_of("v1");
        foreign(|w| put_with_state(w, index, ip("10.64.5.0"), 0x02));
        assert_eq!(observe(&mut kernel, &[]).get(&Key::Neighbour(ifname("v1"), ip("10.64.5.0"))), None);
        // What was permanent and no longer is counts as gone, and is put right.
        let ours = add(Key::Neighbour(ifname("v1"), ip("10.64.5.0")), Object::Neighbour(mac("02:00:00:00:00:05")));
        apply(&mut kernel, std::slice::from_ref(&ours));
        assert!(observe(&mut kernel, &[]).contains_key(&ours.key));
    });
}

/// A neighbour in a state: 2 is reachable.
pub fn put_with_state(w: &mut loden_linux::netlink::Writer, index: u32, addr: std::net::IpAddr, state: u16) {
    w.begin(neighbour::NEW, 0x500);
    let mut info = [0; neighbour::INFO];
    info[0] = if addr.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 };
    info[4..8].copy_from_slice(&index.to_ne_bytes());
    info[8..10].copy_from_slice(&state.to_ne_bytes());
    w.raw(&info);
    w.ip(1, addr);
    w.mac(2, mac("02:00:00:00:00:66"));
    w.end();
}

#[test]
fn a_forwarding_entry_that_others_let_lead_elsewhere_too_is_put_right() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let (dev, index) = (ifname("v1"), index_of("v1"));
        let wanted = Object::Fdb(ip("192.168.7.2"));
        // One more destination by address or by port, or instead of it the same by another port.
        let (many, peer) = (mac("01:00:5e:00:00:01"), mac("02:00:00:00:00:01"));
        for (lladdr, dst, port, how) in [
            (many, "192.168.7.66", None, 0x800),
            (many, "192.168.7.2", Some(4790), 0x800),
            (peer, "192.168.7.2", Some(4790), 0x100),
        ] {
            let key = Key::Fdb(dev, lladdr);
            apply(&mut kernel, &[add(key, wanted.clone())]);
            foreign(|w| lead_elsewhere(w, index, lladdr, ip(dst), port, how));
            let seen = observe(&mut kernel, &[]).remove(&key).expect("the entry");
            assert_ne!(seen, wanted, "a copy goes to {dst} {port:?}");
            apply(&mut kernel, &[step(Verb::Change, key, Some(wanted.clone()), Some(seen))]);
            assert_eq!(observe(&mut kernel, &[]).get(&key), Some(&wanted));
            apply(&mut kernel, &[step(Verb::Remove, key, None, Some(wanted.clone()))]);
        }
    });
}

/// `bridge fdb append` (0x800) or `replace` (0x100).
fn lead_elsewhere(
    w: &mut loden_linux::netlink::Writer,
    index: u32,
    lladdr: loden_core::model::Mac,
    dst: std::net::IpAddr,
    port: Option<u16>,
    how: u16,
) {
    w.begin(neighbour::NEW, 0x400 | how);
    let mut info = [0; neighbour::INFO];
    info[0] = libc::AF_BRIDGE as u8;
    info[4..8].copy_from_slice(&index.to_ne_bytes());
    info[8..10].copy_from_slice(&0xc0_u16.to_ne_bytes());
    info[10] = 2;
    w.raw(&info);
    w.mac(2, lladdr);
    w.ip(1, dst);
    if let Some(port) = port {
        w.be16(6, port);
    }
    w.end();
}

#[test]
fn a_device_that_goes_down_takes_its_routes_along_and_gets_them_back() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let (dev, gateway) = (ifname("v1"), ip("10.64.1.0"));
        let peer = [
            add(Key::Nexthop(dev, gateway), Object::Nexthop),
            add(Key::Neighbour(dev, gateway), Object::Neighbour(mac("02:00:00:00:00:01"))),
            add(Key::Fdb(dev, mac("02:00:00:00:00:01")), Object::Fdb(ip("192.168.7.2"))),
            add(Key::Route(prefix("10.64.1.0/24"), 0), Object::Route(Via::Nexthop(dev, gateway))),
        ];
        apply(&mut kernel, &peer);
        let before = observe(&mut kernel, &[]);
        foreign(|w| link::set_up(w, dev, false));
        let down = observe(&mut kernel, &[]);
        assert!(!down.contains_key(&peer[0].key) && !down.contains_key(&peer[3].key));
        let Some(Object::Link(link)) = down.get(&link_key("v1")) else { panic!("no v1") };
        assert!(!link.up);
        let up = step(
            Verb::Change,
            link_key("v1"),
            Some(link_object(vxlan("192.168.7.1"))),
            down.get(&link_key("v1")).cloned(),
        );
        apply(&mut kernel, &[up]);
        let now = observe(&mut kernel, &[]);
        let missing: Vec<_> = peer.iter().filter(|step| !now.contains_key(&step.key)).cloned().collect();
        apply(&mut kernel, &missing);
        assert_eq!(observe(&mut kernel, &[]), before);
    });
}

#[test]
fn only_the_sorts_asked_for_are_given() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let dev = ifname("v1");
        apply(
            &mut kernel,
            &[
                add(Key::Address(dev, "10.64.0.0/32".parse().expect("net")), Object::Address { ours: true }),
                add(Key::Neighbour(dev, ip("10.64.1.0")), Object::Neighbour(mac("02:00:00:00:00:01"))),
                add(Key::Fdb(dev, mac("02:00:00:00:00:01")), Object::Fdb(ip("192.168.7.2"))),
                add(Key::Nexthop(dev, ip("10.64.1.0")), Object::Nexthop),
                add(Key::Route(prefix("10.64.1.0/24"), 0), Object::Route(Via::Nexthop(dev, ip("10.64.1.0")))),
            ],
        );
        for sort in [Sort::Link, Sort::Address, Sort::Neighbour, Sort::Fdb, Sort::Nexthop, Sort::Route] {
            let seen = kernel.observe(&Scope { sorts: [sort].into(), ..Scope::default() }).expect("observe");
            let sorts: Vec<_> = seen.keys().map(Key::sort).collect();
            assert_eq!(sorts, [sort]);
        }
    });
}

#[test]
fn a_predecessors_routes_change_hands_with_its_device() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let (dev, index) = (ifname("v1"), index_of("v1"));
        for (block, gateway, priority) in [("10.64.1.0/24", "10.64.1.0", 0), ("fd64:0:0:1::/64", "fd64:0:0:1::", 1024)]
        {
            let (key, gateway) = (Key::Route(prefix(block), priority), ip(gateway));
            foreign(|w| put_as_flannel(w, prefix(block), index, gateway));
            let left = Object::Route(Via::Gateway(dev, gateway));
            assert_eq!(observe(&mut kernel, &[]).get(&key), Some(&left), "{block}");
            // Nothing is missing in between: what is wanted takes the place of what is there.
            let ours = Object::Route(Via::Nexthop(dev, gateway));
            apply(
                &mut kernel,
                &[
                    add(Key::Nexthop(dev, gateway), Object::Nexthop),
                    step(Verb::Change, key, Some(ours.clone()), Some(left.clone())),
                ],
            );
            assert_eq!(observe(&mut kernel, &[]).get(&key), Some(&ours), "{block}");
            apply(&mut kernel, &[step(Verb::Remove, key, None, Some(ours))]);
            // One that leads to nobody any more is removed.
            foreign(|w| put_as_flannel(w, prefix(block), index, gateway));
            apply(&mut kernel, &[step(Verb::Remove, key, None, Some(left))]);
            assert_eq!(observe(&mut kernel, &[]).get(&key), None, "{block}");
        }
    });
}

#[test]
fn a_device_that_changes_hands_keeps_its_neighbours_and_its_flags() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let ours = vxlan("192.168.7.1");
        let mut theirs = ours.clone();
        (theirs.group, theirs.mtu) = (0, 1450);
        foreign(|w| link::change(w, ifname("v1"), &theirs, &ours, None, None));
        foreign(|w| neighbour::put(w, index_of("v1"), ip("10.64.9.0"), mac("02:00:00:00:00:09")));
        let there = || {
            let mut w = loden_linux::netlink::Writer::default();
            neighbour::list(&mut w, loden_core::model::Family::V4);
            let mut socket = Socket::open(Protocol::Route).expect("a socket");
            let all = socket
                .dump("neighbours", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(neighbour::parse(m.payload)));
            let is_there = all.expect("listed").iter().any(|seen| seen.is_permanent && seen.index == index_of("v1"));
            // `IFF_MULTICAST`, which it has from the beginning.
            let mut is_multicast = false;
            let read = link::read_with(&mut socket, ifname("v1"), |payload| {
                is_multicast = u32::from_ne_bytes(payload[8..12].try_into().expect("flags")) & 0x1000 != 0;
            });
            read.expect("read").expect("there");
            (is_there, is_multicast)
        };
        assert_eq!(there(), (true, true));
        let [wanted, is] = [ours, theirs].map(link_object);
        apply(&mut kernel, &[step(Verb::Change, link_key("v1"), Some(wanted), Some(is))]);
        assert_eq!(there(), (true, true));
    });
}

#[test]
fn a_route_that_leads_the_same_way_is_replaced_and_one_that_does_not_is_left_alone() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let (dev, gateway) = (ifname("eth0"), ip("192.168.7.2"));
        let index = index_of("eth0");
        apply(&mut kernel, &[add(Key::Nexthop(dev, gateway), Object::Nexthop)]);
        let key = Key::Route(prefix("10.64.1.0/24"), 0);
        let ours = Object::Route(Via::Nexthop(dev, gateway));
        foreign(|w| put_as_flannel(w, prefix("10.64.1.0/24"), index, gateway));
        assert_eq!(
            observe(&mut kernel, &[]).get(&key),
            None,
            "an unmarked route by the external interface is not loden's"
        );
        apply(&mut kernel, &[add(key, ours.clone())]);
        assert_eq!(observe(&mut kernel, &[]).get(&key), Some(&ours));
        apply(&mut kernel, &[step(Verb::Remove, key, None, Some(ours.clone()))]);
        foreign(|w| put_as_flannel(w, prefix("10.64.1.0/24"), index, ip("192.168.7.66")));
        let error = kernel.apply(&[add(key, ours)]).remove(0).expect_err("somebody else's");
        assert!(
            error.cause.contains("via 192.168.7.66 dev eth0, made by route protocol 3, is there already"),
            "{error}"
        );
    });
}

/// `ip route add PREFIX via GATEWAY dev … onlink`, without a protocol.
fn put_as_flannel(w: &mut loden_linux::netlink::Writer, prefix: Prefix, index: u32, gateway: std::net::IpAddr) {
    w.begin(route::NEW, 0x600);
    let af = if gateway.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    w.raw(&[af, prefix.len(), 0, 0, 254, 3, 0, 1, 4, 0, 0, 0]);
    w.ip(1, prefix.network());
    w.u32(4, index);
    w.ip(5, gateway);
    w.end();
}
