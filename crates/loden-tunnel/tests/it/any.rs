//! What the fuzz targets hold to, for bytes that are made here: packets that are right, with some of them changed.

use proptest::prelude::*;

use crate::fuzz;
use crate::support::*;

/// A packet of some flow, as it comes off the wire, with its headers changed here and there.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop_oneof![
        3 => Just(Vec::new()),
        1 => proptest::collection::vec((0_usize..90, any::<u8>()), 1..4),
    ];
    (any::<[bool; 4]>(), 0_u32..4, prop_oneof![Just(64_usize), 0_usize..100], changes).prop_map(
        |([is_v6, is_tcp, df, is_other], n, len, changes)| {
            let payload = vec![n as u8; len];
            let mut spec = if is_tcp { Spec::tcp(1, 2, is_v6, &payload) } else { Spec::udp(1, 2, is_v6, &payload) };
            spec.ports.0 += u16::from(is_other);
            if !is_v6 {
                (spec.id, spec.dont_fragment) = (n as u16, df);
            }
            if is_tcp {
                spec.tcp = Some((n * 64, ACK));
            }
            let mut bytes = spec.bytes(false);
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn of_datagrams(packet in packet(), wire: u8, tos: u8, segment: u8) {
        fuzz::frame(&[&[wire, tos, segment], &packet[..]].concat());
    }

    #[test]
    fn of_frames(packet in packet(), flags: u8, gso in 0_u8..8, words: [u16; 4], is_right: bool) {
        let begin = if packet[0] >> 4 == 4 { 20 } else { 40 };
        let words = if is_right { [0, words[1] % 100, begin, if gso == 5 { 6 } else { 16 }] } else { words };
        let flags = if is_right { 1 } else { flags };
        fuzz::split(&[&[flags, gso], &words.map(u16::to_ne_bytes).concat()[..], &packet].concat());
    }

    #[test]
    fn of_packets_together(packets in proptest::collection::vec(packet(), 0..40)) {
        let bytes: Vec<Vec<u8>> =
            packets.iter().map(|packet| [&(packet.len() as u16).to_le_bytes(), &packet[..]].concat()).collect();
        fuzz::coalesce(&bytes.concat());
    }
}
