//! What the monitor keeps in mind of links, and what it makes of a report about one.

use std::collections::BTreeSet;

use loden_core::kernel::{Event, Key, LINK_GROUP, Object, PARKED_GROUP, Sort};
use loden_core::model::IfName;

use crate::index::Index;
use crate::rt::link::Seen;

/// What hangs on a link and goes away with it, partly without a report.
const HANGS_ON_LINKS: [Sort; 6] = [Sort::Address, Sort::Nexthop, Sort::Neighbour, Sort::Fdb, Sort::Route, Sort::Sysctl];
/// What the kernel drops without a report when a link goes down or loses its carrier, and takes again when it is back.
const NEEDS_CARRIER: [Sort; 2] = [Sort::Nexthop, Sort::Route];

/// The links as last reported.
#[derive(Debug, Default)]
pub struct Links {
    /// Names and numbers.
    pub index: Index,
    /// Those that are loden's.
    own: BTreeSet<IfName>,
    /// Those that packets can leave by.
    running: BTreeSet<IfName>,
}

impl Links {
    /// Takes in a whole listing.
    pub fn learn(&mut self, all: Vec<Seen>) {
        self.index.clear_links();
        self.own.clear();
        self.running.clear();
        all.iter().for_each(|seen| self.note(seen));
    }

    /// Whether the link is loden's.
    pub fn is_own(&self, name: IfName) -> bool {
        self.own.contains(&name)
    }

    /// Takes in a report about one and says what it means. `is_own_doing`: the driver caused it.
    pub fn report(
        &mut self,
        seen: Seen,
        is_gone: bool,
        is_own_doing: bool,
        underlay: Option<IfName>,
        report: &mut impl FnMut(Event),
    ) {
        let (name, group, up) = (seen.name, seen.link.group, seen.link.up);
        let (was_own, was_running) = (self.is_own(name), self.running.contains(&name));
        let former_name = self.index.name(seen.index).filter(|former| *former != name);
        if let Some(former) = former_name {
            let was_own = self.is_own(former);
            self.forget(former);
            if was_own {
                report(Event::Gone(Key::Link(former)));
                HANGS_ON_LINKS.into_iter().for_each(|sort| report(Event::Stale(sort)));
            }
        }
        if is_gone {
            self.forget(name);
        } else {
            self.note(&seen);
        }
        if Some(name) == underlay || former_name.is_some() && former_name == underlay || underlay.is_none() {
            report(Event::Underlay);
        }
        if Some(name) == underlay && was_running != self.running.contains(&name) {
            NEEDS_CARRIER.into_iter().for_each(|sort| report(Event::Stale(sort)));
        }
        if group == PARKED_GROUP && !is_gone {
            report(Event::Parked);
            return;
        }
        if is_own_doing {
            return;
        }
        if !was_own && group != LINK_GROUP {
            // A foreign link that takes a wanted name, or gives it free, must be seen as well.
            if Some(name) != underlay {
                report(if is_gone { Event::Gone(Key::Link(name)) } else { self.seen(seen) });
            }
            return;
        }
        report(if is_gone { Event::Gone(Key::Link(name)) } else { self.seen(seen) });
        // A device that goes or goes down takes what hangs on it along, and not all of that is reported. A new one is
        // made down, and nothing hangs on it yet.
        if is_gone || (was_own && !up) {
            HANGS_ON_LINKS.into_iter().for_each(|sort| report(Event::Stale(sort)));
        } else if was_running != self.running.contains(&name) {
            NEEDS_CARRIER.into_iter().for_each(|sort| report(Event::Stale(sort)));
        }
    }

    fn seen(&self, seen: Seen) -> Event {
        let name = seen.name;
        Event::Seen(Key::Link(name), Object::Link(Box::new(seen.resolve(|number| self.index.name(number)))))
    }

    fn note(&mut self, seen: &Seen) {
        self.index.put_link(seen.name, seen.index, seen.is_tunnel());
        set(&mut self.own, seen.name, seen.is_ours());
        set(&mut self.running, seen.name, seen.is_running);
    }

    fn forget(&mut self, name: IfName) {
        self.index.remove_link(name);
        self.own.remove(&name);
        self.running.remove(&name);
    }
}

fn set(names: &mut BTreeSet<IfName>, name: IfName, is_in: bool) {
    if is_in {
        names.insert(name);
    } else {
        names.remove(&name);
    }
}
