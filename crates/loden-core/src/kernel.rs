//! The kernel's vocabulary: the objects that a host should hold, and the seam to a kernel that holds them.
//!
//! [`Key`] says which object, [`Object`] how it should be. The seam [`Kernel`] has exactly two implementations: the real
//! one in `loden-linux` and the fake one in `loden-testkit`, which refuses what Linux refuses.

pub mod link;
pub mod nft;
pub mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::model::{Family, IfName, Mac, Prefix};
use crate::plan::Step;
use link::Link;
use nft::Table;
use tunnel::{Peer, Tunnel};

/// Route protocol number (and nexthop and address protocol) of everything that loden makes.
pub const PROTOCOL: u8 = 76;
/// Interface group of the links that loden makes: their mark of ownership.
pub const LINK_GROUP: u32 = 76;
/// The group of the host's own macvlans: the plugin makes them, and takes away those that no pod uses any more.
pub const HOST_LINK_GROUP: u32 = 7601;
/// The group that links are in unless told otherwise: nobody's mark.
pub const NO_GROUP: u32 = 0;
/// Interface group of veths that DEL has parked for the reaper.
pub const PARKED_GROUP: u32 = 7600;
/// The routing table `main`.
pub const TABLE_MAIN: u32 = 254;

/// Which object. The order is the order of making: what comes later may need what comes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// A sysctl of the whole host or of a family, by its path below `/proc/sys` (`net/ipv4/ip_forward`).
    Sysctl(&'static str),
    /// The one nftables table.
    Nft,
    /// An address of a host of the cluster, in that table's set of them.
    KnownHost(IpAddr),
    /// A peer's block, in that table's set of those whose addresses may be asked for.
    KnownBlock(Prefix),
    /// A link by name.
    Link(IfName),
    /// A sysctl of one device.
    DeviceSysctl(IfName, DeviceSysctl),
    /// An address on a link.
    Address(IfName, IpNet),
    /// A nexthop object: a gateway behind a link. Its number is the driver's own business.
    Nexthop(IfName, IpAddr),
    /// A permanent neighbour (ARP or NDP) entry.
    Neighbour(IfName, IpAddr),
    /// A forwarding entry of a VXLAN device: where the VTEP with this Ethernet address is.
    Fdb(IfName, Mac),
    /// A VTEP to which a VXLAN device sends a copy of frames whose destination it does not know: an entry for the Ethernet address
    /// of zeros.
    Flood(IfName, IpAddr),
    /// The engine on a TUN device.
    Tunnel(IfName),
    /// What that engine knows of the host that owns a block.
    TunnelPeer(IfName, Prefix),
    /// A route in table `main` with the given priority (IPv4 default 0, IPv6 default 1024).
    Route(Prefix, u32),
}

impl Key {
    /// The object's sort.
    #[must_use]
    pub fn sort(&self) -> Sort {
        match self {
            Self::Sysctl(_) | Self::DeviceSysctl(..) => Sort::Sysctl,
            Self::Nft | Self::KnownHost(_) | Self::KnownBlock(_) => Sort::Nft,
            Self::Link(_) => Sort::Link,
            Self::Address(..) => Sort::Address,
            Self::Nexthop(..) => Sort::Nexthop,
            Self::Neighbour(..) => Sort::Neighbour,
            Self::Fdb(..) | Self::Flood(..) => Sort::Fdb,
            Self::Tunnel(_) | Self::TunnelPeer(..) => Sort::Tunnel,
            Self::Route(..) => Sort::Route,
        }
    }

