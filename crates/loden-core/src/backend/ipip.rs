//! IP in IP (RFC 2003): by the kernel's own device where it has one, else by the engine of the UDP backend over a raw socket,
//! which is the same on the wire. IPv4 in IPv4 alone.

use super::{Backend, Context, engine, host_gw, mtu_inside};
use crate::config::ConfigError;
use crate::desired::Wishes;
use crate::kernel::link::{Ipip, LinkKind};
use crate::kernel::tunnel::{Destination, Wire};
use crate::kernel::{Key, Object, Via, default_priority};
use crate::model::{Block, Family, IfName, IpipConfig, Node, Receive};

impl Backend for IpipConfig {
    fn overhead(&self, _underlay: Family) -> u32 {
        20
    }

    fn mtu(&self, cx: &Context<'_>) -> Result<u32, ConfigError> {
        mtu_inside(cx, "ipip", None, 20)
    }

    fn receives(&self, cx: &Context<'_>) -> Vec<Receive> {
        cx.underlay.addresses.v4.map(|_| Receive::Ipip).into_iter().collect()
    }

    fn host(&self, cx: &Context<'_>, out: &mut Wishes) {
        let (Some(dev), Ok(mtu), Some(local)) = (device(), self.mtu(cx), cx.underlay.addresses.v4) else { return };
        if !cx.view.local.abilities.ipip {
            engine::host(cx, dev, Wire::Ipip, mtu, out);
            return;
        }
        engine::device(cx, dev, LinkKind::Ipip(Ipip { underlay: None, local: Some(local) }), mtu, out);
    }

    fn peer(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) -> Result<(), String> {
        if self.direct_routing && host_gw::onlink_gateway(cx, peer).is_some() {
            host_gw::direct(cx, peer, blocks, out);
            return Ok(());
        }
        let (Some(to), Some(dev)) = (destination(cx, peer), device()) else {
            return Err("IPIP goes over IPv4 alone, and one of the two hosts has no IPv4 underlay address".to_owned());
        };
        if !cx.view.local.abilities.ipip {
            engine::routes(cx, dev, blocks, out);
            return Ok(());
        }
        out.want(Key::Nexthop(dev, to.addr), Object::Nexthop, "underlay address");
        for block in blocks {
            let key = Key::Route(block.cidr, default_priority(block.cidr.family()));
            out.want(key, Object::Route(Via::Nexthop(dev, to.addr)), "route to a block");
        }
        Ok(())
    }

    fn admit(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) {
        if let Some(dev) = device().filter(|_| !cx.view.local.abilities.ipip) {
            engine::admit(dev, peer, destination(cx, peer), blocks, out);
        }
    }
}

fn destination(cx: &Context<'_>, peer: &Node) -> Option<Destination> {
    let is_ready = cx.underlay.addresses.v4.is_some() && peer.receives.contains(&Receive::Ipip);
    let addr = peer.reached_at(Family::V4).filter(|_| is_ready)?;
    // The receiving kernel has no buffer to overrun before its own: the raw socket of an engine is as large as it needs.
    Some(Destination { addr, port: 0, bursts: true })
}

/// flannel's device: the kernel's own `tunl0` may be somebody else's.
pub(super) fn device() -> Option<IfName> {
    IfName::new("flannel.ipip").ok()
}
