//! A pod's macvlan: born in the pod's namespace beside an interface of the host. And the host's own one, by which it reaches them: a
//! master and its macvlans do not exchange frames (drivers/net/macvlan.c).

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use loden_core::attach;
use loden_core::cni::Master;
use loden_core::kernel::Key;
use loden_core::model::{Attachment, IfName, Mac, Macvlan, MacvlanMode, Prefix};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::pod::addresses_on;
use crate::rt::{address, link, route};
use crate::underlay;

/// `IFLA_MACVLAN_*`, linux/if_link.h.
const MODE: u16 = 1;
const MACADDR_MODE: u16 = 3;
const MACADDR: u16 = 4;
const MACADDR_DATA: u16 = 5;
const BC_QUEUE_LEN: u16 = 7;
/// `MACVLAN_MACADDR_SET`: the list takes the place of the former.
const SET: u32 = 3;

/// The interface of that name, or that of the default route; with a namespace looked for there.
///
/// # Errors
/// [`LinuxError`] when there is none.
pub fn master(name: Option<IfName>, netns: Option<&NetNs>) -> Result<Master, LinuxError> {
    match netns {
        Some(netns) => netns.run(|| find_master(name))?,
        None => find_master(name),
    }
}

fn find_master(name: Option<IfName>) -> Result<Master, LinuxError> {
    let missing =
        |what: String, cause: &str| LinuxError::Netlink { what, errno: libc::ENODEV, cause: cause.to_owned() };
    let name = match name {
        Some(name) => name,
        None => underlay::facts(None)?.default_routes.first().map(|(_, name)| *name).ok_or_else(|| {
            missing("the macvlan's master".to_owned(), "`master` is not given and the host has no default route")
        })?,
    };
    let seen = link::read(&mut Socket::open(Protocol::Route)?, name)?;
    let seen = seen.ok_or_else(|| missing(format!("the macvlan's master {name}"), "there is no such interface"))?;
    Ok(Master { name, mtu: seen.link.mtu, mac: seen.link.mac })
}

/// Makes the pod's interface; it is still down. With it the host's own, if one is wanted.
///
/// # Errors
/// [`LinuxError`]; the pod's interface is not left then.
pub(crate) fn make(
    socket: &mut Socket,
    attachment: &Attachment,
    macvlan: &Macvlan,
    netns: &NetNs,
) -> Result<(), LinuxError> {
    if let Some(name) = macvlan.host_link {
        make_host_link(socket, name, macvlan)?;
    }
    let ifname = attachment.key.ifname;
    let what = format!("macvlan {ifname} in the pod, beside {}", macvlan.master);
    let fd = netns.as_fd().as_raw_fd().cast_unsigned();
    let link = |socket: &mut Socket, born_in| {
        let master = number_of_master(socket, macvlan.master)?;
        let mut w = Writer::default();
        // A passed-through interface begins with its master's address (`macvlan_common_newlink`) and may change it only then.
        let mac = (macvlan.mode != MacvlanMode::Passthru).then_some(attachment.mac);
        create(&mut w, ifname, master, attachment.mtu, mac, macvlan, born_in);
        socket.batch(&mut w)?.into_iter().collect::<Result<(), _>>().map_err(|error| explained(error, &what, macvlan))
    };
    if macvlan.in_container {
        netns.visit(|| link(&mut Socket::open(Protocol::Route)?, None))??;
    } else {
        link(socket, Some(fd))?;
    }
    if macvlan.mode != MacvlanMode::Passthru {
        return Ok(());
    }
    netns.visit(|| {
        let mut w = Writer::default();
        link::set_mac(&mut w, ifname, attachment.mac);
        let results = Socket::open(Protocol::Route)?.batch(&mut w)?;
        results.into_iter().collect::<Result<(), _>>().map_err(|error| error.renamed(&what))
    })?
}

fn number_of_master(socket: &Socket, master: IfName) -> Result<u32, LinuxError> {
    link::number_of(socket, master)?.ok_or_else(|| LinuxError::Netlink {
        what: format!("the macvlan's master {master}"),
        errno: libc::ENODEV,
        cause: "there is no such interface".to_owned(),
    })
}

fn create(
    w: &mut Writer,
    name: IfName,
    master: u32,
    mtu: u32,
    mac: Option<Mac>,
    macvlan: &Macvlan,
    born_in: Option<u32>,
) {
    // NLM_F_CREATE | NLM_F_EXCL
    w.begin(link::NEW, 0x600);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, name.as_str());
    w.u32(link::ifla::LINK, master);
    w.u32(link::ifla::MTU, mtu);
    if let Some(mac) = mac {
        w.mac(link::ifla::ADDRESS, mac);
    }
    if let Some(fd) = born_in {
        w.u32(link::ifla::NET_NS_FD, fd);
    }
    let info = w.nest(link::ifla::LINKINFO);
    w.text(link::ifla::INFO_KIND, "macvlan");
    let data = w.nest(link::ifla::INFO_DATA);
    w.u32(MODE, mode_number(macvlan.mode));
    if let Some(length) = macvlan.broadcast_queue {
        w.u32(BC_QUEUE_LEN, length);
    }
    if macvlan.mode == MacvlanMode::Source {
        list(w, &macvlan.sources);
    }
    w.close(data);
    w.close(info);
    w.end();
}

