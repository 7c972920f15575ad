//! Backends: from the view to the kernel objects that carry a pool's traffic. A file each; a backend talks to nobody.
//!
//! A pool's traffic to a peer goes by the pool's own backend as soon as that peer has published that it can take it in,
//! else by one that it still takes in: so a cluster changes its backend while traffic flows ([`reach`]).

mod host_gw;
mod vxlan;

use crate::config::ConfigError;
use crate::desired::Wishes;
use crate::model::{BackendConfig, Block, Family, Node, Pool, Receive};
use crate::underlay::Underlay;
use crate::view::View;

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
        }
    }

    /// Whether the peer has published that it can take in what this backend sends.
    #[must_use]
    pub fn is_ready_at(&self, peer: &Node) -> bool {
        peer.receives.iter().any(|receive| match (self, receive) {
            (Self::Vxlan(config), Receive::Vxlan { vni, port, .. }) => *vni == config.vni && *port == config.port,
            (Self::HostGw(_), Receive::HostGw) => true,
            // A peer on the same segment that is sent to directly needs no VTEP for it.
            _ => false,
        })
    }
}

/// Wishes for what reaches the peer: by the pool's own backend, else by one that is still in use. Says which, and why it is
/// not the pool's own.
///
/// # Errors
/// Why no backend reaches it, and what to do.
pub fn reach<'a>(
    cx: &Context<'a>,
    peer: &Node,
    blocks: &[&Block],
    out: &mut Wishes,
) -> Result<(&'a BackendConfig, Option<String>), String> {
    let mut obstacle = None;
    for backend in cx.view.active_backends(cx.pool) {
        let result = if backend.is_ready_at(peer) {
            backend.backend().peer(cx, peer, blocks, out)
        } else {
            Err(format!(
                "it has not published that it takes in {} for pool {}; its agent does so once its kernel is ready: look \
                 at `loden status` there",
                describe(backend),
                cx.pool.name
            ))
        };
        match result {
            Ok(()) => return Ok((backend, obstacle)),
            // The cause that counts is the one that keeps the pool's own backend, which is first, from working.
            Err(cause) => drop(obstacle.get_or_insert(cause)),
        }
    }
    Err(obstacle.unwrap_or_default())
}

fn describe(backend: &BackendConfig) -> String {
    match backend {
        BackendConfig::Vxlan(vxlan) => format!("VXLAN (VNI {}, UDP port {})", vxlan.vni, vxlan.port),
        BackendConfig::HostGw(_) => "routed packets (host-gw)".to_owned(),
    }
}

/// The MTU that `overhead` leaves of `mtu_underlay`, both in bytes.
fn mtu_inside(cx: &Context<'_>, mtu_underlay: u32, overhead: u32) -> Result<u32, ConfigError> {
    let least = cx.pool.cidr.family().min_mtu();
    match mtu_underlay.checked_sub(overhead).filter(|inside| *inside >= least) {
        Some(inside) => Ok(inside),
        None => Err(ConfigError::Invalid {
            key: format!("pool.{}.backend", cx.pool.name),
            value: cx.pool.backend.kind().to_owned(),
            meant: format!(
                "the MTU of {} is {mtu_underlay} bytes and {} takes {overhead} of them; {} needs at least {least}",
                cx.underlay.ifname,
                cx.pool.backend.kind(),
                cx.pool.cidr.family()
            ),
        }),
    }
}
