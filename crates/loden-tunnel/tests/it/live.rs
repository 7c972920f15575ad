//! On the real kernel: two hosts with a wire between them and a tunnel over it.

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use loden_core::kernel::tunnel::{Destination, Peer, Wire};
use loden_core::model::{IfName, PerFamily};
use loden_linux::datagram::{Datagrams, Inbox, Message, Outbox};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::{self, NetNs};
use loden_linux::packet::{self, PacketSocket};
use loden_linux::rt::link::{self, VethEnd};
use loden_linux::rt::{address, route};
use loden_linux::{sysctl, tun};
use loden_tunnel::counters::{Cause, Counters};
use loden_tunnel::engine::Inbound;
use loden_tunnel::peers::{Own, Peers};
use loden_tunnel::worker::{Tunnel, TunnelConfig, TunnelError};

use crate::support::{Spec, WIRE, at, blocks, ip, picture, pod, prefix, received, total};

/// The MTU inside, which is right for either family outside.
pub const MTU: u32 = 1452;
/// `IFLA_GSO_MAX_SEGS`.
const GSO_MAX_SEGS: u16 = 40;

/// Host 1 or 2.
pub struct Host {
    pub number: u8,
    pub ns: NetNs,
    /// The MTU inside.
    mtu: u32,
    /// Of tunnels that have ended by themselves.
    failures: Arc<Mutex<Vec<TunnelError>>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(*self.failures.lock().expect("failures"), [], "nobody has looked at these");
        }
    }
}

pub fn name(text: &str) -> IfName {
    text.parse().expect("a name")
}

/// The host's underlay address.
pub fn outer(host: u8, is_v6: bool) -> IpAddr {
    if is_v6 { ip(&format!("fd07::{host}")) } else { at(host) }
}

fn net(addr: IpAddr, len: u8) -> ipnet::IpNet {
    ipnet::IpNet::new(addr, len).expect("a length")
}

pub fn apply(write: impl FnOnce(&mut Writer)) {
    let mut w = Writer::default();
    write(&mut w);
    for result in Socket::open(Protocol::Route).expect("socket").batch(&mut w).expect("batch") {
        result.expect("what the kernel is asked for");
    }
}

pub fn index(dev: &str) -> u32 {
    link::number_of(&Socket::open(Protocol::Route).expect("socket"), name(dev)).expect("asked").expect("there")
}

