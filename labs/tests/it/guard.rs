//! Who may send by tunnels: the hosts of the cluster, each for its own pods; no stranger, and no pod.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use loden_lab::Lab;

use crate::frames::{ipv4_datagram, vxlan};
use crate::support::{Guard, SEGMENT, hosts, mac_of, up};

/// Nobody else sends to those from here on; each try has one of its own, for what comes late.
static PORT: AtomicU16 = AtomicU16::new(4747);
/// How long is waited for what is not to come. What comes takes a thousandth of it.
const PATIENCE: Duration = Duration::from_millis(400);

fn lab(name: &str, backend: &str, keys: &str) -> Guard {
    let pool = format!("[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nbackend = {{ type = \"{backend}\" }}\n");
    up(name, &[SEGMENT, &hosts(3, keys), "[[server]]\nname = \"stranger\"\n", &pool].concat())
}

fn pod(lab: &Lab, name: &str) -> Ipv4Addr {
    match lab.pods().iter().find(|pod| pod.name == name).expect("a pod").addresses.v4 {
        Some(IpAddr::V4(addr)) => addr,
        other => panic!("{other:?}"),
    }
}

fn underlay(lab: &Lab, host: &str) -> IpAddr {
    let status = lab.agent(host).expect("an agent").status().expect("a status");
    status.underlay.expect("an external interface").addresses.v4.expect("IPv4")
}

/// Whether a tunnel's packet for a port of a host's first pod arrives there when `from` sends it to the host.
fn arrives(lab: &Lab, from: &str, host: &str, tunnel_port: u16, packet: impl Fn(u16) -> Vec<u8>) -> bool {
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let packet = packet(port);
    let to = pod(lab, &format!("{host}-pod1"));
    let bind = || UdpSocket::bind((to, port)).expect("bound");
    let socket = lab.netns(&format!("{host}-pod1")).expect("netns").run(bind).expect("a thread");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let at = underlay(lab, host);
    let send = || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
        // More than one: the first may wait for a neighbour's answer, and be the one that gives way.
        for _ in 0..3 {
            socket.send_to(&packet, (at, tunnel_port)).expect("sent");
        }
    };
    lab.netns(from).expect("netns").run(send).expect("a thread");
    match socket.recv(&mut [0; 64]) {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn vxlan_of_strangers_and_of_pods_is_dropped() {
    let lab = lab("guard", "vxlan", "");
    let (from, to, vtep) = (pod(&lab, "host2-pod1"), pod(&lab, "host1-pod1"), mac_of(&lab, "host1", "flannel.1"));
    let from_pod2 = |port| vxlan(1, vtep, &ipv4_datagram(from, to, port, b"in"));
    assert!(arrives(&lab, "host2", "host1", 8472, from_pod2), "a known host's is a packet like any other");
    assert!(!arrives(&lab, "stranger", "host1", 8472, from_pod2), "a stranger's is not taken in");
    assert!(!arrives(&lab, "host1-pod1", "host1", 8472, from_pod2), "nor a pod's by its own host");
    assert!(!arrives(&lab, "host2-pod1", "host1", 8472, from_pod2), "nor one that would leave with its host's address");
    // As the book has it.
    let words = "list chain inet loden guard".split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lab.exec("host1", "nft", &words).expect("nft"), 0);
}

#[test]
fn without_the_guard_they_are_not() {
    let lab = lab("no-guard", "vxlan", "agent = { tunnel_guard = false }");
    let (from, to, vtep) = (pod(&lab, "host2-pod1"), pod(&lab, "host1-pod1"), mac_of(&lab, "host1", "flannel.1"));
    assert!(arrives(&lab, "stranger", "host1", 8472, |port| vxlan(1, vtep, &ipv4_datagram(from, to, port, b"in"))));
}

#[test]
fn by_udp_each_host_sends_for_its_own_pods() {
    let lab = lab("guard-udp", "udp", "");
    let (own, third, to) = (pod(&lab, "host2-pod1"), pod(&lab, "host3-pod1"), pod(&lab, "host1-pod1"));
    let sent = |by: &str, from: Ipv4Addr, to: Ipv4Addr| {
        arrives(&lab, by, "host1", 8285, |port| ipv4_datagram(from, to, port, b"in"))
    };
    assert!(sent("host2", own, to), "what is host2's");
    assert!(!sent("host2", third, to), "another host's is not host2's to send");
    assert!(!sent("host2", Ipv4Addr::new(8, 8, 8, 8), to), "nor nobody's");
    assert!(!sent("host2", own, Ipv4Addr::new(192, 0, 2, 3)), "nor does it go on from here");
    assert!(!sent("stranger", own, to), "a stranger has none");
    assert!(!sent("host3-pod1", third, to), "nor has a pod");
    for odd in [&b"x"[..], &[0x45; 19], &[0x65; 40], &[]] {
        assert!(!arrives(&lab, "host2", "host1", 8285, |_| odd.to_vec()));
    }
    let status = lab.agent("host1").expect("an agent").status().expect("a status");
    let host2 = status.tunnels[0].peers.iter().find(|peer| peer.node.as_str() == "host2").expect("host2");
    let count = |cause: &str| host2.dropped.get(cause).copied().unwrap_or(0);
    assert_eq!((count("foreign-source"), count("foreign-destination")), (6, 3), "{host2:?}");
    assert!(count("malformed") >= 9, "{host2:?}");
}
