//! From the wire to the device: what is put together was whole and in order, and comes apart as it came.

use std::collections::BTreeMap;

use loden_core::kernel::tunnel::Wire;
use loden_tunnel::engine::Inbound;
use proptest::prelude::*;

use crate::support::*;

fn inbound(has_uso: bool) -> Inbound {
    Inbound::new(picture(2), WIRE, has_uso)
}

/// Segments of one flow, of `size` bytes each.
fn segments(spec: &Spec, size: usize, count: usize) -> Vec<Spec> {
    let segment = |n: usize| Spec {
        tcp: spec.tcp.map(|(sequence, flags)| (sequence + (n * size) as u32, flags)),
        id: if spec.src.is_ipv4() { spec.id + n as u16 } else { spec.id },
        payload: vec![n as u8; size],
        ..spec.clone()
    };
    (0..count).map(segment).collect()
}

fn bytes(specs: &[Spec]) -> Vec<Vec<u8>> {
    specs.iter().map(|spec| spec.bytes(false)).collect()
}

/// How many packets each frame for the device was.
fn shape(frames: &[Vec<u8>]) -> Vec<usize> {
    frames.iter().map(|frame| whole(frame).len()).collect()
}

#[test]
fn segments_become_one_packet() {
    for is_v6 in [false, true] {
        for spec in [Spec::tcp(1, 2, is_v6, b""), Spec::udp(1, 2, is_v6, b"")] {
            let packets = bytes(&segments(&spec, 1000, 60));
            let frames = received(&mut inbound(true), at(1), 0, &packets);
            assert_eq!(shape(&frames), [60]);
            let wanted: Vec<_> = packets.iter().map(|packet| hops_later(packet, 1)).collect();
            assert_eq!(whole(&frames[0]), wanted);
            // More than a packet can hold becomes two.
            let frames = received(&mut inbound(true), at(1), 0, &bytes(&segments(&spec, 1000, 70)));
            assert_eq!(shape(&frames).iter().sum::<usize>(), 70);
            assert_eq!(frames.len(), 2);
        }
        // And more than one call can write, or the kernel takes.
        let tiny = |spec, count| shape(&received(&mut inbound(true), at(1), 0, &bytes(&segments(&spec, 4, count))));
        assert_eq!(tiny(Spec::tcp(1, 2, is_v6, b""), 2100), [1000, 1000, 100]);
        assert_eq!(tiny(Spec::udp(1, 2, is_v6, b""), 150), [64, 64, 22]);
        // A device that cannot cut datagrams gets them as they came.
        let spec = Spec::udp(1, 2, is_v6, b"");
        assert_eq!(shape(&received(&mut inbound(false), at(1), 0, &bytes(&segments(&spec, 1000, 3)))), [1, 1, 1]);
    }
}

