//! The plan: what to do to the kernel, in an order in which nothing is ever missing in between. Its Display is the dry run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::desired::{Desired, Wanted, Why};
use crate::kernel::link::{LinkChange, LinkKind};
use crate::kernel::nft::{Table, element_of, fill_open_sets};
use crate::kernel::{Key, Object, Sort};
use crate::model::{IfName, Prefix, Vni, overlapping};

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Make what is not there. The kernel refuses it when something foreign stands in its place.
    Add,
    /// Change what is there in place.
    Change,
    /// Delete and make anew: only for loden's own links whose fixed settings are other than wanted.
    Recreate,
    /// Delete what nobody wants any more.
    Remove,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is done.
    pub verb: Verb,
    /// To which object.
    pub key: Key,
    /// How it will be; `None` for [`Verb::Remove`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Object>,
    /// How it is; `None` for [`Verb::Add`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Object>,
    /// Who wants it; `None` when nobody does any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
}

/// A wish that is not carried out, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Which object.
    pub key: Key,
    /// Why not, and what to do.
    pub cause: String,
}

/// The steps, ordered, and what was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the order in which they are carried out.
    pub steps: Vec<Step>,
    /// What is not done although it is wanted.
    pub refused: Vec<Refusal>,
    /// Whether more is to be done, which is planned when these steps are taken.
    #[serde(skip)]
    pub is_partial: bool,
}

impl Plan {
    /// The steps that make what is there what is wanted.
    #[must_use]
    pub fn of(desired: &Desired) -> Self {
        Self::limited(desired, false)
    }

    /// The steps that may be taken on what is known now. Where links are made or changed that is all up to the links
    /// and their addresses: what hangs on a link goes or comes with it, so the rest is planned anew when they are there.
    #[must_use]
    pub fn stage(desired: &Desired) -> Self {
        let makes_link = |(key, wanted, actual): (&Key, Option<&Wanted>, Option<&Object>)| {
            let is_make = |judgement| matches!(judgement, Judgement::Do(verb) if verb != Verb::Remove);
            key.sort() == Sort::Link && !desired.keeps_segment(key) && is_make(judge(key, wanted, actual, false))
        };
        let differences = || desired.map().differences();
        let is_partial = differences().any(|(key, ..)| key.sort() > Sort::Address) && differences().any(makes_link);
        let mut plan = Self::limited(desired, is_partial);
        if is_partial {
            let makes = plan.makes_and_removals().0.len();
            plan.steps.truncate(makes);
        }
        plan.is_partial = is_partial;
        plan
    }

    /// As far as links and their addresses, or all of it.
    fn limited(desired: &Desired, is_to_links: bool) -> Self {
        let mut plan = Self::default();
        let mut refused_links = BTreeSet::new();
        let mut drafts = Vec::with_capacity(if is_to_links { 0 } else { desired.map().count_differences() });
        for (key, wanted, actual) in desired.map().differences() {
            if is_to_links && key.sort() > Sort::Address {
                continue;
            }
            let retained = desired.retains(key, actual) && !is_in_the_way(desired, key, actual);
            match judge(key, wanted, actual, retained) {
                Judgement::Do(_) if desired.keeps_segment(key) => {}
                Judgement::Do(verb) => {
                    drafts.push(Draft { place: place(key, verb, wanted), key: *key, verb, wanted, actual })
                }
                Judgement::Leave => {}
                Judgement::Refuse(cause) => {
                    refused_links.extend(key.device());
                    plan.refused.push(Refusal { key: *key, cause });
                }
            }
        }
        plan.refused.sort_by_key(|refusal| refusal.key);
        order(&mut drafts);
        plan.steps = drafts.into_iter().map(Draft::into_step).collect();
        for step in plan.steps.iter_mut().filter(|step| step.key == Key::Nft) {
            if let Some(Object::Nft(table)) = &mut step.new {
                fill_open_sets(table, table_of(step.old.as_ref()), || elements(desired));
            }
        }
        if !refused_links.is_empty() {
            plan.withhold(&refused_links);
        }
        plan
    }

