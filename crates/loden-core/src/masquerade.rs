//! The nftables table: what leaves the pools is masqueraded, what is forwarded for pods is let through.

use std::collections::BTreeMap;

use crate::kernel::nft::{
    Chain, ChainKind, Element, Expr, Field, Hook, HookPoint, Rule, Set, SetData, SetKey, TABLE, Table, Verdict,
};
use crate::model::{Family, Pool, Prefix};

/// kube-proxy's mark for "masquerade this": kube-proxy does it itself, and doing it twice would pick another port.
const KUBE_MARK: u32 = 0x4000;

/// The table for these pools. With no pool there is nothing to keep: then it is empty.
#[must_use]
pub fn table<'a>(pools: impl Iterator<Item = &'a Pool> + Clone) -> Table {
    let mut table = Table::new(TABLE);
    let (mut nat_rules, mut forward_rules) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        let of_family = || pools.clone().filter(move |pool| pool.cidr.family() == family);
        if of_family().next().is_none() {
            continue;
        }
        let suffix = if family == Family::V4 { "v4" } else { "v6" };
        let (all, nat) = (format!("pools_{suffix}"), format!("nat_{suffix}"));
        table.sets.insert(all.clone(), prefixes(family, of_family()));
        table.sets.insert(nat.clone(), prefixes(family, of_family().filter(|pool| pool.nat_outgoing)));

        let guard = || Expr::Family(family);
        let lookup = |field, set: &str, negate| Expr::Lookup { field, family, set: set.to_owned(), negate };
        if nat_rules.is_empty() {
            nat_rules.push(Rule::new(
                "marked for kube-proxy to masquerade",
                vec![Expr::Mark { mask: KUBE_MARK, value: KUBE_MARK, negate: false }, Expr::Verdict(Verdict::Return)],
            ));
        }
        nat_rules.push(Rule::new(
            "pods to the outside take the host's address",
            vec![
                guard(),
                lookup(Field::Source, &nat, false),
                lookup(Field::Destination, &all, true),
                Expr::Within { field: Field::Destination, prefix: multicast(family), negate: true },
                Expr::Counter,
                Expr::Masquerade,
            ],
        ));
        for (field, comment) in [(Field::Source, "from pods"), (Field::Destination, "to pods")] {
            forward_rules.push(Rule::new(
                comment,
                vec![guard(), lookup(field, &all, false), Expr::Counter, Expr::Verdict(Verdict::Accept)],
            ));
        }
    }
    if !table.sets.is_empty() {
        let nat = Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100 };
        let forward = Hook { kind: ChainKind::Filter, point: HookPoint::Forward, priority: 0 };
        table.chains.insert("masq".to_owned(), Chain { hook: Some(nat), rules: nat_rules });
        table.chains.insert("forward_pods".to_owned(), Chain { hook: Some(forward), rules: forward_rules });
    }
    table
}

fn prefixes<'a>(family: Family, pools: impl Iterator<Item = &'a Pool>) -> Set {
    let elements: BTreeMap<_, _> = pools.map(|pool| (Element::Prefix(pool.cidr), None)).collect();
    Set { key: SetKey::Prefix(family), data: SetData::None, elements }
}

/// What goes to a group is never masqueraded: 224.0.0.0/4 (RFC 5771), ff00::/8 (RFC 4291 section 2.7).
pub(crate) fn multicast(family: Family) -> Prefix {
    match family {
        Family::V4 => Prefix::holding([224, 0, 0, 0].into(), 4),
        Family::V6 => Prefix::holding([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    }
}
