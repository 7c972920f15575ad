//! The guard of tunnels: their packets are taken in from the cluster's hosts alone, and none that a pod made goes to a host.
//!
//! Without it a kernel's tunnel takes in what anybody sends to its port, with any sender inside. What a pod sends to a tunnel's
//! port beyond the pools is dropped where it starts: it would leave with its host's address, which others know.

use std::net::IpAddr;

use crate::backend::TunnelEnd;
use crate::kernel::nft::{
    Chain, ChainKind, Expr, Field, Hook, HookPoint, Rule, SetKey, Table, Verdict, hosts_set, open_set,
};
use crate::masquerade::{multicast, pools_set};
use crate::model::{Family, Node, Transport};
use crate::view::View;

/// Before connections are tracked (`NF_IP_PRI_RAW`): what is dropped leaves nothing behind.
const PRIORITY: i32 = -300;
/// IPv4 in IPv4 (RFC 2003).
const IPIP: u8 = 4;

/// The hosts that may send by tunnels to this one. Those of a family that it has no address of cannot.
pub(crate) fn hosts(view: &View, node: &Node) -> impl Iterator<Item = IpAddr> {
    let own = view.local.underlay.as_ref().filter(|_| is_on(view)).map(|underlay| underlay.addresses);
    let has = move |addr: &IpAddr| own.is_some_and(|own| own.get(Family::of(*addr)).is_some());
    node.addresses().into_iter().filter(has)
}

/// Whether this host guards its tunnels: it has some, and its operator has not turned it off.
#[must_use]
pub fn is_on(view: &View) -> bool {
    view.local.rules.guard && ends(view).next().is_some()
}

/// Adds the guard's sets and rules.
pub(crate) fn add(view: &View, table: &mut Table) {
    let Some(underlay) = view.local.underlay.as_ref().filter(|_| is_on(view)) else { return };
    let mut ends: Vec<TunnelEnd> = ends(view).collect();
    ends.sort_unstable();
    let mut marks: Vec<Expr> = ends.into_iter().map(mark).collect();
    marks.dedup();
    let mut rules = Vec::new();
    for (family, _) in underlay.addresses.iter() {
        table.sets.insert(hosts_set(family).to_owned(), open_set(SetKey::Address(family)));
        let has_pools = table.sets.contains_key(pools_set(family));
        for mark in marks.iter().filter(|mark| family == Family::V4 || !matches!(mark, Expr::Protocol(_))) {
            let drop = |comment, conditions: Vec<Expr>| {
                let mut exprs = vec![Expr::Family(family), mark.clone()];
                exprs.extend(conditions);
                exprs.extend([Expr::Counter, Expr::Verdict(Verdict::Drop)]);
                Rule::new(comment, exprs)
            };
            let by = |field, set: &str, negate| Expr::Lookup { field, family, set: set.to_owned(), negate };
            let mut ways = vec![Expr::ToHost];
            if has_group(view, family) {
                ways.push(Expr::Within { field: Field::Destination, prefix: multicast(family), negate: false });
            }
            for way in ways {
                let strangers = vec![way, by(Field::Source, hosts_set(family), true)];
                rules.push(drop("tunnels take in what the cluster's hosts send", strangers));
            }
            if has_pools {
                let pods = [(Field::Source, false), (Field::Destination, true)];
                let pods = pods.map(|(field, negate)| by(field, pools_set(family), negate));
                rules.push(drop("no pod reaches a tunnel", pods.into()));
            }
        }
    }
    let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Prerouting, priority: PRIORITY };
    table.chains.insert("guard".to_owned(), Chain { hook: Some(hook), rules });
}

/// Whether tunnels' packets come by a multicast group too: such a one is no address of the host's.
fn has_group(view: &View, family: Family) -> bool {
    let mut backends = view.pools.values().flat_map(|pool| view.active_backends(pool));
    backends.any(|backend| backend.segment().is_some_and(|segment| segment.group.get(family).is_some()))
}

/// The ends of tunnels here.
fn ends(view: &View) -> impl Iterator<Item = TunnelEnd> {
    view.pools.values().flat_map(|pool| view.active_backends(pool)).filter_map(TunnelEnd::of_backend)
}

/// What tells a tunnel's packets from others.
fn mark(end: TunnelEnd) -> Expr {
    match end {
        TunnelEnd::Vxlan(_, port) | TunnelEnd::Udp(port) => Expr::ToPort(Transport::Udp, port),
        TunnelEnd::Ipip => Expr::Protocol(IPIP),
    }
}
