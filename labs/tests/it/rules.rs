//! Which packets take a host's address, by what the host is told of it.

use std::net::{IpAddr, Ipv4Addr};

use loden_lab::Lab;
use loden_lab::probe::responder::Responder;
use loden_lab::probe::udp;

use crate::support::{SEGMENT, all_reach, hosts, up};

const POOL: &str = "[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nbackend = { type = \"vxlan\" }\n";

/// Two hosts with a pod each, and a machine that reaches all pods by the first.
fn with(name: &str, keys: &str) -> crate::support::Guard {
    let lab = up(name, &[SEGMENT, &hosts(2, keys), "[[server]]\nname = \"client\"\n", POOL].concat());
    let words = ["route", "add", "10.244.0.0/16", "via", "192.0.2.1"].map(str::to_owned);
    assert_eq!(lab.exec("client", "ip", &words).expect("ip"), 0);
    lab
}

/// From which address a pod sees somebody.
fn seen(lab: &Lab, from: &str, pod: &str) -> Ipv4Addr {
    let to = lab.pods().iter().find(|other| other.name == pod).expect("a pod");
    let _responder = Responder::start(&lab.netns(pod).expect("netns")).expect("a responder");
    let addr = to.addresses.v4.expect("an address");
    match lab.netns(from).expect("netns").run(|| udp(addr, 100)).expect("a thread").expect("an answer") {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(addr) => addr.to_ipv4_mapped().expect("IPv4"),
    }
}

/// The address of a host's VTEP: its block's first.
fn vtep(lab: &Lab, host: &str) -> Ipv4Addr {
    let block = lab.agent(host).expect("an agent").status().expect("a status").blocks[0].cidr;
    block.network().to_string().parse().expect("IPv4")
}

#[test]
fn what_enters_the_overlay_by_a_host_that_masquerades_both_ways_takes_its_address() {
    let lab = with("masquerade", "agent = { masquerade = true, blackhole_route = true }");
    let client = Ipv4Addr::new(192, 0, 2, 3);
    // To a pod of another host: the answer comes back the way that the question went.
    assert_eq!(seen(&lab, "client", "host2-pod1"), vtep(&lab, "host1"));
    // To a pod of its own the client stays who it is.
    assert_eq!(seen(&lab, "client", "host1-pod1"), client);
    // Pods stay who they are among each other.
    let pod = lab.pods().iter().find(|pod| pod.name == "host1-pod1").expect("a pod").addresses.v4.expect("an address");
    assert_eq!(IpAddr::V4(seen(&lab, "host1-pod1", "host2-pod1")), pod);
    all_reach(&lab);

    // What no pod has is not sent back to who sent it.
    let words = ["-c", "ip route show type blackhole | grep -q '^blackhole 10.244.*metric 4096'"].map(str::to_owned);
    assert_eq!(lab.exec("host1", "sh", &words).expect("sh"), 0);
    assert_eq!(lab.agent("host1").expect("an agent").plan().expect("a plan").text, "");
}

#[test]
fn as_the_pools_say_only_what_leaves_them_is_masqueraded() {
    let lab = with("masquerade-out", "");
    assert_eq!(seen(&lab, "client", "host2-pod1"), Ipv4Addr::new(192, 0, 2, 3));
    all_reach(&lab);
}

#[test]
fn without_rules_there_are_none() {
    let lab = with("rules-none", "agent = { masquerade = false, forward_rules = false, tunnel_guard = false }");
    let words = ["-c", "! nft list table inet loden | grep -qE 'masquerade|accept;|hook'"].map(str::to_owned);
    assert_eq!(lab.exec("host1", "sh", &words).expect("sh"), 0);
    // Among each other pods need none.
    let pod = lab.pods().iter().find(|pod| pod.name == "host1-pod1").expect("a pod").addresses.v4.expect("an address");
    assert_eq!(IpAddr::V4(seen(&lab, "host1-pod1", "host2-pod1")), pod);
}
