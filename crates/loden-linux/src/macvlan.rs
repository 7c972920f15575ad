//! A pod's macvlan: born in the pod's namespace beside an interface of the host.

mod host_link;
mod sources;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use loden_core::attach;
use loden_core::cni::Master;
use loden_core::kernel::{Key, NO_GROUP};
use loden_core::model::{Attachment, IfName, Mac, Macvlan, MacvlanMode};

use crate::error::LinuxError;
use crate::netlink::attr::{Attrs, mac, text, u32_at};
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::rt::{link, route};
use crate::underlay;

pub(crate) use host_link::remove_unused;
pub use sources::set_sources;

/// `IFLA_MACVLAN_*`, linux/if_link.h.
const MODE: u16 = 1;
const MACADDR_MODE: u16 = 3;
const MACADDR: u16 = 4;
const MACADDR_DATA: u16 = 5;
const BC_QUEUE_LEN: u16 = 7;
/// `MACVLAN_MACADDR_SET`: the list takes the place of the former.
const SET: u32 = 3;

/// What the kernel says of a macvlan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its mode, by the kernel's number.
    mode: u32,
    /// Mode `source`: whose frames are let in.
    pub sources: BTreeSet<Mac>,
    /// How many broadcast frames may wait, as was asked for.
    pub broadcast_queue: Option<u32>,
}

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
        host_link::make(socket, name, macvlan)?;
    }
    let ifname = attachment.key.ifname;
    let what = format!("macvlan {ifname} in the pod, beside {}", macvlan.master);
    let fd = netns.as_fd().as_raw_fd().cast_unsigned();
    let link = |socket: &mut Socket, born_in| {
        let master = number_of_master(socket, macvlan.master)?;
        let mut w = Writer::default();
        // A passed-through interface begins with its master's address (`macvlan_common_newlink`) and may change it only then.
        let mac = (macvlan.mode != MacvlanMode::Passthru).then_some(attachment.mac);
        create(&mut w, ifname, master, attachment.mtu, mac, macvlan, NO_GROUP, born_in);
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

#[expect(clippy::too_many_arguments, reason = "one message has them all")]
fn create(
    w: &mut Writer,
    name: IfName,
    master: u32,
    mtu: u32,
    mac: Option<Mac>,
    macvlan: &Macvlan,
    group: u32,
    born_in: Option<u32>,
) {
    // NLM_F_CREATE | NLM_F_EXCL
    w.begin(link::NEW, 0x600);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, name.as_str());
    w.u32(link::ifla::LINK, master);
    w.u32(link::ifla::MTU, mtu);
    w.u32(link::ifla::GROUP, group);
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

/// Reads a macvlan of the socket's namespace; `None` when there is no such interface, or it is none.
///
/// # Errors
/// [`LinuxError`].
pub fn read(socket: &mut Socket, ifname: IfName) -> Result<Option<Settings>, LinuxError> {
    let mut settings = None;
    let read = link::read_with(socket, ifname, |payload| settings = parse(payload))?;
    Ok(settings.filter(|_| read.is_some()))
}

fn parse(payload: &[u8]) -> Option<Settings> {
    let info = Attrs::behind(payload, link::INFO).find(link::ifla::LINKINFO).map(Attrs::new)?;
    let data = info.find(link::ifla::INFO_DATA).map(Attrs::new);
    let data = data.filter(|_| info.find(link::ifla::INFO_KIND).and_then(text) == Some("macvlan"))?;
    let number = |kind| data.find(kind).and_then(|bytes| u32_at(bytes, 0));
    let sources = data.find(MACADDR_DATA).map(Attrs::new).into_iter().flatten();
    Some(Settings {
        mode: number(MODE)?,
        sources: sources.filter(|(kind, _)| *kind == MACADDR).filter_map(|(_, bytes)| mac(bytes)).collect(),
        broadcast_queue: number(BC_QUEUE_LEN),
    })
}

/// What is wrong with a pod's macvlan, in the namespace that it is in: one line each.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn check(socket: &mut Socket, ifname: IfName, wanted: &Macvlan) -> Result<Vec<String>, LinuxError> {
    let Some(is) = read(socket, ifname)? else {
        return Ok(vec![format!("interface {ifname} is no macvlan in the pod")]);
    };
    let mut faults = Vec::new();
    if is.mode != mode_number(wanted.mode) {
        faults.push(format!("interface {ifname} is a macvlan of another mode in the pod"));
    }
    if let Some(length) = wanted.broadcast_queue.filter(|length| is.broadcast_queue != Some(*length)) {
        faults.push(format!("interface {ifname} has not the queue of {length} broadcast frames that was asked for"));
    }
    let listed: BTreeSet<Mac> = wanted.sources.iter().copied().collect();
    faults.extend(listed.difference(&is.sources).map(|mac| format!("{ifname} does not let in {mac}, which is listed")));
    faults.extend(is.sources.difference(&listed).map(|mac| format!("{ifname} lets in {mac}, which is not listed")));
    Ok(faults)
}

/// What is wrong with a macvlan's master, in the namespace that it is in: one line each.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn check_master(socket: &mut Socket, macvlan: &Macvlan) -> Result<Vec<String>, LinuxError> {
    let master = macvlan.master;
    Ok(match link::read(socket, master)? {
        // The kernel takes a macvlan away with its master.
        None => vec![format!("the macvlan's master {master} is gone: the pod must be made anew when it is back")],
        Some(seen) if !seen.link.up => vec![format!("the macvlan's master {master} is down")],
        Some(seen) if !seen.is_running => vec![format!("the macvlan's master {master} has no carrier")],
        Some(_) => Vec::new(),
    })
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
        let macs = [Some(attachment.mac), attachment.tuning.mac.map(|setting| setting.value)];
        let is_ours = |seen: &link::Seen| {
            seen.link.kind.name() == "macvlan" && seen.link.mac.is_some() && macs.contains(&seen.link.mac)
        };
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