impl Host {
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.ns.run(work).expect("in the namespace")
    }

    /// Its own addresses, its pod's, and its device.
    fn set_up(&self) {
        let number = self.number;
        self.run(|| {
            let (eth0, lo) = (index("eth0"), index("lo"));
            apply(|w| {
                for dev in ["lo", "eth0"] {
                    link::set_up(w, name(dev), true);
                }
                for (is_v6, len, host) in [(false, 24, 32), (true, 64, 128)] {
                    address::add(w, net(outer(number, is_v6), len), eth0);
                    address::add(w, net(pod(number, is_v6), host), lo);
                }
            });
            tun::create(name("flannel0")).expect("device");
        });
        self.lead_to_tunnel();
    }

    /// The device's addresses, and the way to the others' pods.
    pub fn lead_to_tunnel(&self) {
        let (number, mtu) = (self.number, self.mtu);
        self.run(|| {
            // Its own answers are written to the device, with its own address as their source.
            for (path, value) in [("accept_local", 1), ("rp_filter", 0)] {
                sysctl::write(&format!("net/ipv4/conf/flannel0/{path}"), value).expect("sysctl");
            }
            let flannel0 = index("flannel0");
            apply(|w| {
                link::set_mtu(w, name("flannel0"), mtu);
                link::set_up(w, name("flannel0"), true);
                for (block, len) in blocks(number).into_iter().zip([32, 128]) {
                    address::add(w, net(block.network(), len), flannel0);
                }
                for pool in ["10.244.0.0/16", "fd00:244::/32"] {
                    let priority = loden_core::kernel::default_priority(prefix(pool).family());
                    route::add(w, prefix(pool), priority, route::To::Link(flannel0), false);
                }
            });
        });
    }

    pub fn start(&self, wire: Wire, is_v6: bool, queues: usize) -> Tunnel {
        self.try_start(wire, is_v6, queues).expect("a tunnel")
    }

    fn try_start(&self, wire: Wire, is_v6: bool, queues: usize) -> Result<Tunnel, TunnelError> {
        self.start_with(wire, queues, &self.peers(&[3 - self.number], is_v6))
    }

    pub fn start_with(&self, wire: Wire, queues: usize, peers: &Arc<Peers>) -> Result<Tunnel, TunnelError> {
        let mut local = PerFamily::default();
        [false, true].into_iter().for_each(|is_v6| {
            let addr = outer(self.number, is_v6);
            local.set(loden_core::model::Family::of(addr), addr);
        });
        let config = TunnelConfig { dev: name("flannel0"), wire, local, queues };
        let failures = Arc::clone(&self.failures);
        self.run(|| Tunnel::start(&config, peers, move |error| failures.lock().expect("failures").push(error.clone())))
    }

    pub fn wait_for_carrier(&self, dev: &str) {
        wait_for(|| {
            let seen = self.run(|| link::read(&mut Socket::open(Protocol::Route).expect("socket"), name(dev)));
            seen.expect("asked").is_some_and(|seen| seen.is_running)
        });
    }

    /// A picture with these peers.
    fn peers(&self, hosts: &[u8], is_v6: bool) -> Arc<Peers> {
        self.peers_that(true, hosts, is_v6)
    }

    /// The same, of hosts that take in many packets at once or not.
    pub fn peers_that(&self, bursts: bool, hosts: &[u8], is_v6: bool) -> Arc<Peers> {
        let mut known = BTreeMap::new();
        for host in hosts {
            let from = vec![outer(*host, false), outer(*host, true)];
            let to = Some(Destination { addr: outer(*host, is_v6), port: 8285, bursts });
            let peer = Peer { node: format!("n{host}").parse().expect("name"), from, to };
            known.extend(blocks(*host).map(|block| (block, peer.clone())));
        }
        let [v4, v6] = blocks(self.number);
        let addresses = PerFamily { v4: Some(v4.network()), v6: Some(v6.network()) };
        Arc::new(Peers::build(Own { addresses, blocks: [v4, v6].into(), mtu: self.mtu }, &known))
    }
}

/// Two hosts, ready for tunnels over either family.
pub fn two_hosts() -> [Host; 2] {
    hosts(MTU)
}

/// Two hosts, ready for tunnels of this MTU inside.
pub fn hosts(mtu: u32) -> [Host; 2] {
    let hosts = [1, 2].map(|number| {
        let ns = std::thread::spawn(|| {
            netns::unshare_net().expect("these tests need root");
            NetNs::current().expect("its namespace")
        });
        Host { number, ns: ns.join().expect("a namespace"), mtu, failures: Arc::default() }
    });
    let far = hosts[1].ns.as_fd().as_raw_fd().cast_unsigned();
    hosts[0].run(|| {
        let end = VethEnd { name: name("eth0"), mtu: 1500, mac: None, group: 0, master: None };
        apply(|w| link::create_veth(w, end, end, far));
    });
    hosts.iter().for_each(Host::set_up);
    // The kernel is late to say that there is a carrier, and drops what is sent until then.
    for host in &hosts {
        host.wait_for_carrier("eth0");
    }
    hosts
}

pub fn wait_for(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not come to pass");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes that are not the same at any two places near each other.
fn byte(n: usize) -> u8 {
    (n ^ n >> 8 ^ n >> 16).to_le_bytes()[0].wrapping_mul(31)
}

/// Sends so many bytes by TCP from one host's pod to the other's and back what has come.
pub fn stream(from: &Host, to: &Host, is_v6: bool, len: usize) {
    let listener = to.run(|| TcpListener::bind((pod(to.number, is_v6), 0))).expect("listener");
    let addr = listener.local_addr().expect("its address");
    let echo = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a connection");
        let mut sink = socket.try_clone().expect("a copy");
        std::io::copy(&mut socket, &mut sink).expect("what comes goes back");
        sink.shutdown(std::net::Shutdown::Write).expect("the end");
    });
    let mut socket = from.run(|| TcpStream::connect_timeout(&addr, Duration::from_secs(10))).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    let mut out = socket.try_clone().expect("a copy");
    let writer = std::thread::spawn(move || {
        let data: Vec<u8> = (0..len).map(byte).collect();
        out.write_all(&data).expect("all sent");
        out.shutdown(std::net::Shutdown::Write).expect("the end");
    });
    let mut got = Vec::new();
    socket.read_to_end(&mut got).expect("all back");
    writer.join().expect("the writer");
    echo.join().expect("the echo");
    assert_eq!(got.len(), len);
    assert!(got.iter().enumerate().all(|(n, found)| *found == byte(n)), "each byte in its place");
}