    /// The steps that make, with what has to go before, and those that remove what is no longer needed: these are taken
    /// only when all of the others have succeeded.
    #[must_use]
    pub fn makes_and_removals(&self) -> (&[Step], &[Step]) {
        let last_make = self.steps.iter().rposition(|step| !is_removal(step));
        self.steps.split_at(last_make.map_or(0, |n| n + 1))
    }

    /// Whether there is nothing to do. Refusals do not count: they do not go away by doing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Takes out what would be put on links that are somebody else's, and the removal of what carries a route that therefore
    /// stays as it is.
    fn withhold(&mut self, refused: &BTreeSet<IfName>) {
        let device_of = |object: Option<&Object>| match object {
            Some(Object::Route(via)) => via.device(),
            _ => None,
        };
        let mut still_used = BTreeSet::new();
        self.steps.retain(|step| {
            let dev = step.key.device().or(device_of(step.new.as_ref()));
            let is_withheld = dev.is_some_and(|dev| refused.contains(&dev));
            if is_withheld {
                still_used.extend(device_of(step.old.as_ref()));
            }
            !is_withheld
        });
        let is_needed = |dev| still_used.contains(&dev);
        self.steps.retain(|step| !(step.verb == Verb::Remove && step.key.device().is_some_and(is_needed)));
    }
}

/// A step that has not found its place yet.
struct Draft<'a> {
    place: u8,
    key: Key,
    verb: Verb,
    wanted: Option<&'a Wanted>,
    actual: Option<&'a Object>,
}

impl Draft<'_> {
    fn into_step(self) -> Step {
        Step {
            verb: self.verb,
            key: self.key,
            new: self.wanted.map(|wanted| wanted.object.clone()),
            old: self.actual.cloned(),
            why: self.wanted.map(|wanted| wanted.why.clone()),
        }
    }
}

/// Puts the steps into the order of doing: makes and changes first, each after what it needs, then removals in the
/// opposite order (make before break). The nftables table goes first in every case: it is one transaction, and
/// packets must find its rules before they find a route. An address that is a peer's now goes before that peer's
/// nexthop, which the kernel refuses as long as the gateway is this host's own; so does a VXLAN device that another is to
/// take the place of, under another name.
fn order(drafts: &mut Vec<Draft<'_>>) {
    let is_removed = |draft: &Draft<'_>, sort| draft.verb == Verb::Remove && draft.key.sort() == sort;
    if drafts.iter().any(|draft| is_removed(draft, Sort::Link)) {
        let vtep_wanted = |draft: &Draft<'_>| vtep(draft.wanted.map(|wanted| &wanted.object));
        let vteps: BTreeSet<_> = drafts.iter().filter_map(vtep_wanted).collect();
        let mut gone = BTreeSet::new();
        for draft in drafts.iter_mut().filter(|draft| is_removed(draft, Sort::Link)) {
            if vtep(draft.actual).is_some_and(|vtep| vteps.contains(&vtep)) {
                draft.place = place(&Key::Nft, Verb::Change, None);
                gone.extend(draft.key.device());
            }
        }
        // What is on it goes with it.
        let goes_along = |draft: &Draft<'_>| draft.key.device().is_some_and(|dev| gone.contains(&dev));
        drafts.retain(|draft| is_removed(draft, Sort::Link) || draft.verb != Verb::Remove || !goes_along(draft));
    }
    let remade = |draft: &Draft<'_>| draft.key.device().filter(|_| draft.verb == Verb::Recreate);
    let remade: BTreeSet<_> = drafts.iter().filter_map(remade).collect();
    if !remade.is_empty() {
        // So does what is on one that is made anew, or leads out of it.
        let leads_to = |draft: &Draft<'_>| match draft.actual {
            Some(Object::Route(via)) => via.device(),
            _ => draft.key.device(),
        };
        let goes_along = |draft: &Draft<'_>| leads_to(draft).is_some_and(|dev| remade.contains(&dev));
        drafts.retain(|draft| draft.verb != Verb::Remove || !goes_along(draft));
    }
    if let Some(draft) = drafts.iter().find(|draft| draft.key == Key::Nft) {
        // The elements go with their set.
        let new = table_of(draft.wanted.map(|wanted| &wanted.object));
        let stays = |set| new.is_some_and(|new| new.sets.contains_key(set));
        let gone: BTreeSet<Key> = drafts
            .iter()
            .filter(|draft| element_of(&draft.key).is_some_and(|(set, ..)| !stays(set)))
            .map(|draft| draft.key)
            .collect();
        drafts.retain(|draft| !gone.contains(&draft.key));
    }
    // The kernel refuses a prefix that overlaps another of its set.
    let block = |draft: &Draft<'_>| if let Key::KnownBlock(block) = draft.key { Some(block) } else { None };
    let is_removal = |draft: &Draft<'_>| draft.verb == Verb::Remove;
    if drafts.iter().any(|draft| block(draft).is_some() && is_removal(draft)) {
        let made = drafts.iter().filter(|draft| !is_removal(draft)).filter_map(block);
        let made: BTreeMap<Prefix, ()> = made.map(|block| (block, ())).collect();
        for draft in drafts.iter_mut().filter(|draft| is_removal(draft)) {
            if block(draft).is_some_and(|block| overlapping(&made, block).is_some()) {
                draft.place = place(&Key::Nft, Verb::Change, None);
            }
        }
    }
    if drafts.iter().any(|draft| is_removed(draft, Sort::Address)) {
        let gateway = |draft: &Draft<'_>| match draft.key {
            Key::Nexthop(_, gateway) if draft.verb != Verb::Remove => Some(gateway),
            _ => None,
        };
        let gateways: BTreeSet<IpAddr> = drafts.iter().filter_map(gateway).collect();
        for draft in drafts.iter_mut() {
            if matches!(draft.key, Key::Address(_, net) if gateways.contains(&net.addr())) {
                draft.place = place(&draft.key, Verb::Change, None);
            }
        }
    }
    drafts.sort_unstable_by(|a, b| {
        let by_key = a.key.cmp(&b.key);
        a.place.cmp(&b.place).then(if a.place >= REMOVALS { by_key.reverse() } else { by_key })
    });
}

