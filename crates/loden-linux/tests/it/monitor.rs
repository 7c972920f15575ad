//! Each foreign change is reported as what it is; the driver's own are not.

mod entries;
mod links;
mod questions;

use std::time::{Duration, Instant};

use loden_core::kernel::{DeviceSysctl, Event, Kernel, Key, Object, Scope, Sort, Via};
use loden_core::plan::Verb;
use loden_linux::LinuxKernel;
use loden_linux::monitor::Monitor;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::{link, neighbour};

use crate::support::{
    add, apply, bridge, foreign, ifname, in_namespace, index_of, ip, kernel_with_v1, link_key, link_object, mac,
    prefix, step, vxlan,
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
