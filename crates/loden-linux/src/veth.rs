//! A pod's veth pair: made in one message with its far end born in the pod's namespace, parked at DEL, reaped in groups.
//!
//! Moving a made interface costs the kernel a grace period (17-20 ms); a peer that is born where it belongs costs none.
//! Deleting costs one too, but deleting a hundred at once costs hardly more: so DEL parks and the agent reaps.

use std::os::fd::{AsFd, AsRawFd};

use loden_core::attach;
use loden_core::kernel::link::{Link, Port};
use loden_core::kernel::{NO_GROUP, PARKED_GROUP};
use loden_core::model::{Attachment, AttachmentKey, IfName, Shape};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::rt::link::{self, VethEnd};
use crate::shape;

/// Makes the pair and sets the host's end up.
///
/// # Errors
/// [`LinuxError`]; nothing of the pair is left then.
pub(crate) fn make(
    socket: &mut Socket,
    attachment: &Attachment,
    master: Option<u32>,
    netns: &NetNs,
) -> Result<(), LinuxError> {
    let Some((name, link)) = attach::host_link(attachment, None) else { return Ok(()) };
    make_pair(socket, attachment, name, &link, master, netns).or_else(|error| {
        if error.errno() != libc::EEXIST {
            return Err(error);
        }
        // A DEL that was just now, with the pod's namespace still there, may have left either end parked.
        reap()?;
        make_pair(socket, attachment, name, &link, master, netns)
    })
}

fn make_pair(
    socket: &mut Socket,
    attachment: &Attachment,
    name: IfName,
    host_side: &Link,
    master: Option<u32>,
    netns: &NetNs,
) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    let near = VethEnd { name, mtu: host_side.mtu, mac: host_side.mac, group: host_side.group, master };
    let (ifname, mac) = (attachment.key.ifname, Some(attachment.mac));
    let far = VethEnd { name: ifname, mtu: attachment.mtu, mac, group: NO_GROUP, master: None };
    link::create_veth(&mut w, near, far, netns.as_fd().as_raw_fd().cast_unsigned());
    link::no_made_up_address(&mut w, name);
    if host_side.port != Port::default() {
        link::set_port(&mut w, name, host_side.port);
    }
    let bound = attachment.bandwidth.ingress;
    if bound.is_none() {
        link::set_up(&mut w, name, true);
    }
    let what = format!("veth {name} with {} in the pod", attachment.key.ifname);
    let mut results = socket.batch(&mut w)?.into_iter();
    if let Some(Err(error)) = results.next() {
        return Err(error.renamed(&what));
    }
    let mut bounded = || bound.map_or(Ok(()), |shape| set_up_bounded(socket, name, shape, attachment.mtu));
    results.collect::<Result<(), _>>().and_then(|()| bounded()).map_err(|error| {
        // The first error is the one that counts.
        let _ = delete(name);
        error.renamed(&what)
    })
}

/// The bound comes first: no packet gets past it.
fn set_up_bounded(socket: &mut Socket, name: IfName, bound: Shape, mtu: u32) -> Result<(), LinuxError> {
    shape::put(socket, name, bound, mtu)?;
    let mut w = Writer::default();
    link::set_up(&mut w, name, true);
    socket.batch(&mut w)?.into_iter().collect()
}

/// Takes the host's end of an attachment out of its bridge and down, for the reaper: so its routes go as well. A missing one
/// is parked already.
///
/// # Errors
/// [`LinuxError`].
pub fn park(key: &AttachmentKey) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    for host_side in attach::host_sides(key) {
        w.begin(link::SET, 0);
        w.raw(&link::info(0, 0, 1));
        w.text(link::ifla::IFNAME, host_side.as_str());
        w.u32(link::ifla::MASTER, 0);
        w.u32(link::ifla::GROUP, PARKED_GROUP);
        w.end();
    }
    send(&mut w, &format!("parking of the host's end of {key}"))
}

/// Deletes all parked ends at once.
///
/// # Errors
/// [`LinuxError`].
pub fn reap() -> Result<(), LinuxError> {
    let mut w = Writer::default();
    w.begin(link::DEL, 0);
    w.raw(&link::info(0, 0, 0));
    w.u32(link::ifla::GROUP, PARKED_GROUP);
    w.end();
    send(&mut w, "deletion of parked veths")
}

/// Deletes one end, and with it the other. A missing one is deleted already.
///
/// # Errors
/// [`LinuxError`].
pub fn delete(end: IfName) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    link::delete(&mut w, end);
    send(&mut w, &format!("deletion of {end}"))
}

fn send(w: &mut Writer, what: &str) -> Result<(), LinuxError> {
    let results = Socket::open(Protocol::Route)?.batch(w)?;
    let refused = results.into_iter().filter_map(Result::err).find(|error| error.errno() != libc::ENODEV);
    refused.map_or(Ok(()), |error| Err(error.renamed(what)))
}
