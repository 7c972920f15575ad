//! Links: how one should be, and what may be done when a device of that name is otherwise.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::LINK_GROUP;
use crate::model::{IfName, Mac, Vni};

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// What sort of device, with the settings that belong to it.
    pub kind: LinkKind,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address; wanted `None`: whatever it has.
    pub mac: Option<Mac>,
    /// Administratively up.
    pub up: bool,
    /// The bridge that it is a port of.
    pub master: Option<IfName>,
    /// Its settings as a port.
    pub port: Port,
    /// Interface group; [`LINK_GROUP`] marks loden's own.
    pub group: u32,
}

/// A bridge's settings for a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Frames may leave by the port that they came by.
    pub hairpin: bool,
    /// It exchanges frames only with ports that are not isolated.
    pub isolated: bool,
}

/// The sorts of links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// A bridge.
    Bridge(Bridge),
    /// An IPIP device (RFC 2003) for any remote end.
    Ipip(Ipip),
    /// A TUN device that stays when nobody holds it, with several queues and packets' virtio headers.
    Tun,
    /// The host's end of a pod's veth pair. The plugin makes it; here it is only kept right.
    Veth {
        /// The pod's end, whose MTU follows; observed: `None`.
        pod: Option<PodSide>,
    },
    /// Any other sort of device, by the kernel's name for it. Only ever observed.
    Other(String),
}

/// A VXLAN device's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vxlan {
    /// The network's identifier.
    pub vni: Vni,
    /// The link that carries the outer packets.
    pub underlay: Option<IfName>,
    /// The source address of the outer packets.
    pub local: Option<IpAddr>,
    /// UDP destination port.
    pub port: u16,
    /// Whether it learns remote VTEPs from packets.
    pub learning: bool,
    /// The group policy extension.
    pub gbp: bool,
    /// The multicast group to which frames go whose destination is not known.
    pub group: Option<IpAddr>,
    /// Whether it reports what it misses, and answers ARP and neighbour discovery itself (`l2miss`, `l3miss`, `proxy`).
    pub reports_misses: bool,
    /// How many entries it learns at most; 0: as many as there are.
    pub most_entries: u32,
}

/// An IPIP device's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ipip {
    /// The link that carries the outer packets; `None`: as they are routed.
    pub underlay: Option<IfName>,
    /// The source address of the outer packets.
    pub local: Option<IpAddr>,
}

/// A bridge's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Bridge {
    /// Whether it snoops multicast group membership. Off: pods' neighbour discovery must not wait for a querier.
    pub mcast_snooping: bool,
    /// Whether it keeps VLANs apart.
    pub vlan_filtering: bool,
}

/// Where the pod's end of a veth pair is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodSide {
    /// The path of the pod's network namespace.
    pub netns: String,
    /// The interface's name there.
    pub ifname: IfName,
}

/// What has to be done to a device of the wanted name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// It can be changed while it works.
    InPlace,
    /// It is loden's own and must be made anew.
    Recreate,
    /// It is somebody else's, and other than wanted: it is left alone.
    Refuse(String),
}

impl Link {
    /// Whether `actual` does as well as `self`, which is wanted.
    #[must_use]
    pub fn is_met_by(&self, actual: &Self) -> bool {
        let kind_met = match (&self.kind, &actual.kind) {
            (LinkKind::Veth { .. }, LinkKind::Veth { .. }) => true,
            (wanted, actual) => wanted == actual,
        };
        kind_met
            && self.mtu == actual.mtu
            && (self.mac.is_none() || self.mac == actual.mac)
            && self.up == actual.up
            && self.master == actual.master
            && self.port == actual.port
            && self.group == actual.group
    }

    /// Makes it serve another wish for the same link too: the smaller MTU does for both, and a port of a bridge takes in what any
    /// other does.
    pub fn merge(&mut self, other: &Self) {
        self.mtu = self.mtu.min(other.mtu);
        self.master = self.master.or(other.master);
        self.port.isolated |= other.port.isolated;
        if let (LinkKind::Vxlan(own), LinkKind::Vxlan(other)) = (&mut self.kind, &other.kind) {
            own.learning |= other.learning;
            own.group = own.group.or(other.group);
            own.reports_misses |= other.reports_misses;
            own.most_entries = own.most_entries.max(other.most_entries);
        }
    }

