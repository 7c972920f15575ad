//! The plugin's table of senders: a port of a bridge takes in frames of its pod's own Ethernet address alone (`macspoofchk`).
//! Each pod is one element of each of two sets; the rule is always the same.

use std::collections::BTreeMap;

use crate::kernel::nft::{
    Chain, ChainKind, Element, Expr, Hook, HookPoint, Rule, Set, SetData, SetKey, TABLE_SENDERS, Table, Verdict,
};
use crate::model::{Attach, Attachment};
use crate::pod_tables::Elements;

/// Ports whose senders are looked at, and the sender of each.
const CHECKED: &str = "checked";
const OWN: &str = "own";

/// Before the bridge forwards, learns for others or answers (`NF_BR_PRI_NAT_DST_BRIDGED`, linux/netfilter_bridge.h).
const PRIORITY: i32 = -300;

/// The table without any pod's elements.
#[must_use]
pub fn frame() -> Table {
    let mut table = Table::new(TABLE_SENDERS);
    for (name, key) in [(CHECKED, SetKey::Input), (OWN, SetKey::InputMac)] {
        table.sets.insert(name.to_owned(), Set::new(key, SetData::None));
    }
    let exprs = vec![
        Expr::LookupLink { set: CHECKED.to_owned() },
        Expr::LookupSender { set: OWN.to_owned(), negate: true },
        Expr::Counter,
        Expr::Verdict(Verdict::Drop),
    ];
    let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Prerouting, priority: PRIORITY };
    let rules = vec![Rule::new("a pod sends with its own Ethernet address alone", exprs)];
    table.chains.insert("incoming".to_owned(), Chain { hook: Some(hook), rules });
    table
}

/// An attachment's elements, by the name of the set.
#[must_use]
pub fn elements(attachment: &Attachment) -> Elements {
    let (Attach::Bridge(port), Some(dev)) = (&attachment.attach, attachment.host_side) else { return Elements::new() };
    if !port.check_mac {
        return Elements::new();
    }
    let one = |set: &str, element| (set.to_owned(), BTreeMap::from([(element, None)]));
    Elements::from([one(CHECKED, Element::Input(dev)), one(OWN, Element::InputMac(dev, attachment.mac))])
}
