//! A TUN device: what the kernel sends by it comes out with its header, and what is written goes in.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use loden_linux::datagram::{Datagrams, Message, Outbox};
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::rt::{address, link};
use loden_linux::tun::{self, Tun};

use crate::support::{foreign, ifname, in_namespace, index_of, make_eth0, wait_for_carrier};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, `VIRTIO_NET_HDR_GSO_UDP_L4` (linux/virtio_net.h).
const NEEDS_CHECKSUM: u8 = 1;
const UDP_L4: u8 = 5;

fn is_there(name: &str) -> bool {
    link::number_of(&Socket::open(Protocol::Route).expect("socket"), ifname(name)).expect("asked").is_some()
}

/// Makes `t0` with an address of each family, up.
fn make_t0() {
    tun::create(ifname("t0")).expect("create");
    foreign(|w| {
        link::no_made_up_address(w, ifname("t0"));
        link::set_up(w, ifname("t0"), true);
        let index = index_of("t0");
        address::add(w, "10.9.0.1/24".parse().expect("net"), index);
        address::add(w, "fd09::1/64".parse().expect("net"), index);
    });
}

/// The next packet with its header, by whichever queue.
fn next(queues: &[Tun]) -> Vec<u8> {
    let mut packet = vec![0; 70_000];
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        for queue in queues {
            if let Some(len) = queue.read(&mut packet).expect("read") {
                packet.truncate(len);
                return packet;
            }
        }
        assert!(Instant::now() < deadline, "no packet");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn it_stays_and_takes_queues() {
    in_namespace(|| {
        let dev = ifname("t0");
        let error = Tun::attach(dev).expect_err("not there").to_string();
        assert!(error.contains("t0") && error.contains("No such device"), "{error}");
        assert!(!is_there("t0"), "nothing is made by attaching");
        make_t0();
        tun::create(dev).expect("a second time is no error");
        let queues = [(); 3].map(|()| Tun::attach(dev).expect("attach"));
        assert_eq!(queues[0].read(&mut [0; 2048]).expect("nothing is no error"), None);
        drop(queues);
        assert!(is_there("t0"));
        let queue = Tun::attach(dev).expect("again");
        foreign(|w| link::delete(w, dev));
        let error = queue.read(&mut [0; 2048]).expect_err("gone").to_string();
        assert!(error.contains("TUN device t0"), "{error}");
    });
}

#[test]
fn another_link_of_that_name_is_refused() {
    in_namespace(|| {
        make_eth0();
        for result in [tun::create(ifname("eth0")), Tun::attach(ifname("eth0")).map(drop)] {
            let error = result.expect_err("a veth is no TUN").to_string();
            assert!(error.contains("TUN device eth0") && error.contains("remove it"), "{error}");
        }
        assert!(is_there("eth0"));
    });
}

#[test]
fn what_the_kernel_sends_comes_out_undone_and_in_one_piece() {
    in_namespace(|| {
        make_t0();
        let queues = [(); 2].map(|()| Tun::attach(ifname("t0")).expect("attach"));
        wait_for_carrier("t0");
        for (from, to, header, version) in [("10.9.0.1", "10.9.0.2", 20, 4), ("fd09::1", "fd09::2", 40, 6)] {
            let socket = Datagrams::udp((from.parse::<IpAddr>().expect("ip"), 0).into()).expect("socket");
            let to: SocketAddr = (to.parse::<IpAddr>().expect("ip"), 7).into();
            let bytes = [7; 10_000];
            let parts = [IoSlice::new(&bytes)];
            let sent = Outbox::default().send(&socket, [Message { to, parts: &parts, segment: Some(1000), tos: 0 }]);
            assert_eq!((sent.count, sent.error.map(|e| e.to_string())), (1, None));
            let packet = next(&queues);
            assert_eq!(packet[tun::HEADER] >> 4, version);
            assert_eq!(packet[0], NEEDS_CHECKSUM);
            let half = |at: usize| u16::from_ne_bytes([packet[at], packet[at + 1]]);
            assert_eq!((half(6), half(8)), (header as u16, 6), "where the checksum begins and belongs");
            if queues[0].has_uso() {
                assert_eq!((packet[1], half(4)), (UDP_L4, 1000));
                assert_eq!(packet.len(), tun::HEADER + header + 8 + 10_000);
            } else {
                assert_eq!(packet.len(), tun::HEADER + header + 8 + 1000);
            }
        }
    });
}

#[test]
fn what_is_written_goes_in() {
    in_namespace(|| {
        make_t0();
        let queue = Tun::attach(ifname("t0")).expect("attach");
        let socket = UdpSocket::bind("10.9.0.1:7").expect("socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        // From 10.9.0.2, port 9, to it: two datagrams of three bytes in one packet, the checksum (of addresses, protocol and length) left
        // open.
        let mut packet = [
            0x45, 0, 0, 34, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1, //
            0, 9, 0, 7, 0, 14, 0, 0, b'a', b'b', b'c', b'd', b'e', b'f',
        ];
        let sum = |bytes: &[u8]| -> u16 {
            let sum: u32 = bytes.chunks(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).sum();
            ((sum & 0xffff) + (sum >> 16)) as u16
        };
        let outer = !sum(&packet[..20]);
        packet[10..12].copy_from_slice(&outer.to_be_bytes());
        let pseudo = sum(&packet[12..20]).wrapping_add(17 + 14);
        packet[26..28].copy_from_slice(&pseudo.to_be_bytes());
        let mut header = [NEEDS_CHECKSUM, UDP_L4, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, value) in [(2, 28_u16), (4, 3), (6, 20), (8, 6)] {
            header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        queue.write(&[IoSlice::new(&header), IoSlice::new(&packet[..28]), IoSlice::new(&packet[28..])]).expect("write");
        let mut got = [0; 100];
        for want in [b"abc", b"def"] {
            let (len, from) = socket.recv_from(&mut got).expect("a datagram");
            assert_eq!((&got[..len], from.to_string().as_str()), (&want[..], "10.9.0.2:9"));
        }
        let error = queue.write(&[IoSlice::new(&header), IoSlice::new(b"no packet")]).expect_err("malformed");
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
    });
}
