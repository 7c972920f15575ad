//! The ten steps of a packet by the UDP backend, from a pod to one of another host and back: each seen where it happens.

use std::net::IpAddr;

use loden_core::model::{Family, Mac};
use loden_lab::Lab;

use crate::frames::{What, payload, read, read_packet};
use crate::passage::{bound, name, watch};
use crate::support::{POOLS, SEGMENT, hosts, mac_of, up};

/// Nobody else sends to it, or by it.
const PORT: u16 = 4747;
const TUNNEL: u16 = 8285;

#[test]
fn a_packet_is_seen_at_each_of_ten_steps() {
    let lab = up("udp-walk", &[SEGMENT, &hosts(2, ""), &POOLS.replace("vxlan", "udp")].concat());
    for family in Family::ALL {
        walk(&lab, family);
    }
}

fn walk(lab: &Lab, family: Family) {
    let pod = |name: &str| lab.pods().iter().find(|pod| pod.name == name).and_then(|pod| pod.addresses.get(family));
    let (a, b) = (pod("host1-pod1").expect("an address"), pod("host2-pod1").expect("an address"));
    let host = |name: &str| {
        let status = lab.agent(name).expect("an agent").status().expect("a status");
        status.underlay.expect("an external interface").addresses.get(family).expect("an address")
    };
    let (host1, host2) = (host("host1"), host("host2"));
    let gateway = |of: IpAddr| {
        let all: Vec<_> =
            ["host1", "host2"].iter().flat_map(|h| lab.agent(h).expect("a").status().expect("s").blocks).collect();
        all.iter().find(|block| block.cidr.contains(of)).and_then(|block| block.cidr.nth(1)).expect("a gateway")
    };
    let (cni0_1, cni0_2) = (mac_of(lab, "host1", "cni0"), mac_of(lab, "host2", "cni0"));
    let (eth0_a, eth0_b) = (mac_of(lab, "host1-pod1", "eth0"), mac_of(lab, "host2-pod1", "eth0"));

    let [eth0, flannel0, cni0] = ["eth0", "flannel0", "cni0"].map(name);
    let places = [
        ("host1-pod1", eth0),
        ("host1", flannel0),
        ("host1", eth0),
        ("host2", eth0),
        ("host2", flannel0),
        ("host2", cni0),
        ("host2-pod1", eth0),
    ];
    let (client, server) = (bound(lab, "host1-pod1", a, PORT), bound(lab, "host2-pod1", b, PORT));
    let there_and_back = || {
        client.send_to(b"there", (b, PORT)).expect("sent");
        server.recv(&mut [0; 8]).expect("it arrives");
        server.send_to(b"back", (a, PORT)).expect("sent");
        client.recv(&mut [0; 8]).expect("the answer arrives");
    };
    let look = |n: usize, bytes: &[u8]| {
        if places[n].1 == flannel0 { read_packet(bytes).map(|what| say(&what)) } else { said(bytes) }
    };
    let seen: Vec<String> = watch(lab, &places, there_and_back, look)
        .into_iter()
        .map(|(_, n, is_sent, said)| {
            let (place, dev) = places[n];
            format!("{} {dev} of {place}: {said}", if is_sent { "out of" } else { "in by" })
        })
        .collect();
    let inner = |from, to, hops: u8| say(&What::Datagram { from, to, port: PORT, hops });
    let outer =
        |from, to, inner: &str| format!("{} with {inner}", say(&What::Datagram { from, to, port: TUNNEL, hops: 64 }));
    let framed = |from: Mac, to: Mac, what: &str| format!("{from} to {to}: {what}");
    let steps = [
        // 1, 2: the pod asks for its gateway, and the bridge answers with its own address.
        format!("out of eth0 of host1-pod1: {}", say(&What::Asks { asker: a, wanted: gateway(a) })),
        format!("in by eth0 of host1-pod1: {}", say(&What::Answers { wanted: gateway(a), at: cni0_1 })),
        // 3: to the bridge's address.
        format!("out of eth0 of host1-pod1: {}", framed(eth0_a, cni0_1, &inner(a, b, 64))),
        // 4, 5: the host routes it to the TUN device, which has no frames.
        format!("out of flannel0 of host1: {}", inner(a, b, 63)),
        // 6: the agent has looked up whose it is, and sends it as it is in UDP.
        format!("out of eth0 of host1: {}", outer(host1, host2, &inner(a, b, 62))),
        format!("in by eth0 of host2: {}", outer(host1, host2, &inner(a, b, 62))),
        // 7: the agent there takes it out.
        format!("in by flannel0 of host2: {}", inner(a, b, 61)),
        // 8, 9: and that host's bridge hands it to the pod.
        format!("out of cni0 of host2: {}", framed(cni0_2, eth0_b, &inner(a, b, 60))),
        format!("in by eth0 of host2-pod1: {}", framed(cni0_2, eth0_b, &inner(a, b, 60))),
        // 10: the answer takes the same way back.
        format!("out of eth0 of host2-pod1: {}", framed(eth0_b, cni0_2, &inner(b, a, 64))),
        format!("out of flannel0 of host2: {}", inner(b, a, 63)),
        format!("out of eth0 of host2: {}", outer(host2, host1, &inner(b, a, 62))),
        format!("in by eth0 of host1: {}", outer(host2, host1, &inner(b, a, 62))),
        format!("in by eth0 of host1-pod1: {}", framed(cni0_1, eth0_a, &inner(b, a, 60))),
    ];
    let mut rest = seen.iter();
    for step in &steps {
        assert!(rest.any(|said| said == step), "{family}: not in its turn: {step}\n{seen:#?}");
    }
}

/// What a frame says: of a tunnel's packet also what is in it.
fn said(frame: &[u8]) -> Option<String> {
    let said = read(frame)?;
    Some(match said.what {
        What::Datagram { port: TUNNEL, .. } => {
            format!("{} with {}", say(&said.what), say(&read_packet(payload(frame)?)?))
        }
        What::Datagram { .. } => format!("{} to {}: {}", said.from, said.to, say(&said.what)),
        ref what => say(what),
    })
}

fn say(what: &What) -> String {
    match what {
        What::Asks { asker, wanted } => format!("{asker} asks who has {wanted}"),
        What::Answers { wanted, at } => format!("{wanted} is at {at}"),
        What::Datagram { from, to, port, hops } => format!("{from} to {to} port {port}, {hops} hops left"),
    }
}
