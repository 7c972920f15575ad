//! What the kernel reports: changes of what is loden's by somebody else, parked veths, changes of the external interface.
//!
//! Reports are hints; the reconciler reads the kernel before it acts. What the driver's own socket caused is left out as
//! far as the kernel says so (links, forwarding entries and sysctls carry no port).

mod link;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use loden_core::advice::LOOK_EVERY;
use loden_core::kernel::nft::{TABLE, TABLE_PORTS, TABLE_SENDERS, TableName};
use loden_core::kernel::{Event, Key, Object, Sort};
use loden_core::model::IfName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::LinuxError;
use crate::netlink::attr::text;
use crate::netlink::{Attrs, Message, Protocol, Socket, Writer};
use crate::observe::{LinuxKernel, neighbour_key, neighbour_object, route_object};
use crate::rt::{address, link as rt_link, neighbour, nexthop, route};
use crate::sockopt;
use crate::sysctl::Watch;
use link::Links;

/// `RTNLGRP_*` of links, neighbours, addresses, routes and nexthops.
const GROUPS: [u32; 7] = [1, 3, 5, 9, 7, 11, 32];
/// `NFNLGRP_NFTABLES`.
const GROUP_NFTABLES: u32 = 7;
/// Length of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// Listens to the kernel.
#[derive(Debug)]
pub struct Monitor {
    route: Socket,
    nft: Socket,
    sysctls: Watch,
    /// When sysctls that cannot be listened to were last looked at.
    looked: Instant,
    /// The ports of the driver's sockets.
    own_ports: [u32; 2],
    links: Links,
}

