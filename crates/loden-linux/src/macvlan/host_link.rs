//! The host's own macvlan, by which it and pods beside the same master reach each other: a master and its macvlans do not exchange
//! frames (drivers/net/macvlan.c). Pods share it; it comes with the first and goes with the last.

use loden_core::kernel::HOST_LINK_GROUP;
use loden_core::model::{Attach, Attachment, IfName, Macvlan, Prefix};

use super::{create, number_of_master, settle};
use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::pod::addresses_on;
use crate::rt::{address, link};

/// The host's own macvlan bears the master's addresses alone: so the host is the same to the pods as to the wire.
///
/// # Errors
/// [`LinuxError`].
pub(super) fn make(socket: &mut Socket, name: IfName, macvlan: &Macvlan) -> Result<(), LinuxError> {
    let what = format!("the host's own macvlan {name} beside {}", macvlan.master);
    let master = number_of_master(socket, macvlan.master)?;
    if link::number_of(socket, name)?.is_none() {
        let mtu = link::read(socket, macvlan.master)?.map_or(0, |seen| seen.link.mtu);
        let mut w = Writer::default();
        create(
            &mut w,
            name,
            master,
            mtu,
            None,
            &Macvlan { broadcast_queue: None, ..macvlan.clone() },
            HOST_LINK_GROUP,
            None,
        );
        link::no_made_up_address(&mut w, name);
        link::set_up(&mut w, name, true);
        settle(socket, &mut w, &what)?;
    }
    let Some(number) = link::number_of(socket, name)? else { return Ok(()) };
    let mut w = Writer::default();
    let there = addresses_on(socket, number)?;
    for net in addresses_on(socket, master)?.iter().filter(|net| !is_link_local(**net)) {
        let alone = Prefix::host(net.addr()).ipnet();
        if !there.contains(&alone) {
            address::add(&mut w, alone, number);
        }
    }
    settle(socket, &mut w, &what)
}

fn is_link_local(net: ipnet::IpNet) -> bool {
    match net.addr() {
        std::net::IpAddr::V4(addr) => addr.is_link_local(),
        std::net::IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

/// Deletes those that the plugin made and that none of the attachments uses: all that there are on the host.
///
/// # Errors
/// Whatever stayed, all of it.
pub(crate) fn remove_unused(attachments: &[Attachment]) -> Result<(), LinuxError> {
    let is_used = |name: IfName| {
        let uses = |there: &Attachment| matches!(&there.attach, Attach::Macvlan(on) if on.host_link == Some(name));
        attachments.iter().any(uses)
    };
    let mut socket = Socket::open(Protocol::Route)?;
    let mut w = Writer::default();
    link::list(&mut w);
    let ours = socket.dump("list links", &mut w, Vec::new, |all: &mut Vec<_>, message| {
        all.extend(
            link::parse(message.payload).filter(|seen| seen.link.group == HOST_LINK_GROUP).map(|seen| seen.name),
        );
    })?;
    let mut errors = Vec::new();
    for name in ours.into_iter().filter(|name| !is_used(*name)) {
        errors.extend(crate::veth::delete(name).err());
    }
    LinuxError::collected(errors)
}
