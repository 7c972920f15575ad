//! A pod's veth pair: made in one message with its far end born in the pod's namespace, parked at DEL, reaped in groups.
//!
//! Moving a made interface costs the kernel a grace period (17-20 ms); a peer that is born where it belongs costs none.
//! Deleting costs one too, but deleting a hundred at once costs hardly more: so DEL parks and the agent reaps.

use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use loden_core::attach::{self, PodRoute};
use loden_core::kernel::link::Link;
use loden_core::kernel::{Key, Object, PARKED_GROUP, PROTOCOL};
use loden_core::model::{Attachment, AttachmentKey, IfName};

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
    let link = attach::host_link(attachment, attachment.mtu);
    let master = link.master.map(|bridge| bridge_number(&socket, bridge)).transpose()?;
    make_pair(&mut socket, attachment, &link, master, netns).or_else(|error| {
        if error.errno() != libc::EEXIST {
            return Err(error);
        }
        // A DEL that was just now, with the pod's namespace still there, may have left either end parked.
        reap()?;
        make_pair(&mut socket, attachment, &link, master, netns)
    })?;
    let made = set_up_host(&mut socket, attachment).and_then(|()| netns.visit(|| set_up_pod(attachment, routes))?);
    made.inspect_err(|_| {
        // The first error is the one that counts; the pair goes with the pod's namespace at the latest.
        let _ = delete(attachment.host_side);
    })
}

fn bridge_number(socket: &Socket, bridge: IfName) -> Result<u32, LinuxError> {
    link::number_of(socket, bridge)?.ok_or_else(|| LinuxError::Netlink {
        what: format!("bridge {bridge}"),
        errno: libc::ENODEV,
        cause: "it is not there; lodend makes it: is it running and ready?".to_owned(),
    })
}

fn make_pair(
    socket: &mut Socket,
    attachment: &Attachment,
    host_side: &Link,
    master: Option<u32>,
    netns: &NetNs,
) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    // NLM_F_CREATE | NLM_F_EXCL
    w.begin(link::NEW, 0x600);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, attachment.host_side.as_str());
    w.u32(link::ifla::MTU, host_side.mtu);
    if let Some(master) = master {
        w.u32(link::ifla::MASTER, master);
    }
    if let Some(mac) = host_side.mac {
        w.mac(link::ifla::ADDRESS, mac);
    }
    w.u32(link::ifla::GROUP, host_side.group);
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

/// What the host holds for the pod besides its end of the pair.
fn set_up_host(socket: &mut Socket, attachment: &Attachment) -> Result<(), LinuxError> {
    let objects = attach::host_objects(attachment);
    if objects.is_empty() {
        return Ok(());
    }
    let dev = attachment.host_side;
    let Some(number) = link::number_of(socket, dev)? else { return Err(went_away(&format!("{dev} on the host"))) };
    let mut w = Writer::default();
    for (key, object, _) in &objects {
        match (key, object) {
            (Key::DeviceSysctl(dev, which), Object::Sysctl(value)) => set_sysctl(&which.path(*dev), *value)?,
            (Key::Address(_, net), _) => address::add(&mut w, *net, number),
            (Key::Route(prefix, priority), _) => route::add(&mut w, *prefix, *priority, route::To::Link(number), false),
            _ => {}
        }
    }
    let results = socket.batch(&mut w)?;
    for ((key, ..), result) in objects.iter().filter(|(key, ..)| is_by_netlink(key)).zip(results) {
        result.map_err(|error| renamed(error, &format!("{key} for the pod")))?;
    }
    Ok(())
}

fn is_by_netlink(key: &Key) -> bool {
    !matches!(key, Key::DeviceSysctl(..))
}

fn went_away(what: &str) -> LinuxError {
    LinuxError::Netlink {
        what: what.to_owned(),
        errno: libc::ENODEV,
        cause: "it went away while it was set up".to_owned(),
    }
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
        return Err(went_away(&format!("{ifname} in the pod")));
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
    for net in attach::pod_nets(attachment) {
        address::add(&mut w, net, number);
    }
    for r in routes {
        route::add(&mut w, r.prefix, r.priority, leads_to(r, number), false);
    }
    let results = socket.batch(&mut w)?;
    results
        .into_iter()
        .collect::<Result<(), _>>()
        .map_err(|error| renamed(error, &format!("setting up {ifname} in the pod")))
}

