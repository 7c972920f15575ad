//! A pod's bandwidth in the kernel: a token bucket at the host's end of its veth for what goes to it, and one at its own interface,
//! inside its namespace, for what it sends. There no further device is needed, and a macvlan can have it too.

use std::path::Path;

use loden_core::model::{Attachment, IfName, Shape};
use loden_core::shape::Bucket;

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::rt::{link, qdisc};

/// What another plugin's link is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// The host's end, where it is a veth's.
    pub host_side: Option<IfName>,
    /// MTU of the pod's interface in bytes.
    pub mtu: u32,
}

/// Looks at a pod's interface. Of the host's links its other end is the one that says the same of it, and that is among `named`, where
/// anything is.
///
/// # Errors
/// [`LinuxError`]; also when there is no such interface.
pub fn wire(netns: &NetNs, ifname: IfName, named: &[IfName]) -> Result<Wire, LinuxError> {
    let seen = netns.visit(|| link::read(&mut Socket::open(Protocol::Route)?, ifname))??;
    let seen = seen.ok_or_else(|| LinuxError::Netlink {
        what: format!("interface {ifname} in the pod"),
        errno: libc::ENODEV,
        cause: "the plugin before this one has not made it".to_owned(),
    })?;
    let mut host_side = None;
    if let Some(number) = seen.peer.filter(|_| seen.link.kind.name() == "veth") {
        let far = link::read_number(&mut Socket::open(Protocol::Route)?, number)?;
        let far = far.filter(|far| far.link.kind.name() == "veth" && far.peer == Some(seen.index));
        host_side = far.map(|far| far.name).filter(|name| named.is_empty() || named.contains(name));
    }
    Ok(Wire { host_side, mtu: seen.link.mtu })
}

/// Bounds what leaves by a link.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn put(socket: &mut Socket, name: IfName, shape: Shape, mtu: u32) -> Result<(), LinuxError> {
    let number = link::number_of(socket, name)?.ok_or_else(|| missing_link(name))?;
    let bucket = Bucket::of(shape, mtu);
    let mut w = Writer::default();
    qdisc::put(&mut w, number, &bucket);
    qdisc::put_fair_queue(&mut w, number, &bucket);
    let what = || format!("bandwidth of {name}");
    let mut results = socket.batch(&mut w)?.into_iter();
    if let Some(Err(error)) = results.next() {
        return Err(if error.errno() == libc::EEXIST { taken(name) } else { error.renamed(&what()) });
    }
    match results.next() {
        // A kernel without it: packets wait in one row then.
        Some(Err(error)) if error.errno() != libc::ENOENT => Err(error.renamed(&what())),
        _ => Ok(()),
    }
}

fn taken(name: IfName) -> LinuxError {
    LinuxError::Netlink {
        what: format!("bandwidth of {name}"),
        errno: libc::EEXIST,
        cause: format!("it has a queueing discipline of somebody else's; `tc qdisc del dev {name} root` takes it away"),
    }
}

/// Bounds both directions of an attachment whose link is there.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn apply(attachment: &Attachment) -> Result<(), LinuxError> {
    let put = |name, shape| put(&mut Socket::open(Protocol::Route)?, name, shape, attachment.mtu);
    if let (Some(shape), Some(name)) = (attachment.bandwidth.ingress, attachment.host_side) {
        put(name, shape)?;
    }
    match attachment.bandwidth.egress {
        Some(shape) => NetNs::open(Path::new(&attachment.netns))?.visit(|| put(attachment.key.ifname, shape))?,
        None => Ok(()),
    }
}

fn missing_link(name: IfName) -> LinuxError {
    LinuxError::Netlink {
        what: format!("bandwidth of {name}"),
        errno: libc::ENODEV,
        cause: "there is no such interface".to_owned(),
    }
}

/// Takes the bounds of an attachment whose link lives on away; what is not there, or is another's, is left alone.
///
/// # Errors
/// All that went wrong.
pub(crate) fn remove(attachment: &Attachment) -> Result<(), LinuxError> {
    let take = |name| {
        let mut socket = Socket::open(Protocol::Route)?;
        let Some(number) = link::number_of(&socket, name)? else { return Ok(()) };
        if !qdisc::read(&mut socket, number)?.is_some_and(|seen| seen.is_ours()) {
            return Ok(());
        }
        let mut w = Writer::default();
        qdisc::delete(&mut w, number);
        let taken = socket.batch(&mut w)?.into_iter().collect::<Result<(), _>>();
        taken.map_err(|error| error.renamed(&format!("bandwidth of {name}")))
    };
    let mut errors = Vec::new();
    if let (Some(_), Some(name)) = (attachment.bandwidth.ingress, attachment.host_side) {
        errors.extend(take(name).err());
    }
    // Without its namespace the pod's interface has gone too.
    if let (Some(_), Ok(netns)) = (attachment.bandwidth.egress, NetNs::open(Path::new(&attachment.netns))) {
        errors.extend(netns.visit(|| take(attachment.key.ifname)).and_then(|taken| taken).err());
    }
    LinuxError::collected(errors)
}

/// What of the bounds is missing or otherwise on the host: one line each.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn missing_on_host(attachment: &Attachment) -> Result<Vec<String>, LinuxError> {
    match (attachment.bandwidth.ingress, attachment.host_side) {
        (Some(shape), Some(name)) => missing("towards the pod (ingress)", name, shape, attachment.mtu),
        _ => Ok(Vec::new()),
    }
}

/// The same in the pod. Runs inside its namespace.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn missing_in_pod(attachment: &Attachment) -> Result<Vec<String>, LinuxError> {
    match attachment.bandwidth.egress {
        Some(shape) => missing("from the pod (egress)", attachment.key.ifname, shape, attachment.mtu),
        None => Ok(Vec::new()),
    }
}

fn missing(direction: &str, name: IfName, shape: Shape, mtu: u32) -> Result<Vec<String>, LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let seen = match link::number_of(&socket, name)? {
        Some(number) => qdisc::read(&mut socket, number)?.filter(qdisc::Seen::is_ours),
        None => None,
    };
    let Some((rate, limit, ticks)) = seen.and_then(|seen| seen.bucket) else {
        return Ok(vec![format!("packets {direction} are not bounded: {name} has no token bucket of loden's")]);
    };
    if Bucket::of(shape, mtu).is(rate, limit, ticks) {
        return Ok(Vec::new());
    }
    let is = rate.saturating_mul(8);
    Ok(vec![format!(
        "packets {direction} are bounded otherwise: {name} has a token bucket of {is} bit/s, not of {} with its burst",
        shape.rate
    )])
}
