//! Our engine on one host, the kernel's device of IP in IP on the other, which not every kernel has: `cargo xtask kernel` runs these tests
//! under one that does.

use std::io::IoSlice;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use loden_core::kernel::LINK_GROUP;
use loden_core::kernel::link::{Ipip, Link, LinkKind, Port};
use loden_core::kernel::tunnel::Wire;
use loden_linux::datagram::{Datagrams, Message, Outbox};
use loden_linux::rt::{address, link, nexthop, route};
use loden_tunnel::counters::{Cause, PeerCounters};
use loden_tunnel::worker::Tunnel;

use crate::live::{self, Host, all_of, apply, datagrams, index, marked, name, outer, stream};
use crate::support::{blocks, pod};

/// What fits into a packet of the underlay.
const MTU: u32 = 1480;
const DEV: &str = "flannel.ipip";

/// The engine's host, the kernel's, and the engine.
struct Pair {
    hosts: [Host; 2],
    tunnel: Tunnel,
}

impl Pair {
    fn new() -> Self {
        let hosts = live::hosts(MTU);
        by_the_kernel(&hosts[1], 1);
        let tunnel = hosts[0].start(Wire::Ipip, false, 1);
        hosts[0].wait_for_carrier("flannel0");
        Self { hosts, tunnel }
    }

    /// What the engine has had from the kernel.
    fn had(&self) -> PeerCounters {
        self.tunnel.counters().peers.into_values().next().expect("one peer")
    }

    /// Sends from each to the other; what comes back is what was sent.
    fn streams(&self) {
        let [ours, theirs] = &self.hosts;
        for (from, to) in [(ours, theirs), (theirs, ours)] {
            stream(from, to, false, 2 << 20);
            stream(from, to, false, 100_001);
        }
    }
}

/// In the TUN device's place one of the kernel's, as the agent makes it.
fn by_the_kernel(host: &Host, peer: u8) {
    let (local, gateway) = (outer(host.number, false), outer(peer, false));
    let (own, [block, _]) = (blocks(host.number)[0].network(), blocks(peer));
    host.run(|| {
        let kind = LinkKind::Ipip(Ipip { underlay: None, local: Some(local) });
        let link = Link { kind, mtu: MTU, mac: None, up: true, master: None, port: Port::default(), group: LINK_GROUP };
        apply(|w| {
            link::delete(w, name("flannel0"));
            link::create(w, name(DEV), &link, None, None);
            link::set_up(w, name(DEV), true);
        });
        let number = index(DEV);
        apply(|w| {
            address::add(w, own.into(), number);
            nexthop::add(w, 1, number, gateway, true);
            route::add(w, block, 0, route::To::Nexthop(1), false);
        });
    });
}

/// A program on a host.
fn run(host: &Host, program: &str, args: &str) {
    let output = host.run(|| Command::new(program).args(args.split(' ')).output()).expect(program);
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&text));
}

#[test]
fn pings_and_datagrams_of_any_size_go_both_ways() {
    let pair = Pair::new();
    let [ours, theirs] = &pair.hosts;
    for (from, to) in [(ours, theirs), (theirs, ours)] {
        let (src, dst) = (pod(from.number, false), pod(to.number, false));
        // The largest that is not cut into fragments, and what is.
        for size in [0, 1, 17, 1000, 1451, 1452, 1453, 5001, 30_001, 65_507] {
            run(from, "ping", &format!("-n -q -c 1 -W 5 -s {size} -I {src} {dst}"));
        }
        run(from, "ping", &format!("-n -q -c 1 -W 5 -M do -s 1452 -I {src} {dst}"));
        datagrams(from, to, false, &[0, 1, 63, 64, 999, 1452, 1453, 5001, 60_000]);
        marked(from, to, false);
    }
    let (sent, received, dropped) = all_of(&pair.tunnel.counters());
    // The kernel asks for routers on every device.
    let is_well = dropped.keys().all(|cause| *cause == Cause::LinkOnly);
    assert!(sent > 200 && received > 200 && is_well, "{sent} {received} {dropped:?}");
}

#[test]
fn streams_go_both_ways_uncut_from_the_kernel() {
    let pair = Pair::new();
    pair.streams();
    // Between namespaces nobody cuts what the kernel's device sends: the raw socket gets it whole.
    let had = pair.had();
    assert!(had.received.bytes > 2 * u64::from(MTU) * had.received.packets, "{had:?}");
    assert!(had.dropped.is_empty(), "{had:?}");
}

#[test]
fn streams_go_both_ways_packet_by_packet() {
    let pair = Pair::new();
    pair.hosts.iter().for_each(|host| run(host, "ethtool", "-K eth0 tx off tso off gso off gro off"));
    pair.streams();
    let had = pair.had();
    assert!(had.received.bytes <= u64::from(MTU) * had.received.packets, "{had:?}");
    assert!(had.dropped.is_empty(), "{had:?}");
}

#[test]
fn what_the_kernel_has_merged_on_receipt_is_taken_in() {
    let pair = Pair::new();
    // As by cards: the sender's cuts and fills in checksums, the receiver's kernel puts together.
    pair.hosts.iter().for_each(|host| run(host, "ethtool", "-K eth0 tx off tso off gso off gro on"));
    pair.streams();
    let had = pair.had();
    assert!(had.received.bytes > 2 * u64::from(MTU) * had.received.packets, "{had:?}");
    assert!(had.dropped.is_empty(), "{had:?}");
}

/// Sends a run of datagrams by one call from one host's pod to the other's; says how many have come within a while.
fn send_run(from: &Host, to: &Host, count: usize) -> usize {
    const LEN: usize = 1000;
    let near = from.run(|| Datagrams::udp((pod(from.number, false), 0).into())).expect("socket");
    let far = to.run(|| UdpSocket::bind((pod(to.number, false), 0))).expect("socket");
    far.set_read_timeout(Some(Duration::from_secs(2))).expect("a limit");
    let (bytes, to) = (vec![7; count * LEN], far.local_addr().expect("its address"));
    let message = Message { to, parts: &[IoSlice::new(&bytes)], segment: Some(LEN as u16), tos: 0 };
    assert!(Outbox::default().send(&near, [message]).error.is_none());
    let mut buffer = [0; 2 * LEN];
    (0..count).take_while(|_| far.recv(&mut buffer).is_ok_and(|len| len == LEN)).count()
}

#[test]
fn a_run_of_datagrams_must_be_cut_on_the_way() {
    let pair = Pair::new();
    let [ours, theirs] = &pair.hosts;
    assert_eq!(send_run(ours, theirs, 10), 10, "the engine cuts them itself");
    // The kernel leaves it to the card, and the raw socket does not say how long each of them was.
    assert_eq!(send_run(theirs, ours, 10), 0);
    assert_eq!(pair.had().dropped[&Cause::Malformed], 1);
    run(theirs, "ethtool", "-K eth0 tx-udp-segmentation off");
    assert_eq!(send_run(theirs, ours, 10), 10, "as by a card that cannot cut them within a tunnel");
}