fn table_of(object: Option<&Object>) -> Option<&Table> {
    match object {
        Some(Object::Nft(table)) => Some(table),
        _ => None,
    }
}

/// What is wanted in the table's open sets.
fn elements(desired: &Desired) -> Vec<Key> {
    desired.map().all_desired().map(|(key, _)| *key).filter(|key| element_of(key).is_some()).collect()
}

/// Whether a step takes away what packets may still need.
fn is_removal(step: &Step) -> bool {
    step.verb == Verb::Remove && step.key != Key::Nft
}

/// Whether an address of this host is the gateway of a nexthop that is yet to be made (its block is a peer's now), or a VXLAN
/// device is what another is to be. Addresses and devices are few, and those that nobody wants are fewer.
fn is_in_the_way(desired: &Desired, key: &Key, actual: Option<&Object>) -> bool {
    let is_it = |other: &Key, wanted: &Wanted| match key {
        Key::Address(_, net) => matches!(other, Key::Nexthop(_, gateway) if *gateway == net.addr()),
        Key::Link(_) => other != key && vtep(Some(&wanted.object)).is_some_and(|wanted| vtep(actual) == Some(wanted)),
        _ => false,
    };
    matches!(key.sort(), Sort::Address | Sort::Link)
        && desired.map().differences().any(|(other, wanted, _)| wanted.is_some_and(|wanted| is_it(other, wanted)))
}

/// What the kernel allows one VXLAN device of: its VNI, its port, and whether it is of IPv4 (`vxlan_vni_in_use`,
/// drivers/net/vxlan/vxlan_core.c).
fn vtep(object: Option<&Object>) -> Option<(Vni, u16, bool)> {
    match object {
        Some(Object::Link(link)) => match &link.kind {
            LinkKind::Vxlan(vxlan) => Some((vxlan.vni, vxlan.port, vxlan.local.is_none_or(|local| local.is_ipv4()))),
            _ => None,
        },
        _ => None,
    }
}

