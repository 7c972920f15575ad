//! Each foreign change is reported as what it is; the driver's own are not.

use std::time::{Duration, Instant};

use loden_core::kernel::{DeviceSysctl, Event, Kernel, Key, Object, PARKED_GROUP, Scope, Sort, Via};
use loden_core::plan::Verb;
use loden_linux::LinuxKernel;
use loden_linux::monitor::Monitor;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::route::To;
use loden_linux::rt::{address, link, neighbour, nexthop, route};

use crate::support::{
    add, apply, bridge, foreign, ifname, in_namespace, index_of, ip, kernel_with_v1, link_key, link_object, mac,
    observe, prefix, step, vxlan,
};

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(10);

struct Ears {
    monitor: Monitor,
}

impl Ears {
    fn of(kernel: &LinuxKernel) -> Self {
        Self { monitor: Monitor::open(kernel).expect("monitor") }
    }

    /// All that is reported until nothing has been for a while.
    fn all(&mut self) -> Vec<Event> {
        let quiet = Duration::from_millis(200);
        let mut heard = Vec::new();
        let mut last = Instant::now();
        while last.elapsed() < quiet {
            let before = heard.len();
            self.monitor.wait(Some(quiet), Some(ifname("eth0")), |event| heard.push(event)).expect("wait");
            if heard.len() > before {
                last = Instant::now();
            }
        }
        heard
    }

    /// Waits for a report.
    fn hear(&mut self, what: &str, is_it: impl Fn(&Event) -> bool) {
        self.hear_all(what, &[&is_it]);
    }

    /// Waits until each has been reported.
    fn hear_all(&mut self, what: &str, wanted: &[&dyn Fn(&Event) -> bool]) {
        let begun = Instant::now();
        let mut missing = wanted.to_vec();
        let mut heard: Vec<Event> = Vec::new();
        while begun.elapsed() < PATIENCE && !missing.is_empty() {
            let quiet = Some(Duration::from_millis(500));
            self.monitor
                .wait(quiet, Some(ifname("eth0")), |event| {
                    missing.retain(|is_it| !is_it(&event));
                    heard.push(event);
                })
                .expect("wait");
        }
        heard.truncate(30);
        assert!(missing.is_empty(), "{what} was not reported; what was begins with {heard:?}");
    }

    /// Waits until each of these sorts has been said to be stale, and whatever else is wanted.
    fn hear_stale(&mut self, what: &str, sorts: &[Sort], besides: impl Fn(&Event) -> bool) {
        let stale: Vec<_> = sorts.iter().map(|sort| move |event: &Event| *event == Event::Stale(*sort)).collect();
        let mut wanted: Vec<&dyn Fn(&Event) -> bool> = vec![&besides];
        wanted.extend(stale.iter().map(|is_it| is_it as &dyn Fn(&Event) -> bool));
        self.hear_all(what, &wanted);
    }
}

/// A peer on `v1`, and ears that have heard nothing of it.
fn with_peer() -> (LinuxKernel, Ears) {
    let mut kernel = kernel_with_v1();
    let (dev, gateway) = (ifname("v1"), ip("10.64.1.0"));
    apply(
        &mut kernel,
        &[
            add(Key::Address(dev, "10.64.0.0/32".parse().expect("net")), Object::Address { ours: true }),
            add(Key::Nexthop(dev, gateway), Object::Nexthop),
            add(Key::Neighbour(dev, gateway), Object::Neighbour(mac("02:00:00:00:00:01"))),
            add(Key::Neighbour(dev, ip("fd64:0:0:1::")), Object::Neighbour(mac("02:00:00:00:00:01"))),
            add(Key::Fdb(dev, mac("02:00:00:00:00:01")), Object::Fdb(ip("192.168.7.2"))),
            add(Key::Route(prefix("10.64.1.0/24"), 0), Object::Route(Via::Nexthop(dev, gateway))),
            add(Key::Route(prefix("fd64:0:0:1::/64"), 1024), Object::Route(Via::Link(dev))),
        ],
    );
    let ears = Ears::of(&kernel);
    (kernel, ears)
}

/// What somebody does, and what must be heard of it.
fn check(
    what: &str,
    is_it: impl Fn(&Event) -> bool + Send + 'static,
    doing: impl FnOnce(&mut Writer) + Send + 'static,
) {
    let what = what.to_owned();
    in_namespace(move || {
        let (_kernel, mut ears) = with_peer();
        foreign(doing);
        ears.hear(&what, is_it);
    });
}

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
fn a_written_sysctl() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let mut ears = Ears::of(&kernel);
        let device = (ifname("v1"), DeviceSysctl::AcceptRa);
        kernel
            .observe(&Scope {
                sorts: [Sort::Sysctl].into(),
                sysctls: ["net/ipv4/ip_forward"].into(),
                device_sysctls: [device].into(),
                ..Scope::default()
            })
            .expect("observe");
        assert!(!ears.all().contains(&Event::Stale(Sort::Sysctl)), "reading is no writing");
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/v1/accept_ra"] {
            std::fs::write(format!("/proc/sys/{path}"), "1").expect("write");
            ears.hear(path, |event| *event == Event::Stale(Sort::Sysctl));
            ears.all();
        }
    });
}