#[test]
fn what_differs_is_not_put_together() {
    type Change = (&'static str, fn(&mut Spec));
    let changes: [Change; 11] = [
        ("sequence", |spec| spec.tcp = spec.tcp.map(|(sequence, flags)| (sequence + 1, flags))),
        ("FIN", |spec| spec.tcp = spec.tcp.map(|(sequence, flags)| (sequence, flags | FIN))),
        ("ECE", |spec| spec.tcp = spec.tcp.map(|(sequence, flags)| (sequence, flags | ECE))),
        ("CWR", |spec| spec.tcp = spec.tcp.map(|(sequence, flags)| (sequence, flags | CWR))),
        ("no ACK", |spec| spec.tcp = spec.tcp.map(|(sequence, _)| (sequence, 0))),
        ("options", |spec| spec.options[4] ^= 1),
        ("length of options", |spec| spec.options.truncate(4)),
        ("hops", |spec| spec.ttl -= 1),
        ("mark", |spec| spec.tos ^= 2),
        ("port", |spec| spec.ports.0 += 1),
        ("larger", |spec| spec.payload.push(0)),
    ];
    for is_v6 in [false, true] {
        for (what, change) in &changes {
            let mut specs = segments(&Spec::tcp(1, 2, is_v6, b""), 100, 3);
            change(&mut specs[1]);
            let packets = bytes(&specs);
            let frames = received(&mut inbound(true), at(1), 0, &packets);
            let first = whole(&frames[0]);
            assert_eq!(first[0], hops_later(&packets[0], 1));
            assert!(first.get(1) != Some(&hops_later(&packets[1], 1)), "{what}");
            if *what != "port" {
                assert_eq!(shape(&frames)[0], 1, "{what}: nothing overtakes within a flow");
            }
        }
    }
    // Acknowledgement, reserved bits, window, urgent pointer.
    for at in [8, 11, 12, 14, 15, 18, 19] {
        for is_v6 in [false, true] {
            let mut packets = bytes(&segments(&Spec::tcp(1, 2, is_v6, b""), 100, 2));
            let header = if is_v6 { 40 } else { 20 };
            packets[1][header + at] ^= 1;
            // The sum is as it was: what one word has more, another has less.
            let word = header + 100;
            let sum = total(&packets[1][header + at / 2 * 2..][..2]);
            let was = sum ^ if at % 2 == 0 { 0x100 } else { 1 };
            let payload = total(
                &[packets[1][word..word + 2].to_vec(), was.to_be_bytes().to_vec(), (!sum).to_be_bytes().to_vec()]
                    .concat(),
            );
            packets[1][word..word + 2].copy_from_slice(&payload.to_be_bytes());
            assert_eq!(received(&mut inbound(true), crate::support::at(1), 0, &packets).len(), 2, "byte {at}");
        }
    }
    let mut specs = segments(&Spec { dont_fragment: false, ..Spec::tcp(1, 2, false, b"") }, 100, 3);
    specs[1].id += 1;
    assert_eq!(shape(&received(&mut inbound(true), at(1), 0, &bytes(&specs))), [1, 1, 1]);
    let mut specs = segments(&Spec::tcp(1, 2, false, b""), 100, 3);
    specs.iter_mut().for_each(|spec| spec.id = 0);
    assert_eq!(received(&mut inbound(true), at(1), 0, &bytes(&specs)).len(), 1, "the number says nothing there");
}

#[test]
fn a_shorter_one_or_a_push_ends_it() {
    let mut specs = segments(&Spec::tcp(1, 2, false, b""), 100, 5);
    specs[1].tcp = specs[1].tcp.map(|(sequence, flags)| (sequence, flags | PSH));
    assert_eq!(shape(&received(&mut inbound(true), at(1), 0, &bytes(&specs))), [2, 3]);
    let mut specs = segments(&Spec::udp(1, 2, false, b""), 100, 5);
    specs[1].payload.pop();
    assert_eq!(shape(&received(&mut inbound(true), at(1), 0, &bytes(&specs))), [2, 3]);
}

#[test]
fn datagrams_without_a_checksum_and_fragments_stay_as_they_are() {
    let mut packets = bytes(&segments(&Spec::udp(1, 2, false, b""), 100, 2));
    packets.iter_mut().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(received(&mut inbound(true), at(1), 0, &packets).len(), 2);
    // Even if it would be nought anyhow.
    let mut packets = bytes(&segments(&Spec::udp(1, 2, false, b""), 100, 2));
    for packet in &mut packets {
        let sum = [packet[26], packet[27]];
        let payload = total(&[[packet[28], packet[29]], sum].concat());
        packet[28..30].copy_from_slice(&payload.to_be_bytes());
        packet[26..28].fill(0);
        let mut other = packet.clone();
        other[26..28].fill(0xff);
        Spec::read(&other);
    }
    assert_eq!(received(&mut inbound(true), at(1), 0, &packets).len(), 2);

    // A fragment between two segments of its flow is not overtaken by the second.
    let mut specs = segments(&Spec { dont_fragment: false, ..Spec::udp(1, 2, false, b"") }, 100, 3);
    specs[2].id = specs[1].id;
    let mut packets = bytes(&specs);
    packets[1][6..8].copy_from_slice(&[0, 7]);
    let sum = {
        packets[1][10..12].fill(0);
        !total(&packets[1][..20])
    };
    packets[1][10..12].copy_from_slice(&sum.to_be_bytes());
    let frames = received(&mut inbound(true), at(1), 0, &packets);
    assert_eq!(frames.len(), 3);
    assert_eq!(frames[1][10 + 28..], packets[1][28..]);
}

#[test]
fn marks_of_congestion_come_through() {
    let with = |tos| Spec { tos, ..Spec::tcp(1, 2, false, b"x") }.bytes(false);
    let tos_of = |inner, outer| {
        let frames = received(&mut inbound(true), at(1), outer, &[with(inner)]);
        frames.first().map(|frame| Spec::read(&frame[10..]).tos)
    };
    // RFC 6040 figure 4; the other six bits are the inner ones.
    let figure = [
        (0, [Some(0), Some(0), Some(0), None]),
        (1, [Some(1), Some(1), Some(1), Some(3)]),
        (2, [Some(2), Some(1), Some(2), Some(3)]),
        (3, [Some(3), Some(3), Some(3), Some(3)]),
    ];
    for (inner, wanted) in figure {
        for (outer, wanted) in wanted.iter().enumerate() {
            let got = tos_of(0xb8 | inner, 0x40 | outer as u8);
            assert_eq!(got, wanted.map(|ecn| 0xb8 | ecn), "inner {inner} outer {outer}");
        }
    }
    let v6 = Spec { tos: 0xba, ..Spec::tcp(1, 2, true, b"x") }.bytes(false);
    let frames = received(&mut inbound(true), at(1), 3, &[v6]);
    assert_eq!(Spec::read(&frames[0][10..]).tos, 0xbb);
    // Put together with others that were marked as well, and not with those that were not.
    let packets = bytes(&segments(&Spec { tos: 2, ..Spec::tcp(1, 2, false, b"") }, 100, 4));
    let mut engine = inbound(true);
    let mut frames = received(&mut engine, at(1), 3, &packets[..2]);
    engine.clear();
    frames.extend(received(&mut engine, at(1), 0, &packets[2..]));
    assert_eq!(shape(&frames), [2, 2]);
    assert!(whole(&frames[0]).iter().all(|packet| packet[1] == 3));
}

#[test]
fn what_the_kernel_has_merged_of_ipip_is_handed_on_as_that() {
    let mut engine = Inbound::new(picture(2), Wire::Ipip, true);
    let large = Spec::tcp(1, 2, false, &[5; 4000]);
    let begun = Spec::tcp(1, 2, false, b"small");
    let frames = received(&mut engine, at(1), 0, &[large.bytes(true), begun.bytes(true), begun.bytes(false)]);
    let word = |frame: &[u8], at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
    assert_eq!((frames[0][0], frames[0][1], word(&frames[0], 4)), (1, 1, MTU as u16 - 52));
    assert_eq!((frames[1][0], frames[1][1], word(&frames[1], 6), word(&frames[1], 8)), (1, 0, 20, 16));
    assert_eq!((frames[2][0], frames[2][1]), (0, 0));
    engine.clear();
    // Nobody can say where datagrams were put together, and a packet that is large and wrong is neither.
    let datagrams = Spec::udp(1, 2, false, &[5; 4000]);
    assert!(received(&mut engine, at(1), 0, &[datagrams.bytes(true), large.bytes(false)]).is_empty());
}

/// Forgets the number of a packet that cannot be cut: it says nothing (RFC 6864).
fn unnumbered(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
}

/// A packet of some flow, or what is done to it.
#[derive(Debug, Clone)]
struct Step {
    flow: u8,
    len: usize,
    flags: u8,
    skip: u8,
    flip: Option<usize>,
    ecn: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        (0_u8..6, prop_oneof![4 => Just(500_usize), 1 => 0_usize..1200], 0_u8..20, 0_u8..12, 0_usize..8000, 0_u8..30);
    let step = step.prop_map(|(flow, len, flags, skip, flip, ecn)| Step {
        flow,
        len,
        flags: match flags {
            0 => ACK | PSH,
            1 => ACK | FIN,
            2 => 2,
            _ => ACK,
        },
        skip: u8::from(skip == 0),
        flip: (flip < 1000).then_some(flip),
        ecn: if ecn == 0 { 3 } else { 2 },
    });
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever comes, it leaves in the order of its flow, each byte as it was, and what is broken alone.
    #[test]
    fn every_flow_comes_out_as_it_came(steps in steps()) {
        let mut next = BTreeMap::new();
        let (mut packets, mut wanted) = (Vec::new(), BTreeMap::<_, Vec<Vec<u8>>>::new());
        for step in &steps {
            let (is_v6, is_tcp) = (step.flow & 1 != 0, step.flow & 2 != 0);
            let at: &mut (u32, u16) = next.entry(step.flow).or_insert((u32::MAX - 2000, 65_530));
            let payload = vec![step.flow ^ at.1 as u8; step.len];
            let mut spec = if is_tcp { Spec::tcp(1, 2, is_v6, &payload) } else { Spec::udp(1, 2, is_v6, &payload) };
            (spec.ports.0, spec.tos) = (u16::from(step.flow), step.ecn);
            if !is_v6 {
                (spec.id, spec.dont_fragment) = (at.1, step.flow & 4 != 0);
            }
            if is_tcp {
                spec.tcp = Some((at.0, step.flags));
            }
            *at = (at.0.wrapping_add(step.len as u32 + u32::from(step.skip)), at.1.wrapping_add(1 + u16::from(step.skip)));
            let (mut packet, header) = (spec.bytes(false), spec.header_len());
            let mut passed = hops_later(&packet, 1);
            if let Some(flip) = step.flip.filter(|_| step.len > 0) {
                let byte = header + flip % step.len;
                packet[byte] ^= 0x55;
                passed[byte] ^= 0x55;
            }
            unnumbered(&mut passed);
            packets.push(packet);
            wanted.entry(step.flow).or_default().push(passed);
        }
        let frames = received(&mut inbound(true), at(1), 0, &packets);
        let mut got = BTreeMap::<u8, Vec<Vec<u8>>>::new();
        for mut packet in frames.iter().flat_map(|frame| whole(frame)) {
            unnumbered(&mut packet);
            let port = if packet[0] >> 4 == 4 { 21 } else { 41 };
            got.entry(packet[port]).or_default().push(packet);
        }
        prop_assert_eq!(got, wanted);
    }
}