/// What is to be done about a difference.
enum Judgement {
    Do(Verb),
    Leave,
    Refuse(String),
}

fn judge(key: &Key, wanted: Option<&Wanted>, actual: Option<&Object>, retained: bool) -> Judgement {
    match (wanted.map(|wanted| &wanted.object), actual) {
        (Some(Object::Link(link)), None) if matches!(link.kind, LinkKind::Veth { .. }) => Judgement::Refuse(
            "it is gone: the pod's namespace was removed without a CNI DEL; its addresses are freed by the next GC"
                .to_owned(),
        ),
        (Some(_), None) => Judgement::Do(Verb::Add),
        (Some(Object::Link(wanted)), Some(Object::Link(actual))) => match wanted.change_from(actual) {
            LinkChange::InPlace => Judgement::Do(Verb::Change),
            LinkChange::Recreate => Judgement::Do(Verb::Recreate),
            LinkChange::Refuse(difference) => Judgement::Refuse(format!(
                "a device of this name is there that loden did not make, and {difference}. It is left alone: remove or \
                 rename it, or configure another name"
            )),
        },
        (Some(_), Some(_)) => Judgement::Do(Verb::Change),
        // A pod's veth goes with the pod: only the plugin and its reaper remove it.
        (None, Some(Object::Link(link))) if matches!(link.kind, LinkKind::Veth { .. }) => Judgement::Leave,
        (None, Some(actual)) if actual.is_ours() && !retained => Judgement::Do(Verb::Remove),
        (None, _) => {
            debug_assert!(actual.is_some(), "{key} differs though it is neither wanted nor there");
            Judgement::Leave
        }
    }
}

/// The places from here on are those of removals.
const REMOVALS: u8 = 13;

/// The place of a step in the order of doing. A bridge goes before its ports; a link goes before what is on it.
fn place(key: &Key, verb: Verb, wanted: Option<&Wanted>) -> u8 {
    let is_port = |wanted: &Wanted| match &wanted.object {
        Object::Link(link) => link.master.is_some() || matches!(link.kind, LinkKind::Veth { .. }),
        _ => false,
    };
    let making = match key {
        Key::Sysctl(_) => 0,
        Key::Nft => 1,
        Key::KnownHost(_) | Key::KnownBlock(_) => 2,
        Key::Link(_) if !wanted.is_some_and(is_port) => 3,
        Key::Link(_) => 4,
        Key::DeviceSysctl(..) => 5,
        Key::Address(..) => 6,
        Key::Nexthop(..) => 7,
        Key::Neighbour(..) => 8,
        Key::Fdb(..) | Key::Flood(..) => 9,
        Key::Tunnel(..) => 10,
        Key::TunnelPeer(..) => 11,
        Key::Route(..) => 12,
    };
    if verb == Verb::Remove && *key != Key::Nft { REMOVALS + (REMOVALS - 1 - making) } else { making }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.verb {
            Verb::Add => "+",
            Verb::Change => "~",
            Verb::Recreate => "!",
            Verb::Remove => "-",
        };
        write!(f, "{sign} {}", self.key)?;
        if let Some(object) = self.new.as_ref().or(self.old.as_ref()) {
            let text = object.to_string();
            if !text.is_empty() {
                write!(f, " {text}")?;
            }
        }
        if let (Verb::Change | Verb::Recreate, Some(old)) = (self.verb, &self.old) {
            write!(f, "   (was: {old})")?;
        }
        match &self.why {
            Some(why) => write!(f, "   # {why}"),
            None => write!(f, "   # nobody wants it any more"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
            // A table is too much for a line: what it will be is shown whole.
            if let Some(Object::Nft(table)) = &step.new {
                for line in table.to_string().lines() {
                    writeln!(f, "    {line}")?;
                }
            }
        }
        for refusal in &self.refused {
            writeln!(f, "x {}   # refused: {}", refusal.key, refusal.cause)?;
        }
        Ok(())
    }
}
