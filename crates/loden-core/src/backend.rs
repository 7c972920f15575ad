//! Backends: from the view to the kernel objects that carry a pool's traffic. A file each; a backend talks to nobody.
//!
//! A pool's traffic to a peer goes by the pool's own backend as soon as that peer has published that it can take it in,
//! else by one that it still takes in: so a cluster changes its backend while traffic flows ([`reach`]).

mod end;
mod engine;
mod host_gw;
mod ipip;
mod segment;
mod udp;
mod underlays;
mod vxlan;

use std::net::IpAddr;

use crate::config::ConfigError;
use crate::desired::Wishes;
use crate::model::{BackendConfig, Block, Family, IfName, Node, Pool, Receive};
use crate::underlay::Underlay;
use crate::view::View;

pub use end::TunnelEnd;
pub(crate) use end::{promised, promised_segments};
pub(crate) use vxlan::{Promise, asking_devices, promises};

/// One way to carry packets between nodes.
pub trait Backend {
    /// Bytes that it takes from the underlay's MTU when the outer packet is of this family.
    fn overhead(&self, underlay: Family) -> u32;

    /// The MTU that is left for a pool's packets, in bytes.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is less than the pool's family can live with.
    fn mtu(&self, cx: &Context<'_>) -> Result<u32, ConfigError>;

    /// What this host can take in once [`Backend::host`]'s objects are in the kernel.
    fn receives(&self, cx: &Context<'_>) -> Vec<Receive>;

    /// The objects that the host needs once, whoever the peers are.
    fn host(&self, cx: &Context<'_>, out: &mut Wishes);

    /// The objects that reach a peer's blocks (at least one, lowest first).
    ///
    /// # Errors
    /// Why the peer cannot be reached this way, and what to do; no wish has been made then.
    fn peer(&self, cx: &Context<'_>, peer: &Node, blocks: &[&Block], out: &mut Wishes) -> Result<(), String>;

    /// The objects without which a peer's packets are not taken in, or none let out to it, whatever this host sends to it with.
    fn admit(&self, _cx: &Context<'_>, _peer: &Node, _blocks: &[&Block], _out: &mut Wishes) {}

    /// The answer when the kernel asks, on a device of this backend's, for an address in a block of the peer's.
    fn answer(&self, _cx: &Context<'_>, _peer: &Node, _asked: (IfName, IpAddr), _out: &mut Wishes) {}
}

/// What a backend may look at.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The cluster.
    pub view: &'a View,
    /// The host's external interface.
    pub underlay: &'a Underlay,
    /// The pool that is to be carried.
    pub pool: &'a Pool,
}

impl BackendConfig {
    /// The backend with these options.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        match self {
            Self::Vxlan(config) => config,
            Self::HostGw(config) => config,
            Self::Udp(config) => config,
            Self::Ipip(config) => config,
        }
    }

    /// Whether the peer has published that it can take in what this backend sends.
    #[must_use]
    pub fn is_ready_at(&self, peer: &Node) -> bool {
        peer.receives.iter().any(|receive| match (self, receive) {
            (Self::Vxlan(config), Receive::Vxlan { vni, port, bridged, .. }) => {
                (*vni, *port, *bridged) == (config.vni, config.port, config.bridged)
            }
            (Self::Udp(config), Receive::Udp { port, .. }) => *port == config.port,
            (Self::HostGw(_), Receive::HostGw) | (Self::Ipip(_), Receive::Ipip) => true,
            _ => false,
        })
    }
}

/// Wishes for what reaches the peer: by the pool's own backend, else by one that is still in use. Says which, and why it is
/// not the pool's own.
///
/// A backend that this node's record does not yet name among its sends is announced first and taken only when the record
/// has come back, unless nothing else works: a peer that gave up taking it in at that very moment would not know of us.
/// The peer for its part takes back its promise before it removes the device, so that of the two one sees the other.
///
/// # Errors
/// Why no backend reaches it, and what to do.
pub fn reach<'a>(
    cx: &Context<'a>,
    peer: &Node,
    blocks: &[&Block],
    out: &mut Wishes,
) -> Result<(&'a BackendConfig, Option<String>), String> {
    let before = out.count();
    let mut obstacle = None;
    let mut unannounced = None;
    let mut chosen = None;
    for backend in cx.view.active_backends(cx.pool) {
        let cause = match try_one(cx, backend, peer, blocks, out) {
            Ok(()) if cx.view.has_announced(&cx.pool.name, backend) => {
                chosen = Some(backend);
                break;
            }
            Ok(()) => {
                let wishes = out.take_back(before);
                unannounced.get_or_insert((backend, wishes));
                None
            }
            Err(cause) => Some(cause),
        };
        // The cause that counts is the one that keeps the pool's own backend, which is first, from working.
        obstacle.get_or_insert((backend, cause));
    }
    // Put into words only when it is told: at a start no peer's backend has been announced yet.
    let in_words = |(backend, cause): (&BackendConfig, Option<String>)| {
        cause.unwrap_or_else(|| {
            format!("this node has yet to announce that it sends by {}, which it does by itself", describe(backend))
        })
    };
    let intended = unannounced.as_ref().map(|(backend, _)| *backend);
    let backend = match (chosen, unannounced) {
        (Some(backend), _) => backend,
        // Without a choice there is nothing to wait for.
        (None, Some((backend, wishes))) => {
            out.renew(wishes);
            backend
        }
        (None, None) => return Err(obstacle.map(in_words).unwrap_or_default()),
    };
    let uses = [Some(backend), intended.filter(|intended| *intended != backend)];
    out.uses.extend(uses.into_iter().flatten().map(|backend| (cx.pool.name.clone(), backend.clone())));
    Ok((backend, obstacle.filter(|_| *backend != cx.pool.backend).map(in_words)))
}

/// Wishes for what reaches the peer by this backend, if it can.
fn try_one(
    cx: &Context<'_>,
    backend: &BackendConfig,
    peer: &Node,
    blocks: &[&Block],
    out: &mut Wishes,
) -> Result<(), String> {
    if !backend.is_ready_at(peer) {
        return Err(format!(
            "it has not published that it takes in {} for pool {}; its agent does so once its kernel is ready: look at \
             `loden status` there",
            describe(backend),
            cx.pool.name
        ));
    }
    backend.backend().mtu(cx).map_err(|error| error.to_string())?;
    backend.backend().peer(cx, peer, blocks, out)
}

/// The backend with what tells it apart, for people.
pub(crate) fn describe(backend: &BackendConfig) -> String {
    match backend {
        BackendConfig::Vxlan(vxlan) if vxlan.bridged => {
            format!("VXLAN over an extended bridge (VNI {}, UDP port {})", vxlan.vni, vxlan.port)
        }
        BackendConfig::Vxlan(vxlan) => {
            let control = if vxlan.asks() { ", by answered misses" } else { "" };
            format!("VXLAN (VNI {}, UDP port {}{control})", vxlan.vni, vxlan.port)
        }
        BackendConfig::HostGw(_) => "routed packets (host-gw)".to_owned(),
        BackendConfig::Udp(udp) => format!("UDP (port {})", udp.port),
        BackendConfig::Ipip(_) => "IPIP".to_owned(),
    }
}

/// The MTU that `overhead` leaves of the underlay's, or of `given` if the pool's configuration says what to start from.
fn mtu_inside(cx: &Context<'_>, kind: &str, given: Option<u32>, overhead: u32) -> Result<u32, ConfigError> {
    let (pool, family, ifname) = (cx.pool, cx.pool.cidr.family(), cx.underlay.ifname);
    let least = family.min_mtu();
    let whole = given.unwrap_or(cx.underlay.mtu);
    if let Some(inside) = whole.checked_sub(overhead).filter(|inside| *inside >= least) {
        return Ok(inside);
    }
    let takes = if overhead > 0 { format!("{kind} takes {overhead} of them, and ") } else { String::new() };
    let needs = format!("{takes}{family} needs at least {least}: at least {} is needed there", least + overhead);
    Err(match given {
        Some(given) => ConfigError::Invalid {
            key: format!("pool.{}.backend.mtu", pool.name),
            value: given.to_string(),
            meant: needs,
        },
        None => ConfigError::Invalid {
            key: format!("pool.{}.backend.type", pool.name),
            value: kind.to_owned(),
            meant: format!("the MTU of {ifname} is {whole} bytes; {needs}"),
        },
    })
}
