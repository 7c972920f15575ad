//! The guard of tunnels: their packets are taken in from the cluster's hosts alone, and none that a pod made goes to a host.
//!
//! Without it a kernel's tunnel takes in what anybody sends to its port, with any sender inside. What a pod sends to a tunnel's
//! port beyond the pools is dropped where it starts: it would leave with its host's address, which others know.

use std::net::IpAddr;

use crate::backend::TunnelEnd;
use crate::kernel::nft::{
    Chain, ChainKind, Element, Expr, Field, Hook, HookPoint, Rule, Set, SetData, SetKey, Table, Verdict,
};
use crate::masquerade::{multicast, pools_set};
use crate::model::{Family, Node, Transport};
use crate::view::View;

/// Before connections are tracked (`NF_IP_PRI_RAW`): what is dropped leaves nothing behind.
const PRIORITY: i32 = -300;
/// IPv4 in IPv4 (RFC 2003).
const IPIP: u8 = 4;

/// The set of the hosts' addresses of a family.
#[must_use]
pub fn hosts_set(family: Family) -> &'static str {
    if family == Family::V4 { "hosts_v4" } else { "hosts_v6" }
}

/// The hosts that may send by tunnels to this one. Those of a family that it has no address of cannot.
pub(crate) fn hosts(view: &View, node: &Node) -> impl Iterator<Item = IpAddr> {
    let own = view.local.underlay.as_ref().filter(|_| is_on(view)).map(|underlay| underlay.addresses);
    let has = move |addr: &IpAddr| own.is_some_and(|own| own.get(Family::of(*addr)).is_some());
    node.addresses().into_iter().filter(has)
}

/// Puts addresses into those sets of hosts that `old` does not have: a set is never made empty, or known hosts would be shut
/// out until they are put in one by one.
pub(crate) fn fill_hosts(table: &mut Table, old: Option<&Table>, all: impl Fn() -> Vec<IpAddr>) {
    for family in Family::ALL {
        let name = hosts_set(family);
        let is_new = old.is_none_or(|old| !old.sets.contains_key(name));
        if let Some(set) = table.sets.get_mut(name).filter(|_| is_new) {
            let of_family = all().into_iter().filter(|addr| Family::of(*addr) == family);
            set.elements = of_family.map(|addr| (Element::Address(addr), None)).collect();
        }
    }
}

/// The addresses in a table's sets of hosts, which are objects of their own; the sets are left empty and open.
pub fn take_hosts(table: &mut Table) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let Some(set) = table.sets.get_mut(hosts_set(family)) else { continue };
        set.is_open = true;
        all.extend(std::mem::take(&mut set.elements).into_keys().filter_map(|element| match element {
            Element::Address(addr) => Some(addr),
            _ => None,
        }));
    }
    all
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
        let hosts = Set { is_open: true, ..Set::new(SetKey::Address(family), SetData::None) };
        table.sets.insert(hosts_set(family).to_owned(), hosts);
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
