//! What comes from the wire is anybody's: nothing gets in that a known host may not send, and nothing makes the engine stumble.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use loden_core::kernel::tunnel::Peer;
use loden_core::model::PerFamily;
use loden_tunnel::counters::Cause;
use loden_tunnel::engine::{Arrival, Inbound, Outbound, Picture};
use loden_tunnel::peers::{Own, Peers};
use proptest::prelude::*;

use crate::support::*;

/// What became of a datagram: how many packets got in, or why none did.
fn fate(from: IpAddr, datagram: Vec<u8>) -> Result<usize, Cause> {
    let mut engine = Inbound::new(picture(2), WIRE, true);
    let frames = received(&mut engine, from, 0, &[datagram]);
    let mut causes = Default::default();
    let picture = engine.picture();
    let all = picture.cells.iter().chain([&picture.nobody]);
    all.for_each(|cells| cells.add_to(&mut Default::default(), &mut causes));
    match causes.into_iter().next() {
        Some((cause, 1)) if frames.is_empty() => Err(cause),
        None => Ok(frames.len()),
        other => panic!("{other:?} and {} frames", frames.len()),
    }
}

#[test]
fn only_known_hosts_send_and_only_what_is_theirs() {
    for is_v6 in [false, true] {
        let good = Spec::udp(1, 2, is_v6, b"hello");
        assert_eq!(fate(at(1), good.bytes(false)), Ok(1));
        assert_eq!(fate(at(9), good.bytes(false)), Err(Cause::UnknownSender));
        assert_eq!(fate(ip("::ffff:192.168.7.1"), good.bytes(false)), Err(Cause::UnknownSender));
        assert_eq!(fate(at(3), good.bytes(false)), Err(Cause::ForeignSource), "of another host's block");
        let change = |change: fn(&mut Spec)| {
            let mut spec = good.clone();
            change(&mut spec);
            fate(at(1), spec.bytes(false))
        };
        let foreign = if is_v6 { "fd00:99::1" } else { "8.8.8.8" };
        assert_eq!(fate(at(1), Spec { src: ip(foreign), ..good.clone() }.bytes(false)), Err(Cause::ForeignSource));
        assert_eq!(fate(at(1), Spec { dst: ip(foreign), ..good.clone() }.bytes(false)), Err(Cause::ForeignDestination));
        // As our own host, to another host, to all.
        assert_eq!(change(|spec| spec.src = pod(2, spec.src.is_ipv6())), Err(Cause::ForeignSource));
        assert_eq!(change(|spec| spec.dst = pod(3, spec.src.is_ipv6())), Err(Cause::ForeignDestination));
        assert_eq!(
            change(|spec| spec.dst = ip(if spec.src.is_ipv6() { "ff02::1" } else { "224.0.0.1" })),
            Err(Cause::ForeignDestination)
        );
        assert_eq!(change(|spec| spec.ttl = 1), Err(Cause::HopsSpent));
    }
}

#[test]
fn a_host_may_have_several_addresses_and_two_hosts_one() {
    // Two hosts behind one address: what each may send is looked up by block.
    let peer = |node: &str, from: &[IpAddr]| Peer { node: node.parse().expect("name"), from: from.to_vec(), to: None };
    let [one, three] = [1, 3].map(|host| blocks(host)[0]);
    let known = [(one, peer("n1", &[at(1), at(11)])), (three, peer("n3", &[at(1), at(3)]))].into();
    let own = Own { addresses: PerFamily::default(), blocks: [blocks(2)[0]].into(), mtu: MTU };
    let picture = Arc::new(Picture::alone(Arc::new(Peers::build(own, &known))));
    let comes = |from: IpAddr, host: u8| {
        let mut engine = Inbound::new(Arc::clone(&picture), WIRE, true);
        !received(&mut engine, from, 0, &[Spec::udp(host, 2, false, b"x").bytes(false)]).is_empty()
    };
    let fates = [at(1), at(11), at(3), at(4)].map(|from| (comes(from, 1), comes(from, 3)));
    assert_eq!(fates, [(true, true), (true, false), (false, true), (false, false)]);
    // Nothing is sent to them by this tunnel.
    let mut engine = Outbound::new(picture, WIRE, true);
    assert!(sent(&mut engine, &[large(&Spec::udp(2, 1, false, b"x"), 1000)]).is_empty());
}

