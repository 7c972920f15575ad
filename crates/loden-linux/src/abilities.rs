//! What this kernel can and others cannot, found out by doing it: in a namespace of its own, which goes with all that is in it.

use std::net::Ipv4Addr;

use loden_core::kernel::NO_GROUP;
use loden_core::kernel::link::{Ipip, Link, LinkKind, Port};
use loden_core::model::IfName;
use loden_core::view::Abilities;

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns;
use crate::rt::link;

/// Tries what is not everywhere. Who may make no namespace, as a container without CAP_SYS_ADMIN, is taken to be able to none of it.
///
/// # Errors
/// [`LinuxError`] when it cannot even be tried.
pub fn find() -> Result<Abilities, LinuxError> {
    netns::in_thread(|| {
        match netns::unshare_net() {
            Err(LinuxError::System { errno: libc::EPERM, .. }) => return Ok(Abilities::default()),
            done => done?,
        }
        let mut socket = Socket::open(Protocol::Route)?;
        // Without an address it would be the kernel's own `tunl0`, which comes with the module into every namespace: EEXIST
        // (`ip_tunnel_init_net`, `ip_tunnel_newlink`, net/ipv4/ip_tunnel.c). Any address does, the host need not have it.
        let local = Some(Ipv4Addr::LOCALHOST.into());
        Ok(Abilities { ipip: can_make(&mut socket, LinkKind::Ipip(Ipip { underlay: None, local }))? })
    })?
}

fn can_make(socket: &mut Socket, kind: LinkKind) -> Result<bool, LinuxError> {
    let Ok(name) = IfName::new("probe") else { return Ok(false) };
    let link = Link { kind, mtu: 1280, mac: None, up: false, master: None, port: Port::default(), group: NO_GROUP };
    let mut w = Writer::default();
    link::create(&mut w, name, &link, None, None);
    Ok(socket.batch(&mut w)?.into_iter().collect::<Result<(), _>>().is_ok())
}
