//! A routed pod's packet, seen at every place of its way to a pod of another host: the gateway that nobody bears answers, the host
//! routes, the other host delivers.

use std::net::IpAddr;

use loden_core::attach::{ROUTED_GATEWAY_V4, ROUTED_HOST_MAC};
use loden_core::kernel::PROTOCOL;
use loden_core::model::{Attachment, Family, IfName, Mac, Prefix};
use loden_lab::Lab;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::{address, link, route};

use crate::frames::{Said, What, read};
use crate::passage::{asked_at, attachment, ip, name, send, watch};
use crate::support::{Guard, SEGMENT, hosts, up};

/// Nobody else sends to it.
const PORT: u16 = 4747;

fn lab() -> Guard {
    let pools = "[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nbackend = { type = \"host-gw\" }\n\
                 [[pool]]\nname = \"p6\"\ncidr = \"fd00:10:244::/56\"\nbackend = { type = \"host-gw\" }\n";
    up("routed-walk", &[SEGMENT, &hosts(2, ""), pools, "[plugin]\nattach = \"routed\"\n"].concat())
}

/// The number and the Ethernet address of a link.
pub fn link_of(lab: &Lab, place: &str, dev: IfName) -> (u32, Mac) {
    let read =
        || link::read(&mut Socket::open(Protocol::Route).expect("a socket"), dev).expect("asked").expect("there");
    let seen = lab.netns(place).expect("netns").run(read).expect("a thread");
    (seen.index, seen.link.mac.expect("an address"))
}

fn routes(lab: &Lab, place: &str, family: Family, protocol: u8) -> Vec<(Prefix, Option<route::To>)> {
    let read = || route::read(&mut Socket::open(Protocol::Route).expect("a socket"), family, protocol).expect("read");
    let all = lab.netns(place).expect("netns").run(read).expect("a thread");
    all.into_iter().map(|seen| (seen.prefix, seen.to)).collect()
}

#[test]
fn a_packet_is_seen_at_each_step_of_its_way() {
    let lab = lab();
    let (near, far) = (attachment(&lab, "host1"), attachment(&lab, "host2"));
    for family in Family::ALL {
        what_the_kernels_hold(&lab, &near, &far, family);
        walk(&lab, &near, &far, family);
    }
}

/// The pod has its address alone and one way out; each host has a route to its own pod, and the first one a route to the other's.
fn what_the_kernels_hold(lab: &Lab, near: &Attachment, far: &Attachment, family: Family) {
    let (from, to) = (ip(near, family), ip(far, family));
    let (pods_link, _) = link_of(lab, "host1-pod1", name("eth0"));
    let mut w = Writer::default();
    address::list(&mut w);
    let list = || {
        let mut socket = Socket::open(Protocol::Route).expect("a socket");
        socket.dump("addresses", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(address::parse(m.payload)))
    };
    let borne = lab.netns("host1-pod1").expect("netns").run(list).expect("a thread").expect("listed");
    let borne = borne.iter().filter(|seen| seen.index == pods_link && Family::of(seen.net.addr()) == family);
    let borne: Vec<_> = borne.filter(|seen| seen.is_global).map(|seen| seen.net).collect();
    assert_eq!(borne, [Prefix::host(from).ipnet()], "an address alone");
    let gateway = gateway(family);
    let default = routes(lab, "host1-pod1", family, PROTOCOL).into_iter().find(|(prefix, _)| prefix.len() == 0);
    assert_eq!(default.expect("a default route").1, Some(route::To::Gateway(pods_link, gateway)));
    for (host, pod) in [("host1", near), ("host2", far)] {
        let (number, mac) = link_of(lab, host, pod.host_side.expect("a host's end"));
        assert_eq!(mac, ROUTED_HOST_MAC);
        let own = (Prefix::host(ip(pod, family)), Some(route::To::Link(number)));
        assert!(routes(lab, host, family, PROTOCOL).contains(&own), "{host} leads to its pod");
    }
    let towards = routes(lab, "host1", family, PROTOCOL).into_iter().any(|(prefix, _)| prefix.contains(to));
    assert!(towards, "host1 leads to host2's block");
}

/// Sends a datagram and looks where it passes.
fn walk(lab: &Lab, near: &Attachment, far: &Attachment, family: Family) {
    let (from, to, gateway) = (ip(near, family), ip(far, family), gateway(family));
    let eth0 = name("eth0");
    let (host1, host2) = (link_of(lab, "host1", eth0).1, link_of(lab, "host2", eth0).1);
    let places = [
        ("host1-pod1", eth0),
        ("host1", near.host_side.expect("a host's end")),
        ("host1", eth0),
        ("host2", eth0),
        ("host2", far.host_side.expect("a host's end")),
        ("host2-pod1", eth0),
    ];
    let seen = watch(lab, &places, || send(lab, from, to, PORT), |_, frame| read(frame));
    let asks = Said { from: near.mac, to: asked_at(gateway), what: What::Asks { asker: from, wanted: gateway } };
    let answers =
        Said { from: ROUTED_HOST_MAC, to: near.mac, what: What::Answers { wanted: gateway, at: ROUTED_HOST_MAC } };
    let datagram = |from_mac, to_mac, hops| Said {
        from: from_mac,
        to: to_mac,
        what: What::Datagram { from, to, port: PORT, hops },
    };
    let in_pod = datagram(near.mac, ROUTED_HOST_MAC, 64);
    let on_wire = datagram(host1, host2, 63);
    let delivered = datagram(ROUTED_HOST_MAC, far.mac, 62);
    // Place, whether it is sent there (or comes in), and what is said.
    let steps = [
        (0, true, &asks),
        (1, false, &asks),
        (1, true, &answers),
        (0, false, &answers),
        (0, true, &in_pod),
        (1, false, &in_pod),
        (2, true, &on_wire),
        (3, false, &on_wire),
        (4, true, &delivered),
        (5, false, &delivered),
    ];
    let mut rest = seen.iter();
    for (n, is_sent, said) in steps {
        let (place, dev) = places[n];
        let way = if is_sent { "out of" } else { "in by" };
        assert!(
            rest.any(|(_, at, sent, is)| (*at, *sent) == (n, is_sent) && is == said),
            "{family:?}: {said:?} is not seen {way} {dev} of {place} in its turn\n{seen:#?}"
        );
    }
    // And each datagram once: nothing is doubled or takes another way.
    let datagrams = seen.iter().filter(|(.., said)| matches!(said.what, What::Datagram { port: PORT, .. })).count();
    assert_eq!(datagrams, 6, "{seen:#?}");
}

fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => ROUTED_GATEWAY_V4,
        Family::V6 => ROUTED_HOST_MAC.link_local().into(),
    }
}
