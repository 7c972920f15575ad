//! The bridge that a pod becomes a port of: the node's, which the agent makes, or one that a network's configuration names, which
//! is made here where it is missing and never taken away, since others may use it by then.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use loden_core::kernel::link::{Bridge, Link, LinkKind, Port};
use loden_core::kernel::{DeviceSysctl, LINK_GROUP, NO_GROUP};
use loden_core::model::{Attachment, BridgePort, Family, IfName, Mac, OwnBridge, PortVlans};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::pod::{addresses_on, set_sysctl};
use crate::rt::address;
use crate::rt::link::{self, VethEnd};
use crate::rt::vlan;

/// Gives the bridge's number; one that the plugin is to make is as it should be then.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn ready(socket: &mut Socket, port: &BridgePort, attachment: &Attachment) -> Result<u32, LinuxError> {
    let name = port.bridge;
    let number = match (link::number_of(socket, name)?, &port.own) {
        (Some(number), _) => number,
        (None, Some(_)) => make(socket, name, attachment.mtu, port.vlans.is_some())?,
        (None, None) => {
            return Err(missing(name, "it is not there; lodend makes it: is it running and ready?".to_owned()));
        }
    };
    if port.vlans.is_some() {
        must_filter(socket, name)?;
    }
    let Some(own) = &port.own else { return Ok(number) };
    heed_no_routers(name)?;
    if own.promiscuous {
        let mut w = Writer::default();
        link::set_promiscuous(&mut w, name, true);
        settle(socket, &mut w, &format!("bridge {name}"), &[])?;
    }
    if let Some((vlans, [device, end])) = port.vlans.as_ref().zip(port.gateway_port()) {
        let gateway = make_gateway_port(socket, number, [device, end], vlans, attachment.mtu)?;
        bear_gateways(socket, device, gateway, own, attachment)?;
    } else if own.is_gateway {
        bear_gateways(socket, name, number, own, attachment)?;
    }
    Ok(number)
}

/// A pod's router advertisement must not move the host (CVE-2020-13597). The agent sees to the node's bridge, but not in a container that
/// may not write sysctls, as flannel's.
fn heed_no_routers(name: IfName) -> Result<(), LinuxError> {
    match set_sysctl(&DeviceSysctl::AcceptRa.path(name), 0) {
        // Where that may not be done here either it is for whoever made it so: pods are served without it.
        Err(LinuxError::System { errno: libc::EROFS, .. }) => Ok(()),
        done => done,
    }
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

/// One that others made is used as it is: that it begins to keep VLANs apart is for them to say.
fn must_filter(socket: &mut Socket, name: IfName) -> Result<(), LinuxError> {
    let seen = link::read(socket, name)?;
    if seen.is_some_and(|seen| matches!(seen.link.kind, LinkKind::Bridge(Bridge { vlan_filtering: true, .. }))) {
        return Ok(());
    }
    Err(LinuxError::Netlink {
        what: format!("bridge {name}"),
        errno: libc::EOPNOTSUPP,
        cause: format!(
            "it does not keep VLANs apart: give the network a bridge of its own by `bridge`, or turn it on (ip link set \
             {name} type bridge vlan_filtering 1)"
        ),
    })
}

fn missing(name: IfName, cause: String) -> LinuxError {
    LinuxError::Netlink { what: format!("bridge {name}"), errno: libc::ENODEV, cause }
}

fn make(socket: &mut Socket, name: IfName, mtu: u32, vlan_filtering: bool) -> Result<u32, LinuxError> {
    let bridge = Link {
        kind: LinkKind::Bridge(Bridge { vlan_filtering, ..Bridge::default() }),
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
    let made = settle(socket, &mut w, &format!("bridge {name}"), &[libc::EEXIST]);
    made.map_err(|error| match error {
        LinuxError::Netlink { what, errno: errno @ libc::EOPNOTSUPP, cause } if vlan_filtering => {
            let cause = format!("{cause}: `vlan` and `vlanTrunk` need a kernel with CONFIG_BRIDGE_VLAN_FILTERING");
            LinuxError::Netlink { what, errno, cause }
        }
        other => other,
    })?;
    link::number_of(socket, name)?.ok_or_else(|| missing(name, "it went away while it was set up".to_owned()))
}

/// A port of the host's own in a VLAN, for the gateways. It stays as the bridge does.
fn make_gateway_port(
    socket: &mut Socket,
    bridge: u32,
    [device, end]: [IfName; 2],
    vlans: &PortVlans,
    mtu: u32,
) -> Result<u32, LinuxError> {
    let what = format!("gateway {device}");
    if link::number_of(socket, device)?.is_none() {
        let near = VethEnd { name: end, mtu, mac: None, group: NO_GROUP, master: Some(bridge) };
        let far = VethEnd { name: device, mac: Some(own_mac(device)?), master: None, ..near };
        let here = NetNs::current()?;
        let mut w = Writer::default();
        link::create_veth(&mut w, near, far, here.as_fd().as_raw_fd().cast_unsigned());
        for name in [device, end] {
            link::no_made_up_address(&mut w, name);
            link::set_up(&mut w, name, true);
        }
        settle(socket, &mut w, &what, &[libc::EEXIST])?;
    }
    // Also where it is there already: who made it may have been killed before this.
    let of_gateway = PortVlans { trunk: Vec::new(), ..vlans.clone() };
    set_vlans(socket, end, &of_gateway)?;
    link::number_of(socket, device)?.ok_or_else(|| missing(device, "it went away while it was set up".to_owned()))
}

/// Puts a port into its VLANs and, unless it keeps it, takes it out of the bridge's usual one.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn set_vlans(socket: &mut Socket, port: IfName, vlans: &PortVlans) -> Result<(), LinuxError> {
    let Some(number) = link::number_of(socket, port)? else {
        return Err(missing(port, "it went away while it was set up".to_owned()));
    };
    let mut w = Writer::default();
    if !vlans.keeps_default {
        let wanted = vlan::wanted(vlans);
        vlan::read(socket, number)?.keys().filter(|vlan| !wanted.contains_key(vlan)).for_each(|other| {
            vlan::leave(&mut w, number, *other);
        });
    }
    vlan::join(&mut w, number, vlans);
    settle(socket, &mut w, &format!("VLANs of port {port}"), &[])
}

/// What is wrong with a port's VLANs: one line each.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn check_vlans(socket: &mut Socket, port: IfName, vlans: &PortVlans) -> Result<Vec<String>, LinuxError> {
    let Some(number) = link::number_of(socket, port)? else { return Ok(Vec::new()) };
    let (wanted, there) = (vlan::wanted(vlans), vlan::read(socket, number)?);
    let lacking = wanted.iter().filter(|(vlan, how)| there.get(vlan) != Some(how));
    let mut faults: Vec<String> =
        lacking.map(|(vlan, _)| format!("{port} is not in VLAN {vlan} as it should be")).collect();
    if !vlans.keeps_default {
        let others = there.keys().filter(|vlan| !wanted.contains_key(vlan));
        faults.extend(others.map(|vlan| format!("{port} is in VLAN {vlan}, too")));
    }
    Ok(faults)
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
