//! VXLAN over an extended bridge: the pods of all hosts on one segment, which learns where they are.

mod tenants;
mod walk;

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use loden_core::api::Status;
use loden_core::model::Family;
use loden_lab::Lab;
use loden_lab::pod::Pod;
use loden_lab::probe::capture::Capture;
use loden_lab::probe::reach;
use loden_linux::netns::{self, NetNs};
use loden_linux::rt::neighbour;
use loden_linux::spawn;
use rustix::process::Signal;
use serde_json::{Map, Value};

use crate::support::{SEGMENT, all_reach, by_hand, hosts, number, say, stop, streams, up, wait_for};

/// Pools of both families with these settings of the backend.
fn pools(backend: &str) -> String {
    let pool = |name: &str, cidr: &str| {
        format!("[[pool]]\nname = \"{name}\"\ncidr = \"{cidr}\"\nbackend = {{ type = \"vxlan\"{backend} }}\n")
    };
    [pool("p4", "10.244.0.0/16"), pool("p6", "fd00:10:244::/56")].concat()
}

const COPIES: &str = ", control = \"learn\"";
const GROUPS: &str = ", control = \"learn\", group = { v4 = \"239.1.1.42\", v6 = \"ff05::42\" }";

/// The pods among each other: where the underlay has no IPv4 there is no outside of IPv4.
fn pods_reach(lab: &Lab) {
    let is_pod = |name: &str| lab.pods().iter().any(|pod| pod.name == name);
    let mut probes = reach::all(lab).expect("probes");
    probes.retain(|probe| is_pod(&probe.from) && is_pod(&probe.to));
    let faults: Vec<_> = probes.iter().filter(|probe| probe.fault.is_some()).collect();
    assert!(!probes.is_empty() && faults.is_empty(), "{}\n{faults:#?}", reach::table(&probes));
}

fn run(lab: &Lab, place: &str, line: &str) {
    let words = ["-c", line].map(str::to_owned);
    assert_eq!(lab.exec(place, "sh", &words).expect("sh"), 0, "{place}: {line}");
}

/// The lengths of a pod's prefixes are the pools', and all of them is on-link there.
fn is_on_the_segment(lab: &Lab, pod: &Pod) {
    for (family, addr) in pod.addresses.iter() {
        let (flag, pool) = if family == Family::V4 { ("-4", "10.244.0.0/16") } else { ("-6", "fd00:10:244::/56") };
        let len = pool.split('/').next_back().expect("a length");
        run(lab, &pod.name, &format!("ip {flag} address show dev eth0 | grep -q ' {addr}/{len} '"));
        run(lab, &pod.name, &format!("ip {flag} route show {pool} | grep -q '^{pool} dev eth0'"));
    }
}

#[test]
fn by_a_multicast_group_all_reach_everybody() {
    let lab = up("learn-group", &[SEGMENT, &hosts(3, ""), &pools(GROUPS)].concat());
    all_reach(&lab);
    lab.pods().iter().for_each(|pod| is_on_the_segment(&lab, pod));
    // One group, of one underlay: what is flooded comes once.
    run(&lab, "host1", "ip -d link show flannel.1 | grep -q 'group 239.1.1.42 .*maxaddr 16384'");
    run(&lab, "host1", "ip maddr show dev eth0 | grep -q 239.1.1.42");
    assert_eq!(number(&lab, "host1", "flannel-v6.1"), None);
    // Nothing is kept for a peer.
    run(&lab, "host1", "! ip route show proto 76 | grep -q via");
    run(&lab, "host1", "! bridge fdb show dev flannel.1 | grep -q '^00:00:00:00:00:00 dst 192'");
}

/// A frame of nobody's, for everybody, wrapped in VXLAN as the segment's.
fn wrapped() -> Vec<u8> {
    let header = [0x08, 0, 0, 0, 0, 0, 1, 0];
    // Of the type for local experiments, so that nobody takes it in.
    [&header[..], &[0xff; 6], &[0x02, 0, 0, 0, 0, 0x99], &EXPERIMENT, &[0; 46]].concat()
}

const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

