//! What the kernel reports: changes of what is loden's by somebody else, parked veths, changes of the external interface.
//!
//! Reports are hints; the reconciler reads the kernel before it acts. What the driver's own socket caused is left out as
//! far as the kernel says so (forwarding entries carry no port).

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use loden_core::kernel::{Event, Key, LINK_GROUP, Object, PARKED_GROUP, Sort};
use loden_core::model::IfName;
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::LinuxError;
use crate::index::Index;
use crate::netlink::{Message, Protocol, Socket, Writer};
use crate::observe::{neighbour_object, route_object};
use crate::rt::{address, link, neighbour, nexthop, route};

/// `RTNLGRP_*` of links, neighbours, addresses, routes and nexthops.
const GROUPS: [u32; 7] = [1, 3, 5, 9, 7, 11, 32];
/// `NFNLGRP_NFTABLES`.
const GROUP_NFTABLES: u32 = 7;
/// What hangs on a link and goes away with it, partly without a report.
const HANGS_ON_LINKS: [Sort; 6] = [Sort::Address, Sort::Nexthop, Sort::Neighbour, Sort::Fdb, Sort::Route, Sort::Sysctl];

/// Listens to the kernel.
#[derive(Debug)]
pub struct Monitor {
    route: Socket,
    nft: Socket,
    /// The ports of the driver's sockets.
    own_ports: [u32; 2],
    index: Index,
    /// Links whose entries are loden's.
    own_links: BTreeSet<IfName>,
}

impl Monitor {
    /// Begins to listen, before the first observation so that nothing is missed between. `own_ports` are the driver's.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn open(own_ports: [u32; 2]) -> Result<Self, LinuxError> {
        let route = Socket::open(Protocol::Route)?;
        for group in GROUPS {
            route.join(group)?;
        }
        let nft = Socket::open(Protocol::Netfilter)?;
        nft.join(GROUP_NFTABLES)?;
        let mut monitor = Self { route, nft, own_ports, index: Index::default(), own_links: BTreeSet::new() };
        monitor.learn_links()?;
        Ok(monitor)
    }

    /// Waits for reports and hands them on. `underlay` is the external interface, whose changes are reported as such.
    ///
    /// # Errors
    /// [`LinuxError`] when a socket fails; lost reports are an [`Event::Overrun`] and no error.
    pub fn wait(&mut self, underlay: Option<IfName>, mut report: impl FnMut(Event)) -> Result<(), LinuxError> {
        let ready = {
            let mut fds = [
                PollFd::from_borrowed_fd(self.route.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.nft.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(LinuxError::system("poll of netlink", error)),
            }
            fds.map(|fd| !fd.revents().is_empty())
        };
        if ready[0] {
            let Self { route, index, own_links, own_ports, .. } = self;
            let received = route.receive(|message| {
                let is_own = own_ports.contains(&message.port);
                translate(message, is_own, underlay, index, own_links, &mut report);
            });
            self.recover(received, &mut report)?;
        }
        if ready[1] {
            let mut is_foreign = false;
            let own_ports = self.own_ports;
            let received = self.nft.receive(|message| is_foreign |= !own_ports.contains(&message.port));
            self.recover(received, &mut report)?;
            if is_foreign {
                report(Event::Stale(Sort::Nft));
            }
        }
        Ok(())
    }

    fn recover(&mut self, received: Result<(), LinuxError>, report: &mut impl FnMut(Event)) -> Result<(), LinuxError> {
        match received {
            Err(LinuxError::Overrun) => {
                self.learn_links()?;
                report(Event::Overrun);
                report(Event::Underlay);
                Ok(())
            }
            other => other,
        }
    }

    /// Reports name links by number. A socket of its own asks, so that answers and reports do not mix.
    fn learn_links(&mut self) -> Result<(), LinuxError> {
        let mut w = Writer::default();
        link::list(&mut w);
        let all =
            Socket::open(Protocol::Route)?.dump("list links", &mut w, Vec::new, |all: &mut Vec<_>, message| {
                all.extend(link::parse(message.payload));
            })?;
        self.index.clear_links();
        self.own_links.clear();
        for seen in all {
            self.index.put_link(seen.name, seen.index, seen.link.kind.name() == "vxlan");
            if seen.is_ours() {
                self.own_links.insert(seen.name);
            }
        }
        Ok(())
    }
}

