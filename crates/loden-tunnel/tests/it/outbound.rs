//! From the device to the wire: every datagram is one packet that is right and fits, whatever the kernel has handed over.

use loden_tunnel::counters::{Cause, Cells};
use loden_tunnel::engine::{Inbound, Outbound};
use proptest::prelude::*;

use crate::support::*;

fn outbound() -> Outbound {
    Outbound::new(picture(1), WIRE, true)
}

/// How often a packet was dropped for a cause, by whoever counts it.
fn dropped(engine: &Outbound, cause: Cause) -> u64 {
    let mut causes = Default::default();
    let picture = engine.picture();
    let all = picture.cells.iter().chain([&picture.nobody]).map(|cells| &**cells);
    all.for_each(|cells: &Cells| cells.add_to(&mut Default::default(), &mut causes));
    causes.get(&cause).copied().unwrap_or_default()
}

#[test]
fn a_large_packet_is_cut_into_one_group() {
    for is_v6 in [false, true] {
        let spec = Spec { tcp: Some((u32::MAX - 5, ACK | PSH | CWR | ECE)), ..Spec::tcp(1, 2, is_v6, &[3; 60_000]) };
        let mut engine = outbound();
        let size = MTU as usize - spec.header_len();
        let groups = sent(&mut engine, &[large(&spec, size as u16)]);
        let [(0, 0, packets)] = &groups[..] else { panic!("{groups:?}") };
        assert_eq!(packets.len(), 60_000_usize.div_ceil(size));
        let specs: Vec<Spec> = packets.iter().map(|packet| Spec::read(packet)).collect();
        assert!(packets.iter().all(|packet| packet.len() <= MTU as usize));
        assert!(specs.iter().all(|spec| spec.ttl == 63));
        let flags: Vec<u8> = specs.iter().map(|spec| spec.tcp.unwrap().1).collect();
        assert_eq!((flags[0], flags[1], flags[flags.len() - 1]), (ACK | CWR | ECE, ACK | ECE, ACK | PSH | ECE));
    }
}

#[test]
fn strangers_get_small_groups_and_each_peer_its_own() {
    let mut engine = outbound();
    let size = 1400;
    let to = |host| large(&Spec::udp(1, host, false, &[1; 40 * 1400]), size);
    let groups = sent(&mut engine, &[to(3), to(2), to(3)]);
    let shape: Vec<(u32, usize)> = groups.iter().map(|(peer, _, packets)| (*peer, packets.len())).collect();
    assert_eq!(shape, [(1, 16), (1, 16), (1, 16), (0, 40), (1, 16), (1, 16)]);
}

#[test]
fn without_segmentation_each_packet_is_sent_alone() {
    let mut engine = Outbound::new(picture(1), WIRE, false);
    let groups = sent(&mut engine, &[large(&Spec::udp(1, 2, false, &[1; 5 * 1400]), 1400)]);
    assert!(groups.len() == 5 && groups.iter().all(|(_, _, packets)| packets.len() == 1));
}

#[test]
fn a_mark_of_congestion_is_copied_outside_and_keeps_groups_apart() {
    let mut engine = outbound();
    let with = |tos| large(&Spec { tos, ..Spec::udp(1, 2, false, b"x") }, 1000);
    // The other six bits stay inside.
    let groups = sent(&mut engine, &[with(0xb8), with(0xba), with(0x02), with(0x03), with(0x01)]);
    let shape: Vec<(u8, usize)> = groups.iter().map(|(_, ecn, packets)| (*ecn, packets.len())).collect();
    assert_eq!(shape, [(0, 1), (2, 2), (3, 1), (1, 1)]);
}

#[test]
fn a_checksum_that_is_begun_is_completed_wherever_it_is() {
    let mut engine = outbound();
    for is_v6 in [false, true] {
        for payload in [&b""[..], b"odd", b"even"] {
            for spec in [Spec::udp(1, 2, is_v6, payload), Spec::tcp(1, 2, is_v6, payload)] {
                let groups = sent(&mut engine, &[large(&spec, 1000)]);
                assert_eq!(Spec::read(&groups[0].2[0]), Spec { ttl: 63, ..spec });
                engine.clear();
            }
        }
    }
    // One of UDP that comes to nought is sent as its other form.
    let mut spec = Spec::udp(1, 2, false, &[0, 0]);
    let bytes = spec.bytes(false);
    spec.payload = bytes[26..28].to_vec();
    let packet = spec.bytes(false);
    assert_eq!(&packet[26..28], &[0xff, 0xff]);
    let groups = sent(&mut engine, &[large(&spec, 1000)]);
    assert_eq!(&groups[0].2[0][26..28], &[0xff, 0xff]);
}