fn leads_to(route: &PodRoute, number: u32) -> route::To {
    route.gateway.map_or(route::To::Link(number), |gateway| route::To::Gateway(number, gateway))
}

/// Runtimes turn IPv6 off in namespaces that they make (`disable_ipv6` of `default`); an interface that is given an IPv6
/// address is meant to have it. Read before it is written: `/proc/sys` may be read-only, and mostly nothing is to be done.
fn allow_ipv6(ifname: IfName) -> Result<(), LinuxError> {
    // A dot in an interface's name does no harm: this is a path, not the dotted form of a key.
    set_sysctl(&format!("net/ipv6/conf/{ifname}/disable_ipv6"), 0)
}

/// Sets what is otherwise. A kernel without IPv6 has none of its sysctls.
fn set_sysctl(path: &str, value: i64) -> Result<(), LinuxError> {
    match sysctl::read(path)? {
        Some(is) if is != value => sysctl::write(path, value),
        _ => Ok(()),
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
        let addresses = addresses_on(&mut socket, seen.index)?;
        for net in attach::pod_nets(attachment).iter().filter(|net| !addresses.contains(net)) {
            faults.push(format!("address {net} is missing on {ifname} in the pod"));
        }
        for r in routes {
            let there = route::read(&mut socket, r.prefix.family(), 0)?;
            let wanted = Some(leads_to(r, seen.index));
            if !there.iter().any(|route| route.prefix == r.prefix && route.to == wanted) {
                let via = r.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
                faults.push(format!("route {}{via} is missing in the pod", r.prefix));
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
    let wanted = attach::host_link(attachment, attachment.mtu);
    if let Some(bridge) = wanted.master {
        let number = link::number_of(&socket, bridge)?;
        if number.is_none() || seen.master != number {
            faults.push(format!("{name} is no port of bridge {bridge}"));
        }
    }
    if let Some(mac) = wanted.mac.filter(|mac| seen.link.mac != Some(*mac)) {
        faults.push(format!("{name} has not the Ethernet address {mac}, which pods know their gateway by"));
    }
    if !seen.link.up {
        faults.push(format!("{name} is down on the host"));
    }
    let addresses = addresses_on(&mut socket, seen.index)?;
    for (key, object, role) in attach::host_objects(attachment) {
        let is_there = match (key, object) {
            (Key::DeviceSysctl(dev, which), Object::Sysctl(value)) => {
                sysctl::read(&which.path(dev))?.is_none_or(|is| is == value)
            }
            (Key::Address(_, net), _) => addresses.contains(&net),
            (Key::Route(prefix, _), _) => route::read(&mut socket, prefix.family(), PROTOCOL)?
                .iter()
                .any(|there| there.prefix == prefix && there.to == Some(route::To::Link(seen.index))),
            _ => true,
        };
        if !is_there {
            faults.push(format!("{key} is not as it should be on the host ({role})"));
        }
    }
    Ok(faults)
}

fn addresses_on(socket: &mut Socket, number: u32) -> Result<Vec<IpNet>, LinuxError> {
    let mut w = Writer::default();
    address::list(&mut w);
    socket.dump("list addresses", &mut w, Vec::new, |all: &mut Vec<_>, message| {
        all.extend(address::parse(message.payload).filter(|a| a.index == number).map(|a| a.net));
    })
}

/// Whether an interface of this name is in the namespace.
///
/// # Errors
/// [`LinuxError`].
pub fn exists_in(netns: &NetNs, ifname: IfName) -> Result<bool, LinuxError> {
    netns.run(|| Ok(link::number_of(&Socket::open(Protocol::Route)?, ifname)?.is_some()))?
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
pub fn delete(host_side: IfName) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    link::delete(&mut w, host_side);
    send(&mut w, &format!("deletion of {host_side}"))
}

fn send(w: &mut Writer, what: &str) -> Result<(), LinuxError> {
    let results = Socket::open(Protocol::Route)?.batch(w)?;
    let refused = results.into_iter().filter_map(Result::err).find(|error| error.errno() != libc::ENODEV);
    refused.map_or(Ok(()), |error| Err(renamed(error, what)))
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
