//! Links as messages: made in one, changed in place setting by setting.

mod kind;

use std::os::fd::{AsFd, AsRawFd};

use loden_core::kernel::LINK_GROUP;
use loden_core::kernel::link::{Link, LinkKind, Port};
use loden_core::model::{IfName, Mac};

use crate::error::LinuxError;
use crate::netlink::attr::{Attrs, Writer, mac, text, u32_at};
use crate::netlink::socket::{CREATE, DUMP, EXCL, Socket};

/// `RTM_NEWLINK`.
pub const NEW: u16 = 16;
/// `RTM_DELLINK`.
pub const DEL: u16 = 17;
/// `RTM_GETLINK`.
pub const GET: u16 = 18;
/// `RTM_SETLINK`.
pub const SET: u16 = 19;

/// Length of `struct ifinfomsg`.
pub const INFO: usize = 16;
const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const IFF_ALLMULTI: u32 = 0x200;
/// `IFF_RUNNING | IFF_LOWER_UP`.
const RUNNING: u32 = 0x1_0040;
/// `RTEXT_FILTER_SKIP_STATS`: counters are most of a link's message and nobody here reads them.
const SKIP_STATS: u32 = 8;

/// `IFLA_*`.
pub mod ifla {
    #![expect(missing_docs, reason = "the kernel's names, linux/if_link.h")]
    pub const ADDRESS: u16 = 1;
    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const TXQLEN: u16 = 13;
    pub const LINKINFO: u16 = 18;
    pub const AF_SPEC: u16 = 26;
    pub const GROUP: u16 = 27;
    pub const NET_NS_FD: u16 = 28;
    pub const EXT_MASK: u16 = 29;
    pub const NUM_TX_QUEUES: u16 = 31;
    pub const NUM_RX_QUEUES: u16 = 32;
    pub const INFO_KIND: u16 = 1;
    pub const INFO_DATA: u16 = 2;
    pub const INFO_SLAVE_KIND: u16 = 4;
    pub const INFO_SLAVE_DATA: u16 = 5;
    pub const BRPORT_MODE: u16 = 4;
    pub const BRPORT_ISOLATED: u16 = 33;
    pub const INET6_ADDR_GEN_MODE: u16 = 8;
    pub const BR_MCAST_SNOOPING: u16 = 23;
}

/// A link as the kernel reports it; names of other links are still numbers.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// All else; `master` and a tunnel's underlay are filled in by [`Seen::resolve`].
    pub link: Link,
    /// The number of its master.
    pub master: Option<u32>,
    /// The number of the tunnel's underlay.
    pub underlay: Option<u32>,
    /// Whether packets can leave: up and with a carrier. The kernel drops a link's nexthops when this ends.
    pub is_running: bool,
    /// Whether it takes in all frames.
    pub is_promiscuous: bool,
    /// Whether it takes in all multicast frames.
    pub is_all_multicast: bool,
    /// How many packets may wait to be sent.
    pub tx_queue_len: Option<u32>,
    /// The number of the link that it is tied to, maybe in another namespace: a veth's other end, a macvlan's master.
    pub peer: Option<u32>,
}

/// `struct ifinfomsg`.
#[must_use]
pub fn info(index: u32, flags: u32, change: u32) -> [u8; INFO] {
    let mut bytes = [0; INFO];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// Asks for all links.
pub fn list(w: &mut Writer) {
    w.begin(GET, DUMP);
    w.raw(&info(0, 0, 0));
    w.u32(ifla::EXT_MASK, SKIP_STATS);
    w.end();
}

/// Makes a link; numbers of other links are given by the caller. It is still down, and to be given to
/// [`no_made_up_address`] before it is set up (`IFLA_AF_SPEC` here is refused with EAFNOSUPPORT).
pub fn create(w: &mut Writer, name: IfName, link: &Link, underlay: Option<u32>, master: Option<u32>) {
    w.begin(NEW, CREATE | EXCL);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    w.u32(ifla::MTU, link.mtu);
    w.u32(ifla::GROUP, link.group);
    if let Some(address) = link.mac {
        w.mac(ifla::ADDRESS, address);
    }
    if let Some(master) = master {
        w.u32(ifla::MASTER, master);
    }
    kind::write(w, &link.kind, underlay, None);
    w.end();
}

/// An end of a veth pair, when it is made.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address; `None`: a random one.
    pub mac: Option<Mac>,
    /// Its group.
    pub group: u32,
    /// The number of its bridge; the far end has none.
    pub master: Option<u32>,
}

