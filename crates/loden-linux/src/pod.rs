//! A pod's attachment in the kernel: made, looked at, taken away. How the pod is attached decides which file does the link; its
//! addresses and routes are the same for all.

use std::path::Path;

use ipnet::IpNet;
use loden_core::attach;
use loden_core::kernel::{Key, Object, PROTOCOL, TABLE_MAIN};
use loden_core::model::{Attach, Attachment, AttachmentKey, IfName, Part, PodRoute};

use crate::detect::Detection;
use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::rt::{address, link, route};
use crate::{bridge, fault, macvlan, shape, sysctl, tuning, veth};

/// Makes the link, sets it up, and gives the pod its addresses and routes.
///
/// # Errors
/// [`LinuxError`]; nothing of it is left then.
pub fn make(attachment: &Attachment, netns: &NetNs) -> Result<(), LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    match &attachment.attach {
        Attach::Bridge(port) => {
            let number = bridge::ready(&mut socket, port, attachment)?;
            veth::make(&mut socket, attachment, Some(number), netns)?;
        }
        Attach::Routed | Attach::Ptp => veth::make(&mut socket, attachment, None, netns)?,
        Attach::Foreign { .. } => return Ok(()),
        Attach::Macvlan(macvlan) => macvlan::make(&mut socket, attachment, macvlan, netns)?,
    }
    fault::point("add-linked");
    let vlans = attach::vlans(attachment).zip(attachment.host_side);
    let made = vlans
        .map_or(Ok(()), |(vlans, port)| bridge::set_vlans(&mut socket, port, vlans))
        .and_then(|()| set_up_host(&mut socket, attachment))
        .and_then(|()| {
            fault::point("add-host-set");
            netns.visit(|| set_up_pod(attachment))?
        });
    made.inspect_err(|_| {
        // The first error is the one that counts; the link goes with the pod's namespace at the latest.
        let _ = remove(attachment);
    })
}

/// Takes everything of an attachment away at once.
///
/// # Errors
/// [`LinuxError`].
pub fn remove(attachment: &Attachment) -> Result<(), LinuxError> {
    match (&attachment.attach, attachment.host_side) {
        (Attach::Macvlan(_), _) => macvlan::remove(attachment),
        (Attach::Foreign { .. }, _) => give_back(attachment),
        (_, Some(host_side)) => veth::delete(host_side),
        (_, None) => Ok(()),
    }
}

/// Cuts an attachment off: what costs the kernel time is left to the reaper. Without the attachment's file only its name is
/// known, which is enough for all that has an end on the host.
///
/// # Errors
/// [`LinuxError`].
pub fn detach(key: &AttachmentKey, attachment: Option<&Attachment>) -> Result<(), LinuxError> {
    match attachment {
        Some(attachment) if matches!(attachment.attach, Attach::Macvlan(_)) => macvlan::remove(attachment),
        Some(attachment) if matches!(attachment.attach, Attach::Foreign { .. }) => give_back(attachment),
        _ => veth::park(key),
    }
}

/// What was set of a link that another plugin made and takes away.
fn give_back(attachment: &Attachment) -> Result<(), LinuxError> {
    let errors = [shape::remove(attachment), restore(attachment)].into_iter().filter_map(Result::err);
    LinuxError::collected(errors.collect())
}

/// Brings back what was there before settings of the pod were made; without its namespace they have gone too.
pub(crate) fn restore(attachment: &Attachment) -> Result<(), LinuxError> {
    match NetNs::open(Path::new(&attachment.netns)) {
        Ok(netns) if attachment.has(Part::Tuning) => {
            netns.visit(|| tuning::restore(&attachment.tuning, attachment.key.ifname))?
        }
        _ => Ok(()),
    }
}

