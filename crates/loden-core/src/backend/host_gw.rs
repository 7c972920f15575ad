//! host-gw: a peer's blocks are routed straight to its underlay address. No wrapping; all nodes on one segment.

use super::{Backend, Context, mtu_inside};
use crate::config::ConfigError;
use crate::desired::Wishes;
use crate::kernel::{Key, Object, Via, default_priority};
use crate::model::{Block, Family, HostGwConfig, Node, Receive};

impl Backend for HostGwConfig {
    fn overhead(&self, _underlay: Family) -> u32 {
        0
    }

    fn mtu(&self, cx: &Context<'_>) -> Result<u32, ConfigError> {
        mtu_inside(cx, "host-gw", None, 0)
    }

    fn receives(&self, _cx: &Context<'_>) -> Vec<Receive> {
        vec![Receive::HostGw]
    }

    fn host(&self, _cx: &Context<'_>, _out: &mut Wishes) {}

    fn peer(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) -> Result<(), String> {
        let family = cx.pool.cidr.family();
        if onlink_gateway(cx, peer).is_none() {
            let onlink: Vec<_> = cx.underlay.onlink.iter().map(ToString::to_string).collect();
            return Err(match peer.reached_at(family) {
                Some(addr) => format!(
                    "{addr} is not on-link on {} ({}): host-gw needs all nodes on one segment; use vxlan with \
                     direct_routing, which routes directly where it can",
                    cx.underlay.ifname,
                    onlink.join(", ")
                ),
                None => format!("it has no {family} underlay address, and host-gw has no tunnel to carry {family}"),
            });
        }
        direct(cx, peer, blocks, out);
        Ok(())
    }
}

/// The peer's address, if it is of the pool's family and reached without a gateway.
pub(super) fn onlink_gateway(cx: &Context<'_>, peer: &Node) -> Option<std::net::IpAddr> {
    peer.reached_at(cx.pool.cidr.family()).filter(|addr| cx.underlay.is_onlink(*addr))
}

/// One nexthop and a route a block, straight to the peer; nothing when it is not on-link.
pub(super) fn direct(cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) {
    let Some(gateway) = onlink_gateway(cx, peer) else { return };
    let dev = cx.underlay.ifname;
    out.want(Key::Nexthop(dev, gateway), Object::Nexthop, "underlay address");
    for block in blocks {
        let key = Key::Route(block.cidr, default_priority(block.cidr.family()));
        out.want(key, Object::Route(Via::Nexthop(dev, gateway)), "direct route to a block");
    }
}