/// Sends datagrams of these sizes from one host's pod to the other's and back.
pub fn datagrams(from: &Host, to: &Host, is_v6: bool, sizes: &[usize]) {
    let open = |host: &Host| {
        let socket = host.run(|| UdpSocket::bind((pod(host.number, is_v6), 0))).expect("socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
        (socket.local_addr().expect("its address"), socket)
    };
    let ((near, near_socket), (far, far_socket)) = (open(from), open(to));
    let mut buffer = vec![0; 70_000];
    for size in sizes {
        let data: Vec<u8> = (0..*size).map(|n| byte(n + size)).collect();
        near_socket.send_to(&data, far).expect("sent");
        let (len, source) = far_socket.recv_from(&mut buffer).expect("it comes through");
        assert_eq!((source, &buffer[..len]), (near, &data[..]));
        far_socket.send_to(&buffer[..len], near).expect("sent back");
        let (len, source) = near_socket.recv_from(&mut buffer).expect("it comes back");
        assert_eq!((source, &buffer[..len]), (far, &data[..]));
    }
}

pub fn all_of(counters: &Counters) -> (u64, u64, BTreeMap<Cause, u64>) {
    let mut dropped = counters.others.dropped.clone();
    for peer in counters.peers.values() {
        peer.dropped.iter().for_each(|(cause, count)| *dropped.entry(*cause).or_default() += count);
    }
    let sum = |of: fn(&loden_tunnel::counters::PeerCounters) -> u64| counters.peers.values().map(of).sum();
    (sum(|peer| peer.sent.packets), sum(|peer| peer.received.packets), dropped)
}

#[test]
fn pods_reach_each_other_by_udp_over_either_family() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    for is_v6_outside in [false, true] {
        let tunnels = [one.start(WIRE, is_v6_outside, 1), two.start(WIRE, is_v6_outside, 1)];
        for is_v6 in [false, true] {
            // One that is cut into fragments, too.
            datagrams(one, two, is_v6, &[0, 1, 63, 64, 1000, MTU as usize - 48, 5000, 60_000]);
            stream(one, two, is_v6, 8 << 20);
            stream(two, one, is_v6, 100_001);
        }
        // What is sent is counted once it is: the other one may have had it before.
        wait_for(|| {
            let [mine, theirs] = tunnels.each_ref().map(|tunnel| all_of(&tunnel.counters()));
            (mine.0, mine.1) == (theirs.1, theirs.0)
        });
        let [mine, theirs] = tunnels.each_ref().map(|tunnel| all_of(&tunnel.counters()));
        assert!(mine.0 > 10_000, "each segment counts: {mine:?}");
        assert!(mine.2.keys().chain(theirs.2.keys()).all(|cause| *cause == Cause::LinkOnly), "{mine:?} {theirs:?}");
        tunnels.into_iter().for_each(Tunnel::stop);
    }
}

#[test]
fn pods_reach_each_other_by_ipip_and_by_many_queues() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    for (wire, queues, families) in [(Wire::Ipip, 1, &[false][..]), (WIRE, 3, &[false, true])] {
        let tunnels = [one.start(wire, false, queues), two.start(wire, false, queues)];
        for is_v6 in families {
            datagrams(one, two, *is_v6, &[0, 1, 1000, 5000]);
            for _ in 0..3 {
                stream(one, two, *is_v6, 1 << 20);
            }
        }
        let (sent, received, dropped) = all_of(&tunnels[1].counters());
        assert!(sent > 0 && received > 0, "{dropped:?}");
    }
}

