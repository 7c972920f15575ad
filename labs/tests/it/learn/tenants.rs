//! Tenants side by side: each a VNI, a bridge and pools of its own on the same hosts, and no packet crosses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_core::model::Prefix;
use loden_lab::pod::{Call, Pod};
use loden_lab::probe::capture::Capture;
use loden_lab::probe::{icmp, reach};
use serde_json::{Map, Value, json};

use super::run;
use crate::support::{Guard, SEGMENT, hosts, say, up};

const POOLS: &str = "[[pool]]\nname = \"own\"\ncidr = \"10.244.0.0/16\"\n\
    [[pool]]\nname = \"red\"\ncidr = \"10.100.0.0/16\"\nblock_len = 26\n\
    backend = { type = \"vxlan\", vni = 100, control = \"learn\", group = { v4 = \"239.1.1.100\" }, bridge = \"red0\" }\n\
    [[pool]]\nname = \"red6\"\ncidr = \"fd00:100::/56\"\n\
    backend = { type = \"vxlan\", vni = 100, control = \"learn\", group = { v4 = \"239.1.1.100\" }, bridge = \"red0\" }\n\
    [[pool]]\nname = \"blue\"\ncidr = \"10.200.0.0/16\"\n\
    backend = { type = \"vxlan\", vni = 200, control = \"learn\", bridge = \"blue0\" }\n";

fn network(pools: &[&str]) -> Map<String, Value> {
    let keys = json!({ "ipam": { "type": "loden", "pools": pools } });
    keys.as_object().expect("an object").clone()
}

/// Two hosts, and on each a pod of the cluster and one of each tenant.
fn lab() -> (Guard, BTreeMap<&'static str, Vec<Pod>>) {
    let mut lab = up("learn-tenants", &[SEGMENT, &hosts(2, ""), POOLS].concat());
    let mut all = BTreeMap::from([("own", lab.pods().to_vec())]);
    for (name, pools) in [("red", &["red", "red6"][..]), ("blue", &["blue"])] {
        for host in ["host1", "host2"] {
            let pod = lab.attach_with(host, &format!("{host}-{name}"), &network(pools)).expect("attached");
            all.entry(name).or_default().push(pod);
        }
    }
    let pods = all.values().flatten().cloned().collect();
    lab.0.set_pods(pods);
    (lab, all)
}

fn prefixes(network: &str) -> Vec<Prefix> {
    let all: &[&str] = match network {
        "own" => &["10.244.0.0/16"],
        "red" => &["10.100.0.0/16", "fd00:100::/56"],
        _ => &["10.200.0.0/16"],
    };
    all.iter().map(|text| text.parse().expect("a prefix")).collect()
}

/// Source and destination of a frame's IPv4 packet, or sender and target of its ARP message, or the ends of its IPv6 packet.
fn ends(frame: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?));
    match frame.get(12..14)? {
        [0x08, 0x00] => Some([v4(26)?, v4(30)?]),
        [0x08, 0x06] => Some([v4(28)?, v4(38)?]),
        [0x86, 0xdd] => Some([v6(22)?, v6(38)?]),
        _ => None,
    }
}

#[test]
fn tenants_are_kept_apart_and_each_is_whole() {
    let (lab, all) = lab();
    let network_of = |pod: &str| all.iter().find(|(_, pods)| pods.iter().any(|p| p.name == pod)).map(|(name, _)| *name);
    let eth0 = "eth0".parse().expect("a name");
    let captures: Vec<_> = (all.iter())
        .flat_map(|(network, pods)| pods.iter().map(move |pod| (*network, pod)))
        .map(|(network, pod)| {
            (network, pod, Capture::start(&lab.netns(&pod.name).expect("netns"), eth0).expect("a capture"))
        })
        .collect();
    let probes = reach::all(&lab).expect("probes");
    for probe in &probes {
        match (network_of(&probe.from), network_of(&probe.to)) {
            (Some(from), Some(to)) if from != to => {
                assert!(probe.fault.is_some(), "{probe:?}\n{}", reach::table(&probes))
            }
            // The pods of the cluster have no IPv6 here, and need none to reach the hosts.
            _ => assert_eq!(probe.fault, None, "{probe:?}\n{}", reach::table(&probes)),
        }
    }
    spoofed(&lab, &all);
    let mut counted = 0;
    for (network, pod, capture) in captures {
        let others: Vec<Prefix> =
            ["own", "red", "blue"].into_iter().filter(|n| *n != network).flat_map(prefixes).collect();
        for frame in capture.stop().expect("frames") {
            let Some([from, _]) = ends(&frame.bytes) else { continue };
            let is_of_other = others.iter().any(|prefix| prefix.contains(from));
            assert!(frame.is_sent || !is_of_other, "{} of {network} has heard of {from}", pod.name);
            counted += 1;
        }
    }
    say(&format!("{} probes, {counted} frames at pods, none of another network", probes.len()));
    run(&lab, "host1", "nft list chain inet loden forward_pods | grep kept.apart | grep -qv 'packets 0 '");
    both(&lab, &all);
}

/// A pod that claims an address of another tenant, or one of nobody, does not get across either.
fn spoofed(lab: &Guard, all: &BTreeMap<&'static str, Vec<Pod>>) {
    let addr = |network: &str, n: usize| all[network][n].addresses.v4.expect("an address");
    let (from, target) = ("host1-red", addr("blue", 0));
    for claimed in ["10.200.255.9", "203.0.113.9"] {
        run(lab, from, &format!("ip address add {claimed}/32 dev eth0"));
        let reached = lab.netns(from).expect("netns").run(|| {
            let socket = std::net::UdpSocket::bind((claimed, 0)).expect("bound");
            socket.send_to(b"spoofed", (target, 7007)).expect("sent");
        });
        reached.expect("a thread");
        run(lab, from, &format!("ip address del {claimed}/32 dev eth0"));
    }
    // What it was sent is seen by the captures, or it is not.
    std::thread::sleep(std::time::Duration::from_millis(200));
}

/// A pod with an interface in each of two networks reaches both, and brings nobody across.
fn both(lab: &Guard, all: &BTreeMap<&'static str, Vec<Pod>>) {
    let pod = lab.attach_with("host1", "both", &network(&["red", "red6"])).expect("attached");
    let run_dir = lab.dir().join("host1/run").display().to_string();
    let conf = json!({ "cniVersion": "1.1.0", "name": "blue", "type": "loden-cni", "runDir": run_dir,
        "isDefaultGateway": false, "ipam": { "type": "loden", "pools": ["blue"] } });
    let plugin = &lab.binaries().loden_cni;
    let call = Call {
        plugin,
        verb: "ADD",
        pod: "both",
        ifname: "eth1",
        netns: &lab.netns_path("both"),
        path: plugin.parent().expect("a directory"),
        conf: &conf.to_string(),
    };
    let output = call.output(Some(&lab.netns("host1").expect("netns"))).expect("called");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    for network in ["red", "blue"] {
        for other in &all[network] {
            for (_, addr) in other.addresses.iter() {
                lab.netns("both").expect("netns").run(|| icmp::echo(addr, 56)).expect("a thread").expect(network);
            }
        }
    }
    let blue = all["blue"][1].addresses.v4.expect("an address");
    let crossed = lab.netns("host1-red").expect("netns").run(|| icmp::echo(blue, 56)).expect("a thread");
    assert!(crossed.is_err(), "{crossed:?}");
    let gone = Call { verb: "DEL", ..call }.output(Some(&lab.netns("host1").expect("netns"))).expect("called");
    assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stdout));
    lab.detach(&pod).expect("detached");
}
