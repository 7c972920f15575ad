//! What the table has for segments, the pools whose pods of all hosts are on one bridge: that of a tenant is kept from all other pods, and no
//! pod is told of a shorter way.

use crate::kernel::nft::{
    Chain, ChainKind, Element, Expr, Field, Hook, HookPoint, Rule, Set, SetData, SetKey, Table, Verdict,
};
use crate::masquerade::pools_set;
use crate::model::{BackendConfig, Family, IfName};
use crate::view::View;

/// The set of the bridges that are extended.
const BRIDGES: &str = "segments";

/// The bridges that are extended.
pub(crate) fn bridges(view: &View) -> Vec<IfName> {
    let backends = view.pools.values().flat_map(|pool| view.active_backends(pool));
    let mut all: Vec<_> = backends.filter_map(BackendConfig::segment).map(|segment| view.bridge_of(segment)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Rules for what is forwarded, which go before those that let pods' packets through. A tenant's pods are known by their bridge: an
/// address is soon made up.
pub(crate) fn isolation(view: &View, table: &mut Table) -> Vec<Rule> {
    let own = view.local.bridge;
    let tenants: Vec<IfName> = bridges(view).into_iter().filter(|bridge| *bridge != own).collect();
    if tenants.is_empty() {
        return Vec::new();
    }
    let all = tenants.iter().copied().chain([own]).map(|bridge| (Element::Input(bridge), None));
    let set = Set { elements: all.collect(), ..Set::new(SetKey::Input, SetData::None) };
    table.sets.insert(BRIDGES.to_owned(), set);
    let mut rules = Vec::new();
    for name in tenants {
        let input = |negate| Expr::Input { name, negate };
        let output = |negate| Expr::Output { name, negate };
        let mut drop = |conditions: Vec<Expr>| {
            let end = [Expr::Counter, Expr::Verdict(Verdict::Drop)];
            rules.push(Rule::new("segments are kept apart", conditions.into_iter().chain(end).collect()));
        };
        drop(vec![output(false), input(true), Expr::LookupLink { set: BRIDGES.to_owned() }]);
        for family in Family::ALL.into_iter().filter(|family| table.sets.contains_key(pools_set(*family))) {
            let pools = |field| {
                let set = pools_set(family).to_owned();
                [Expr::Family(family), Expr::Lookup { field, family, set, negate: false }]
            };
            drop([output(false), input(true)].into_iter().chain(pools(Field::Source)).collect());
            drop([input(false), output(true)].into_iter().chain(pools(Field::Destination)).collect());
        }
    }
    rules
}

/// A pod that reaches the segment by its host would be told to go straight (ICMP redirects), and go on so for minutes when there is no
/// segment any more.
pub(crate) fn add(view: &View, table: &mut Table) {
    if bridges(view).is_empty() {
        return;
    }
    let mut rules = Vec::new();
    // RFC 792, RFC 4861 section 4.5.
    for (family, kind) in [(Family::V4, 5), (Family::V6, 137)] {
        let set = pools_set(family).to_owned();
        if table.sets.contains_key(&set) {
            let to_pods = Expr::Lookup { field: Field::Destination, family, set, negate: false };
            let exprs = vec![
                Expr::Family(family),
                Expr::Icmp(family, kind),
                to_pods,
                Expr::Counter,
                Expr::Verdict(Verdict::Drop),
            ];
            rules.push(Rule::new("pods go by their host as long as they do", exprs));
        }
    }
    let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Output, priority: 0 };
    table.chains.insert("no_redirects".to_owned(), Chain { hook: Some(hook), rules });
}
