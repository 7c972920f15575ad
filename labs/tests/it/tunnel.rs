//! Tunnels that the agent runs itself: bare packets in UDP, and IPIP where the kernel has no device for it.

use std::net::{IpAddr, UdpSocket};

use loden_core::model::Family;
use loden_linux::datagram::{Datagrams, Inbox};
use rustix::process::Signal;

use crate::support::{POOLS, SEGMENT, all_pods_reach, all_reach, hosts, number, say, stop, streams, up, wait_for};

/// Both families by UDP; IPv4 by IPIP, which carries no other.
fn pools(v4: &str, v6: &str) -> String {
    let (first, second) = POOLS.rsplit_once("[[pool]]").expect("two pools");
    format!("{}[[pool]]{}", first.replace("vxlan", v4), second.replace("vxlan", v6))
}

#[test]
fn by_udp_both_families_reach_everybody() {
    let lab = up("udp", &[SEGMENT, &hosts(3, ""), &pools("udp", "udp")].concat());
    all_reach(&lab);
    let status = lab.agent("host1").expect("an agent").status().expect("a status");
    let [tunnel] = &status.tunnels[..] else { panic!("one tunnel: {:?}", status.tunnels) };
    assert_eq!((tunnel.device.as_str(), tunnel.by.as_str()), ("flannel0", "an engine in this agent"));
    assert_eq!(tunnel.peers.len(), 2);
    for peer in &tunnel.peers {
        assert!(peer.sent.packets > 100 && peer.received.packets > 100 && peer.dropped.is_empty(), "{peer:?}");
    }
}

#[test]
fn by_udp_over_ipv6_alone() {
    let segment = "[[segment]]\nname = \"s\"\nv6 = \"2001:db8:0:2::/64\"\n";
    let lab = up("udp6", &[segment, &hosts(2, ""), &pools("udp", "udp")].concat());
    all_pods_reach(&lab);
    let status = lab.agent("host1").expect("an agent").status().expect("a status");
    assert_eq!(status.mtu_pod, Some(1452));
}

#[test]
fn a_pod_is_told_that_nobody_has_an_address() {
    let lab = up("udp-told", &[SEGMENT, &hosts(2, ""), &pools("udp", "udp")].concat());
    let pod = lab.pods().first().expect("a pod");
    // ICMP and ICMPv6, and how they say that there is no route. Of IPv4 the header is received, too.
    for (nobody, protocol, header, said) in [("10.244.250.1", 1, 20, [3, 0]), ("fd00:10:244:fa::1", 58, 0, [1, 0])] {
        let nobody: IpAddr = nobody.parse().expect("an address");
        let own = pod.addresses.get(Family::of(nobody)).expect("an address");
        let open = || (Datagrams::raw(own, protocol), UdpSocket::bind((own, 0)));
        let (icmp, udp) = lab.netns(&pod.name).expect("its namespace").run(open).expect("entered");
        let (icmp, udp) = (icmp.expect("a raw socket"), udp.expect("a socket"));
        let (mut inbox, mut bytes) = (Inbox::default(), vec![0; 16 * 2000]);
        wait_for("an answer", || {
            udp.send_to(b"x", (nobody, 9)).expect("sent");
            let received = inbox.receive(&icmp, &mut bytes, 2000).expect("received").len();
            (0..received).any(|n| bytes[n * 2000 + header..][..2] == said)
        });
    }
}

#[test]
fn by_ipip_all_reach_everybody() {
    let both = pools("ipip", "udp");
    let (ipv4, _) = both.rsplit_once("[[pool]]").expect("two pools");
    let lab = up("ipip", &[SEGMENT, &hosts(3, ""), ipv4].concat());
    all_reach(&lab);
    let status = lab.agent("host1").expect("an agent").status().expect("a status");
    assert_eq!(status.mtu_pod, Some(1480));
    assert_eq!(status.tunnels.len(), 1, "whether the kernel has a device or not");
}

