//! Datagrams by the batch, on the kernel's own loopback and on a link of 1500 bytes.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use loden_core::model::Family;
use loden_linux::datagram::{Datagrams, Inbox, Message, Outbox, path_mtu};
use loden_linux::rt::link;

use crate::support::{foreign, ifname, in_namespace, make_eth0};

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];

/// A message as it came in, kept.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    from: SocketAddr,
    bytes: Vec<u8>,
    segment: usize,
    tos: u8,
    is_truncated: bool,
}

/// Receives until so many messages are there.
fn receive(socket: &Datagrams, inbox: &mut Inbox, room: usize, count: usize) -> Vec<Kept> {
    let (mut kept, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(5));
    let mut memory = vec![0; 8 * room];
    while kept.len() < count && Instant::now() < deadline {
        let received = inbox.receive(socket, &mut memory, room).expect("receive").to_vec();
        kept.extend(received.iter().zip(memory.chunks(room)).map(|(message, bytes)| Kept {
            from: message.from,
            bytes: bytes[..message.len].to_vec(),
            segment: message.segment,
            tos: message.tos,
            is_truncated: message.is_truncated,
        }));
    }
    kept
}

#[test]
fn a_batch_arrives_as_it_was_sent() {
    in_namespace(|| {
        foreign(|w| link::set_up(w, ifname("lo"), true));
        // The same buffers for all, of one family after the other.
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        for addr in LOOPBACK {
            let (here, there) = <(_, _)>::from([(); 2].map(|()| Datagrams::udp((addr, 0).into()).expect("socket")));
            assert!(here.has_segmentation() && here.has_gro());
            assert_eq!(here.family(), Family::of(addr));
            let to = there.local().expect("its address");
            let from = here.local().expect("its address");
            assert_eq!(inbox.receive(&there, &mut [0; 100], 50).expect("nothing is no error"), []);
            let long: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
            let whole = [IoSlice::new(b"one")];
            let parts = [IoSlice::new(&long[..7]), IoSlice::new(&long[7..5000]), IoSlice::new(&long[5000..])];
            let messages = [
                Message { to, parts: &whole, segment: None, tos: 0 },
                Message { to, parts: &parts, segment: Some(1448), tos: 0xb9 },
                Message { to, parts: &parts, segment: None, tos: 3 },
                Message { to, parts: &[], segment: None, tos: 0 },
            ];
            for _ in 0..3 {
                let sent = outbox.send(&here, messages);
                assert_eq!((sent.count, sent.error.map(|e| e.to_string())), (4, None));
                let kept = receive(&there, &mut inbox, 65_536, 4);
                let want = |bytes: &[u8], segment, tos| Kept {
                    from,
                    bytes: bytes.to_vec(),
                    segment,
                    tos,
                    is_truncated: false,
                };
                assert_eq!(kept[0], want(b"one", 3, 0));
                assert_eq!(kept[1], want(&long, 1448, 0xb9));
                assert_eq!(kept[2], want(&long, 10_000, 3));
                assert_eq!(kept[3], want(b"", 0, 0));
                assert_eq!(kept.len(), 4);
            }
            // Without GRO each comes by itself.
            let there = there.without_gro().expect("without GRO");
            assert_eq!(outbox.send(&here, [messages[1]]).count, 1);
            let kept = receive(&there, &mut inbox, 65_536, 7);
            assert_eq!(
                kept.iter().map(|kept| kept.segment).collect::<Vec<_>>(),
                [[1448; 6].as_slice(), &[1312]].concat()
            );
            assert_eq!(kept.iter().flat_map(|kept| kept.bytes.iter().copied()).collect::<Vec<_>>(), long);
            // What has no room is said to be cut.
            assert_eq!(outbox.send(&here, [messages[2]]).count, 1);
            let kept = receive(&there, &mut inbox, 100, 1);
            assert!(kept[0].is_truncated && kept[0].bytes == long[..100]);
        }
    });
}

#[test]
fn what_is_too_large_for_its_way_is_refused_and_the_rest_is_not_lost() {
    in_namespace(|| {
        make_eth0();
        for (local, far, most) in [("192.168.7.1", "192.168.7.9", 1472), ("fd07::1", "fd07::9", 1452)] {
            let socket = Datagrams::udp((local.parse::<IpAddr>().expect("ip"), 0).into()).expect("socket");
            let far: IpAddr = far.parse().expect("ip");
            assert_eq!(path_mtu(far).expect("a way"), 1500);
            let bytes = vec![0; 20_000];
            let of = |len: usize| [IoSlice::new(&bytes[..len])];
            let (fits, large, run) = (of(most), of(most + 1), of(20_000));
            let message = |parts, segment| Message { to: (far, 8285).into(), parts, segment, tos: 0 };
            let batch =
                [message(&fits, None), message(&run, Some(most as u16)), message(&large, None), message(&fits, None)];
            let mut outbox = Outbox::default();
            let sent = outbox.send(&socket, batch);
            assert_eq!((sent.count, sent.error.and_then(|e| e.raw_os_error())), (2, Some(libc::EMSGSIZE)));
            let sent = outbox.send(&socket, batch[3..].iter().copied());
            assert_eq!((sent.count, sent.error.is_none()), (1, true));
            let sent = outbox.send(&socket, [message(&run, Some(most as u16 + 1))]);
            assert!(matches!(sent.error.and_then(|e| e.raw_os_error()), Some(libc::EMSGSIZE | libc::EINVAL)));
        }
    });
}

#[test]
fn two_sockets_share_a_port_and_a_taken_one_is_named() {
    in_namespace(|| {
        foreign(|w| link::set_up(w, ifname("lo"), true));
        for addr in LOOPBACK {
            let first = Datagrams::udp((addr, 8285).into()).expect("the first");
            let second = Datagrams::udp((addr, 8285).into()).expect("the second");
            assert_eq!(first.local().expect("one"), second.local().expect("the other"));
            drop((first, second));
            let _foreign = std::net::UdpSocket::bind((addr, 8285)).expect("a program that does not share");
            let error = Datagrams::udp((addr, 8285).into()).expect_err("taken").to_string();
            assert!(error.contains("8285") && error.contains("Address already in use"), "{error}");
        }
        let error = Datagrams::udp(([192, 0, 2, 1], 8285).into()).expect_err("not ours").to_string();
        assert!(error.contains("192.0.2.1:8285") && error.contains("Cannot assign"), "{error}");
    });
}

#[test]
fn a_raw_socket_gives_the_packet_of_ipv4_and_what_is_behind_the_header_of_ipv6() {
    in_namespace(|| {
        foreign(|w| link::set_up(w, ifname("lo"), true));
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        for addr in LOOPBACK {
            let socket = Datagrams::raw(addr, 4).expect("raw");
            let inner = [0x45_u8; 60];
            let parts = [IoSlice::new(&inner)];
            let sent = outbox.send(&socket, [Message { to: (addr, 0).into(), parts: &parts, segment: None, tos: 2 }]);
            assert_eq!((sent.count, sent.error.map(|e| e.to_string())), (1, None));
            let kept = receive(&socket, &mut inbox, 65_536, 1);
            assert_eq!((kept[0].from.ip(), kept[0].tos), (addr, 2));
            let header = if addr.is_ipv4() { 20 } else { 0 };
            assert_eq!(kept[0].bytes[header..], inner);
            if addr.is_ipv4() {
                let outer = &kept[0].bytes[..20];
                // Version, the mark, "do not fragment", the protocol.
                assert_eq!((outer[0], outer[1], outer[6] & 0x40, outer[9]), (0x45, 2, 0x40, 4));
            }
        }
    });
}