/// `VETH_INFO_PEER`
const PEER: u16 = 1;

/// Makes a veth pair, its far end in the namespace of a descriptor. Both are still down: the far one cannot be set up before the
/// pair is tied (ENOTCONN).
pub fn create_veth(w: &mut Writer, near: VethEnd, far: VethEnd, far_namespace: u32) {
    w.begin(NEW, CREATE | EXCL);
    veth_end(w, near);
    let link_info = w.nest(ifla::LINKINFO);
    w.text(ifla::INFO_KIND, "veth");
    let data = w.nest(ifla::INFO_DATA);
    let peer = w.nest(PEER);
    veth_end(w, far);
    w.u32(ifla::NET_NS_FD, far_namespace);
    w.close(peer);
    w.close(data);
    w.close(link_info);
    w.end();
}

fn veth_end(w: &mut Writer, end: VethEnd) {
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, end.name.as_str());
    w.u32(ifla::MTU, end.mtu);
    if let Some(mac) = end.mac {
        w.mac(ifla::ADDRESS, mac);
    }
    if let Some(master) = end.master {
        w.u32(ifla::MASTER, master);
    }
    w.u32(ifla::GROUP, end.group);
    // A veth uses one queue. Unless told so, the kernel makes one for each possible processor, with its files in sysfs, and takes
    // all but one away again, which costs a grace period (drivers/net/veth.c, `veth_init_queues`).
    w.u32(ifla::NUM_TX_QUEUES, 1);
    w.u32(ifla::NUM_RX_QUEUES, 1);
}

/// Makes a link a port of a bridge.
pub fn set_master(w: &mut Writer, name: IfName, bridge: u32) {
    w.begin(SET, 0);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    w.u32(ifla::MASTER, bridge);
    w.end();
}

/// The number of a link of the socket's namespace. Asked by ioctl: the answer is one number, where a netlink request is
/// answered with all that there is to say of the link.
///
/// # Errors
/// [`LinuxError::System`].
pub fn number_of(socket: &Socket, name: IfName) -> Result<Option<u32>, LinuxError> {
    match rustix::net::netdevice::name_to_index(socket, name.as_str()) {
        Ok(number) => Ok(Some(number)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(LinuxError::system(format!("number of {name}"), error)),
    }
}

/// Whether a link is set up; `None` when there is none of that name. Takes no lock in the kernel: a message would wait until others are
/// done with their links (`dev_ioctl`, net/core/dev_ioctl.c).
///
/// # Errors
/// [`LinuxError::System`].
pub fn is_up(socket: &Socket, name: IfName) -> Result<Option<bool>, LinuxError> {
    // SAFETY: all zeros are a valid `ifreq`: it holds numbers, and pointers that nobody follows.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A name is shorter than the field, so that a zero ends it.
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the kernel writes into `request` alone, which outlives the call.
    let result =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &raw mut request) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        let is_missing = error.raw_os_error() == Some(libc::ENODEV);
        return if is_missing { Ok(None) } else { Err(LinuxError::system(format!("flags of {name}"), error)) };
    }
    // SAFETY: this request fills in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(Some(u32::from(flags.cast_unsigned()) & IFF_UP != 0))
}

/// Turns off the link-local address that the kernel would make up (and its timers).
pub fn no_made_up_address(w: &mut Writer, name: IfName) {
    w.begin(SET, 0);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    addr_gen_none(w);
    w.end();
}

/// The attribute of it.
pub fn addr_gen_none(w: &mut Writer) {
    let spec = w.nest(ifla::AF_SPEC);
    let inet6 = w.nest(libc::AF_INET6 as u16);
    // IN6_ADDR_GEN_MODE_NONE
    w.u8(ifla::INET6_ADDR_GEN_MODE, 1);
    w.close(inet6);
    w.close(spec);
}

/// Sets a link up or down.
pub fn set_up(w: &mut Writer, name: IfName, up: bool) {
    set_flag(w, name, IFF_UP, up);
}

/// Whether a link takes in all frames.
pub fn set_promiscuous(w: &mut Writer, name: IfName, on: bool) {
    set_flag(w, name, IFF_PROMISC, on);
}

/// Whether a link takes in all multicast frames.
pub fn set_all_multicast(w: &mut Writer, name: IfName, on: bool) {
    set_flag(w, name, IFF_ALLMULTI, on);
}

