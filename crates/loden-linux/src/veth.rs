//! A pod's veth pair: made in one message with its far end born in the pod's namespace, parked at DEL, reaped in groups.
//!
//! Moving a made interface costs the kernel a grace period (17-20 ms); a peer that is born where it belongs costs none.
//! Deleting costs one too, but deleting a hundred at once costs hardly more: so DEL parks and the agent reaps.

use std::os::fd::{AsFd, AsRawFd};

use loden_core::attach::PodRoute;
use loden_core::kernel::{LINK_GROUP, PARKED_GROUP};
use loden_core::model::{Attachment, IfName};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::rt::{address, link, route};
use crate::sysctl;

/// `VETH_INFO_PEER`
const PEER: u16 = 1;

/// Makes the pair, sets both ends up, and gives the pod its addresses and routes.
///
/// # Errors
/// [`LinuxError`]; nothing of the pair is left then.
pub fn create(attachment: &Attachment, routes: &[PodRoute], netns: &NetNs) -> Result<(), LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let bridge = link::number_of(&socket, attachment.bridge)?.ok_or_else(|| LinuxError::Netlink {
        what: format!("bridge {}", attachment.bridge),
        errno: libc::ENODEV,
        cause: "it is not there; lodend makes it: is it running and ready?".to_owned(),
    })?;
    make_pair(&mut socket, attachment, bridge, netns).or_else(|error| {
        if error.errno() != libc::EEXIST {
            return Err(error);
        }
        // A DEL that was just now, with the pod's namespace still there, may have left either end parked.
        reap()?;
        make_pair(&mut socket, attachment, bridge, netns)
    })?;
    let made = netns.visit(|| set_up_pod(attachment, routes));
    made.and_then(|made| made).inspect_err(|_| {
        // The first error is the one that counts; the pair goes with the pod's namespace at the latest.
        let _ = delete(attachment.host_side);
    })
}

fn make_pair(socket: &mut Socket, attachment: &Attachment, bridge: u32, netns: &NetNs) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    // NLM_F_CREATE | NLM_F_EXCL
    w.begin(link::NEW, 0x600);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, attachment.host_side.as_str());
    w.u32(link::ifla::MTU, attachment.mtu);
    w.u32(link::ifla::MASTER, bridge);
    w.u32(link::ifla::GROUP, LINK_GROUP);
    one_queue(&mut w);
    let info = w.nest(link::ifla::LINKINFO);
    w.text(link::ifla::INFO_KIND, "veth");
    let data = w.nest(link::ifla::INFO_DATA);
    let peer = w.nest(PEER);
    // The peer must not be set up here: the pair is not tied yet (ENOTCONN).
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, attachment.key.ifname.as_str());
    w.u32(link::ifla::MTU, attachment.mtu);
    w.mac(link::ifla::ADDRESS, attachment.mac);
    one_queue(&mut w);
    w.u32(link::ifla::NET_NS_FD, netns.as_fd().as_raw_fd().cast_unsigned());
    w.close(peer);
    w.close(data);
    w.close(info);
    w.end();
    link::no_made_up_address(&mut w, attachment.host_side);
    link::set_up(&mut w, attachment.host_side, true);
    let what = format!("veth {} with {} in the pod", attachment.host_side, attachment.key.ifname);
    let mut results = socket.batch(&mut w)?.into_iter();
    if let Some(Err(error)) = results.next() {
        return Err(renamed(error, &what));
    }
    results.collect::<Result<(), _>>().map_err(|error| {
        // The first error is the one that counts.
        let _ = delete(attachment.host_side);
        renamed(error, &what)
    })
}

/// A veth uses one queue. Unless told so, the kernel makes one for each possible processor, with its files in sysfs, and takes
/// all but one away again, which costs a grace period (drivers/net/veth.c, `veth_init_queues`).
fn one_queue(w: &mut Writer) {
    w.u32(link::ifla::NUM_TX_QUEUES, 1);
    w.u32(link::ifla::NUM_RX_QUEUES, 1);
}

/// Runs inside the pod's namespace.
fn set_up_pod(attachment: &Attachment, routes: &[PodRoute]) -> Result<(), LinuxError> {
    let ifname = attachment.key.ifname;
    let mut socket = Socket::open(Protocol::Route)?;
    let Some(number) = link::number_of(&socket, ifname)? else {
        return Err(LinuxError::Netlink {
            what: format!("{ifname} in the pod"),
            errno: libc::ENODEV,
            cause: "it went away while it was set up".to_owned(),
        });
    };
    if attachment.addresses.iter().any(|net| net.addr().is_ipv6()) {
        allow_ipv6(ifname)?;
    }
    let mut w = Writer::default();
    link::no_made_up_address(&mut w, ifname);
    if let Ok(lo) = IfName::new("lo") {
        link::set_up(&mut w, lo, true);
    }
    link::set_up(&mut w, ifname, true);
    for net in &attachment.addresses {
        address::add(&mut w, *net, number);
    }
    for r in routes {
        route::add(&mut w, r.prefix, r.priority, route::To::Gateway(number, r.gateway), false);
    }
    let results = socket.batch(&mut w)?;
    results
        .into_iter()
        .collect::<Result<(), _>>()
        .map_err(|error| renamed(error, &format!("setting up {ifname} in the pod")))
}

