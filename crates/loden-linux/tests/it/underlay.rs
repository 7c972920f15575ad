//! The facts that the external interface is chosen by.

use loden_core::model::Family;
use loden_core::underlay::HostFacts;
use loden_linux::rt::route::{self, To};
use loden_linux::underlay::facts;

use crate::support::{foreign, ifname, in_namespace, index_of, ip, kernel_with_v1, make_eth0, prefix};

fn onlink(facts: &HostFacts, name: &str) -> Vec<String> {
    let link = facts.links.iter().find(|link| link.name == ifname(name)).expect("the link");
    link.onlink.iter().map(ToString::to_string).collect()
}

#[test]
fn links_addresses_and_what_is_on_the_wire() {
    in_namespace(|| {
        make_eth0();
        let facts = facts(None).expect("facts");
        let eth0 = facts.links.iter().find(|link| link.name == ifname("eth0")).expect("eth0");
        assert_eq!((eth0.mtu, eth0.up), (1500, true));
        let addresses: Vec<_> = eth0.addresses.iter().map(|a| (a.net.to_string(), a.temporary)).collect();
        assert_eq!(addresses, [("192.168.7.1/24".to_owned(), false), ("fd07::1/64".to_owned(), false)]);
        assert_eq!(onlink(&facts, "eth0"), ["192.168.7.0/24", "fd07::/64"]);
        assert_eq!(facts.default_routes, []);
        assert_eq!(facts.can_reach, None);
    });
}

#[test]
fn default_routes_by_family_and_metric() {
    in_namespace(|| {
        make_eth0();
        let (eth0, wire) = (index_of("eth0"), index_of("wire"));
        foreign(|w| {
            route::add_foreign(w, prefix("0.0.0.0/0"), 100, To::Link(wire));
            route::add_foreign(w, prefix("0.0.0.0/0"), 50, To::Gateway(eth0, ip("192.168.7.254")));
            route::add_foreign(w, prefix("::/0"), 1024, To::Link(wire));
        });
        let (eth0, wire) = (ifname("eth0"), ifname("wire"));
        let defaults = facts(None).expect("facts").default_routes;
        assert_eq!(defaults, [(Family::V4, eth0), (Family::V4, wire), (Family::V6, wire)]);
    });
}

#[test]
fn a_default_route_over_several_gateways_counts_by_its_first() {
    in_namespace(|| {
        make_eth0();
        let eth0 = index_of("eth0");
        foreign(|w| {
            w.begin(route::NEW, 0x600);
            w.raw(&[libc::AF_INET as u8, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0]);
            let mut hops = Vec::new();
            for last in [253, 254] {
                // struct rtnexthop with RTA_GATEWAY
                hops.extend_from_slice(&16_u16.to_ne_bytes());
                hops.extend_from_slice(&[0, 0]);
                hops.extend_from_slice(&eth0.to_ne_bytes());
                hops.extend_from_slice(&8_u16.to_ne_bytes());
                hops.extend_from_slice(&5_u16.to_ne_bytes());
                hops.extend_from_slice(&[192, 168, 7, last]);
            }
            w.bytes(9, &hops);
            w.end();
        });
        assert_eq!(facts(None).expect("facts").default_routes, [(Family::V4, ifname("eth0"))]);
    });
}

#[test]
fn the_way_to_an_address() {
    in_namespace(|| {
        make_eth0();
        for (addr, way) in
            [("192.168.7.9", Some("eth0")), ("fd07::9", Some("eth0")), ("203.0.113.1", None), ("2001:db8::1", None)]
        {
            assert_eq!(facts(Some(ip(addr))).expect("facts").can_reach, way.map(ifname), "{addr}");
        }
    });
}

#[test]
fn lodens_own_routes_say_nothing_of_the_wire() {
    in_namespace(|| {
        use loden_core::kernel::{Key, Object, Via};
        let mut kernel = kernel_with_v1();
        let route = Key::Route(prefix("10.64.0.0/10"), 0);
        crate::support::apply(&mut kernel, &[crate::support::add(route, Object::Route(Via::Link(ifname("v1"))))]);
        assert_eq!(onlink(&facts(None).expect("facts"), "v1"), Vec::<String>::new());
    });
}