#[test]
fn what_is_no_packet_is_dropped() {
    let v4 = Spec::udp(1, 2, false, b"hello").bytes(false);
    let v6 = Spec::udp(1, 2, true, b"hello").bytes(false);
    let with = |packet: &[u8], changes: &[(usize, u8)]| {
        let mut packet = packet.to_vec();
        changes.iter().for_each(|(at, byte)| packet[*at] = *byte);
        packet
    };
    let bad = [
        vec![0],
        v4[..19].to_vec(),
        v4[..v4.len() - 1].to_vec(),
        [&v4[..], &[0]].concat(),
        with(&v4, &[(0, 0x44)]),
        with(&v4, &[(0, 0x4f)]),
        with(&v4, &[(0, 0x55)]),
        with(&v4, &[(3, 19)]),
        // The header's checksum.
        with(&v4, &[(10, v4[10] ^ 1)]),
        v6[..39].to_vec(),
        v6[..v6.len() - 1].to_vec(),
        [&v6[..], &[0]].concat(),
        // Extensions without end, and one that ends behind the packet.
        with(&v6, &[(6, 60), (40, 60), (41, 0), (48, 60), (49, 0)]),
        with(&v6, &[(6, 0), (41, 255)]),
        with(&v6, &[(6, 44)])[..44].to_vec(),
    ];
    for (n, datagram) in bad.into_iter().enumerate() {
        assert_eq!(fate(at(1), datagram), Err(Cause::Malformed), "{n}");
    }
    // None at all.
    let mut engine = Inbound::new(picture(2), WIRE, true);
    assert!(received(&mut engine, at(1), 0, &[Vec::new()]).is_empty());
}

#[test]
fn many_extensions_are_an_attack() {
    let extensions = |count: usize| {
        let body: Vec<u8> =
            (0..count).flat_map(|n| [if n + 1 < count { 60 } else { 59 }, 0, 1, 4, 0, 0, 0, 0]).collect();
        let mut packet = Spec::udp(1, 2, true, b"").bytes(false)[..40].to_vec();
        packet[4..7].copy_from_slice(&[0, body.len() as u8, 60]);
        [packet, body].concat()
    };
    assert_eq!(fate(at(1), extensions(3)), Ok(1));
    assert_eq!(fate(at(1), extensions(20)), Err(Cause::Malformed));
}

#[test]
fn a_run_of_datagrams_is_judged_one_by_one() {
    let good = Spec::udp(1, 2, false, b"hello").bytes(false);
    let spoofed = Spec { src: ip("8.8.8.8"), ..Spec::udp(1, 2, false, b"hello") }.bytes(false);
    let mut memory = [&good[..], &spoofed, &good, &good[..30]].concat();
    let mut engine = Inbound::new(picture(2), WIRE, false);
    let arrival = Arrival { at: 0..memory.len(), segment: good.len(), from: at(1), tos: 0 };
    engine.take(&mut memory, &arrival, Duration::ZERO);
    assert_eq!(frames(&mut engine, &mut memory).len(), 2);
    let (mut carried, mut causes) = Default::default();
    engine.picture().cells[0].add_to(&mut carried, &mut causes);
    assert_eq!((carried.packets, carried.bytes), (2, 2 * good.len() as u64));
    assert_eq!(causes.into_iter().collect::<Vec<_>>(), [(Cause::Malformed, 1), (Cause::ForeignSource, 1)]);
}

/// Anything, or a packet with some of it changed.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let changed = (any::<(bool, bool)>(), 0_usize..3000, proptest::collection::vec((0_usize..80, any::<u8>()), 0..6))
        .prop_map(|((is_v6, is_tcp), len, changes)| {
            let payload = vec![9; len];
            let spec = if is_tcp { Spec::tcp(1, 2, is_v6, &payload) } else { Spec::udp(1, 2, is_v6, &payload) };
            let mut packet = spec.bytes(false);
            for (at, byte) in changes {
                let at = at % packet.len();
                packet[at] = byte;
            }
            packet
        });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), changed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn nothing_makes_the_engine_stumble(
        datagrams in proptest::collection::vec(anything(), 1..8), tos: u8, segment in 0_usize..2000,
        headers in proptest::collection::vec(any::<(u8, u8, [u16; 4])>(), 8),
    ) {
        for wire in [WIRE, loden_core::kernel::tunnel::Wire::Ipip] {
            let mut memory = datagrams.concat();
            let mut engine = Inbound::new(picture(2), wire, true);
            let arrival = Arrival { at: 0..memory.len(), segment, from: at(1), tos };
            engine.take(&mut memory, &arrival, Duration::ZERO);
            frames(&mut engine, &mut memory);
            engine.clear();
            received(&mut engine, at(1), tos, &datagrams);
        }
        let frames: Vec<Vec<u8>> = datagrams.iter().zip(&headers).map(|(datagram, (flags, gso, words))| {
            [&[*flags, *gso % 8][..], &words.map(u16::to_ne_bytes).concat(), datagram].concat()
        }).collect();
        let groups = sent(&mut Outbound::new(picture(1), WIRE, true), &frames);
        for packet in groups.iter().flat_map(|(_, _, packets)| packets) {
            prop_assert!(packet.len() <= MTU as usize);
        }
    }
}