#[test]
fn a_change_of_the_nftables_table_and_not_of_others() {
    in_namespace(|| {
        let kernel = LinuxKernel::open().expect("kernel");
        let mut ears = Ears::of(&kernel);
        make_table("kube-proxy");
        assert!(!ears.all().contains(&Event::Stale(Sort::Nft)), "somebody else's table");
        make_table("loden");
        ears.hear("a table of the name", |event| *event == Event::Stale(Sort::Nft));
    });
}

/// Makes an empty table of family inet.
fn make_table(name: &str) {
    let mut w = Writer::default();
    for (kind, flags) in [(16, 0), (10 << 8, 0x400), (17, 0)] {
        w.begin(kind, flags);
        // struct nfgenmsg: family inet for the table, the subsystem's number for the ends of the batch.
        w.raw(if kind > 17 { &[1, 0, 0, 0] } else { &[0, 0, 0, 10] });
        if kind > 17 {
            w.text(1, name);
        }
        w.end();
    }
    let mut socket = Socket::open(Protocol::Netfilter).expect("socket");
    socket.transaction(&mut w, &["begin", "table", "end"].map(str::to_owned)).expect("a table");
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

#[test]
fn the_drivers_own_changes_are_not_news() {
    in_namespace(|| {
        let (mut kernel, mut ears) = with_peer();
        let dev = ifname("v1");
        let gateway = ip("10.64.2.0");
        let route = Key::Route(prefix("10.64.2.0/24"), 0);
        let via = Object::Route(Via::Nexthop(dev, gateway));
        let old = link_object(vxlan("192.168.7.1"));
        let mut new = vxlan("192.168.7.1");
        new.mtu = 1400;
        let new = link_object(new);
        apply(
            &mut kernel,
            &[
                step(Verb::Change, link_key("v1"), Some(new.clone()), Some(old)),
                add(Key::Address(dev, "10.64.0.1/32".parse().expect("net")), Object::Address { ours: true }),
                add(Key::Nexthop(dev, gateway), Object::Nexthop),
                add(Key::Neighbour(dev, gateway), Object::Neighbour(mac("02:00:00:00:00:02"))),
                add(route, via.clone()),
                step(Verb::Remove, route, None, Some(via)),
                step(
                    Verb::Remove,
                    Key::Neighbour(dev, gateway),
                    None,
                    Some(Object::Neighbour(mac("02:00:00:00:00:02"))),
                ),
                step(Verb::Remove, Key::Nexthop(dev, gateway), None, Some(Object::Nexthop)),
            ],
        );
        // Of links, and of the last of a neighbour, the kernel does not say who did it: they are as the driver knows.
        let known = [Event::Seen(link_key("v1"), new.clone()), Event::Gone(Key::Neighbour(dev, gateway))];
        let mut heard = ears.all();
        heard.retain(|event| match event {
            Event::Seen(key, _) | Event::Gone(key) if key.device() == Some(dev) || *key == route => {
                !known.contains(event)
            }
            Event::Stale(_) => true,
            // The underlay has only just come up and still finds its state.
            _ => false,
        });
        assert_eq!(heard, []);
        // It listens still, and knows a link that the driver has made since.
        apply(&mut kernel, &[add(link_key("cni0"), link_object(bridge()))]);
        foreign(|w| link::set_mtu(w, ifname("cni0"), 1300));
        ears.hear("a change of the new link", |event| matches!(event, Event::Seen(key, _) if *key == link_key("cni0")));
    });
}

#[test]
fn lost_reports_are_told_and_listening_goes_on() {
    in_namespace(|| {
        let (_kernel, mut ears) = with_peer();
        let index = index_of("v1");
        // More than the buffer holds, while nobody listens.
        for _ in 0..20 {
            foreign(|w| {
                for n in 0..2000_u32 {
                    let addr = (0x0b00_0000 + n).to_be_bytes().into();
                    neighbour::put(w, index, addr, mac("02:00:00:00:00:07"));
                    neighbour::delete(w, index, addr);
                }
            });
        }
        let heard = ears.all();
        assert!(heard.contains(&Event::Overrun), "{} events and no overrun", heard.len());
        foreign(|w| link::set_mtu(w, ifname("v1"), 1300));
        ears.hear("a change after the loss", |event| matches!(event, Event::Seen(key, _) if *key == link_key("v1")));
    });
}
