//! What a sender is told of its packets, and that it is not told too much.

use std::time::Duration;

use loden_tunnel::engine::{Inbound, Outbound};
use loden_tunnel::router::Bucket;

use crate::support::*;

/// What the sender of one frame is told.
fn told(frame: &[u8]) -> Option<Vec<u8>> {
    let mut engine = Outbound::new(picture(1), WIRE, true);
    assert!(sent(&mut engine, &[frame.to_vec()]).is_empty());
    let answers: Vec<Vec<u8>> = engine.answers().map(<[u8]>::to_vec).collect();
    assert!(answers.len() <= 1);
    answers.into_iter().next()
}

/// Its addresses, type and code, the rest of the ICMP header, and what it quotes; its checksums must be right.
fn read(answer: &[u8]) -> (String, String, (u8, u8), u32, &[u8]) {
    let is_v4 = answer[0] >> 4 == 4;
    let (header, src, dst) = if is_v4 { (20, 12, 16) } else { (40, 8, 24) };
    let addr = |at: usize| match is_v4 {
        true => std::net::IpAddr::from(<[u8; 4]>::try_from(&answer[at..at + 4]).unwrap()).to_string(),
        false => std::net::IpAddr::from(<[u8; 16]>::try_from(&answer[at..at + 16]).unwrap()).to_string(),
    };
    let icmp = &answer[header..];
    let len = |at: usize| usize::from(u16::from_be_bytes([answer[at], answer[at + 1]]));
    if is_v4 {
        assert_eq!((total(&answer[..20]), total(icmp), len(2), answer[9]), (0xffff, 0xffff, answer.len(), 1));
        assert!(answer.len() <= 576);
    } else {
        let pseudo = [&answer[8..40], &(icmp.len() as u32).to_be_bytes(), &[0, 0, 0, 58]].concat();
        assert_eq!((total(&[&pseudo, icmp].concat()), len(4) + 40, answer[6]), (0xffff, answer.len(), 58));
        assert!(answer.len() <= 1280);
    }
    let rest = u32::from_be_bytes(icmp[4..8].try_into().unwrap());
    (addr(src), addr(dst), (icmp[0], icmp[1]), rest, &icmp[8..])
}

#[test]
fn every_refusal_is_told() {
    for is_v6 in [false, true] {
        let spec = Spec::udp(1, 2, is_v6, &[7; 2000]);
        let lost = Spec { dst: ip(if is_v6 { "fd00:99::1" } else { "10.99.0.1" }), ..spec.clone() };
        let spent = Spec { ttl: 1, ..spec.clone() };
        let own = Spec { dst: pod(1, is_v6), ..spec.clone() };
        let cases = if is_v6 {
            [(&lost, (1, 0), 0), (&own, (1, 0), 0), (&spent, (3, 0), 0), (&spec, (2, 0), MTU)]
        } else {
            [(&lost, (3, 0), 0), (&own, (3, 0), 0), (&spent, (11, 0), 0), (&spec, (3, 4), MTU)]
        };
        for (spec, kind, rest) in cases {
            let packet = spec.bytes(false);
            let answer = told(&frame(0, 0, None, &packet)).expect("an answer");
            let from = if is_v6 { "fd00:244:1::" } else { "10.244.1.0" };
            let most = if is_v6 { 1280 - 48 } else { 576 - 28 };
            // The packet is quoted as it was.
            assert_eq!(read(&answer), (from.into(), pod(1, is_v6).to_string(), kind, rest, &packet[..most]));
        }
        let short = Spec { payload: b"x".to_vec(), ..lost.clone() }.bytes(false);
        assert_eq!(read(&told(&frame(0, 0, None, &short)).expect("an answer")).4, short);
    }
}

#[test]
fn a_large_packet_is_too_big_if_its_segments_are() {
    let spec = Spec::tcp(1, 2, false, &[7; 20_000]);
    let answer = told(&large(&spec, MTU as u16 - 51)).expect("an answer");
    let (_, _, kind, mtu, _) = read(&answer);
    assert_eq!((kind, mtu), ((3, 4), MTU));
}

