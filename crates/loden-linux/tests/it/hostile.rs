//! Bytes that no kernel sends: they are passed by, they do not end the agent.

use loden_linux::netlink::Attrs;
use loden_linux::rt::{address, link, neighbour, nexthop, route};
use proptest::prelude::*;

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all(&bytes);
    }

    /// Whole attributes with any content come further than noise.
    #[test]
    fn any_attributes_are_read_without_harm(
        head in prop::collection::vec(any::<u8>(), 16),
        attrs in prop::collection::vec((0_u16..64, prop::collection::vec(any::<u8>(), 0..24)), 0..12),
    ) {
        let mut w = loden_linux::netlink::Writer::default();
        for (kind, value) in &attrs {
            w.bytes(*kind, value);
        }
        for info in [address::INFO, link::INFO, neighbour::INFO, nexthop::INFO, route::INFO] {
            for family in [0, libc::AF_INET as u8, libc::AF_INET6 as u8, libc::AF_BRIDGE as u8] {
                let mut bytes = head[..info].to_vec();
                bytes[0] = family;
                bytes.extend_from_slice(w.as_slice());
                read_all(&bytes);
            }
        }
        let read: Vec<_> = Attrs::new(w.as_slice()).map(|(kind, value)| (kind, value.to_vec())).collect();
        prop_assert_eq!(read, attrs);
    }
}

fn read_all(bytes: &[u8]) {
    let _ = (
        address::parse(bytes),
        link::parse(bytes),
        neighbour::parse(bytes),
        nexthop::parse(bytes),
        route::parse(bytes),
    );
}
