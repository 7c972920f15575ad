//! The nftables table: what leaves the pools is masqueraded, what is forwarded for pods is let through, and tunnels are guarded
//! ([`crate::guard`]).
//!
//! A host that masquerades as a whole ([`HostRules::masquerade`](crate::view::HostRules)) has the effect of flanneld's `--ip-masq`
//! with its rules for iptables: those for nftables leave out what enters the overlay, by an oversight. One thing is left out here:
//! flanneld masquerades what this host passes on from a pod of one other host to a pod of another.

use std::collections::BTreeMap;

use crate::kernel::nft::{
    Chain, ChainKind, Element, Expr, Field, Hook, HookPoint, Rule, Set, SetData, SetKey, TABLE, Table, Verdict,
};
use crate::model::{Family, Pool, Prefix};
use crate::view::View;
use crate::{guard, segments, unknown};

/// kube-proxy's mark for "masquerade this": kube-proxy does it itself, and doing it twice would pick another port.
const KUBE_MARK: u32 = 0x4000;

/// The table for the view's pools. With no pool there is nothing to keep: then it is empty.
#[must_use]
pub fn table(view: &View) -> Table {
    let mut table = Table::new(TABLE);
    let rules = view.local.rules;
    let (mut nat_rules, mut forward_rules) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        let of_family = || view.pools.values().filter(move |pool| pool.cidr.family() == family);
        if of_family().next().is_none() {
            continue;
        }
        let suffix = if family == Family::V4 { "v4" } else { "v6" };
        let (all, nat, own) = (pools_set(family), format!("nat_{suffix}"), format!("own_{suffix}"));
        table.sets.insert(all.to_owned(), prefixes(family, of_family().map(|pool| pool.cidr)));

        let guard = || Expr::Family(family);
        let lookup = |field, set: &str, negate| Expr::Lookup { field, family, set: set.to_owned(), negate };
        if rules.masquerade != Some(false) {
            let is_natted = |pool: &&Pool| rules.masquerade.unwrap_or(pool.nat_outgoing);
            table.sets.insert(nat.clone(), prefixes(family, of_family().filter(is_natted).map(|pool| pool.cidr)));
            if nat_rules.is_empty() {
                let marked = Expr::Mark { mask: KUBE_MARK, value: KUBE_MARK, negate: false };
                let exprs = vec![marked, Expr::Verdict(Verdict::Return)];
                nat_rules.push(Rule::new("marked for kube-proxy to masquerade", exprs));
            }
            nat_rules.push(Rule::new(
                "pods to the outside take the host's address",
                vec![
                    guard(),
                    lookup(Field::Source, &nat, false),
                    lookup(Field::Destination, all, true),
                    Expr::Within { field: Field::Destination, prefix: multicast(family), negate: true },
                    Expr::Counter,
                    Expr::Masquerade,
                ],
            ));
        }
        // Else the answer would come back by another way than the question went, from an address that nobody asked.
        if rules.masquerade == Some(true) {
            let blocks = of_family().flat_map(|pool| view.own_blocks_in(pool)).map(|block| block.cidr);
            table.sets.insert(own.clone(), prefixes(family, blocks));
            nat_rules.push(Rule::new(
                "others to pods of other hosts take this host's address",
                vec![
                    guard(),
                    lookup(Field::Source, all, true),
                    lookup(Field::Destination, all, false),
                    lookup(Field::Destination, &own, true),
                    Expr::Counter,
                    Expr::Masquerade,
                ],
            ));
        }
        if rules.forward {
            for (field, comment) in [(Field::Source, "from pods"), (Field::Destination, "to pods")] {
                let exprs = vec![guard(), lookup(field, all, false), Expr::Counter, Expr::Verdict(Verdict::Accept)];
                forward_rules.push(Rule::new(comment, exprs));
            }
        }
    }
    forward_rules.splice(..0, segments::isolation(view, &mut table));
    if !nat_rules.is_empty() {
        let nat = Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100 };
        table.chains.insert("masq".to_owned(), Chain { hook: Some(nat), rules: nat_rules });
    }
    if !forward_rules.is_empty() {
        let forward = Hook { kind: ChainKind::Filter, point: HookPoint::Forward, priority: 0 };
        table.chains.insert("forward_pods".to_owned(), Chain { hook: Some(forward), rules: forward_rules });
    }
    segments::add(view, &mut table);
    guard::add(view, &mut table);
    unknown::add(view, &mut table);
    table
}

/// The set of the pools of a family.
pub(crate) fn pools_set(family: Family) -> &'static str {
    if family == Family::V4 { "pools_v4" } else { "pools_v6" }
}

fn prefixes(family: Family, all: impl Iterator<Item = Prefix>) -> Set {
    let elements: BTreeMap<_, _> = all.map(|prefix| (Element::Prefix(prefix), None)).collect();
    Set { elements, ..Set::new(SetKey::Prefix(family), SetData::None) }
}

/// What goes to a group is never masqueraded: 224.0.0.0/4 (RFC 5771), ff00::/8 (RFC 4291 section 2.7).
pub(crate) fn multicast(family: Family) -> Prefix {
    match family {
        Family::V4 => Prefix::holding([224, 0, 0, 0].into(), 4),
        Family::V6 => Prefix::holding([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    }
}