#[test]
fn senders_are_told_what_has_no_way() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    let tunnels = [one.start(WIRE, false, 1), two.start(WIRE, false, 1)];
    let listen = |host: &Host| host.run(|| Datagrams::raw(pod(host.number, false), 1)).expect("a raw socket");
    let heard = |socket: &Datagrams| {
        let (mut inbox, mut memory) = (Inbox::default(), vec![0; 2000]);
        let mut message = None;
        wait_for(|| {
            let received = inbox.receive(socket, &mut memory, 2000).expect("received");
            message = received.first().map(|received| received.from.ip());
            message.is_some()
        });
        (message.expect("one"), memory[20], memory[21])
    };
    let socket = listen(one);
    let pod_socket = one.run(|| UdpSocket::bind((pod(1, false), 0))).expect("socket");
    pod_socket.send_to(b"x", "10.244.77.1:9").expect("sent");
    assert_eq!(heard(&socket), (ip("10.244.1.0"), 3, 0), "net unreachable");
    // Two hops: that of this host's engine, that of the other one's.
    pod_socket.set_ttl(1).expect("ttl");
    pod_socket.send_to(b"x", (pod(2, false), 9)).expect("sent");
    assert_eq!(heard(&socket), (ip("10.244.1.0"), 11, 0), "time exceeded here");
    pod_socket.set_ttl(2).expect("ttl");
    pod_socket.send_to(b"x", (pod(2, false), 9)).expect("sent");
    assert_eq!(heard(&socket), (ip("10.244.2.0"), 11, 0), "time exceeded over there");
    let (_, _, dropped) = all_of(&tunnels[0].counters());
    assert_eq!((dropped[&Cause::NoRoute] >= 1, dropped[&Cause::HopsSpent]), (true, 1));

    // Nobody has that host's address any more: the kernel's words are kept.
    assert_eq!(tunnels[0].counters().last_refusal, None);
    one.run(|| apply(|w| link::set_up(w, name("eth0"), false)));
    pod_socket.send_to(b"x", (pod(2, false), 9)).expect("sent");
    wait_for(|| tunnels[0].counters().last_refusal.is_some());
    let words = tunnels[0].counters().last_refusal.expect("words");
    assert!(words.starts_with("send to 192.168.7.2:8285: Network is unreachable"), "{words}");
    assert!(all_of(&tunnels[0].counters()).2[&Cause::Unsendable] >= 1);
    one.run(|| apply(|w| link::set_up(w, name("eth0"), true)));
    one.wait_for_carrier("eth0");

    // The way has become narrower than the tunnel was made for.
    pod_socket.set_ttl(64).expect("ttl");
    one.run(|| apply(|w| link::set_mtu(w, name("eth0"), 1400)));
    pod_socket.send_to(&[1; 1400], (pod(2, false), 9)).expect("sent");
    assert_eq!(heard(&socket), (ip("10.244.1.0"), 3, 4), "fragmentation needed");
    stream(one, two, false, 1 << 20);
}

#[test]
fn what_a_stranger_sends_does_not_come_in() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    let tunnel = one.start(WIRE, false, 1);
    let victim = one.run(|| UdpSocket::bind((pod(1, false), 53))).expect("socket");
    victim.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    let outside = |addr: SocketAddr| two.run(|| UdpSocket::bind(addr)).expect("socket");
    two.run(|| apply(|w| address::add(w, "192.168.7.66/24".parse().expect("net"), index("eth0"))));
    let (host, stranger) = (outside((at(2), 0).into()), outside("192.168.7.66:0".parse().expect("addr")));
    let target = (at(1), 8285);
    let good = Spec::udp(2, 1, false, b"good").bytes(false);
    let spoofed = Spec { src: pod(3, false), ..Spec::udp(2, 1, false, b"spoofed") }.bytes(false);
    let elsewhere = Spec { dst: ip("192.168.7.1"), ..Spec::udp(2, 1, false, b"elsewhere") }.bytes(false);
    stranger.send_to(&good, target).expect("sent");
    for datagram in [&spoofed[..], &elsewhere, b"", b"no packet", &good] {
        host.send_to(datagram, target).expect("sent");
    }
    let mut buffer = [0; 100];
    let (len, source) = victim.recv_from(&mut buffer).expect("the good one");
    assert_eq!((source.ip(), &buffer[..len]), (pod(2, false), &b"good"[..]));
    let (_, received, dropped) = all_of(&tunnel.counters());
    let inward = [Cause::Malformed, Cause::UnknownSender, Cause::ForeignSource, Cause::ForeignDestination];
    let counted = inward.map(|cause| dropped.get(&cause).copied().unwrap_or_default());
    // The empty datagram holds no packet either; it is none that the engine gets to see.
    assert_eq!((received, counted), (1, [2, 1, 1, 1]));
    // A picture without that host: it is a stranger, too.
    tunnel.set_peers(&one.peers(&[], false));
    wait_for(|| {
        host.send_to(&good, target).expect("sent");
        tunnel.counters().others.dropped.get(&Cause::UnknownSender) > Some(&1)
    });
}

