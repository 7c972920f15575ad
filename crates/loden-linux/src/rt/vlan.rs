//! VLANs of a bridge's ports as messages: of family `AF_BRIDGE`, about one port each (linux/if_bridge.h).

use std::collections::BTreeMap;

use loden_core::model::PortVlans;

use super::link::{self, INFO};
use crate::error::LinuxError;
use crate::netlink::Socket;
use crate::netlink::attr::{Attrs, Writer, u16_at, u32_at};
use crate::netlink::socket::DUMP;

/// `IFLA_BRIDGE_VLAN_INFO`: `struct bridge_vlan_info`, flags and number.
const VLAN_INFO: u16 = 2;
/// `BRIDGE_VLAN_INFO_*`.
const PVID: u16 = 1 << 1;
const UNTAGGED: u16 = 1 << 2;
const RANGE_BEGIN: u16 = 1 << 3;
const RANGE_END: u16 = 1 << 4;
/// `RTEXT_FILTER_BRVLAN`: the listing has VLANs, one by one.
const WITH_VLANS: u32 = 1 << 1;

/// How a port is in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// What comes in without a tag is of it.
    pub is_access: bool,
    /// What goes out of it has no tag.
    pub untagged: bool,
}

/// A port's VLANs by their numbers.
pub type Memberships = BTreeMap<u16, Membership>;

/// What a port is to be in, besides the bridge's usual VLAN.
#[must_use]
pub fn wanted(vlans: &PortVlans) -> Memberships {
    let tagged = Membership { is_access: false, untagged: false };
    let trunk = vlans.trunk.iter().flat_map(|(first, last)| *first..=*last).map(|vlan| (vlan, tagged));
    trunk.chain(vlans.access.map(|vlan| (vlan, Membership { is_access: true, untagged: true }))).collect()
}

/// Puts a port into VLANs.
pub fn join(w: &mut Writer, port: u32, vlans: &PortVlans) {
    begin(w, link::SET, port);
    let spec = w.nest(link::ifla::AF_SPEC);
    for (first, last) in &vlans.trunk {
        if first == last {
            info(w, 0, *first);
        } else {
            info(w, RANGE_BEGIN, *first);
            info(w, RANGE_END, *last);
        }
    }
    // Last, so that it is the one that frames without a tag are of.
    if let Some(vlan) = vlans.access {
        info(w, PVID | UNTAGGED, vlan);
    }
    w.close(spec);
    w.end();
}

/// Takes a port out of one.
pub fn leave(w: &mut Writer, port: u32, vlan: u16) {
    begin(w, link::DEL, port);
    let spec = w.nest(link::ifla::AF_SPEC);
    info(w, 0, vlan);
    w.close(spec);
    w.end();
}

fn begin(w: &mut Writer, kind: u16, port: u32) {
    w.begin(kind, 0);
    w.raw(&of_bridge(port));
}

fn of_bridge(port: u32) -> [u8; INFO] {
    let mut head = link::info(port, 0, 0);
    head[0] = libc::AF_BRIDGE as u8;
    head
}

fn info(w: &mut Writer, flags: u16, vlan: u16) {
    let [a, b] = flags.to_ne_bytes();
    let [c, d] = vlan.to_ne_bytes();
    w.bytes(VLAN_INFO, &[a, b, c, d]);
}

/// What a port is in.
///
/// # Errors
/// [`LinuxError`].
pub fn read(socket: &mut Socket, port: u32) -> Result<Memberships, LinuxError> {
    let mut w = Writer::default();
    w.begin(link::GET, DUMP);
    w.raw(&of_bridge(0));
    w.u32(link::ifla::EXT_MASK, WITH_VLANS);
    w.end();
    socket.dump("list VLANs of ports", &mut w, Memberships::new, |all, message| {
        if u32_at(message.payload, 4) == Some(port) {
            all.extend(parse(message.payload));
        }
    })
}

fn parse(payload: &[u8]) -> impl Iterator<Item = (u16, Membership)> + '_ {
    let spec = Attrs::behind(payload, INFO).find(link::ifla::AF_SPEC).map(Attrs::new);
    let infos = spec.into_iter().flatten().filter(|(kind, _)| *kind == VLAN_INFO);
    infos.filter_map(|(_, bytes)| {
        let flags = u16_at(bytes, 0)?;
        Some((u16_at(bytes, 2)?, Membership { is_access: flags & PVID != 0, untagged: flags & UNTAGGED != 0 }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of hexadecimal digits.
    fn bytes(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.split_whitespace().flat_map(str::bytes).collect();
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|n| n as u8).unwrap_or(0);
        digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    #[test]
    fn as_the_program_bridge_says_it() {
        // What iproute2 6.1 sends for `bridge vlan add dev PORT vid 5 pvid untagged`, but for the mark of nested attributes (0x80),
        // which it leaves out.
        let mut w = Writer::default();
        join(&mut w, 7, &PortVlans { access: Some(5), trunk: Vec::new(), keeps_default: true });
        let head = "2c000000 1300 0000 00000000 00000000";
        let of_port = "07 00 0000 07000000 00000000 00000000";
        assert_eq!(without_sequence(&w), bytes(&format!("{head} {of_port} 0c00 1a80 0800 0200 0600 0500")));
    }

    #[test]
    fn ranges_have_two_ends() {
        // `bridge vlan add dev PORT vid 100-4094`, and `bridge vlan del dev PORT vid 1`.
        let mut w = Writer::default();
        join(&mut w, 7, &PortVlans { access: None, trunk: vec![(10, 10), (100, 4094)], keeps_default: false });
        let spec = "1c00 1a80 0800 0200 0000 0a00 0800 0200 0800 6400 0800 0200 1000 fe0f";
        assert!(w.as_slice().ends_with(&bytes(spec)), "{:02x?}", w.as_slice());
        w.clear();
        leave(&mut w, 7, 1);
        assert!(w.as_slice().ends_with(&bytes("0c00 1a80 0800 0200 0000 0100")), "{:02x?}", w.as_slice());
        assert_eq!(w.as_slice()[4], 17, "RTM_DELLINK");
    }

    #[test]
    fn a_listing_is_what_was_asked_for() {
        let message = [&of_bridge(7)[..], &bytes("1400 1a00 0800 0200 0600 0500 0800 0200 0000 0a00")].concat();
        let vlans = PortVlans { access: Some(5), trunk: vec![(10, 10)], keeps_default: false };
        assert_eq!(parse(&message).collect::<Memberships>(), wanted(&vlans));
    }

    /// Flags (request, acknowledgement) and sequence number are the driver's.
    fn without_sequence(w: &Writer) -> Vec<u8> {
        let mut bytes = w.as_slice().to_vec();
        bytes[6..16].fill(0);
        bytes
    }
}