/// What the host holds for the pod besides its end of the link.
fn set_up_host(socket: &mut Socket, attachment: &Attachment) -> Result<(), LinuxError> {
    let objects = attach::host_objects(attachment);
    set_host_sysctls(attachment)?;
    let mut w = Writer::default();
    let mut sent = Vec::new();
    for (key, object, _) in &objects {
        match (key, object) {
            (Key::Address(dev, net), _) => address::add(&mut w, *net, number_of(socket, *dev)?),
            (Key::Route(prefix, priority), Object::Route(via)) => {
                let Some(dev) = via.device() else { continue };
                route::add(&mut w, *prefix, *priority, route::To::Link(number_of(socket, dev)?), true);
            }
            _ => continue,
        }
        sent.push(key);
    }
    if sent.is_empty() {
        return Ok(());
    }
    let results = socket.batch(&mut w)?;
    for (key, result) in sent.into_iter().zip(results) {
        match result {
            // The link is new: only the agent can have been quicker, which still wants what a former attachment of this key had.
            Err(error) if error.errno() == libc::EEXIST && matches!(key, Key::Address(..)) => {}
            result => result.map_err(|error| error.renamed(&format!("{key} for the pod")))?,
        }
    }
    Ok(())
}

/// The sysctls among it: all that there is to do where another plugin made the link.
pub(crate) fn set_host_sysctls(attachment: &Attachment) -> Result<(), LinuxError> {
    for (key, object, _) in attach::host_objects(attachment) {
        if let (Key::DeviceSysctl(dev, which), Object::Sysctl(value)) = (key, object) {
            set_sysctl(&which.path(dev), value)?;
        }
    }
    Ok(())
}

fn number_of(socket: &Socket, dev: IfName) -> Result<u32, LinuxError> {
    link::number_of(socket, dev)?.ok_or_else(|| went_away(&format!("{dev} on the host")))
}

fn went_away(what: &str) -> LinuxError {
    LinuxError::Netlink {
        what: what.to_owned(),
        errno: libc::ENODEV,
        cause: "it went away while it was set up".to_owned(),
    }
}

/// Runs inside the pod's namespace.
fn set_up_pod(attachment: &Attachment) -> Result<(), LinuxError> {
    let ifname = attachment.key.ifname;
    let mut socket = Socket::open(Protocol::Route)?;
    let Some(number) = link::number_of(&socket, ifname)? else {
        return Err(went_away(&format!("{ifname} in the pod")));
    };
    if attachment.ips().any(|addr| addr.is_ipv6()) {
        allow_ipv6(ifname)?;
    }
    let is_asked = matches!(&attachment.attach, Attach::Bridge(port) if port.detect_duplicates);
    let detection = is_asked.then(|| Detection::begin(ifname)).transpose()?;
    if let Some(bound) = attachment.bandwidth.egress {
        shape::put(&mut socket, ifname, bound, attachment.mtu)?;
    }
    // Before the first packet.
    tuning::set_sysctls(&attachment.tuning)?;
    let mut w = Writer::default();
    link::no_made_up_address(&mut w, ifname);
    if let Ok(lo) = IfName::new("lo") {
        link::set_up(&mut w, lo, true);
    }
    if !attachment.is_down {
        link::set_up(&mut w, ifname, true);
    }
    for net in attach::pod_nets(attachment) {
        match attachment.attach {
            // The subnet is behind the host: the kernel is not to make a route to it by itself.
            Attach::Ptp => address::add_alone(&mut w, net, number),
            _ if is_asked => address::add_detected(&mut w, net, number),
            _ => address::add(&mut w, net, number),
        }
    }
    for r in &attachment.routes {
        route::add_in_pod(&mut w, r, leads_to(r, number));
    }
    let mut results = socket.batch(&mut w)?;
    let of_routes = results.split_off(results.len() - attachment.routes.len());
    results
        .into_iter()
        .collect::<Result<(), _>>()
        .map_err(|error| error.renamed(&format!("setting up {ifname} in the pod")))?;
    for (r, made) in attachment.routes.iter().zip(of_routes) {
        match made {
            // Another interface of the pod has it: the first one keeps it, as with the reference plugins.
            Err(error) if error.errno() == libc::EEXIST => {}
            made => made.map_err(|error| error.renamed(&format!("route {} of {ifname} in the pod", r.prefix)))?,
        }
    }
    detection.map_or(Ok(()), |detection| detection.settle(&mut socket, number))
}

