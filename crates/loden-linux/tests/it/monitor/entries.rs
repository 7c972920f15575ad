//! Neighbours, forwarding entries, routes, nexthops, addresses.

use loden_core::kernel::{Event, Key, Object, Sort, Via};
use loden_linux::rt::route::To;
use loden_linux::rt::{address, neighbour, nexthop, route};

use crate::support::{ifname, index_of, ip, mac, prefix};

use super::check;

#[test]
fn a_deleted_neighbour_of_each_family() {
    for addr in ["10.64.1.0", "fd64:0:0:1::"] {
        let addr = ip(addr);
        let gone = Event::Gone(Key::Neighbour(ifname("v1"), addr));
        check(
            "the deletion of a neighbour",
            move |event| *event == gone,
            move |w| {
                neighbour::delete(w, index_of("v1"), addr);
            },
        );
    }
}

#[test]
fn a_changed_neighbour() {
    let seen = Event::Seen(Key::Neighbour(ifname("v1"), ip("10.64.1.0")), Object::Neighbour(mac("02:00:00:00:00:99")));
    check(
        "a neighbour's new address",
        move |event| *event == seen,
        |w| {
            neighbour::put(w, index_of("v1"), ip("10.64.1.0"), mac("02:00:00:00:00:99"));
        },
    );
}

#[test]
fn a_neighbour_that_is_permanent_no_longer() {
    let gone = Event::Gone(Key::Neighbour(ifname("v1"), ip("10.64.1.0")));
    check(
        "a neighbour that will go by itself",
        move |event| *event == gone,
        |w| {
            crate::foreign::put_with_state(w, index_of("v1"), ip("10.64.1.0"), 2);
        },
    );
}

#[test]
fn a_deleted_and_a_changed_forwarding_entry() {
    let key = Key::Fdb(ifname("v1"), mac("02:00:00:00:00:01"));
    check(
        "the deletion of a forwarding entry",
        move |event| *event == Event::Gone(key),
        |w| {
            neighbour::delete_fdb(w, index_of("v1"), mac("02:00:00:00:00:01"));
        },
    );
    let seen = Event::Seen(key, Object::Fdb(ip("192.168.7.66")));
    check(
        "a forwarding entry that leads elsewhere",
        move |event| *event == seen,
        |w| {
            neighbour::put_fdb(w, index_of("v1"), mac("02:00:00:00:00:01"), ip("192.168.7.66"));
        },
    );
}

#[test]
fn deleted_and_changed_routes() {
    for (block, priority) in [("10.64.1.0/24", 0), ("fd64:0:0:1::/64", 1024)] {
        let block = prefix(block);
        let key = Key::Route(block, priority);
        check(
            "the deletion of a route",
            move |event| *event == Event::Gone(key),
            move |w| {
                route::delete(w, block, priority);
            },
        );
        let seen = Event::Seen(key, Object::Route(Via::Blackhole));
        check(
            "a route that leads elsewhere",
            move |event| *event == seen,
            move |w| {
                route::add(w, block, priority, To::Blackhole, true);
            },
        );
    }
}

#[test]
fn a_deleted_nexthop() {
    let is_it = |event: &Event| *event == Event::Stale(Sort::Nexthop) || *event == Event::Stale(Sort::Route);
    check("the deletion of a nexthop", is_it, |w| nexthop::delete(w, 76 << 24));
}

#[test]
fn a_deleted_address() {
    let net: ipnet::IpNet = "10.64.0.0/32".parse().expect("net");
    let gone = Event::Gone(Key::Address(ifname("v1"), net));
    check(
        "the deletion of an address",
        move |event| *event == gone,
        move |w| {
            address::delete(w, net, index_of("v1"));
        },
    );
}
