//! The sorts of links as attributes: what each is made with, and how it is read.

use loden_core::kernel::link::{Bridge, Ipip, LinkKind, Vxlan};
use loden_core::model::Vni;

use super::ifla;
use crate::netlink::attr::{Attrs, Writer, ip, text, u16_at, u32_at};

/// `IFLA_BR_*`, `IFLA_VXLAN_*`, `IFLA_IPTUN_*`, `IFLA_TUN_*`: within `IFLA_INFO_DATA`.
mod data {
    pub const BR_VLAN_FILTERING: u16 = 7;
    pub const VXLAN_ID: u16 = 1;
    pub const VXLAN_GROUP: u16 = 2;
    pub const VXLAN_LINK: u16 = 3;
    pub const VXLAN_LOCAL: u16 = 4;
    pub const VXLAN_LEARNING: u16 = 7;
    pub const VXLAN_LIMIT: u16 = 9;
    pub const VXLAN_PROXY: u16 = 11;
    pub const VXLAN_L2MISS: u16 = 13;
    pub const VXLAN_L3MISS: u16 = 14;
    pub const VXLAN_PORT: u16 = 15;
    pub const VXLAN_GROUP6: u16 = 16;
    pub const VXLAN_LOCAL6: u16 = 17;
    pub const VXLAN_GBP: u16 = 23;
    pub const IPTUN_LINK: u16 = 1;
    pub const IPTUN_LOCAL: u16 = 2;
    pub const IPTUN_REMOTE: u16 = 3;
    pub const TUN_TYPE: u16 = 3;
    pub const TUN_PI: u16 = 4;
    pub const TUN_VNET_HDR: u16 = 5;
    pub const TUN_PERSIST: u16 = 6;
    pub const TUN_MULTI_QUEUE: u16 = 7;
}

/// `IFLA_LINKINFO`. A living VXLAN device takes no port, GBP or VNI (`vxlan_nl2conf`, drivers/net/vxlan/vxlan_core.c).
pub(super) fn write(w: &mut Writer, kind: &LinkKind, underlay: Option<u32>, old: Option<&LinkKind>) {
    let info = w.nest(ifla::LINKINFO);
    w.text(ifla::INFO_KIND, kind.name());
    match kind {
        LinkKind::Vxlan(vxlan) => {
            let nest = w.nest(ifla::INFO_DATA);
            if old.is_none() {
                w.u32(data::VXLAN_ID, vxlan.vni.get());
                w.be16(data::VXLAN_PORT, vxlan.port);
                if vxlan.gbp {
                    w.flag(data::VXLAN_GBP);
                }
                if vxlan.reports_misses {
                    for attr in [data::VXLAN_PROXY, data::VXLAN_L2MISS, data::VXLAN_L3MISS] {
                        w.u8(attr, 1);
                    }
                }
                if vxlan.most_entries != 0 {
                    w.u32(data::VXLAN_LIMIT, vxlan.most_entries);
                }
            }
            if let Some(group) = vxlan.group {
                w.ip(if group.is_ipv4() { data::VXLAN_GROUP } else { data::VXLAN_GROUP6 }, group);
            }
            if let Some(underlay) = underlay {
                w.u32(data::VXLAN_LINK, underlay);
            }
            if let Some(local) = vxlan.local {
                w.ip(if local.is_ipv4() { data::VXLAN_LOCAL } else { data::VXLAN_LOCAL6 }, local);
            }
            w.u8(data::VXLAN_LEARNING, vxlan.learning.into());
            w.close(nest);
        }
        LinkKind::Bridge(bridge) => {
            let nest = w.nest(ifla::INFO_DATA);
            w.u8(ifla::BR_MCAST_SNOOPING, bridge.mcast_snooping.into());
            // A kernel without it refuses the attribute whatever it says (`br_vlan_filter_toggle`, net/bridge/br_private.h).
            let was = matches!(old, Some(LinkKind::Bridge(old)) if old.vlan_filtering);
            if bridge.vlan_filtering != was {
                w.u8(data::BR_VLAN_FILTERING, bridge.vlan_filtering.into());
            }
            w.close(nest);
        }
        LinkKind::Ipip(ipip) => {
            let nest = w.nest(ifla::INFO_DATA);
            if let Some(underlay) = underlay {
                w.u32(data::IPTUN_LINK, underlay);
            }
            if let Some(local) = ipip.local {
                w.ip(data::IPTUN_LOCAL, local);
            }
            w.close(nest);
        }
        // A TUN device is made by its file ([`crate::tun`]), and a living one takes nothing here.
        LinkKind::Tun | LinkKind::Veth { .. } | LinkKind::Other(_) => {}
    }
    w.close(info);
}