fn set_flag(w: &mut Writer, name: IfName, flag: u32, on: bool) {
    w.begin(SET, 0);
    w.raw(&info(0, if on { flag } else { 0 }, flag));
    w.text(ifla::IFNAME, name.as_str());
    w.end();
}

/// Sets how many packets may wait to be sent.
pub fn set_tx_queue_len(w: &mut Writer, name: IfName, length: u32) {
    w.begin(SET, 0);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    w.u32(ifla::TXQLEN, length);
    w.end();
}

/// Sets the Ethernet address alone.
pub fn set_mac(w: &mut Writer, name: IfName, mac: Mac) {
    w.begin(SET, 0);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    w.mac(ifla::ADDRESS, mac);
    w.end();
}

/// Sets what a bridge does with a port.
pub fn set_port(w: &mut Writer, name: IfName, port: Port) {
    w.begin(NEW, 0);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    let link_info = w.nest(ifla::LINKINFO);
    w.text(ifla::INFO_SLAVE_KIND, "bridge");
    let data = w.nest(ifla::INFO_SLAVE_DATA);
    w.u8(ifla::BRPORT_MODE, port.hairpin.into());
    w.u8(ifla::BRPORT_ISOLATED, port.isolated.into());
    w.close(data);
    w.close(link_info);
    w.end();
}

/// Reads one link of the socket's namespace; `None` when it is not there.
///
/// # Errors
/// [`LinuxError`].
pub fn read(socket: &mut Socket, name: IfName) -> Result<Option<Seen>, LinuxError> {
    read_with(socket, name, |_| {})
}

/// The same, for who wants to know more of it: `take` gets the payload of the answer.
///
/// # Errors
/// [`LinuxError`].
pub fn read_with(socket: &mut Socket, name: IfName, take: impl FnMut(&[u8])) -> Result<Option<Seen>, LinuxError> {
    let mut w = Writer::default();
    w.begin(GET, 0);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    w.end();
    read_one(socket, w, take)
}

/// The same by its number.
///
/// # Errors
/// [`LinuxError`].
pub fn read_number(socket: &mut Socket, number: u32) -> Result<Option<Seen>, LinuxError> {
    let mut w = Writer::default();
    w.begin(GET, 0);
    w.raw(&info(number, 0, 0));
    w.end();
    read_one(socket, w, |_| {})
}

fn read_one(socket: &mut Socket, mut w: Writer, mut take: impl FnMut(&[u8])) -> Result<Option<Seen>, LinuxError> {
    let mut found = None;
    let results = socket.batch_with_echo(&mut w, |_, message| {
        found = parse(message.payload);
        take(message.payload);
    })?;
    match results.into_iter().collect::<Result<(), _>>() {
        Ok(()) => Ok(found),
        Err(error) if error.errno() == libc::ENODEV => Ok(None),
        Err(error) => Err(error),
    }
}

/// Changes what can be changed while the link works.
pub fn change(w: &mut Writer, name: IfName, new: &Link, old: &Link, underlay: Option<u32>, master: Option<u32>) {
    let is_kind_changed = match (&new.kind, &old.kind) {
        (LinkKind::Veth { .. }, LinkKind::Veth { .. }) => false,
        (new, old) => new != old,
    };
    if is_kind_changed {
        w.begin(NEW, 0);
        w.raw(&info(0, 0, 0));
        w.text(ifla::IFNAME, name.as_str());
        // An IPIP device that is tied to another underlay gets an MTU from it unless told one at once (`ip_tunnel_changelink`,
        // net/ipv4/ip_tunnel.c); a VXLAN device refuses to be told.
        if matches!(new.kind, LinkKind::Ipip(_)) {
            w.u32(ifla::MTU, new.mtu);
        }
        kind::write(w, &new.kind, underlay, Some(&old.kind));
        w.end();
    }
    w.begin(SET, 0);
    // Flags without a mask would be all of the link's (`rtnl_dev_get_flags`, net/core/rtnetlink.c).
    let mask = if new.up == old.up { 0 } else { IFF_UP };
    w.raw(&info(0, if new.up { mask } else { 0 }, mask));
    w.text(ifla::IFNAME, name.as_str());
    if new.mtu != old.mtu {
        w.u32(ifla::MTU, new.mtu);
    }
    // A bridge takes the lowest address of its ports until it is told one, though it is the same (`br_stp_recalculate_bridge_id`,
    // net/bridge/br_stp_if.c): one that changes hands is told. Any other link would only lose its neighbours, permanent ones too
    // (`neigh_changeaddr`, net/core/neighbour.c).
    let is_told = matches!(new.kind, LinkKind::Bridge(_)) && new.group != old.group;
    if let Some(address) = new.mac.filter(|_| new.mac != old.mac || is_told) {
        w.mac(ifla::ADDRESS, address);
    }
    if new.master != old.master {
        w.u32(ifla::MASTER, master.unwrap_or(0));
    }
    if new.group != old.group {
        w.u32(ifla::GROUP, new.group);
    }
    w.end();
    // A port that changes its bridge has that one's usual settings.
    let is_usual = old.port == Port::default() || new.master != old.master;
    if master.is_some() && new.port != (if is_usual { Port::default() } else { old.port }) {
        set_port(w, name, new.port);
    }
}

