//! Bare packets in UDP: a TUN device leads the pool's packets to an engine in the agent, which sends each to the port of the
//! host that owns its block. flannel's wire: the payload is the packet, with nothing before it.

use super::underlays::{common, own_first, underlays};
use super::{Backend, Context, engine, mtu_inside};
use crate::config::ConfigError;
use crate::desired::Wishes;
use crate::kernel::tunnel::{Destination, Wire};
use crate::model::{Block, Family, IfName, Node, Receive, UdpConfig};

impl Backend for UdpConfig {
    /// UDP 8, and the outer IP header: 20 or 40.
    fn overhead(&self, underlay: Family) -> u32 {
        if underlay == Family::V4 { 28 } else { 48 }
    }

    fn mtu(&self, cx: &Context<'_>) -> Result<u32, ConfigError> {
        let overhead = underlays(cx).map(|(family, _)| self.overhead(family)).max().unwrap_or(28);
        mtu_inside(cx, "udp", None, overhead)
    }

    fn receives(&self, cx: &Context<'_>) -> Vec<Receive> {
        underlays(cx).map(|(underlay, _)| Receive::Udp { underlay, port: self.port, bursts: true }).collect()
    }

    fn host(&self, cx: &Context<'_>, out: &mut Wishes) {
        let (Some(dev), Ok(mtu)) = (device(self.port), self.mtu(cx)) else { return };
        engine::host(cx, dev, Wire::Udp { port: self.port }, mtu, out);
    }

    fn peer(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) -> Result<(), String> {
        self.destination(cx, peer)?;
        let Some(dev) = device(self.port) else { return Ok(()) };
        engine::routes(cx, dev, blocks, out);
        Ok(())
    }

    fn admit(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) {
        let Some(dev) = device(self.port) else { return };
        engine::admit(dev, peer, self.destination(cx, peer).ok(), blocks, out);
    }
}

impl UdpConfig {
    fn destination(&self, cx: &Context<'_>, peer: &Node) -> Result<Destination, String> {
        let end_at = |family| {
            let bursts = peer.receives.iter().find_map(|receive| match *receive {
                Receive::Udp { underlay, port, bursts } if (underlay, port) == (family, self.port) => Some(bursts),
                _ => None,
            });
            bursts.filter(|_| underlays(cx).any(|(ours, _)| ours == family))
        };
        let (bursts, addr) = common(cx, own_first(cx), peer, &format!("UDP port {}", self.port), end_at)?;
        Ok(Destination { addr, port: self.port, bursts })
    }
}

/// The port of a device of these names.
pub(super) fn port_of(dev: IfName) -> Option<u16> {
    let usual = UdpConfig::default().port;
    let other = || dev.as_str().strip_prefix("flannel-u")?.parse().ok();
    (device(usual) == Some(dev)).then_some(usual).or_else(other)
}

/// flannel's device; one for each other port, since during a change of the port both exist.
pub(super) fn device(port: u16) -> Option<IfName> {
    let name = if port == UdpConfig::default().port { "flannel0".to_owned() } else { format!("flannel-u{port}") };
    IfName::new(&name).ok()
}