/// What `IFLA_LINKINFO` says, and the number of the link that carries a tunnel's outer packets.
pub(super) fn parse(info: Option<Attrs<'_>>) -> (LinkKind, Option<u32>) {
    let Some(info) = info else { return (LinkKind::Other(String::new()), None) };
    let attrs = info.find(ifla::INFO_DATA).map(Attrs::new).unwrap_or(Attrs::new(&[]));
    let number = |kind| attrs.find(kind).and_then(|bytes| u32_at(bytes, 0));
    let byte = |kind| attrs.find(kind).and_then(|bytes| bytes.first().copied());
    match info.find(ifla::INFO_KIND).and_then(text).unwrap_or_default() {
        "vxlan" => {
            let Some(vni) = number(data::VXLAN_ID).and_then(|vni| Vni::new(vni).ok()) else {
                return (LinkKind::Other("vxlan without a VNI of its own".to_owned()), None);
            };
            let port = attrs.find(data::VXLAN_PORT).and_then(|b| u16_at(b, 0)).map_or(0, u16::from_be);
            let vxlan = Vxlan {
                vni,
                underlay: None,
                local: attrs
                    .find(data::VXLAN_LOCAL)
                    .or_else(|| attrs.find(data::VXLAN_LOCAL6))
                    .and_then(ip)
                    .filter(|addr| !addr.is_unspecified()),
                port,
                learning: byte(data::VXLAN_LEARNING) == Some(1),
                gbp: attrs.find(data::VXLAN_GBP).is_some(),
                group: attrs
                    .find(data::VXLAN_GROUP)
                    .or_else(|| attrs.find(data::VXLAN_GROUP6))
                    .and_then(ip)
                    .filter(|addr| addr.is_multicast()),
                reports_misses: [data::VXLAN_PROXY, data::VXLAN_L2MISS, data::VXLAN_L3MISS].map(byte) == [Some(1); 3],
                most_entries: number(data::VXLAN_LIMIT).unwrap_or(0),
            };
            (LinkKind::Vxlan(vxlan), number(data::VXLAN_LINK).filter(|index| *index != 0))
        }
        "bridge" => {
            let is_set = |kind| byte(kind) == Some(1);
            let (snooping, filtering) = (is_set(ifla::BR_MCAST_SNOOPING), is_set(data::BR_VLAN_FILTERING));
            (LinkKind::Bridge(Bridge { mcast_snooping: snooping, vlan_filtering: filtering }), None)
        }
        "ipip" => {
            let addr = |kind| attrs.find(kind).and_then(ip).filter(|addr| !addr.is_unspecified());
            let underlay = number(data::IPTUN_LINK).filter(|index| *index != 0);
            match addr(data::IPTUN_REMOTE) {
                Some(remote) => (LinkKind::Other(format!("ipip to {remote} alone")), None),
                None => (LinkKind::Ipip(Ipip { underlay: None, local: addr(data::IPTUN_LOCAL) }), underlay),
            }
        }
        "tun" => {
            let is_on = |kind| byte(kind) == Some(1);
            let has_all = [data::TUN_TYPE, data::TUN_VNET_HDR, data::TUN_PERSIST, data::TUN_MULTI_QUEUE].map(is_on);
            if has_all == [true; 4] && !is_on(data::TUN_PI) {
                (LinkKind::Tun, None)
            } else {
                (LinkKind::Other("tun of one queue, or without a header, or a running program's".to_owned()), None)
            }
        }
        "veth" => (LinkKind::Veth { pod: None }, None),
        other => (LinkKind::Other(other.to_owned()), None),
    }
}
