//! The walk of a packet over a segment by flood and learn, step by step: who is asked for is flooded to the group, each host hands the
//! question to its bridge, the one who is meant answers, both sides learn, and what follows goes straight.

use std::net::IpAddr;
use std::time::Duration;

use loden_core::model::{Attachment, Family, Mac};
use loden_lab::Lab;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::neighbour::{self, Entry};

use super::{GROUPS, pools};
use crate::frames::{Said, What, read};
use crate::passage::{asked_at, attachment, ip, name, send, watch};
use crate::support::{SEGMENT, hosts, number, up};

/// Nobody else sends to it.
const PORT: u16 = 4848;
const VXLAN: u16 = 8472;

/// What a frame says by itself, or inside of VXLAN together with the hosts outside.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Plain(Said),
    Wrapped { from: IpAddr, to: IpAddr, inside: Said },
}

fn look(frame: &[u8]) -> Option<Seen> {
    let said = read(frame)?;
    let What::Datagram { from, to, port: VXLAN, .. } = said.what else { return Some(Seen::Plain(said)) };
    // Ethernet, IP, UDP and VXLAN.
    let headers = 14 + if from.is_ipv4() { 20 } else { 40 } + 8 + 8;
    Some(Seen::Wrapped { from, to, inside: read(frame.get(headers..)?)? })
}

#[test]
fn over_a_group_of_ipv4() {
    let lab = up("learn-walk", &[SEGMENT, &hosts(3, ""), &pools(GROUPS)].concat());
    Family::ALL
        .into_iter()
        .for_each(|family| walk(&lab, family, "flannel.1", [192, 0, 2, 0].into(), [239, 1, 1, 42].into()));
}

#[test]
fn over_a_group_of_ipv6() {
    let segment = "[[segment]]\nname = \"s\"\nv6 = \"2001:db8:0:2::/64\"\n";
    let lab = up("learn-walk-v6", &[segment, &hosts(3, ""), &pools(GROUPS)].concat());
    let (hosts, group) = ("2001:db8:0:2::", "ff05::42");
    let addr = |text: &str| text.parse().expect("an address");
    Family::ALL.into_iter().for_each(|family| walk(&lab, family, "flannel-v6.1", addr(hosts), addr(group)));
}

/// The address of a host on the underlay.
fn host(underlay: IpAddr, n: u8) -> IpAddr {
    match underlay {
        IpAddr::V4(addr) => (u32::from(addr) + u32::from(n)).to_be_bytes().into(),
        IpAddr::V6(addr) => (u128::from(addr) + u128::from(n)).to_be_bytes().into(),
    }
}

fn walk(lab: &Lab, family: Family, vtep: &str, underlay: IpAddr, group: IpAddr) {
    let pods = ["host1", "host2", "host3"].map(|host| attachment(lab, host));
    let [near, far, other] = &pods;
    let (from, to) = (ip(near, family), ip(far, family));
    let side = |pod: &Attachment| pod.host_side.expect("a host's end");
    let eth0 = name("eth0");
    let places = [
        ("host1-pod1", eth0),
        ("host1", eth0),
        ("host2", eth0),
        ("host3", eth0),
        ("host2", side(far)),
        ("host3", side(other)),
        ("host2-pod1", eth0),
    ];
    let [pod1, wire1, wire2, wire3, port2, port3, pod2] = [0, 1, 2, 3, 4, 5, 6];
    let act = || {
        send(lab, from, to, PORT);
        // Who was not meant has been asked as well by then, or is a moment later.
        std::thread::sleep(Duration::from_millis(100));
    };
    let seen = watch(lab, &places, act, |_, frame| look(frame));

    let asks = Said { from: near.mac, to: asked_at(to), what: What::Asks { asker: from, wanted: to } };
    let answers = Said { from: far.mac, to: near.mac, what: What::Answers { wanted: to, at: far.mac } };
    // Nobody routes it on its way: it may take as many hops at its end as at its beginning.
    let datagram = Said { from: near.mac, to: far.mac, what: What::Datagram { from, to, port: PORT, hops: 64 } };
    let wrapped =
        |from: u8, to: IpAddr, inside: &Said| Seen::Wrapped { from: host(underlay, from), to, inside: inside.clone() };
    let plain = |said: &Said| Seen::Plain(said.clone());
    let (host1, host2) = (host(underlay, 1), host(underlay, 2));
    // Place, whether it is sent there (or comes in), and what is seen.
    let steps = [
        // 1. The pod asks for the other's Ethernet address.
        (pod1, true, plain(&asks)),
        // 2. Its host's device wraps the question and sends it to the group.
        (wire1, true, wrapped(1, group, &asks)),
        // 3. Every member takes it out and hands it to its bridge, which floods it.
        (wire2, false, wrapped(1, group, &asks)),
        (port2, true, plain(&asks)),
        (pod2, false, plain(&asks)),
        // 4. The pod that is meant answers, and its host knows already where the one who asked is.
        (pod2, true, plain(&answers)),
        (wire2, true, wrapped(2, host1, &answers)),
        // 5. The first host learns where the answer comes from, and the pod who the other is.
        (wire1, false, wrapped(2, host1, &answers)),
        (pod1, false, plain(&answers)),
        // 6. The datagram goes straight.
        (pod1, true, plain(&datagram)),
        (wire1, true, wrapped(1, host2, &datagram)),
        // 7. And is taken out and switched to the pod.
        (wire2, false, wrapped(1, host2, &datagram)),
        (port2, true, plain(&datagram)),
        (pod2, false, plain(&datagram)),
    ];
    let mut rest = seen.iter();
    for (n, is_sent, what) in &steps {
        let (place, dev) = places[*n];
        let way = if *is_sent { "out of" } else { "in by" };
        assert!(
            rest.any(|(_, at, sent, is)| (at, sent) == (n, is_sent) && is == what),
            "{family:?}: {what:?} is not seen {way} {dev} of {place} in its turn\n{seen:#?}"
        );
    }
    // The third host was asked too, and heard of nothing else.
    let at = |n: usize| seen.iter().filter(move |(_, place, ..)| *place == n).map(|(.., what)| what);
    assert!(at(wire3).any(|what| *what == wrapped(1, group, &asks)), "{seen:#?}");
    assert!(at(port3).any(|what| *what == plain(&asks)), "{seen:#?}");
    let is_of_walk =
        |what: &&Seen| matches!(what, Seen::Wrapped { inside, .. } if *inside == answers || *inside == datagram);
    assert_eq!(at(wire3).filter(is_of_walk).count(), 0, "{seen:#?}");
    // What was flooded went out once.
    assert_eq!(at(wire1).filter(|what| **what == wrapped(1, group, &asks)).count(), 1, "{seen:#?}");
    learned(lab, "host1", vtep, far.mac, host2);
    learned(lab, "host2", vtep, near.mac, host1);
}

/// A host's device has learned behind which host an Ethernet address is.
fn learned(lab: &Lab, place: &str, vtep: &str, mac: Mac, at: IpAddr) {
    let index = number(lab, place, vtep).expect("a device");
    let list = || {
        let mut w = Writer::default();
        neighbour::list_fdb(&mut w, index);
        let mut socket = Socket::open(Protocol::Route).expect("a socket");
        socket.dump("entries", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(neighbour::parse(m.payload)))
    };
    let all = lab.netns(place).expect("netns").run(list).expect("a thread").expect("listed");
    let is_it = |seen: &neighbour::Seen| !seen.is_permanent && seen.entry == Entry::Fdb(mac, at);
    assert!(all.iter().any(is_it), "{place}: {mac} at {at}: {all:?}");
}