/// Sets the MTU alone, in bytes.
pub fn set_mtu(w: &mut Writer, name: IfName, mtu: u32) {
    w.begin(SET, 0);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    w.u32(ifla::MTU, mtu);
    w.end();
}

/// Deletes a link.
pub fn delete(w: &mut Writer, name: IfName) {
    w.begin(DEL, 0);
    w.raw(&info(0, 0, 0));
    w.text(ifla::IFNAME, name.as_str());
    w.end();
}

/// Reads a link from the payload of `RTM_NEWLINK` or `RTM_DELLINK`.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Seen> {
    // Bridges report their ports in messages of family AF_BRIDGE with the same type.
    if *payload.first()? != libc::AF_UNSPEC as u8 {
        return None;
    }
    let attrs = Attrs::behind(payload, INFO);
    let name = IfName::new(attrs.find(ifla::IFNAME).and_then(text)?).ok()?;
    let number = |kind| attrs.find(kind).and_then(|bytes| u32_at(bytes, 0));
    let info = attrs.find(ifla::LINKINFO).map(Attrs::new);
    let port = info.map(parse_port).unwrap_or_default();
    let (kind, underlay) = kind::parse(info);
    let flags = u32_at(payload, 8)?;
    let link = Link {
        kind,
        mtu: number(ifla::MTU).unwrap_or(0),
        mac: attrs.find(ifla::ADDRESS).and_then(mac).filter(|mac| *mac != Mac([0; 6])),
        up: flags & IFF_UP != 0,
        master: None,
        port,
        group: number(ifla::GROUP).unwrap_or(0),
    };
    Some(Seen {
        index: u32_at(payload, 4)?,
        name,
        link,
        master: number(ifla::MASTER).filter(|m| *m != 0),
        underlay,
        is_running: flags & RUNNING == RUNNING,
        is_promiscuous: flags & IFF_PROMISC != 0,
        is_all_multicast: flags & IFF_ALLMULTI != 0,
        tx_queue_len: number(ifla::TXQLEN),
        peer: number(ifla::LINK),
    })
}

fn parse_port(info: Attrs<'_>) -> Port {
    if info.find(ifla::INFO_SLAVE_KIND).and_then(text) != Some("bridge") {
        return Port::default();
    }
    let data = info.find(ifla::INFO_SLAVE_DATA).map(Attrs::new).unwrap_or(Attrs::new(&[]));
    let is_set = |kind| data.find(kind).and_then(|bytes| bytes.first()) == Some(&1);
    Port { hairpin: is_set(ifla::BRPORT_MODE), isolated: is_set(ifla::BRPORT_ISOLATED) }
}

impl Seen {
    /// Whether loden made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.link.group == LINK_GROUP
    }

    /// Whether its gateways are on-link by decree: a tunnel for many remote ends.
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        matches!(self.link.kind, LinkKind::Vxlan(_) | LinkKind::Ipip(_))
    }

    /// The link with the names of those that it hangs on.
    #[must_use]
    pub fn resolve(mut self, name_of: impl Fn(u32) -> Option<IfName>) -> Link {
        self.link.master = self.master.and_then(&name_of);
        let underlay = self.underlay.and_then(&name_of);
        match &mut self.link.kind {
            LinkKind::Vxlan(vxlan) => vxlan.underlay = underlay,
            LinkKind::Ipip(ipip) => ipip.underlay = underlay,
            _ => {}
        }
        self.link
    }
}