impl Monitor {
    /// Begins to listen, before the first observation so that nothing is missed between; to what others do than `kernel`.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn open(kernel: &LinuxKernel) -> Result<Self, LinuxError> {
        let route = Socket::open(Protocol::Route)?;
        // Questions for neighbours have no limit: lost among them, a report would cost a look at everything ([`crate::misses`]).
        sockopt::filter_kind(&route, neighbour::GET, false)?;
        for group in GROUPS {
            route.join(group)?;
        }
        let nft = Socket::open(Protocol::Netfilter)?;
        nft.join(GROUP_NFTABLES)?;
        let own_ports = [kernel.socket.port(), kernel.nft.port()];
        let sysctls = kernel.sysctls.clone();
        let mut monitor = Self { route, nft, sysctls, looked: Instant::now(), own_ports, links: Links::default() };
        monitor.learn_links()?;
        Ok(monitor)
    }

    /// Waits for reports, `patience` at most, and hands them on. `underlay` is the external interface, whose changes are
    /// reported as such.
    ///
    /// # Errors
    /// [`LinuxError`] when a socket fails; lost reports are an [`Event::Overrun`] and no error.
    pub fn wait(
        &mut self,
        patience: Option<Duration>,
        underlay: Option<IfName>,
        mut report: impl FnMut(Event),
    ) -> Result<(), LinuxError> {
        let is_deaf = self.sysctls.hindrance().is_some();
        let look = is_deaf.then_some(LOOK_EVERY);
        let [has_route, has_nft, has_sysctl] = self.poll(patience.into_iter().chain(look).min())?;
        if has_route {
            let Self { route, links, own_ports, .. } = self;
            let received = route.receive(|message| {
                let is_own = own_ports.contains(&message.port);
                translate(message, is_own, underlay, links, &mut report);
            });
            self.recover(received, &mut report)?;
        }
        if has_nft {
            let (mut is_foreign, mut is_pod_table) = (false, false);
            let own_ports = self.own_ports;
            let received = self.nft.receive(|message| {
                // Attribute 1 is the table's name in messages about tables, chains, rules, sets and elements alike.
                let name = Attrs::behind(message.payload, NFGENMSG).find(1).and_then(text);
                let family = message.payload.first().copied();
                let is_of = |table: TableName| name == Some(table.name) && family == Some(table.family as u8);
                is_foreign |= !own_ports.contains(&message.port) && is_of(TABLE);
                is_pod_table |= is_of(TABLE_PORTS) || is_of(TABLE_SENDERS);
            });
            self.recover(received, &mut report)?;
            if is_foreign {
                report(Event::Stale(Sort::Nft));
            }
            if is_pod_table {
                report(Event::PodTables);
            }
        }
        let is_look_due = is_deaf && self.looked.elapsed() >= LOOK_EVERY;
        if is_look_due {
            self.looked = Instant::now();
        }
        if has_sysctl && self.sysctls.drain() || is_look_due {
            report(Event::Stale(Sort::Sysctl));
        }
        Ok(())
    }

    /// Which of the sockets, and of the sysctls, have something to say.
    fn poll(&self, patience: Option<Duration>) -> Result<[bool; 3], LinuxError> {
        let patience = patience.map(Timespec::try_from).transpose().ok().flatten();
        let route = PollFd::from_borrowed_fd(self.route.as_fd(), PollFlags::IN);
        let nft = PollFd::from_borrowed_fd(self.nft.as_fd(), PollFlags::IN);
        let sysctls = self.sysctls.as_fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> = [Some(route), Some(nft), sysctls].into_iter().flatten().collect();
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok([false; 3]),
            Err(error) => return Err(LinuxError::system("poll of netlink", error)),
        }
        let is_ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        Ok([is_ready(0), is_ready(1), is_ready(2)])
    }

    fn recover(&mut self, received: Result<(), LinuxError>, report: &mut impl FnMut(Event)) -> Result<(), LinuxError> {
        match received {
            Err(LinuxError::Overrun) => {
                report(Event::Overrun);
                report(Event::Underlay);
                self.learn_links()
            }
            other => other,
        }
    }

    /// Reports name links by number. A socket of its own asks, so that answers and reports do not mix.
    fn learn_links(&mut self) -> Result<(), LinuxError> {
        let mut w = Writer::default();
        rt_link::list(&mut w);
        let all =
            Socket::open(Protocol::Route)?.dump("list links", &mut w, Vec::new, |all: &mut Vec<_>, message| {
                all.extend(rt_link::parse(message.payload));
            })?;
        self.links.learn(all);
        Ok(())
    }
}

fn translate(
    message: Message<'_>,
    is_own: bool,
    underlay: Option<IfName>,
    links: &mut Links,
    report: &mut impl FnMut(Event),
) {
    let is_gone = matches!(message.kind, rt_link::DEL | address::DEL | nexthop::DEL | route::DEL | neighbour::DEL);
    let mut object = |key: Key, object: Object| {
        if !is_own {
            report(if is_gone { Event::Gone(key) } else { Event::Seen(key, object) });
        }
    };
    match message.kind {
        // The links are kept from all reports, the driver's own too.
        rt_link::NEW | rt_link::DEL => {
            if let Some(seen) = rt_link::parse(message.payload) {
                links.report(seen, is_gone, is_own, underlay, report);
            }
        }
        address::NEW | address::DEL => {
            let Some(seen) = address::parse(message.payload) else { return };
            let Some(dev) = links.index.name(seen.index) else { return };
            if links.is_own(dev) {
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
                match route_object(&links.index, seen) {
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
        neighbour::NEW | neighbour::DEL if !is_own => {
            let Some(seen) = neighbour::parse(message.payload) else { return };
            let Some(key) = neighbour_key(&links.index, seen) else { return };
            if !key.device().is_some_and(|dev| links.is_own(dev)) {
                return;
            }
            // One that is deleted first stops being permanent, and may be reported as that only.
            match neighbour_object(&links.index, seen).filter(|_| !is_gone) {
                Some((key, value)) => report(Event::Seen(key, value)),
                None => report(Event::Gone(key)),
            }
        }
        _ => {}
    }
}
