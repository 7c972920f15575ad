//! Mode `source`: whose frames are let in, changed while traffic flows.

use std::collections::BTreeSet;

use loden_core::model::{IfName, Mac};

use super::{MACADDR, MACADDR_MODE};
use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::rt::link;

/// `MACVLAN_MACADDR_*`.
const ADD: u32 = 0;
const DEL: u32 = 1;

/// Makes the list of a pod's interface this one. Who is on the former list and on this one is let in all the while: the kernel's
/// own way to replace a list empties it first (`macvlan_changelink_sources`, drivers/net/macvlan.c).
///
/// # Errors
/// [`LinuxError`]; ENODEV when the pod has no such macvlan.
pub fn set_sources(netns: &NetNs, ifname: IfName, wanted: &[Mac]) -> Result<(), LinuxError> {
    netns.run(|| {
        let mut socket = Socket::open(Protocol::Route)?;
        let there = super::read(&mut socket, ifname)?.ok_or_else(|| LinuxError::Netlink {
            what: format!("interface {ifname} in the pod"),
            errno: libc::ENODEV,
            cause: "it is no macvlan".to_owned(),
        })?;
        let wanted: BTreeSet<Mac> = wanted.iter().copied().collect();
        let mut w = Writer::default();
        wanted.difference(&there.sources).for_each(|mac| change(&mut w, ifname, ADD, *mac));
        there.sources.difference(&wanted).for_each(|mac| change(&mut w, ifname, DEL, *mac));
        let results = socket.batch(&mut w)?;
        let what = format!("the list of senders of {ifname}");
        results.into_iter().collect::<Result<(), _>>().map_err(|error| error.renamed(&what))
    })?
}

fn change(w: &mut Writer, ifname: IfName, how: u32, mac: Mac) {
    w.begin(link::NEW, 0);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, ifname.as_str());
    let info = w.nest(link::ifla::LINKINFO);
    w.text(link::ifla::INFO_KIND, "macvlan");
    let data = w.nest(link::ifla::INFO_DATA);
    w.u32(MACADDR_MODE, how);
    w.mac(MACADDR, mac);
    w.close(data);
    w.close(info);
    w.end();
}