    /// The link that the object is on, if it names one.
    #[must_use]
    pub fn device(&self) -> Option<IfName> {
        match self {
            Self::Link(dev)
            | Self::DeviceSysctl(dev, _)
            | Self::Address(dev, _)
            | Self::Nexthop(dev, _)
            | Self::Neighbour(dev, _)
            | Self::Fdb(dev, _)
            | Self::Flood(dev, _)
            | Self::Tunnel(dev)
            | Self::TunnelPeer(dev, _) => Some(*dev),
            Self::Sysctl(_) | Self::Nft | Self::KnownHost(_) | Self::KnownBlock(_) | Self::Route(..) => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(path) => write!(f, "sysctl {path}"),
            Self::DeviceSysctl(dev, sysctl) => write!(f, "sysctl {}", sysctl.path(*dev)),
            Self::Nft => write!(f, "nft table inet loden"),
            Self::KnownHost(addr) => write!(f, "known host {addr}"),
            Self::KnownBlock(block) => write!(f, "known block {block}"),
            Self::Link(dev) => write!(f, "link {dev}"),
            Self::Address(dev, addr) => write!(f, "address {addr} dev {dev}"),
            Self::Nexthop(dev, gateway) => write!(f, "nexthop via {gateway} dev {dev}"),
            Self::Neighbour(dev, addr) => write!(f, "neighbour {addr} dev {dev}"),
            Self::Fdb(dev, mac) => write!(f, "fdb {mac} dev {dev}"),
            Self::Flood(dev, vtep) => write!(f, "flood to {vtep} dev {dev}"),
            Self::Tunnel(dev) => write!(f, "tunnel on {dev}"),
            Self::TunnelPeer(dev, block) => write!(f, "peer of {block} in the tunnel on {dev}"),
            Self::Route(prefix, _) => write!(f, "route {prefix}"),
        }
    }
}

/// The sorts of kernel objects: what counts are kept by, and what an observation can be limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// Sysctls.
    Sysctl,
    /// The nftables table.
    Nft,
    /// Links.
    Link,
    /// Addresses.
    Address,
    /// Nexthop objects.
    Nexthop,
    /// Neighbour entries.
    Neighbour,
    /// Forwarding entries.
    Fdb,
    /// Tunnels that the agent runs itself.
    Tunnel,
    /// Routes.
    Route,
}

impl Sort {
    /// All of them, in the order of making.
    pub const ALL: [Self; 9] = [
        Self::Sysctl,
        Self::Nft,
        Self::Link,
        Self::Address,
        Self::Nexthop,
        Self::Neighbour,
        Self::Fdb,
        Self::Tunnel,
        Self::Route,
    ];

    /// The sort's name, as metrics label it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sysctl => "sysctl",
            Self::Nft => "nft",
            Self::Link => "link",
            Self::Address => "address",
            Self::Nexthop => "nexthop",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::Tunnel => "tunnel",
            Self::Route => "route",
        }
    }
}

/// The sysctls of one device that loden sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceSysctl {
    /// `net/ipv6/conf/DEV/accept_ra`: a pod's router advertisement must not move the host (CVE-2020-13597).
    AcceptRa,
    /// `net/ipv6/conf/DEV/accept_dad`: loden's addresses are unique by construction.
    AcceptDad,
    /// `net/ipv4/conf/DEV/rp_filter`: loose (2) on a VTEP device, since a peer may still send by the old backend during a
    /// switch; strict (1) on a routed pod's.
    RpFilter,
    /// `net/ipv4/conf/DEV/accept_local`: on an engine's device, which answers senders from the device's own address (fragmentation
    /// needed, time exceeded): without it the kernel takes such an answer for forged.
    AcceptLocal,
    /// `net/ipv4/conf/DEV/proxy_arp`: whether ARP is answered for what is reached by another device.
    ProxyArp,
    /// `net/ipv4/neigh/DEV/proxy_delay`: how long at most such an answer waits, in the kernel's ticks.
    ProxyDelay,
    /// `net/ipv4/conf/DEV/route_localnet`: whether the host's calls by its loopback address may leave by it, and their answers come
    /// back. What else comes to that address is dropped (the table `loden_ports`).
    RouteLocalnet,
    /// `net/ipvN/neigh/DEV/app_solicit`: how often, a second apart, the kernel asks the agent for a neighbour.
    AppSolicit(Family),
    /// `net/ipvN/neigh/DEV/mcast_solicit`: how often after that it asks on the link, where nobody is who would answer.
    McastSolicit(Family),
    /// `net/ipvN/neigh/DEV/unres_qlen_bytes`: how much it holds meanwhile of what waits for that neighbour, in bytes.
    Held(Family),
}