/// Changes the addresses, routes and MTU of a pod that is attached already; the calling thread is in its namespace. What is there or gone
/// already is no error.
///
/// # Errors
/// Whatever could not be changed, all of it.
pub fn readdress(there: &Attachment, wanted: &Attachment) -> Result<(), LinuxError> {
    let ifname = wanted.key.ifname;
    let mut socket = Socket::open(Protocol::Route)?;
    let number = link::number_of(&socket, ifname)?.ok_or_else(|| went_away(&format!("{ifname} in the pod")))?;
    let mut w = Writer::default();
    if there.mtu != wanted.mtu {
        link::set_mtu(&mut w, ifname, wanted.mtu);
    }
    there
        .routes
        .iter()
        .filter(|route| !wanted.routes.contains(route))
        .for_each(|route| route::delete_in_pod(&mut w, route));
    let (nets, wanted_nets) = (attach::pod_nets(there), attach::pod_nets(wanted));
    // Before the new ones: one of the same subnet would be gone with the old.
    nets.iter().filter(|net| !wanted_nets.contains(net)).for_each(|net| address::delete(&mut w, *net, number));
    wanted_nets.iter().for_each(|net| address::add(&mut w, *net, number));
    wanted.routes.iter().for_each(|r| route::add_in_pod(&mut w, r, leads_to(r, number)));
    let is_as_wanted = |error: &LinuxError| [libc::EEXIST, libc::ESRCH, libc::EADDRNOTAVAIL].contains(&error.errno());
    let errors = socket.batch(&mut w)?.into_iter().filter_map(Result::err).filter(|error| !is_as_wanted(error));
    let what = format!("new addresses of {ifname} in the pod");
    LinuxError::collected(errors.map(|error| error.renamed(&what)).collect())
}

