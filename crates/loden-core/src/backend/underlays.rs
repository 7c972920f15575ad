//! Over which families of the underlay a pool's tunnel goes.

use std::net::IpAddr;

use super::Context;
use crate::model::{Family, Node};

/// The underlay families that a pool needs tunnel ends for, with this host's address; the one for its own traffic first. The
/// second is there only when some peer lacks the first.
pub(super) fn underlays(cx: &Context<'_>) -> impl Iterator<Item = (Family, IpAddr)> {
    let own = cx.underlay.addresses;
    let family = cx.pool.cidr.family();
    let first = if own.get(family).is_some() { family } else { family.other() };
    let second = if cx.view.some_peer_lacks(first) { Some(first.other()) } else { None };
    [Some(first), second].into_iter().flatten().filter_map(move |f| own.get(f).map(|addr| (f, addr)))
}

/// Both families, the one of the pool's own first, as far as this host has an address there.
pub(super) fn own_underlays(cx: &Context<'_>) -> impl Iterator<Item = (Family, IpAddr)> {
    let own = cx.underlay.addresses;
    let family = cx.pool.cidr.family();
    [family, family.other()].into_iter().filter_map(move |f| own.get(f).map(|addr| (f, addr)))
}

/// What the peer takes in over the underlay of the pool's own family if both sides have it, else over the other, and where the peer
/// is there.
///
/// # Errors
/// That there is no such family, with what each side has; `tunnel` says of what.
pub(super) fn common<T>(
    cx: &Context<'_>,
    peer: &Node,
    tunnel: &str,
    end_at: impl Fn(Family) -> Option<T>,
) -> Result<(T, IpAddr), String> {
    let family = cx.pool.cidr.family();
    for underlay in [family, family.other()] {
        let is_ours = underlays(cx).any(|(ours, _)| ours == underlay);
        if let (true, Some(end), Some(addr)) = (is_ours, end_at(underlay), peer.reached_at(underlay)) {
            return Ok((end, addr));
        }
    }
    let families = |list: Vec<Family>| match list.as_slice() {
        [] => "no address".to_owned(),
        list => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
    };
    Err(format!(
        "no common underlay for {tunnel}: this host has {}, the peer {}",
        families(cx.underlay.addresses.iter().map(|(family, _)| family).collect()),
        families(peer.underlay.iter().map(|(family, _)| family).collect()),
    ))
}