fn translate(
    message: Message<'_>,
    is_own: bool,
    underlay: Option<IfName>,
    index: &mut Index,
    own_links: &mut BTreeSet<IfName>,
    report: &mut impl FnMut(Event),
) {
    let is_gone = matches!(message.kind, link::DEL | address::DEL | nexthop::DEL | route::DEL | neighbour::DEL);
    let mut object = |key: Key, object: Object| {
        if !is_own {
            report(if is_gone { Event::Gone(key) } else { Event::Seen(key, object) });
        }
    };
    match message.kind {
        // The index is kept from all reports, the driver's own too.
        link::NEW | link::DEL => {
            if let Some(seen) = link::parse(message.payload) {
                self::link(seen, is_gone, is_own, underlay, index, own_links, report);
            }
        }
        address::NEW | address::DEL => {
            let Some(seen) = address::parse(message.payload) else { return };
            let Some(dev) = index.name(seen.index) else { return };
            if own_links.contains(&dev) {
                object(Key::Address(dev, seen.net), Object::Address { ours: seen.ours });
            } else if Some(dev) == underlay || underlay.is_none() {
                report(Event::Underlay);
            }
        }
        // A nexthop's number is the driver's business: what it led to is known there alone.
        nexthop::NEW | nexthop::DEL if !is_own && nexthop::parse(message.payload).is_some_and(|seen| seen.ours) => {
            report(Event::Stale(Sort::Nexthop));
            report(Event::Stale(Sort::Route));
        }
        route::NEW | route::DEL if !is_own => {
            let Some(seen) = route::parse(message.payload) else { return };
            if seen.protocol == loden_core::kernel::PROTOCOL {
                match route_object(index, seen) {
                    Some((key, value)) => object(key, value),
                    None => report(Event::Stale(Sort::Route)),
                }
            } else if seen.table == loden_core::kernel::TABLE_MAIN {
                report(Event::Underlay);
                // A foreign route in the place of one of loden's (replaced) shows only like this.
                if !is_gone {
                    report(Event::Gone(Key::Route(seen.prefix, seen.priority)));
                }
            }
        }
        neighbour::NEW | neighbour::DEL => {
            if let Some((key, value)) = neighbour::parse(message.payload).and_then(|s| neighbour_object(index, s))
                && key.device().is_some_and(|dev| own_links.contains(&dev))
            {
                object(key, value);
            }
        }
        _ => {}
    }
}

fn link(
    seen: link::Seen,
    is_gone: bool,
    is_own: bool,
    underlay: Option<IfName>,
    index: &mut Index,
    own_links: &mut BTreeSet<IfName>,
    report: &mut impl FnMut(Event),
) {
    let (name, group, up) = (seen.name, seen.link.group, seen.link.up);
    if Some(name) == underlay || underlay.is_none() {
        report(Event::Underlay);
    }
    let was_own = own_links.contains(&name);
    if is_gone {
        index.remove_link(name);
        own_links.remove(&name);
    } else {
        index.put_link(name, seen.index, seen.link.kind.name() == "vxlan");
        if group == LINK_GROUP {
            own_links.insert(name);
        } else {
            own_links.remove(&name);
        }
    }
    if group == PARKED_GROUP && !is_gone {
        report(Event::Parked);
        return;
    }
    if is_own || !(was_own || group == LINK_GROUP) {
        // A foreign link that takes a wanted name must be seen as well; there are few and it costs a listing of links.
        if !is_own && !is_gone && Some(name) != underlay {
            report(Event::Seen(Key::Link(name), Object::Link(Box::new(seen.resolve(|n| index.name(n))))));
        }
        return;
    }
    let link = seen.resolve(|number| index.name(number));
    if is_gone {
        report(Event::Gone(Key::Link(name)));
    } else {
        report(Event::Seen(Key::Link(name), Object::Link(Box::new(link))));
    }
    // A device that goes or goes down takes what hangs on it along, and not all of that is reported.
    if is_gone || !up {
        HANGS_ON_LINKS.into_iter().for_each(|sort| report(Event::Stale(sort)));
    }
}