#[test]
fn a_restart_pauses_a_connection_and_no_more() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    let mut tunnels = vec![one.start(WIRE, false, 1), two.start(WIRE, false, 1)];
    let listener = two.run(|| TcpListener::bind((pod(2, false), 0))).expect("listener");
    let addr = listener.local_addr().expect("its address");
    let mut near = one.run(|| TcpStream::connect_timeout(&addr, Duration::from_secs(5))).expect("a connection");
    let (mut far, _) = listener.accept().expect("the other end");
    far.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    for n in 0..5_u8 {
        near.write_all(&[n]).expect("sent");
        let mut byte = [0];
        far.read_exact(&mut byte).expect("it comes");
        assert_eq!(byte, [n]);
        let began = Instant::now();
        drop(tunnels.remove(0));
        tunnels.insert(0, one.start(WIRE, false, 1));
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    }
    // What is there already is not taken from another: the port, a device in another shape, no device at all.
    let other = two.run(|| UdpSocket::bind("192.168.7.2:8286")).expect("socket");
    let taken = two.try_start(Wire::Udp { port: 8286 }, false, 1).expect_err("it is taken");
    assert!(taken.to_string().contains("192.168.7.2:8286"), "{taken}");
    drop(other);
    // The device goes: that is said, not waited for.
    one.run(|| apply(|w| link::delete(w, name("flannel0"))));
    wait_for(|| !one.failures.lock().expect("failures").is_empty());
    let failures = std::mem::take(&mut *one.failures.lock().expect("failures"));
    assert!(failures.len() == 1 && failures[0].to_string().contains("flannel0"), "{failures:?}");
}

#[test]
fn datagrams_that_come_one_by_one_stay_in_order() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    let tunnels = [one.start(WIRE, false, 1), two.start(WIRE, false, 1)];
    let abilities = tunnels[0].abilities();
    assert!(abilities.segmentation && abilities.gro && abilities.uso, "{abilities:?}");
    // As a host sends them that knows nothing of groups.
    let socket = two.run(|| Datagrams::udp((at(2), 0).into())).expect("socket");
    let victim = one.run(|| UdpSocket::bind((pod(1, false), 53))).expect("socket");
    victim.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    let mut outbox = Outbox::default();
    for n in 0..200_u8 {
        let packet = Spec::udp(2, 1, false, &[n; 100]).bytes(false);
        let parts = packet.chunks(50).map(IoSlice::new).collect::<Vec<_>>();
        let message = Message { to: (at(1), 8285).into(), parts: &parts, segment: None, tos: 0 };
        assert!(outbox.send(&socket, [message]).error.is_none());
    }
    let mut buffer = [0; 200];
    for n in 0..200_u8 {
        assert_eq!(victim.recv(&mut buffer).expect("each"), 100);
        assert_eq!(buffer[0], n, "in order");
    }
}