#[test]
fn what_a_stranger_sends_to_the_group_is_dropped_and_counted() {
    let stranger = "[[server]]\nname = \"stranger\"\n";
    let lab = up("learn-guard", &[SEGMENT, &hosts(2, ""), stranger, &pools(GROUPS)].concat());
    let heard = |sender: &str, to: &str| {
        let pod = lab.netns("host1-pod1").expect("netns");
        let capture = Capture::start(&pod, "eth0".parse().expect("a name")).expect("a capture");
        let send = || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
            socket.send_to(&wrapped(), (to, 8472)).expect("sent")
        };
        lab.netns(sender).expect("netns").run(send).expect("a thread");
        std::thread::sleep(Duration::from_millis(300));
        let frames = capture.stop().expect("frames");
        frames.iter().filter(|frame| frame.bytes.get(12..14) == Some(&EXPERIMENT)).count()
    };
    // A host of the cluster is heard, by the group as straight.
    assert_eq!((heard("host2", "239.1.1.42"), heard("host2", "192.0.2.1")), (1, 1));
    // What came before the hosts knew of each other has been counted too.
    let before = dropped(&lab, "host1");
    for to in ["239.1.1.42", "192.0.2.1"] {
        assert_eq!(heard("stranger", to), 0, "{to}");
    }
    assert_eq!(dropped(&lab, "host1") - before, 2);
}

