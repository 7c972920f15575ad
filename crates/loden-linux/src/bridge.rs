//! The bridge that a pod becomes a port of: the node's, which the agent makes, or one that a network's configuration names, which
//! is made here where it is missing and never taken away, since others may use it by then.

use std::net::IpAddr;

use ipnet::IpNet;
use loden_core::kernel::LINK_GROUP;
use loden_core::kernel::link::{Bridge, Link, LinkKind, Port};
use loden_core::model::{Attachment, BridgePort, Family, IfName, Mac, OwnBridge};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::pod::{addresses_on, set_sysctl};
use crate::rt::address;
use crate::rt::link::{self, NO_GROUP};

/// Gives the bridge's number; one that the plugin is to make is as it should be then.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn ready(socket: &mut Socket, port: &BridgePort, attachment: &Attachment) -> Result<u32, LinuxError> {
    let name = port.bridge;
    let Some(own) = &port.own else {
        return link::number_of(socket, name)?
            .ok_or_else(|| missing(name, "it is not there; lodend makes it: is it running and ready?".to_owned()));
    };
    let number = match link::number_of(socket, name)? {
        Some(number) => number,
        None => make(socket, name, attachment.mtu)?,
    };
    if own.promiscuous {
        let mut w = Writer::default();
        link::set_promiscuous(&mut w, name);
        settle(socket, &mut w, &format!("bridge {name}"), &[])?;
    }
    if own.is_gateway {
        bear_gateways(socket, name, number, own, attachment)?;
    }
    Ok(number)
}

/// Takes the node's bridge away, if it has no ports and is marked as loden's; says whether it has gone.
///
/// # Errors
/// [`LinuxError`].
pub fn remove_unused(name: IfName) -> Result<bool, LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let Some(bridge) = link::read(&mut socket, name)? else { return Ok(true) };
    let mut w = Writer::default();
    link::list(&mut w);
    let is_used = socket.dump(
        "links",
        &mut w,
        || false,
        |is_used, message| {
            *is_used |= link::parse(message.payload).is_some_and(|seen| seen.master == Some(bridge.index));
        },
    )?;
    let is_ours = matches!(bridge.link.kind, LinkKind::Bridge(_)) && bridge.link.group == LINK_GROUP;
    if is_used || !is_ours {
        return Ok(false);
    }
    crate::veth::delete(name).map(|()| true)
}

fn missing(name: IfName, cause: String) -> LinuxError {
    LinuxError::Netlink { what: format!("bridge {name}"), errno: libc::ENODEV, cause }
}

fn make(socket: &mut Socket, name: IfName, mtu: u32) -> Result<u32, LinuxError> {
    let bridge = Link {
        kind: LinkKind::Bridge(Bridge { mcast_snooping: false }),
        mtu,
        // Fixed, else it would be the lowest of the ports' and change as pods come and go.
        mac: Some(own_mac(name)?),
        up: true,
        master: None,
        port: Port::default(),
        group: NO_GROUP,
    };
    let mut w = Writer::default();
    link::create(&mut w, name, &bridge, None, None);
    link::no_made_up_address(&mut w, name);
    link::set_up(&mut w, name, true);
    // Another ADD may have made it just now.
    settle(socket, &mut w, &format!("bridge {name}"), &[libc::EEXIST])?;
    link::number_of(socket, name)?.ok_or_else(|| missing(name, "it went away while it was set up".to_owned()))
}

/// An Ethernet address of this host's bridge of that name: another host's, and another namespace's, is another.
fn own_mac(name: IfName) -> Result<Mac, LinuxError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let boot = std::fs::read_to_string(path).map_err(|error| LinuxError::system(format!("file {path}"), error))?;
    let (device, inode) = NetNs::current()?.identity();
    Ok(Mac::derived(&["bridge", boot.trim(), &format!("{device} {inode}"), name.as_str()]))
}

/// Puts the gateways on the bridge and lets the host forward.
fn bear_gateways(
    socket: &mut Socket,
    name: IfName,
    number: u32,
    own: &OwnBridge,
    attachment: &Attachment,
) -> Result<(), LinuxError> {
    let there = addresses_on(socket, number)?;
    for pod in &attachment.addresses {
        let Some(gateway) = pod.gateway else { continue };
        let Ok(net) = IpNet::new(gateway, pod.net.prefix_len()) else { continue };
        let mut w = Writer::default();
        if !there.contains(&net) {
            let in_the_way: Vec<IpNet> = there.iter().copied().filter(|other| is_in_the_way(*other, net)).collect();
            if let Some(other) = in_the_way.first().filter(|_| !own.force_address) {
                return Err(LinuxError::Netlink {
                    what: format!("bridge {name}"),
                    errno: libc::EEXIST,
                    cause: format!(
                        "it bears {other}, and this network's gateway is {net}: take that address off, give the network \
                         a bridge of its own, or set `forceAddress`"
                    ),
                });
            }
            in_the_way.iter().for_each(|other| address::delete(&mut w, *other, number));
            address::add(&mut w, net, number);
            settle(socket, &mut w, &format!("gateway {net} on bridge {name}"), &[libc::EEXIST])?;
        }
        set_sysctl(forwarding(Family::of(gateway)), 1)?;
        // What is forwarded to a pod is asked for by a link-local address (`ndisc_send_ns`, net/ipv6/ndisc.c).
        if gateway.is_ipv6() && !there.iter().any(|net| is_link_local(net.addr())) {
            let mac = link::read(socket, name)?.and_then(|seen| seen.link.mac);
            let link_local = mac.and_then(|mac| IpNet::new(mac.link_local().into(), 64).ok());
            if let Some(net) = link_local {
                let mut w = Writer::default();
                address::add(&mut w, net, number);
                settle(socket, &mut w, &format!("address {net} on bridge {name}"), &[libc::EEXIST])?;
            }
        }
    }
    Ok(())
}

/// Another IPv4 address gives the pods' answers another source; in IPv6 several subnets on one link are usual.
fn is_in_the_way(other: IpNet, wanted: IpNet) -> bool {
    match (other.addr(), wanted.addr()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(_), IpAddr::V6(_)) if is_link_local(other.addr()) => false,
        (IpAddr::V6(_), IpAddr::V6(_)) => other.contains(&wanted.network()) || wanted.contains(&other.network()),
        _ => false,
    }
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

fn forwarding(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    }
}

fn settle(socket: &mut Socket, w: &mut Writer, what: &str, allowed: &[i32]) -> Result<(), LinuxError> {
    let refused = socket.batch(w)?.into_iter().filter_map(Result::err).find(|e| !allowed.contains(&e.errno()));
    refused.map_or(Ok(()), |error| Err(error.renamed(what)))
}