/// Sees that a packet says how long it is, and that its checksums are right; gives its byte of traffic class.
fn right(packet: &[u8]) -> u8 {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let (header, addresses, protocol, len, tos) = if packet[0] >> 4 == 4 {
        assert_eq!(total(&packet[..20]), 0xffff, "the header's checksum");
        (20, &packet[12..20], packet[9], word(2), packet[1])
    } else {
        (40, &packet[8..40], packet[6], word(4) + 40, (word(0) >> 4) as u8)
    };
    assert_eq!(len, packet.len());
    let behind = &packet[header..];
    let pseudo = [addresses, &(behind.len() as u32).to_be_bytes(), &[0, 0, 0, protocol], behind].concat();
    assert!(matches!(protocol, 6 | 17), "protocol {protocol}");
    assert_eq!(total(&pseudo), 0xffff, "the checksum of protocol {protocol}");
    tos
}

#[test]
fn every_datagram_on_the_wire_is_one_packet_that_fits() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    // As by a card that cuts nothing itself: one packet is one frame.
    for host in &hosts {
        host.run(|| {
            let eth0 = index("eth0");
            apply(|w| {
                w.begin(link::NEW, 0);
                w.raw(&link::info(eth0, 0, 0));
                w.u32(GSO_MAX_SEGS, 1);
                w.end();
            });
        });
    }
    let tunnels = [one.start(WIRE, false, 1), two.start(WIRE, false, 1)];
    let capture = two.run(|| PacketSocket::open_on(name("eth0"), packet::IPV4)).expect("capture");
    let (is_over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let marks = std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            let mut marks = BTreeMap::<(u8, u8), usize>::new();
            while !is_over.load(Ordering::Relaxed) {
                let Some(frame) = capture.receive(Duration::from_millis(50)).expect("captured") else { continue };
                let bytes = &frame.bytes[14..];
                if bytes[9] != 17 || bytes[22..24] != 8285_u16.to_be_bytes() {
                    continue;
                }
                let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
                assert!(len <= 1500 && bytes.len() >= len, "{len} of {}", bytes.len());
                assert_eq!(bytes[6] & 0x60, 0x40, "not to be cut, and not cut");
                *marks.entry((bytes[1], right(&bytes[28..len]))).or_default() += 1;
                count.fetch_add(1, Ordering::Relaxed);
            }
            marks
        });
        for is_v6 in [false, true] {
            // The capture misses some when the machine is busy.
            let enough = count.load(Ordering::Relaxed) + 300;
            let rounds = (0..50).take_while(|_| count.load(Ordering::Relaxed) < enough);
            rounds.for_each(|_| stream(one, two, is_v6, 1 << 19));
            std::thread::sleep(Duration::from_millis(100));
            datagrams(one, two, is_v6, &[0, 1, 999, MTU as usize - 48]);
            marked(one, two, is_v6);
        }
        std::thread::sleep(Duration::from_millis(100));
        is_over.store(true, Ordering::Relaxed);
        seen.join().expect("every frame is right")
    });
    assert!(marks.values().sum::<usize>() > 600, "{marks:?}");
    assert!(marks.keys().all(|(outer, inner)| *outer == inner & 3), "{marks:?}");
    assert!((0..4).all(|ecn| marks.contains_key(&(ecn, 0xb8 | ecn))), "{marks:?}");
    drop(tunnels);
}

/// Sends datagrams with each mark of congestion, which come as they went.
pub fn marked(from: &Host, to: &Host, is_v6: bool) {
    let open = |host: &Host| host.run(|| Datagrams::udp((pod(host.number, is_v6), 0).into())).expect("socket");
    let (near, far) = (open(from), open(to));
    let (mut outbox, mut inbox, mut memory) = (Outbox::default(), Inbox::default(), vec![0; 100]);
    for ecn in 0..4 {
        let message = Message {
            to: far.local().expect("local"),
            parts: &[IoSlice::new(b"marked")],
            segment: None,
            tos: 0xb8 | ecn,
        };
        assert!(outbox.send(&near, [message]).error.is_none());
        let mut tos = None;
        wait_for(|| {
            tos = inbox.receive(&far, &mut memory, 100).expect("received").first().map(|received| received.tos);
            tos.is_some()
        });
        assert_eq!(tos, Some(0xb8 | ecn));
    }
}