    /// How `actual`, which has the wanted name, may be turned into `self`.
    ///
    /// The rule for devices that others made: one whose fixed settings are as wanted is adopted (so a node takes over
    /// flannel's `flannel.1` in place); one that differs there is refused and never deleted.
    #[must_use]
    pub fn change_from(&self, actual: &Self) -> LinkChange {
        let fixed = match (&self.kind, &actual.kind) {
            (LinkKind::Vxlan(wanted), LinkKind::Vxlan(actual)) => wanted.fixed_difference(actual),
            (LinkKind::Bridge(_), LinkKind::Bridge(_))
            | (LinkKind::Veth { .. }, LinkKind::Veth { .. })
            | (LinkKind::Ipip(_), LinkKind::Ipip(_))
            | (LinkKind::Tun, LinkKind::Tun) => None,
            (wanted, actual) => Some(format!("it is a {} device, wanted is {}", actual.name(), wanted.name())),
        };
        match fixed {
            None => LinkChange::InPlace,
            Some(_) if actual.group == LINK_GROUP => LinkChange::Recreate,
            Some(difference) => LinkChange::Refuse(difference),
        }
    }
}

impl LinkKind {
    /// Whether the kernel wraps what is sent by such a link into packets of its own.
    #[must_use]
    pub fn is_kernels_tunnel(&self) -> bool {
        matches!(self, Self::Vxlan(_) | Self::Ipip(_))
    }

    /// The kernel's name of the sort (`IFLA_INFO_KIND`).
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::Bridge(_) => "bridge",
            Self::Veth { .. } => "veth",
            Self::Ipip(_) => "ipip",
            Self::Tun => "tun",
            Self::Other(name) => name,
        }
    }
}

impl Vxlan {
    /// The first setting that the kernel cannot change on a living device (`vxlan_changelink`,
    /// drivers/net/vxlan/vxlan_core.c) and that differs.
    fn fixed_difference(&self, actual: &Self) -> Option<String> {
        let differ = |what: &str, wanted: &dyn fmt::Display, is: &dyn fmt::Display| {
            Some(format!("its {what} is {is}, wanted is {wanted}"))
        };
        if self.vni != actual.vni {
            return differ("VNI", &self.vni, &actual.vni);
        }
        if self.port != actual.port {
            return differ("UDP port", &self.port, &actual.port);
        }
        if self.gbp != actual.gbp {
            return differ("group policy extension", &self.gbp, &actual.gbp);
        }
        if self.reports_misses != actual.reports_misses {
            return differ("report of misses", &self.reports_misses, &actual.reports_misses);
        }
        if self.most_entries != actual.most_entries {
            return differ("limit of entries", &self.most_entries, &actual.most_entries);
        }
        // A living device can be told of another, and does not join it (`vxlan_multicast_join` is called when it is set up).
        if self.group != actual.group {
            let name = |group: Option<IpAddr>| group.map_or_else(|| "none".to_owned(), |group| group.to_string());
            return differ("group", &name(self.group), &name(actual.group));
        }
        match (self.local, actual.local) {
            (Some(wanted), Some(is)) if wanted.is_ipv4() != is.is_ipv4() => differ("local address", &wanted, &is),
            // Without an address the device has taken the family IPv4.
            (Some(wanted), None) if wanted.is_ipv6() => differ("local address", &wanted, &"none (IPv4)"),
            _ => None,
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type {}", self.kind.name())?;
        if let LinkKind::Vxlan(v) = &self.kind {
            write!(f, " id {}", v.vni)?;
            if let Some(dev) = v.underlay {
                write!(f, " dev {dev}")?;
            }
            if let Some(local) = v.local {
                write!(f, " local {local}")?;
            }
            if let Some(group) = v.group {
                write!(f, " group {group}")?;
            }
            write!(f, " dstport {}{}", v.port, if v.learning { " learning" } else { " nolearning" })?;
            if v.most_entries != 0 {
                write!(f, " maxaddress {}", v.most_entries)?;
            }
            if v.reports_misses {
                write!(f, " proxy l2miss l3miss")?;
            }
            if v.gbp {
                write!(f, " gbp")?;
            }
        }
        if let LinkKind::Ipip(ipip) = &self.kind {
            if let Some(dev) = ipip.underlay {
                write!(f, " dev {dev}")?;
            }
            if let Some(local) = ipip.local {
                write!(f, " local {local}")?;
            }
        }
        write!(f, " mtu {}", self.mtu)?;
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        if let Some(master) = self.master {
            write!(f, " master {master}")?;
        }
        if self.port.hairpin {
            write!(f, " hairpin on")?;
        }
        if self.port.isolated {
            write!(f, " isolated on")?;
        }
        write!(f, " {}", if self.up { "up" } else { "down" })
    }
}