/// Gives a pod that is being attached the addresses that have been leased for it, and the host what leads there.
///
/// # Errors
/// [`LinuxError`].
pub fn give_addresses(there: &Attachment, leased: &Attachment, netns: &NetNs) -> Result<(), LinuxError> {
    netns.visit(|| readdress(there, leased))??;
    let mut socket = Socket::open(Protocol::Route)?;
    if let Some(host_side) = leased.host_side.filter(|_| there.mtu != leased.mtu) {
        let mut w = Writer::default();
        link::set_mtu(&mut w, host_side, leased.mtu);
        socket.batch(&mut w)?.into_iter().collect::<Result<(), _>>()?;
    }
    set_up_host(&mut socket, leased)
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
pub(crate) fn set_sysctl(path: &str, value: i64) -> Result<(), LinuxError> {
    match sysctl::read(path)? {
        Some(is) if is != value => sysctl::write(path, value),
        _ => Ok(()),
    }
}

/// What CHECK finds wrong: one line each. The pod's side is looked at in the namespace that the path names; the node's MTU for
/// pods, in bytes, may have changed since it was attached.
///
/// # Errors
/// [`LinuxError`] when something cannot be looked at.
pub fn check(attachment: &Attachment, netns: &str, mtu_node: Option<u32>) -> Result<Vec<String>, LinuxError> {
    if let Attach::Foreign { .. } = attachment.attach {
        return Ok(Vec::new());
    }
    let mtu = attach::mtu(attachment, mtu_node);
    let mut faults = check_host(attachment, mtu)?;
    faults.extend(shape::missing_on_host(attachment)?);
    match NetNs::open(Path::new(netns)) {
        Ok(netns) => faults.extend(netns.run(|| check_pod(attachment, mtu))??),
        Err(error) => faults.push(format!("the pod has gone: {error}")),
    }
    Ok(faults)
}

/// What CHECK finds wrong of one part, for a plugin behind others: one line each.
///
/// # Errors
/// [`LinuxError`] when something cannot be looked at.
pub(crate) fn check_part(attachment: &Attachment, part: Part) -> Result<Vec<String>, LinuxError> {
    let mut faults = if part == Part::Bandwidth { shape::missing_on_host(attachment)? } else { Vec::new() };
    let in_pod = || match part {
        Part::Bandwidth => shape::missing_in_pod(attachment),
        Part::Tuning => tuning::differing(&attachment.tuning, attachment.key.ifname),
        Part::Addresses | Part::Ports => Ok(Vec::new()),
    };
    match NetNs::open(Path::new(&attachment.netns)) {
        Ok(netns) => faults.extend(netns.visit(in_pod)??),
        Err(error) => faults.push(format!("the pod has gone: {error}")),
    }
    Ok(faults)
}

/// Runs inside the pod's namespace.
fn check_pod(attachment: &Attachment, mtu: u32) -> Result<Vec<String>, LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let ifname = attachment.key.ifname;
    let Some(seen) = link::read(&mut socket, ifname)? else {
        return Ok(vec![format!("interface {ifname} is missing in the pod")]);
    };
    let mut faults = Vec::new();
    if !seen.link.up && !attachment.is_down {
        faults.push(format!("interface {ifname} is down in the pod"));
    }
    faults.extend(shape::missing_in_pod(attachment)?);
    faults.extend(tuning::differing(&attachment.tuning, ifname)?);
    if seen.link.mtu != mtu && attachment.tuning.mtu.is_none() {
        faults.push(format!("interface {ifname} has MTU {} in the pod, not {mtu}", seen.link.mtu));
    }
    if seen.link.mac != Some(attachment.mac) && attachment.tuning.mac.is_none() {
        let is = seen.link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        faults.push(format!("interface {ifname} has the Ethernet address {is} in the pod, not {}", attachment.mac));
    }
    if let Attach::Macvlan(macvlan) = &attachment.attach {
        faults.extend(macvlan::check(&mut socket, ifname, macvlan)?);
        if macvlan.in_container {
            faults.extend(macvlan::check_master(&mut socket, macvlan)?);
        }
    }
    let addresses = addresses_on(&mut socket, seen.index)?;
    for net in attach::pod_nets(attachment).iter().filter(|net| !addresses.contains(net)) {
        faults.push(format!("address {net} is missing on {ifname} in the pod"));
    }
    for r in &attachment.routes {
        let there = route::read_all(&mut socket, r.prefix.family(), 0)?;
        let wanted = Some(leads_to(r, seen.index));
        let table = r.extras.table.unwrap_or(TABLE_MAIN);
        let via = r.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
        let is_like = |route: &&route::Seen| route.table == table && route.prefix == r.prefix;
        let is_anothers =
            |to: route::To| !matches!(to, route::To::Link(n) | route::To::Gateway(n, _) if n == seen.index);
        match there.iter().filter(is_like).find(|route| route.to == wanted) {
            None if there.iter().filter(is_like).any(|route| route.to.is_some_and(is_anothers)) => {}
            None => faults.push(format!("route {}{via} is missing in the pod", r.prefix)),
            Some(seen) if (seen.mtu, seen.advmss) != (r.extras.mtu, r.extras.advmss) => {
                faults.push(format!("route {}{via} has another MTU or advmss in the pod", r.prefix));
            }
            Some(_) => {}
        }
    }
    Ok(faults)
}