impl DeviceSysctl {
    /// Whether packets go their way without it: it guards against router advertisements or forged sources, saves time, or is for the
    /// answers to those that do not.
    #[must_use]
    pub fn is_guard(self) -> bool {
        match self {
            Self::AcceptRa | Self::AcceptDad | Self::RpFilter | Self::AcceptLocal | Self::ProxyDelay => true,
            Self::McastSolicit(_) | Self::Held(_) => true,
            Self::ProxyArp | Self::RouteLocalnet | Self::AppSolicit(_) => false,
        }
    }

    /// The path below `/proc/sys`; a dot in a device's name stays as it is there.
    #[must_use]
    pub fn path(self, dev: IfName) -> String {
        let neighbours = |family| if family == Family::V4 { "ipv4/neigh" } else { "ipv6/neigh" };
        let (place, leaf) = match self {
            Self::AcceptRa => ("ipv6/conf", "accept_ra"),
            Self::AcceptDad => ("ipv6/conf", "accept_dad"),
            Self::RpFilter => ("ipv4/conf", "rp_filter"),
            Self::AcceptLocal => ("ipv4/conf", "accept_local"),
            Self::ProxyArp => ("ipv4/conf", "proxy_arp"),
            Self::ProxyDelay => ("ipv4/neigh", "proxy_delay"),
            Self::RouteLocalnet => ("ipv4/conf", "route_localnet"),
            Self::AppSolicit(family) => (neighbours(family), "app_solicit"),
            Self::McastSolicit(family) => (neighbours(family), "mcast_solicit"),
            Self::Held(family) => (neighbours(family), "unres_qlen_bytes"),
        };
        format!("net/{place}/{dev}/{leaf}")
    }
}

/// How an object should be, or is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    /// A sysctl's value, of the host or of a device.
    Sysctl(i64),
    /// The nftables table.
    Nft(Box<Table>),
    /// An address in a set of that table.
    KnownHost,
    /// A block in a set of that table.
    KnownBlock,
    /// A link.
    Link(Box<Link>),
    /// An address.
    Address {
        /// Whether loden made it (by its protocol number). One that others made satisfies a wish, and is never removed.
        ours: bool,
    },
    /// A nexthop object: its key says all.
    Nexthop,
    /// The neighbour's Ethernet address.
    Neighbour(Mac),
    /// The underlay address of the VTEP.
    Fdb(IpAddr),
    /// An entry of unknown destinations: its key says all.
    Flood,
    /// An engine on a TUN device.
    Tunnel(Box<Tunnel>),
    /// A host that an engine knows.
    TunnelPeer(Box<Peer>),
    /// Where the route leads.
    Route(Via),
}

impl Object {
    /// Whether what is there does as well as `self`, which is wanted.
    #[must_use]
    pub fn is_met_by(&self, actual: &Self) -> bool {
        match (self, actual) {
            (Self::Address { .. }, Self::Address { .. }) => true,
            (Self::Link(wanted), Self::Link(actual)) => wanted.is_met_by(actual),
            _ => self == actual,
        }
    }

