//! With a forwarder in the shape of flannel's at the other end: one packet a system call, a small socket buffer, no header before the
//! packet. It is that of the benchmark.

use std::path::Path;
use std::process::{Child, Command};

use loden_linux::netlink::{Protocol, Socket};
use loden_linux::rt::link;
use loden_linux::spawn;
use loden_tunnel::counters::Cause;

use crate::live::{Host, MTU, all_of, apply, datagrams, name, stream, two_hosts, wait_for};
use crate::support::WIRE;

/// A program that is stopped with the test.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.kill().expect("it was running");
        self.0.wait().expect("it is gone");
    }
}

/// Starts it on host 2, in place of an engine.
fn proxy(host: &Host) -> Proxy {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/peers/udp_proxy.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("udp_proxy");
    let compiled = Command::new("cc").arg("-O2").arg("-o").arg(&program).arg(source).status().expect("cc");
    assert!(compiled.success());
    host.run(|| apply(|w| link::delete(w, name("flannel0"))));
    let mut command = Command::new(program);
    let mtu = MTU.to_string();
    command.args(["flannel0", "10.244.2.0", "192.168.7.2", "8285", &mtu, "10.244.1.0/24=192.168.7.1:8285"]);
    spawn::in_netns(&mut command, &host.ns, false).expect("in the namespace");
    let proxy = Proxy(command.spawn().expect("it starts"));
    wait_for(|| {
        let seen = host.run(|| link::read(&mut Socket::open(Protocol::Route).expect("socket"), name("flannel0")));
        seen.expect("asked").is_some()
    });
    host.lead_to_tunnel();
    host.wait_for_carrier("flannel0");
    proxy
}

#[test]
fn pods_reach_those_behind_one_packet_a_system_call() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    let _proxy = proxy(two);
    let tunnel = one.start_with(WIRE, 1, &one.peers_that(false, &[2], false)).expect("a tunnel");
    // The first ones are fragments on their way; whoever calls, it goes both ways.
    for (from, to) in [(one, two), (two, one)] {
        datagrams(from, to, false, &[5000, 0, 1, 63, 64, 1000, MTU as usize - 28, MTU as usize - 27]);
        stream(from, to, false, 4 << 20);
    }
    let (sent, received, dropped) = all_of(&tunnel.counters());
    assert!(sent > 5000 && received > 5000, "{sent} {received}");
    assert!(dropped.keys().all(|cause| *cause == Cause::LinkOnly), "{dropped:?}");
}