fn mode_number(mode: MacvlanMode) -> u32 {
    match mode {
        MacvlanMode::Private => 1,
        MacvlanMode::Vepa => 2,
        MacvlanMode::Bridge => 4,
        MacvlanMode::Passthru => 8,
        MacvlanMode::Source => 16,
    }
}

fn list(w: &mut Writer, sources: &[Mac]) {
    w.u32(MACADDR_MODE, SET);
    let data = w.nest(MACADDR_DATA);
    sources.iter().for_each(|mac| w.mac(MACADDR, *mac));
    w.close(data);
}

/// The kernel says EINVAL and EBUSY where it means this.
fn explained(error: LinuxError, what: &str, macvlan: &Macvlan) -> LinuxError {
    let master = macvlan.master;
    let cause = match (error.errno(), macvlan.mode) {
        (libc::EINVAL, MacvlanMode::Passthru) => {
            format!("{master} has another macvlan already; mode passthru takes it whole")
        }
        (libc::EINVAL, _) => format!("{master} refuses it: a macvlan in mode passthru may have it whole"),
        (libc::EBUSY, _) => format!("{master} is taken: a port of a bridge cannot have macvlans beside it"),
        _ => return error.renamed(what),
    };
    let errno = error.errno();
    LinuxError::Netlink { what: what.to_owned(), errno, cause: format!("{cause} ({error})") }
}

/// Puts a list of senders in the place of the former; the interface works on meanwhile.
///
/// # Errors
/// [`LinuxError`].
pub fn set_sources(netns: &NetNs, ifname: IfName, sources: &[Mac]) -> Result<(), LinuxError> {
    netns.run(|| {
        let mut w = Writer::default();
        w.begin(link::NEW, 0);
        w.raw(&link::info(0, 0, 0));
        w.text(link::ifla::IFNAME, ifname.as_str());
        let info = w.nest(link::ifla::LINKINFO);
        w.text(link::ifla::INFO_KIND, "macvlan");
        let data = w.nest(link::ifla::INFO_DATA);
        list(&mut w, sources);
        w.close(data);
        w.close(info);
        w.end();
        let results = Socket::open(Protocol::Route)?.batch(&mut w)?;
        let what = format!("the list of senders of {ifname}");
        results.into_iter().collect::<Result<(), _>>().map_err(|error| error.renamed(&what))
    })?
}

/// The host's own macvlan bears the master's addresses alone: so the host is the same to the pods as to the wire.
fn make_host_link(socket: &mut Socket, name: IfName, macvlan: &Macvlan) -> Result<(), LinuxError> {
    let what = format!("the host's own macvlan {name} beside {}", macvlan.master);
    let master = number_of_master(socket, macvlan.master)?;
    if link::number_of(socket, name)?.is_none() {
        let mtu = link::read(socket, macvlan.master)?.map_or(0, |seen| seen.link.mtu);
        let mut w = Writer::default();
        create(&mut w, name, master, mtu, None, &Macvlan { broadcast_queue: None, ..macvlan.clone() }, None);
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

/// What another ADD made meanwhile is as good.
fn settle(socket: &mut Socket, w: &mut Writer, what: &str) -> Result<(), LinuxError> {
    let refused = socket.batch(w)?.into_iter().filter_map(Result::err).find(|error| error.errno() != libc::EEXIST);
    refused.map_or(Ok(()), |error| Err(error.renamed(what)))
}

/// Takes the pod's interface away, if the namespace is still there and it is this one; and the host's routes to the pod.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn remove(attachment: &Attachment) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    for (key, ..) in attach::host_objects(attachment) {
        if let Key::Route(prefix, priority) = key {
            route::delete(&mut w, prefix, priority);
        }
    }
    let gone = [libc::ESRCH, libc::ENODEV];
    let results = Socket::open(Protocol::Route)?.batch(&mut w)?;
    let refused = results.into_iter().filter_map(Result::err).find(|error| !gone.contains(&error.errno()));
    let Ok(netns) = NetNs::open(Path::new(&attachment.netns)) else {
        return refused.map_or(Ok(()), Err);
    };
    let ifname = attachment.key.ifname;
    netns.visit(|| {
        let mut socket = Socket::open(Protocol::Route)?;
        // Another namespace may have taken the name, or another interface the place.
        let is_ours = |seen: &link::Seen| seen.link.kind.name() == "macvlan" && seen.link.mac == Some(attachment.mac);
        if link::read(&mut socket, ifname)?.is_some_and(|seen| is_ours(&seen)) {
            let mut w = Writer::default();
            link::delete(&mut w, ifname);
            let deleted = socket.batch(&mut w)?.into_iter().collect::<Result<(), _>>();
            return deleted.map_err(|error| error.renamed(&format!("deletion of {ifname} in the pod")));
        }
        Ok(())
    })??;
    refused.map_or(Ok(()), Err)
}