#[test]
fn what_must_not_be_answered_is_not() {
    let lost = Spec { dst: ip("10.99.0.1"), ..Spec::udp(1, 2, false, b"1234567890") };
    let plain = lost.bytes(false);
    let v6 = Spec { dst: ip("fd00:99::1"), ..Spec::udp(1, 2, true, b"1234567890") }.bytes(false);
    let with = |packet: &[u8], changes: &[(usize, u8)]| {
        let mut packet = packet.to_vec();
        changes.iter().for_each(|(at, byte)| packet[*at] = *byte);
        told(&frame(0, 0, None, &packet))
    };
    assert!(with(&plain, &[]).is_some() && with(&v6, &[]).is_some());
    for kind in [3, 4, 5, 11, 12] {
        assert_eq!(with(&plain, &[(9, 1), (20, kind)]), None, "ICMP {kind}");
    }
    assert!(with(&plain, &[(9, 1), (20, 8)]).is_some(), "a ping");
    assert!(with(&v6, &[(6, 58), (40, 128)]).is_some(), "a ping");
    assert_eq!(with(&v6, &[(6, 58), (40, 1)]), None, "an error");
    assert_eq!(with(&plain, &[(7, 1)]), None, "a later fragment");
    assert!(with(&plain, &[(6, 0x20)]).is_some(), "the first one");
    assert_eq!(with(&plain, &[(16, 224)]), None, "to many");
    assert_eq!(with(&v6, &[(24, 0xff)]), None, "to many");
    assert_eq!(with(&plain, &[(16, 169), (17, 254)]), None, "on the link alone");
    assert_eq!(with(&v6, &[(8, 0xfe), (9, 0x80)]), None, "from the link alone");
    for src in [0, 127, 224, 240, 255] {
        assert_eq!(with(&plain, &[(12, src)]), None, "from {src}.…");
    }
}

#[test]
fn hops_spent_on_the_wire_are_told_to_the_other_host() {
    let mut engine = Inbound::new(picture(2), WIRE, true);
    let packet = Spec { ttl: 1, ..Spec::udp(1, 2, false, b"x") }.bytes(false);
    assert!(received(&mut engine, at(1), 0, &[packet]).is_empty());
    let [group] = engine.replies().list() else { panic!("one reply") };
    assert_eq!((group.peer, group.count), (0, 1));
    let (from, to, kind, ..) = read(engine.headers());
    assert_eq!((from, to, kind), ("10.244.2.0".into(), pod(1, false).to_string(), (11, 0)));
    // It passes the guard over there.
    let reply = engine.headers().to_vec();
    assert_eq!(received(&mut Inbound::new(picture(1), WIRE, true), at(2), 0, &[reply]).len(), 1);
}

#[test]
fn answers_have_a_rate() {
    let mut bucket = Bucket::default();
    let at = |ms| Duration::from_millis(ms);
    let taken = |bucket: &mut Bucket, now| (0..10_000).filter(|_| bucket.take(now)).count();
    assert_eq!(taken(&mut bucket, at(0)), 50);
    assert_eq!(taken(&mut bucket, at(10)), 10);
    assert_eq!(taken(&mut bucket, at(10)), 0);
    assert_eq!(taken(&mut bucket, at(100_000)), 50);
    assert_eq!((0..100_000).filter(|n| bucket.take(at(200_000) + Duration::from_micros(n * 10))).count(), 50 + 999);
    let mut engine = Outbound::new(picture(1), WIRE, true);
    let lost = Spec { dst: ip("10.99.0.1"), ..Spec::udp(1, 2, false, b"x") };
    sent(&mut engine, &vec![large(&lost, 1000); 200]);
    assert_eq!(engine.answers().count(), 50);
}