#[test]
fn headers_that_contradict_each_other_are_dropped() {
    let mut engine = outbound();
    let spec = Spec::tcp(1, 2, false, &[1; 3000]);
    let packet = spec.bytes(true);
    let bad = [
        // No segment size; UDP that is TCP; the other family; a checksum elsewhere, or outside; a sort that was not asked for.
        frame(1, 0, Some((20, 16)), &packet),
        frame(5, 1000, Some((20, 6)), &packet),
        frame(4, 1000, Some((20, 16)), &packet),
        frame(1, 1000, Some((24, 16)), &packet),
        frame(0, 0, Some((20, 60_000)), &packet[..0]),
        frame(0, 0, Some((0, 2)), &Spec::udp(1, 2, false, b"x").bytes(true)),
        frame(3, 1000, Some((20, 6)), &packet),
        // Cut, and longer than it says.
        frame(1, 1000, Some((20, 16)), &packet[..packet.len() - 1]),
        frame(1, 1000, Some((20, 16)), &[&packet[..], &[0]].concat()),
        vec![0; 9],
        frame(0, 0, None, &[]),
        frame(0, 0, None, &[0x50; 40]),
    ];
    for (n, frame) in bad.iter().enumerate() {
        assert!(sent(&mut engine, std::slice::from_ref(frame)).is_empty(), "{n}");
        assert_eq!(dropped(&engine, Cause::Malformed), n as u64 + 1);
        engine.clear();
    }
    let small = Spec::udp(1, 2, false, b"x").bytes(true);
    assert!(sent(&mut engine, &[frame(0, 0, Some((20, 60_000)), &small)]).is_empty());
    assert_eq!(engine.answers().count(), 0);
}

#[test]
fn tiny_segments_cost_no_more_memory_than_others() {
    let mut engine = outbound();
    let spec = Spec::tcp(1, 2, false, &[1; 16_000]);
    assert!(sent(&mut engine, &[large(&spec, 7)]).is_empty(), "2286 segments");
    assert_eq!(dropped(&engine, Cause::Malformed), 1);
    let mut taken = 0;
    while !engine.is_full() {
        taken += 1;
        assert!(!sent(&mut engine, &[large(&spec, 8)]).is_empty());
    }
    assert!(taken <= 4 && engine.headers().len() < 512 << 10, "{taken}: {}", engine.headers().len());
    engine.clear();
    assert!(!engine.is_full());
}

#[test]
fn ipip_carries_no_ipv6() {
    let mut engine = Outbound::new(picture(1), loden_core::kernel::tunnel::Wire::Ipip, false);
    assert!(sent(&mut engine, &[large(&Spec::udp(1, 2, true, b"x"), 1000)]).is_empty());
    assert_eq!(dropped(&engine, Cause::NoRoute), 1);
    assert_eq!(sent(&mut engine, &[large(&Spec::udp(1, 2, false, b"x"), 1000)]).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What is cut is what the kernel would have cut itself; and the other host puts it together into what it was.
    #[test]
    fn cut_and_put_together_it_is_the_same(
        is_v6: bool, is_tcp: bool, len in 1_usize..65_000, size in 1_u16..1400, start: u32, is_pushed: bool, tos in 0_u8..255, id: u16,
        options in 0_usize..=10, df: bool,
    ) {
        let (size, payload) = (size.max(70), (0..len).map(|n| (n * 7 + n / 256) as u8).collect::<Vec<u8>>());
        let flags = if is_pushed { ACK | PSH } else { ACK };
        let mut spec = if is_tcp { Spec::tcp(1, 2, is_v6, &payload) } else { Spec::udp(1, 2, is_v6, &payload) };
        if is_tcp {
            (spec.tcp, spec.options) = (Some((start, flags)), vec![1; options * 4]);
        }
        spec.payload.truncate(65_535 - spec.header_len());
        let size = size.min(MTU as u16 - spec.header_len() as u16);
        (spec.tos, spec.id, spec.dont_fragment) = (tos, if is_v6 { 7 } else { id }, is_v6 || df);
        let frame = large(&spec, size);
        let groups = sent(&mut Outbound::new(picture(1), WIRE, true), std::slice::from_ref(&frame));
        let packets: Vec<Vec<u8>> = groups.into_iter().flat_map(|(_, _, packets)| packets).collect();
        let wanted: Vec<Vec<u8>> = if spec.payload.len() > usize::from(size) {
            whole(&frame).iter().map(|packet| hops_later(packet, 1)).collect()
        } else {
            vec![hops_later(&spec.bytes(false), 1)]
        };
        prop_assert_eq!(&packets, &wanted);
        // Of the outer mark nothing is known here: the inner one stays.
        let frames = received(&mut Inbound::new(picture(2), WIRE, true), at(1), 0, &packets);
        // As few as the kernel takes.
        prop_assert_eq!(frames.len(), packets.len().div_ceil(if is_tcp { 1000 } else { 64 }));
        let again: Vec<Vec<u8>> = frames.iter().flat_map(|frame| whole(frame)).collect();
        prop_assert_eq!(again, wanted.iter().map(|packet| hops_later(packet, 1)).collect::<Vec<_>>());
    }
}
