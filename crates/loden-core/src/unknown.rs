//! Packets for addresses of no known block are refused before they reach a device whose neighbours the agent answers for.
//!
//! On such a device the kernel makes an entry for each address that it asks for, in a table of 1024 for the whole machine
//! (`net.ipv4.neigh.default.gc_thresh3`): a scan of the pool would fill it, and nobody could be asked for any more.

use std::collections::BTreeSet;

use crate::backend::{Context, asking_devices};
use crate::kernel::nft::{Chain, ChainKind, Expr, Field, Hook, HookPoint, Rule, SetKey, Table, blocks_set, open_set};
use crate::masquerade::pools_set;
use crate::model::{Family, IfName};
use crate::view::View;

/// What the rules are for, which is also what they are found again by to read their counters.
pub const UNKNOWN: &str = "no node has a block with this address";
/// Before what lets pods' packets through.
const PRIORITY: i32 = -1;

/// Adds the sets of known blocks, and the rules.
pub(crate) fn add(view: &View, table: &mut Table) {
    let devices = devices(view);
    if devices.is_empty() {
        return;
    }
    let refuse = |(family, dev): &(Family, IfName)| {
        let to = |set: &str, negate| Expr::Lookup {
            field: Field::Destination,
            family: *family,
            set: set.to_owned(),
            negate,
        };
        let (pool, unknown) = (to(pools_set(*family), false), to(blocks_set(*family), true));
        let exprs = vec![
            Expr::Family(*family),
            Expr::Output { name: *dev, negate: false },
            pool,
            unknown,
            Expr::Counter,
            Expr::Reject,
        ];
        Rule::new(UNKNOWN, exprs)
    };
    let rules: Vec<Rule> = devices.iter().map(refuse).collect();
    for (family, _) in devices {
        table.sets.insert(blocks_set(family).to_owned(), open_set(SetKey::Prefix(family)));
    }
    for (name, point) in [("unknown_forward", HookPoint::Forward), ("unknown_output", HookPoint::Output)] {
        let hook = Hook { kind: ChainKind::Filter, point, priority: PRIORITY };
        table.chains.insert(name.to_owned(), Chain { hook: Some(hook), rules: rules.clone() });
    }
}

/// The devices, and the families of the pools that are led out of each.
fn devices(view: &View) -> BTreeSet<(Family, IfName)> {
    let Some(underlay) = view.local.underlay.as_ref() else { return BTreeSet::new() };
    let pools = view.pools.values().map(|pool| Context { view, underlay, pool });
    let of = |cx: Context<'_>| {
        asking_devices(&cx).into_iter().map(move |dev| (cx.pool.cidr.family(), dev)).collect::<Vec<_>>()
    };
    pools.flat_map(of).collect()
}