#[test]
fn a_killed_agent_is_back_before_its_peers_miss_it() {
    let lab = up("udp-kill", &[SEGMENT, &hosts(2, ""), &pools("udp", "udp")].concat());
    let agent = lab.agent("host1").expect("an agent");
    let device = number(&lab, "host1", "flannel0");
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        let running = streams(&lab, "host1", "host2");
        std::thread::sleep(std::time::Duration::from_millis(200));
        agent.end(signal).expect("it ends");
        agent.start(&lab.binaries().lodend, false).expect("it starts");
        agent.wait_ready().expect("it gets ready");
        std::thread::sleep(std::time::Duration::from_millis(200));
        let reports: Vec<_> = running.into_iter().map(|stream| stream.stop().expect("a report")).collect();
        let gap = reports.iter().map(|report| report.longest_gap_ms).max().unwrap_or_default();
        let (sent, lost) = reports.iter().fold((0, 0), |(sent, lost), r| (sent + r.sent, lost + r.lost));
        say(&format!("{signal:?}: {lost} of {sent} packets lost, the longest silence {gap} ms"));
        let writes: u64 = agent.status().expect("a status").kernel.writes.values().sum();
        assert_eq!(writes, 0, "what the kernel holds is right");
        assert!(lost < sent / 2, "the traffic goes on");
    }
    assert!(device.is_some());
    assert_eq!(number(&lab, "host1", "flannel0"), device, "the device stays");
    all_reach(&lab);
}

#[test]
fn a_device_that_somebody_deletes_is_made_again_with_its_engine() {
    let lab = up("udp-gone", &[SEGMENT, &hosts(2, ""), &pools("udp", "udp")].concat());
    let before = number(&lab, "host1", "flannel0");
    let words = ["link", "delete", "flannel0"].map(str::to_owned);
    assert_eq!(lab.exec("host1", "ip", &words).expect("ip"), 0);
    let took = wait_for("another device", || {
        let status = lab.agent("host1").expect("an agent").status().expect("a status");
        number(&lab, "host1", "flannel0").is_some_and(|now| Some(now) != before)
            && status.kernel.pending == 0
            && status.kernel.failing.is_empty()
            && status.tunnels.len() == 1
    });
    say(&format!("there again after {} ms", took.as_millis()));
    all_reach(&lab);
}

#[test]
fn from_each_backend_to_each_other_under_traffic() {
    // VXLAN leaves the least room: the probes' largest packets are made for it.
    let lab = up("switch-all", &[SEGMENT, &hosts(2, ""), POOLS].concat());
    let round = [
        ("udp", "udp"),
        ("ipip", "udp"),
        ("host-gw", "host-gw"),
        ("udp", "vxlan"),
        ("ipip", "host-gw"),
        ("vxlan", "udp"),
        ("host-gw", "vxlan"),
        ("ipip", "udp"),
        ("udp", "udp"),
    ];
    for (v4, v6) in round {
        let running = streams(&lab, "host1", "host2");
        std::thread::sleep(std::time::Duration::from_millis(200));
        lab.apply_pools(&pools(v4, v6)).expect("applied");
        let took = wait_for("the switch", || {
            lab.hosts().iter().all(|host| {
                let status = lab.agent(&host.name).expect("an agent").status().expect("a status");
                let is_settled = |pool: &loden_core::api::PoolStatus| {
                    let wanted = if pool.name.as_str() == "p4" { v4 } else { v6 };
                    pool.backend.starts_with(wanted) && pool.lingering.is_empty()
                };
                status.pools.iter().all(is_settled) && status.kernel.pending == 0
            })
        });
        let (sent, lost) = stop(running);
        say(&format!("to {v4} and {v6}: {} ms, {lost} of {sent} packets lost", took.as_millis()));
        // Threads carry the packets: on a busy machine one may wait for its turn. A hole in the routes would be a third of them.
        assert!(lost <= sent / 20, "to {v4} and {v6}: {lost} of {sent} packets lost");
        all_reach(&lab);
    }
    for host in ["host1", "host2"] {
        let left = ["flannel.1", "flannel-v6.1", "flannel.ipip"].map(|dev| number(&lab, host, dev));
        assert_eq!(left, [None; 3], "what nobody sends by any more is gone");
    }
}
