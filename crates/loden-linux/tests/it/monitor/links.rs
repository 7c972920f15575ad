//! Links, ports, the external interface.

use loden_core::kernel::{Event, Key, Object, PARKED_GROUP, Sort, Via};
use loden_core::plan::Verb;
use loden_linux::netlink::Writer;
use loden_linux::rt::route::To;
use loden_linux::rt::{address, link, route};

use crate::support::{
    add, apply, bridge, foreign, ifname, in_namespace, index_of, ip, kernel_with_v1, link_key, link_object, observe,
    prefix, step, vxlan,
};

use super::{Ears, check, with_peer};

#[test]
fn a_changed_link() {
    let is_it = |event: &Event| matches!(event, Event::Seen(key, Object::Link(link)) if *key == link_key("v1") && link.mtu == 1300);
    check("a link's new MTU", is_it, |w| link::set_mtu(w, ifname("v1"), 1300));
}

#[test]
fn a_link_that_is_gone_or_down_or_renamed_takes_what_is_on_it_along() {
    type Doing = fn(&mut Writer);
    let deeds: [(&str, Doing); 3] = [
        ("deletion", |w| link::delete(w, ifname("v1"))),
        ("going down", |w| link::set_up(w, ifname("v1"), false)),
        ("renaming", |w| {
            link::set_up(w, ifname("v1"), false);
            w.begin(link::SET, 0);
            w.raw(&link::info(index_of("v1"), 0, 0));
            w.text(link::ifla::IFNAME, "v9");
            w.end();
        }),
    ];
    for (what, deed) in deeds {
        in_namespace(move || {
            let (_kernel, mut ears) = with_peer();
            foreign(deed);
            let on_it = [Sort::Address, Sort::Nexthop, Sort::Neighbour, Sort::Fdb, Sort::Route];
            ears.hear_stale(what, &on_it, |event| match event {
                Event::Gone(key) => *key == link_key("v1"),
                Event::Seen(key, Object::Link(link)) => *key == link_key("v1") && !link.up && what == "going down",
                _ => false,
            });
        });
    }
}

#[test]
fn a_port_that_is_taken_off_its_bridge() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let mut port = vxlan("192.168.7.1");
        let old = link_object(port.clone());
        port.master = Some(ifname("cni0"));
        apply(
            &mut kernel,
            &[
                add(link_key("cni0"), link_object(bridge())),
                step(Verb::Change, link_key("v1"), Some(link_object(port)), Some(old)),
            ],
        );
        let mut ears = Ears::of(&kernel);
        foreign(|w| {
            w.begin(link::SET, 0);
            w.raw(&link::info(0, 0, 0));
            w.text(link::ifla::IFNAME, "v1");
            w.u32(link::ifla::MASTER, 0);
            w.end();
        });
        ears.hear("a port that is none any more", |event| {
            matches!(event, Event::Seen(key, Object::Link(link)) if *key == link_key("v1") && link.master.is_none())
        });
    });
}

#[test]
fn a_parked_veth() {
    check(
        "a parked link",
        |event| *event == Event::Parked,
        |w| {
            let mut parked = bridge();
            parked.group = PARKED_GROUP;
            link::create(w, ifname("parked0"), &parked, None, None);
        },
    );
}

#[test]
fn the_external_interface() {
    type Doing = fn(&mut Writer);
    let deeds: [(&str, Doing); 4] = [
        ("its MTU", |w| link::set_mtu(w, ifname("eth0"), 1400)),
        ("its address", |w| address::delete(w, "192.168.7.1/24".parse().expect("net"), index_of("eth0"))),
        ("a route", |w| route::add_foreign(w, prefix("0.0.0.0/0"), 0, To::Link(index_of("eth0")))),
        ("its state", |w| link::set_up(w, ifname("eth0"), false)),
    ];
    for (what, deed) in deeds {
        check(what, |event| *event == Event::Underlay, deed);
    }
}

#[test]
fn an_uplink_that_loses_its_carrier_makes_nexthops_and_routes_stale() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let gateway = ip("192.168.7.2");
        apply(
            &mut kernel,
            &[
                add(Key::Nexthop(ifname("eth0"), gateway), Object::Nexthop),
                add(Key::Route(prefix("10.64.1.0/24"), 0), Object::Route(Via::Nexthop(ifname("eth0"), gateway))),
            ],
        );
        let mut ears = Ears::of(&kernel);
        for up in [false, true] {
            // The far end of the cable.
            foreign(|w| link::set_up(w, ifname("wire"), up));
            let what = format!("the carrier ({up})");
            ears.hear_stale(&what, &[Sort::Nexthop, Sort::Route], |event| *event == Event::Underlay);
        }
        assert!(!observe(&mut kernel, &[]).contains_key(&Key::Nexthop(ifname("eth0"), gateway)));
    });
}

#[test]
fn a_foreign_link_that_takes_a_name() {
    let is_it = |event: &Event| matches!(event, Event::Seen(key, _) if *key == link_key("cni0"));
    check("a foreign link", is_it, |w| {
        let mut theirs = bridge();
        theirs.group = 0;
        link::create(w, ifname("cni0"), &theirs, None, None);
    });
}