/// Runtimes turn IPv6 off in namespaces that they make (`disable_ipv6` of `default`); an interface that is given an IPv6
/// address is meant to have it. Read before it is written: `/proc/sys` may be read-only, and mostly nothing is to be done.
fn allow_ipv6(ifname: IfName) -> Result<(), LinuxError> {
    // A dot in an interface's name does no harm: this is a path, not the dotted form of a key.
    let path = format!("net/ipv6/conf/{ifname}/disable_ipv6");
    match sysctl::read(&path)? {
        Some(0) | None => Ok(()),
        Some(_) => sysctl::write(&path, 0),
    }
}

/// What CHECK finds wrong inside the pod: one line each.
///
/// # Errors
/// [`LinuxError`] when the namespace cannot be looked at.
pub fn check_pod(attachment: &Attachment, routes: &[PodRoute], netns: &NetNs) -> Result<Vec<String>, LinuxError> {
    netns.run(|| {
        let mut socket = Socket::open(Protocol::Route)?;
        let ifname = attachment.key.ifname;
        let Some(seen) = seen(&mut socket, ifname)? else {
            return Ok(vec![format!("interface {ifname} is missing in the pod")]);
        };
        let mut faults = Vec::new();
        if !seen.link.up {
            faults.push(format!("interface {ifname} is down in the pod"));
        }
        let mut w = Writer::default();
        address::list(&mut w);
        let addresses = socket.dump("list addresses", &mut w, Vec::new, |all: &mut Vec<_>, message| {
            all.extend(address::parse(message.payload).filter(|a| a.index == seen.index));
        })?;
        for net in &attachment.addresses {
            if !addresses.iter().any(|a| a.net == *net) {
                faults.push(format!("address {net} is missing on {ifname} in the pod"));
            }
        }
        for r in routes {
            let there = route::read(&mut socket, r.prefix.family(), 0)?;
            let wanted = Some(route::To::Gateway(seen.index, r.gateway));
            if !there.iter().any(|route| route.prefix == r.prefix && route.to == wanted) {
                faults.push(format!("route {} via {} is missing in the pod", r.prefix, r.gateway));
            }
        }
        Ok(faults)
    })?
}

/// What CHECK finds wrong on the host's side.
///
/// # Errors
/// [`LinuxError`].
pub fn check_host(attachment: &Attachment) -> Result<Vec<String>, LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let name = attachment.host_side;
    let Some(seen) = seen(&mut socket, name)? else {
        return Ok(vec![format!("{name} is missing on the host")]);
    };
    let mut faults = Vec::new();
    let bridge = link::number_of(&socket, attachment.bridge)?;
    if bridge.is_none() || seen.master != bridge {
        faults.push(format!("{name} is no port of bridge {}", attachment.bridge));
    }
    if !seen.link.up {
        faults.push(format!("{name} is down on the host"));
    }
    Ok(faults)
}

/// Whether an interface of this name is in the namespace.
///
/// # Errors
/// [`LinuxError`].
pub fn exists_in(netns: &NetNs, ifname: IfName) -> Result<bool, LinuxError> {
    netns.run(|| Ok(link::number_of(&Socket::open(Protocol::Route)?, ifname)?.is_some()))?
}

/// Takes the host's end out of the bridge and down, for the reaper. A missing one is parked already.
///
/// # Errors
/// [`LinuxError`].
pub fn park(host_side: IfName) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    w.begin(link::SET, 0);
    w.raw(&link::info(0, 0, 1));
    w.text(link::ifla::IFNAME, host_side.as_str());
    w.u32(link::ifla::MASTER, 0);
    w.u32(link::ifla::GROUP, PARKED_GROUP);
    w.end();
    send(&mut w, &format!("parking of {host_side}"))
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
pub fn delete(host_side: IfName) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    link::delete(&mut w, host_side);
    send(&mut w, &format!("deletion of {host_side}"))
}

fn send(w: &mut Writer, what: &str) -> Result<(), LinuxError> {
    let results = Socket::open(Protocol::Route)?.batch(w)?;
    match results.into_iter().collect::<Result<(), _>>() {
        Err(error) if error.errno() == libc::ENODEV => Ok(()),
        other => other.map_err(|error| renamed(error, what)),
    }
}

fn seen(socket: &mut Socket, name: IfName) -> Result<Option<link::Seen>, LinuxError> {
    let mut w = Writer::default();
    w.begin(link::GET, 0);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, name.as_str());
    w.end();
    let mut found = None;
    let results = socket.batch_with_echo(&mut w, |_, message| found = link::parse(message.payload))?;
    match results.into_iter().collect::<Result<(), _>>() {
        Ok(()) => Ok(found),
        Err(error) if error.errno() == libc::ENODEV => Ok(None),
        Err(error) => Err(error),
    }
}

fn renamed(error: LinuxError, what: &str) -> LinuxError {
    match error {
        LinuxError::Netlink { errno, cause, .. } => LinuxError::Netlink { what: what.to_owned(), errno, cause },
        other => other,
    }
}