    /// Whether loden made the object, so that it may remove it. Sorts that are observed by mark are always its own.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Address { ours } => *ours,
            Self::Link(link) => link.group == LINK_GROUP,
            // A value that was once wanted is left: who else relies on it cannot be known.
            Self::Sysctl(_) => false,
            _ => true,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(value) => write!(f, "= {value}"),
            Self::Nft(table) => write!(f, "{} chains, {} sets", table.chains.len(), table.sets.len()),
            Self::Link(link) => link.fmt(f),
            Self::KnownHost | Self::KnownBlock | Self::Address { .. } | Self::Nexthop | Self::Flood => Ok(()),
            Self::Neighbour(mac) => write!(f, "lladdr {mac} permanent"),
            Self::Fdb(dst) => write!(f, "dst {dst} self permanent"),
            Self::Tunnel(tunnel) => tunnel.fmt(f),
            Self::TunnelPeer(peer) => peer.fmt(f),
            Self::Route(via) => via.fmt(f),
        }
    }
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// Through the nexthop object of this gateway behind this link.
    Nexthop(IfName, IpAddr),
    /// To a gateway behind a link, without a nexthop object: as flanneld leaves it on a device that loden takes over. Only ever
    /// observed.
    Gateway(IfName, IpAddr),
    /// Straight out of a link.
    Link(IfName),
    /// Nowhere: the packet is dropped.
    Blackhole,
}

impl Via {
    /// Whether a route that others made leads the same way, so that this one can take its place unnoticed.
    #[must_use]
    pub fn leads_as(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Nexthop(dev, gateway), Self::Gateway(other, same)) if (dev, gateway) == (other, same))
    }

    /// The link that packets leave by.
    #[must_use]
    pub fn device(&self) -> Option<IfName> {
        match self {
            Self::Nexthop(dev, _) | Self::Gateway(dev, _) | Self::Link(dev) => Some(*dev),
            Self::Blackhole => None,
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nexthop(dev, gateway) => write!(f, "via {gateway} dev {dev}"),
            Self::Gateway(dev, gateway) => write!(f, "via {gateway} dev {dev}, without a nexthop object"),
            Self::Link(dev) => write!(f, "dev {dev}"),
            Self::Blackhole => write!(f, "blackhole"),
        }
    }
}

/// The route priority (metric) that the kernel gives when none is asked for.
#[must_use]
pub fn default_priority(family: Family) -> u32 {
    if family == Family::V4 { 0 } else { 1024 }
}

/// What the kernel holds of ours.
pub type Observed = BTreeMap<Key, Object>;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Only these sorts.
    pub sorts: BTreeSet<Sort>,
    /// Links to look at by name besides those that carry loden's group: what is wanted, so that a foreign device of
    /// one of our names is seen.
    pub links: BTreeSet<IfName>,
    /// Host sysctls to read.
    pub sysctls: BTreeSet<&'static str>,
    /// Device sysctls to read.
    pub device_sysctls: BTreeSet<(IfName, DeviceSysctl)>,
}

/// A file system is mounted read-only (`errno.h`).
const EROFS: i32 = 30;

/// Why a kernel operation did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {cause}")]
pub struct KernelError {
    /// Which object, or which listing.
    pub object: String,
    /// The error number (`errno`), 0 when the kernel gave none.
    pub errno: i32,
    /// The kernel's own words: its extended acknowledgement if it gave one, else the text of the number.
    pub cause: String,
}

impl KernelError {
    /// Whether pods are served all the same: a container that is not privileged, as flannel's is not, has `/proc/sys` read-only, and
    /// of what loden writes there a part guards alone.
    #[must_use]
    pub fn is_bearable(&self, key: &Key) -> bool {
        self.errno == EROFS && matches!(key, Key::DeviceSysctl(_, sysctl) if sysctl.is_guard())
    }
}

/// A kernel that can be looked at and changed.
pub trait Kernel {
    /// Reads what is loden's within the scope.
    ///
    /// # Errors
    /// [`KernelError`] when a listing fails; nothing is known then.
    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError>;

    /// Carries the steps out in order and says for each how it went. A failed step does not stop those behind it.
    fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), KernelError>>;
}

/// What a kernel reports on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The object is there, like this.
    Seen(Key, Object),
    /// The object is gone.
    Gone(Key),
    /// The plugin's table has changed, by the plugin or by somebody else.
    PodTables,
    /// A veth was parked: the reaper has work.
    Parked,
    /// Addresses, routes or state of the external interface may have changed.
    Underlay,
    /// Something of this sort changed in a way that the report does not tell whole.
    Stale(Sort),
    /// Reports were lost: everything has to be looked at again.
    Overrun,
}