/// How many packets a host's guard has dropped that strangers sent by IPv4.
fn dropped(lab: &Lab, host: &str) -> u64 {
    let mut list = Command::new("nft");
    list.args(["list", "chain", "inet", "loden", "guard"]);
    spawn::in_netns(&mut list, &lab.netns(host).expect("netns"), false).expect("in its namespace");
    let text = String::from_utf8(list.output().expect("nft").stdout).expect("text");
    let rules = text.lines().filter(|line| line.contains("ip saddr != @hosts_v4"));
    let counts = rules.filter_map(|line| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

#[test]
fn what_add_gave_is_what_check_finds() {
    let lab = up("learn-check", &[SEGMENT, &hosts(2, ""), &pools(COPIES)].concat());
    NetNs::create(&lab.netns_path("late")).expect("a namespace");
    let added = lab.cni("ADD", "host1", "late", &Map::new()).expect("called");
    let result: Value = serde_json::from_slice(&added.stdout).expect("a result");
    let lens: Vec<_> = (result["ips"].as_array().expect("addresses").iter())
        .map(|ip| ip["address"].as_str().expect("an address").split('/').next_back().expect("a length").to_owned())
        .collect();
    assert_eq!(lens, ["16", "56"], "{result}");
    let previous = Map::from_iter([("prevResult".to_owned(), result)]);
    let check = || lab.cni("CHECK", "host1", "late", &previous).expect("called");
    assert!(check().status.success(), "{}", String::from_utf8_lossy(&check().stdout));
    // With another length it is not what ADD gave.
    run(
        &lab,
        "late",
        "a=$(ip -4 -o address show dev eth0 | awk '{print $4}'); ip address add ${a%/*}/24 dev eth0; ip address del $a dev eth0",
    );
    assert!(!check().status.success());
    let deleted = lab.cni("DEL", "host1", "late", &Map::new()).expect("called");
    assert!(deleted.status.success());
    netns::remove(&lab.netns_path("late")).expect("removed");
}

#[test]
fn by_copies_to_each_host_all_reach_everybody() {
    let lab = up("learn-copies", &[SEGMENT, &hosts(3, ""), &pools(COPIES)].concat());
    all_reach(&lab);
    lab.pods().iter().for_each(|pod| is_on_the_segment(&lab, pod));
    // What keeps them is repaired.
    let vtep = number(&lab, "host1", "flannel.1").expect("a device");
    by_hand(&lab, "host1", |w| neighbour::delete_flood(w, vtep, [192, 0, 2, 2].into()));
    let took = wait_for("the entry", || {
        let words =
            ["-c", "bridge fdb show dev flannel.1 | grep -q '^00:00:00:00:00:00 dst 192.0.2.2 '"].map(str::to_owned);
        lab.exec("host1", "sh", &words).expect("sh") == 0
    });
    say(&format!("the entry by which a host is sent what is flooded is back after {} ms", took.as_millis()));
}

#[test]
fn over_an_ipv6_underlay_all_reach_everybody() {
    let segment = "[[segment]]\nname = \"s\"\nv6 = \"2001:db8:0:2::/64\"\n";
    let lab = up("learn-v6", &[segment, &hosts(3, ""), &pools(GROUPS)].concat());
    pods_reach(&lab);
    run(&lab, "host1", "ip -d link show flannel-v6.1 | grep -q 'group ff05::42'");
    assert_eq!(lab.pods()[0].mtu, 1430);
}

/// Whether all hosts carry all pools by this backend alone.
fn is_settled(lab: &Lab, is_it: &dyn Fn(&Status) -> bool) -> bool {
    lab.hosts().iter().all(|host| {
        let status = lab.agent(&host.name).expect("an agent").status().expect("a status");
        let is_alone = status.pools.iter().all(|pool| pool.lingering.is_empty());
        is_alone && status.kernel.pending == 0 && is_it(&status)
    })
}

#[test]
fn the_segment_comes_and_goes_under_traffic() {
    let lab = up("learn-switch", &[SEGMENT, &hosts(3, ""), &pools("")].concat());
    let learns = |status: &Status| status.pools.iter().all(|pool| pool.backend.contains("learning"));
    let is_other = |status: &Status| status.pools.iter().all(|pool| !pool.backend.contains("learning"));
    let host_gw = pools("").replace("vxlan", "host-gw");
    let changes = [
        // On the device that there is, which is made anew.
        (pools(GROUPS), false),
        (pools(""), false),
        // On one beside it, and from what needs none.
        (pools(", vni = 2, control = \"learn\""), true),
        (pools(""), true),
        (host_gw.clone(), true),
        (pools(COPIES), true),
        (host_gw, true),
    ];
    for (pools, is_lossless) in changes {
        let running = streams(&lab, "host1", "host2");
        std::thread::sleep(Duration::from_millis(200));
        lab.apply_pools(&pools).expect("applied");
        let is_it: &dyn Fn(&Status) -> bool = if pools.contains("learn") { &learns } else { &is_other };
        let took = wait_for("the switch", || is_settled(&lab, is_it));
        let (sent, lost) = stop(running);
        let backend = pools.lines().find(|line| line.starts_with("backend")).expect("a backend");
        say(&format!("to {backend}: {} ms, {lost} of {sent} packets lost", took.as_millis()));
        assert!(lost == 0 || !is_lossless, "{lost}");
        assert!(lost < 2000, "{lost}");
        all_reach(&lab);
    }
}

#[test]
fn a_pod_of_the_segment_keeps_it_up_until_it_has_gone() {
    let mut lab = up("learn-stays", &[SEGMENT, &hosts(2, ""), &pools(GROUPS)].concat());
    lab.apply_pools(&pools("")).expect("applied");
    wait_for("host2 sends by routes", || {
        let words = ["-c", "ip route show proto 76 | grep -q 'via 10.244.*dev flannel.1'"].map(str::to_owned);
        lab.exec("host2", "sh", &words).expect("sh") == 0
    });
    // The routed device of IPv6 leaves less.
    let mut pods = lab.pods().to_vec();
    pods.iter_mut().for_each(|pod| pod.mtu = 1430);
    lab.0.set_pods(pods.clone());
    all_reach(&lab);
    let status = lab.agent("host1").expect("an agent").status().expect("a status");
    assert!(
        status.problems.iter().any(|problem| problem.to_string().contains("extended bridge")),
        "{:?}",
        status.problems
    );
    // A new one goes by its host, and reaches those of the segment.
    pods.push(lab.attach("host2", "late").expect("attached"));
    run(&lab, "late", "ip -4 address show dev eth0 | grep -q '/24 '");
    lab.0.set_pods(pods.clone());
    all_reach(&lab);
    for pod in &pods[..2] {
        lab.detach(pod).expect("detached");
    }
    pods.remove(0);
    pods.remove(0);
    wait_for("the segment goes", || is_settled(&lab, &|_| true));
    pods.push(lab.attach("host1", "later").expect("attached"));
    lab.0.set_pods(pods);
    all_reach(&lab);
    run(&lab, "host1", "! ip link show flannel.1 | grep -q master");
}

#[test]
fn with_all_agents_dead_the_segment_goes_on_and_a_start_writes_nothing() {
    let lab = up("learn-kill", &[SEGMENT, &hosts(3, ""), &pools(GROUPS)].concat());
    let running = streams(&lab, "host1", "host2");
    for host in lab.hosts() {
        lab.agent(&host.name).expect("an agent").end(Signal::KILL).expect("it ends");
    }
    // Those who have not spoken to each other yet find each other too.
    all_reach(&lab);
    let mut writes = 0;
    for host in lab.hosts() {
        let agent = lab.agent(&host.name).expect("an agent");
        agent.start(&lab.binaries().lodend, false).expect("it starts");
        agent.wait_ready().expect("it gets ready");
        writes += agent.status().expect("a status").kernel.writes.values().sum::<u64>();
    }
    let (sent, lost) = stop(running);
    say(&format!("all agents killed: {lost} of {sent} packets lost, {writes} writes in their starts"));
    assert_eq!((lost, writes), (0, 0));
    all_reach(&lab);
}
