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

/// The families in the order in which a pool's tunnel looks for an underlay: its own first.
pub(super) fn own_first(cx: &Context<'_>) -> [Family; 2] {
    let family = cx.pool.cidr.family();
    [family, family.other()]
}

/// What the peer takes in over the first underlay that both sides have, and where the peer is there.
///
/// # Errors
/// That there is no such family, with what each side has; `tunnel` says of what. `end_at` gives nothing for an underlay that this host
/// has no end on.
pub(super) fn common<T>(
    cx: &Context<'_>,
    order: [Family; 2],
    peer: &Node,
    tunnel: &str,
    end_at: impl Fn(Family) -> Option<T>,
) -> Result<(T, IpAddr), String> {
    for underlay in order {
        if let (Some(end), Some(addr)) = (end_at(underlay), peer.reached_at(underlay)) {
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