#[test]
fn a_tunnel_that_is_drained_loses_nothing() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    for _ in 0..5 {
        let tunnels = [one.start(WIRE, false, 1), two.start(WIRE, false, 1)];
        let (near, far) =
            (one.run(|| UdpSocket::bind((pod(1, false), 0))), two.run(|| UdpSocket::bind((pod(2, false), 0))));
        let (near, far) = (near.expect("socket"), far.expect("socket"));
        far.set_nonblocking(true).expect("set");
        for n in 0..100_u8 {
            near.send_to(&[n; 100], far.local_addr().expect("local")).expect("sent");
        }
        for tunnel in tunnels {
            assert!(tunnel.drain(Duration::from_secs(10)), "all is carried");
            tunnel.stop();
        }
        let mut buffer = [0; 200];
        let got: Vec<u8> = std::iter::from_fn(|| far.recv(&mut buffer).ok().map(|_| buffer[0])).collect();
        assert_eq!(got, (0..100).collect::<Vec<u8>>());
    }
}

#[test]
fn what_is_sent_because_of_a_picture_goes_by_it() {
    let hosts = two_hosts();
    let [one, two] = &hosts;
    let tunnels = [one.start(WIRE, false, 1), two.start(WIRE, false, 1)];
    let [(near, far), (noise, sink)] = [false, true].map(|is_v6| {
        let open = |host: &Host| host.run(|| UdpSocket::bind((pod(host.number, is_v6), 0))).expect("socket");
        (open(one), open(two))
    });
    far.set_read_timeout(Some(Duration::from_secs(2))).expect("a limit");
    sink.set_read_timeout(Some(Duration::from_millis(20))).expect("a limit");
    let whole = one.peers(&[2], false);
    // The threads are never asleep when a picture is put up.
    let mut known = BTreeMap::new();
    let to = Some(Destination { addr: outer(2, false), port: 8285, bursts: true });
    known.insert(blocks(2)[1], Peer { node: "n2".parse().expect("name"), from: vec![outer(2, false)], to });
    let half = Arc::new(Peers::build(whole.own().clone(), &known));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                (0..100).for_each(|_| _ = noise.send_to(b"noise", sink.local_addr().expect("local")).expect("sent"));
                // No more than the queues hold.
                (0..100).for_each(|_| _ = sink.recv(&mut [0; 10]));
            }
        });
        for n in 0..300_u16 {
            tunnels[0].set_peers(&half);
            std::thread::sleep(Duration::from_micros(100));
            tunnels[0].set_peers(&whole);
            near.send_to(&n.to_le_bytes(), far.local_addr().expect("local")).expect("sent");
            let mut bytes = [0; 2];
            let got = far.recv(&mut bytes).map(|_| u16::from_le_bytes(bytes));
            is_over.store(got.is_err() || n == 299, Ordering::Relaxed);
            assert_eq!(got.expect("it comes through"), n);
        }
    });
}

#[test]
fn the_kernel_takes_whatever_was_put_together() {
    let hosts = two_hosts();
    let [_, two] = &hosts;
    let tun = two.run(|| tun::Tun::attach(name("flannel0"))).expect("a queue");
    two.wait_for_carrier("flannel0");
    for is_v6 in [false, true] {
        let socket = two.run(|| UdpSocket::bind((pod(2, is_v6), 53))).expect("socket");
        socket.set_nonblocking(true).expect("set");
        for count in [2, 63, 64, 65, 128, 129, 150] {
            let number = |n: u16| if is_v6 { 7 } else { n };
            let datagram = |n: u16| Spec { id: number(n), ..Spec::udp(1, 2, is_v6, &n.to_be_bytes()) }.bytes(false);
            let datagrams: Vec<Vec<u8>> = (0..count).map(datagram).collect();
            let frames = received(&mut Inbound::new(picture(2), WIRE, tun.has_uso()), at(1), 0, &datagrams);
            assert!(frames.len() <= usize::from(count).div_ceil(64) || !tun.has_uso());
            frames.iter().for_each(|frame| tun.write(&[IoSlice::new(frame)]).expect("taken"));
            let mut got = Vec::new();
            wait_for(|| {
                let mut bytes = [0; 2];
                got.extend(std::iter::from_fn(|| socket.recv(&mut bytes).ok().map(|_| u16::from_be_bytes(bytes))));
                got.len() >= usize::from(count)
            });
            assert_eq!(got, (0..count).collect::<Vec<u16>>());
        }
    }
}
