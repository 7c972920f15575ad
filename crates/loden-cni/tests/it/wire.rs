//! A wire for a host: its `eth0`, and a switch at the other end with an address of its own.

use std::os::fd::{AsFd, AsRawFd};

use loden_core::kernel::NO_GROUP;
use loden_core::kernel::link::{Bridge, Link, LinkKind, Port};
use loden_core::model::Mac;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::NetNs;
use loden_linux::rt::address;
use loden_linux::rt::link::{self, VethEnd};

use crate::host::Host;

/// The switch's end.
pub struct Wire {
    pub switch: NetNs,
}

impl Wire {
    /// Host 192.0.2.1 and 2001:db8::1, switch .2 and ::2.
    pub fn new(host: &Host) -> Self {
        let switch = host.pod("switch");
        let mut w = Writer::default();
        link::create(&mut w, name("br0"), &link_of(LinkKind::Bridge(Bridge::default())), None, None);
        send(&switch, &mut w);
        let mut w = Writer::default();
        let end = |name| VethEnd { name, mtu: 1500, mac: None, group: NO_GROUP, master: None };
        let far = switch.as_fd().as_raw_fd().cast_unsigned();
        link::create_veth(&mut w, end(name("eth0")), end(name("port")), far);
        send(host.ns(), &mut w);
        let bridge = number(&switch, "br0");
        link::set_master(&mut w, name("port"), bridge);
        for dev in ["br0", "port"] {
            link::no_made_up_address(&mut w, name(dev));
            link::set_up(&mut w, name(dev), true);
        }
        for net in ["192.0.2.2/24", "2001:db8::2/64"] {
            address::add(&mut w, net.parse().expect("a net"), bridge);
        }
        send(&switch, &mut w);
        let eth0 = number(host.ns(), "eth0");
        link::no_made_up_address(&mut w, name("eth0"));
        link::set_up(&mut w, name("eth0"), true);
        // What forwards IPv6 asks for its neighbours by a link-local address.
        for net in ["192.0.2.1/24", "2001:db8::1/64", "fe80::1/64"] {
            address::add(&mut w, net.parse().expect("a net"), eth0);
        }
        send(host.ns(), &mut w);
        Self { switch }
    }

    /// How the switch treats the host's port.
    pub fn set_port(&self, port: Port) {
        let mut w = Writer::default();
        link::set_port(&mut w, name("port"), port);
        send(&self.switch, &mut w);
    }

    /// The switch's own Ethernet address.
    pub fn mac(&self) -> Mac {
        let seen = self.switch.run(|| link::read(&mut Socket::open(Protocol::Route).expect("a socket"), name("br0")));
        seen.expect("a thread").expect("asked").expect("there").link.mac.expect("an address")
    }
}

fn name(name: &str) -> loden_core::model::IfName {
    name.parse().expect("a name")
}

fn link_of(kind: LinkKind) -> Link {
    Link { kind, mtu: 1500, mac: None, up: true, master: None, port: Port::default(), group: 0 }
}

fn number(ns: &NetNs, dev: &str) -> u32 {
    let found = ns.run(|| link::number_of(&Socket::open(Protocol::Route).expect("a socket"), name(dev)));
    found.expect("a thread").expect("asked").expect("there")
}

/// Sends what is written inside the namespace; all of it must succeed.
pub fn send(ns: &NetNs, w: &mut Writer) {
    let results = ns.run(|| Socket::open(Protocol::Route).expect("a socket").batch(w).expect("a batch"));
    results.expect("a thread").into_iter().for_each(|result| result.expect("done"));
    w.clear();
}