fn check_host(attachment: &Attachment, mtu: u32) -> Result<Vec<String>, LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let mut faults = Vec::new();
    if let Some((name, wanted)) = attach::host_link(attachment, None) {
        let Some(seen) = link::read(&mut socket, name)? else {
            return Ok(vec![format!("{name} is missing on the host")]);
        };
        if let Some(bridge) = wanted.master {
            let number = link::number_of(&socket, bridge)?;
            if number.is_none() || seen.master != number {
                faults.push(format!("{name} is no port of bridge {bridge}"));
            } else if seen.link.port != wanted.port {
                faults.push(format!("{name} has not its settings as a port (hairpin, isolated) on bridge {bridge}"));
            }
        }
        if let Some(mac) = wanted.mac.filter(|mac| seen.link.mac != Some(*mac)) {
            faults.push(format!("{name} has not the Ethernet address {mac}, which pods know their gateway by"));
        }
        if let Some(vlans) = attach::vlans(attachment) {
            faults.extend(bridge::check_vlans(&mut socket, name, vlans)?);
        }
        if seen.link.mtu != mtu {
            faults.push(format!("{name} has MTU {} on the host, not {mtu}", seen.link.mtu));
        }
        if !seen.link.up {
            faults.push(format!("{name} is down on the host"));
        }
    }
    if let Attach::Macvlan(macvlan) = &attachment.attach
        && !macvlan.in_container
    {
        faults.extend(macvlan::check_master(&mut socket, macvlan)?);
        if let Some(name) = macvlan.host_link
            && link::number_of(&socket, name)?.is_none()
        {
            faults.push(format!("{name}, the host's own macvlan, is missing"));
        }
    }
    for (key, object, role) in attach::host_objects(attachment) {
        if !is_there(&mut socket, &key, &object)? {
            faults.push(format!("{key} is not as it should be on the host ({role})"));
        }
    }
    Ok(faults)
}

fn is_there(socket: &mut Socket, key: &Key, object: &Object) -> Result<bool, LinuxError> {
    let number = |socket: &Socket, dev| link::number_of(socket, dev);
    Ok(match (key, object) {
        (Key::DeviceSysctl(dev, which), Object::Sysctl(value)) => {
            sysctl::read(&which.path(*dev))?.is_none_or(|is| is == *value)
        }
        (Key::Address(dev, net), _) => match number(socket, *dev)? {
            Some(number) => addresses_on(socket, number)?.contains(net),
            None => false,
        },
        (Key::Route(prefix, _), Object::Route(via)) => {
            let number = via.device().map(|dev| number(socket, dev)).transpose()?.flatten();
            let wanted = number.map(route::To::Link);
            let there = route::read(socket, prefix.family(), PROTOCOL)?;
            wanted.is_some() && there.iter().any(|there| there.prefix == *prefix && there.to == wanted)
        }
        _ => true,
    })
}

/// The addresses that a link bears.
pub(crate) fn addresses_on(socket: &mut Socket, number: u32) -> Result<Vec<IpNet>, LinuxError> {
    let mut w = Writer::default();
    address::list(&mut w);
    socket.dump("list addresses", &mut w, Vec::new, |all: &mut Vec<_>, message| {
        all.extend(address::parse(message.payload).filter(|a| a.index == number).map(|a| a.net));
    })
}

/// Sets up the loopback interface of a namespace.
///
/// # Errors
/// [`LinuxError`].
pub fn set_up_loopback(netns: &NetNs) -> Result<(), LinuxError> {
    netns.visit(|| {
        let mut w = Writer::default();
        link::set_up(&mut w, loopback()?, true);
        Socket::open(Protocol::Route)?.batch(&mut w)?.into_iter().collect()
    })?
}

/// Whether the loopback interface of a namespace is up.
///
/// # Errors
/// [`LinuxError`].
pub fn is_loopback_up(netns: &NetNs) -> Result<bool, LinuxError> {
    netns.visit(|| {
        let seen = link::read(&mut Socket::open(Protocol::Route)?, loopback()?)?;
        Ok(seen.is_some_and(|seen| seen.link.up))
    })?
}

fn loopback() -> Result<IfName, LinuxError> {
    IfName::new("lo").map_err(|error| LinuxError::File { path: "lo".to_owned(), cause: error.to_string() })
}

/// Whether an interface of this name is in the namespace.
///
/// # Errors
/// [`LinuxError`].
pub fn exists_in(netns: &NetNs, ifname: IfName) -> Result<bool, LinuxError> {
    netns.run(|| Ok(link::number_of(&Socket::open(Protocol::Route)?, ifname)?.is_some()))?
}
