//! A pod's attachment to a network, as the plugin leaves it under `/run/loden/attachments`.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mac::digits;
use super::name::is_plain_name;
use super::{Bandwidth, IfName, Mac, PortMapping, Prefix, Tuning};
use crate::ipam::Supply;

/// What makes an attachment unique: the specification's pair of container and interface, within a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    /// The network's name in the CNI configuration.
    pub network: String,
    /// The runtime's container ID.
    pub container: String,
    /// The interface inside the pod.
    pub ifname: IfName,
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container, self.ifname)
    }
}

impl FromStr for AttachmentKey {
    type Err = KeyError;

    /// Reads it as it is shown.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || KeyError(text.to_owned());
        let [network, container, ifname] = text.split('/').collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
        let is_plain = is_plain_name(network) && is_plain_name(container);
        let ifname = ifname.parse().ok().filter(|_| is_plain).ok_or_else(wrong)?;
        Ok(Self { network: network.to_owned(), container: container.to_owned(), ifname })
    }
}

/// Why a text names no attachment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no attachment: NETWORK/CONTAINER/INTERFACE is meant")]
pub struct KeyError(String);

/// How a pod is attached to its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "attach", rename_all = "kebab-case")]
pub enum Attach {
    /// By a port of a bridge: pods of a host are on one segment.
    Bridge(BridgePort),
    /// By a wire to the host alone, which routes each packet, as Calico's pods are.
    Routed,
    /// By a wire to the host, which bears the pod's gateway, as the reference plugin `ptp` does it.
    Ptp,
    /// By an interface beside the host's own, on the same wire.
    Macvlan(Macvlan),
    /// By another plugin: only parts of it are loden's.
    Foreign {
        /// The host's link that its packets come in by, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none", rename = "hostDevice")]
        host_device: Option<IfName>,
    },
}

/// A port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BridgePort {
    /// The bridge.
    pub bridge: IfName,
    /// Frames may leave by the port that they came by: a pod reaches itself by an address of a service.
    #[serde(default)]
    pub hairpin: bool,
    /// It exchanges frames only with ports that are not isolated.
    #[serde(default)]
    pub isolated: bool,
    /// How the plugin makes the bridge; `None`: it is the node's, which the agent makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<OwnBridge>,
    /// Its VLANs; `None`: the bridge's usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlans: Option<PortVlans>,
    /// Frames from another Ethernet address than the pod's are dropped.
    #[serde(default)]
    pub check_mac: bool,
    /// The kernel makes sure that nobody else has the pod's IPv6 addresses.
    #[serde(default)]
    pub detect_duplicates: bool,
}

/// The VLANs of a bridge's port (IEEE 802.1Q), numbers from 1 to 4094.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortVlans {
    /// That of frames without a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<u16>,
    /// Those of frames with a tag: the first and the last of each range.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunk: Vec<(u16, u16)>,
    /// Whether the port also stays in the bridge's usual VLAN.
    pub keeps_default: bool,
}

/// A bridge that the plugin makes where it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnBridge {
    /// It bears the pods' gateways.
    pub is_gateway: bool,
    /// Another address of a gateway's family is taken off it, instead of being a fault.
    pub force_address: bool,
    /// It takes in all frames.
    pub promiscuous: bool,
}

/// A macvlan interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Macvlan {
    /// The interface that it is beside of.
    pub master: IfName,
    /// Whether that one is in the pod too, as another attachment left it.
    #[serde(default)]
    pub in_container: bool,
    /// Who exchanges frames with whom.
    pub mode: MacvlanMode,
    /// Mode `source`: whose frames are let in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Mac>,
    /// How many broadcast frames may wait (`bcqueuelen`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast_queue: Option<u32>,
    /// The host's own interface among those of the pods, by which it and they reach each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_link: Option<IfName>,
}

/// A change of a list of senders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceChange {
    /// None: it is only looked at.
    None,
    /// These and no others.
    Set(Vec<Mac>),
    /// These as well.
    Add(Vec<Mac>),
    /// No longer these.
    Remove(Vec<Mac>),
}

impl SourceChange {
    /// The list that it makes of another: in order, each once.
    #[must_use]
    pub fn of(&self, list: &[Mac]) -> Vec<Mac> {
        let now = list.iter().copied();
        let all: BTreeSet<Mac> = match self {
            Self::None => now.collect(),
            Self::Set(these) => these.iter().copied().collect(),
            Self::Add(these) => now.chain(these.iter().copied()).collect(),
            Self::Remove(these) => now.filter(|mac| !these.contains(mac)).collect(),
        };
        all.into_iter().collect()
    }
}

/// Macvlan modes (`MACVLAN_MODE_*`, linux/if_link.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacvlanMode {
    /// Interfaces of one master reach each other directly.
    Bridge,
    /// They never do.
    Private,
    /// All goes out to the switch, which may send it back.
    Vepa,
    /// One interface takes the master whole.
    Passthru,
    /// Only frames of listed senders come in.
    Source,
}

/// One of a pod's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAddress {
    /// The address, with the length of the subnet that it was taken from.
    pub net: IpNet,
    /// That subnet's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// What it was taken from and goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supply: Option<Supply>,
}

/// A route inside the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Destination.
    pub prefix: Prefix,
    /// Gateway; `None`: straight out of the pod's interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Priority (metric).
    #[serde(default)]
    pub priority: u32,
    /// What it has besides.
    #[serde(default, skip_serializing_if = "RouteExtras::is_none")]
    pub extras: RouteExtras,
}

/// What the specification's 1.1.0 lets a route have besides; what is absent is as the kernel has it by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteExtras {
    /// The routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope (`RT_SCOPE_*`): 0 everywhere, 253 the link, 254 the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
    /// MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The segment size that TCP announces, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
}

impl RouteExtras {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// One attachment: the file that describes it lives as long as the pod's namespace (both are gone with a reboot).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Its identity.
    pub key: AttachmentKey,
    /// Whether ADD came to its end. A file that says `false` and whose process is gone is what a killed plugin left.
    pub complete: bool,
    /// The pod's addresses.
    pub addresses: Vec<PodAddress>,
    /// The pod's routes, in the order in which they need each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<PodRoute>,
    /// The host's end of the veth pair, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_side: Option<IfName>,
    /// How it is attached.
    #[serde(flatten)]
    pub attach: Attach,
    /// The pod's end's Ethernet address.
    pub mac: Mac,
    /// MTU of the pod's interface, in bytes.
    pub mtu: u32,
    /// Whether the configuration asks for this MTU: then it does not follow the node's.
    #[serde(default)]
    pub mtu_is_asked: bool,
    /// Whether the pod's interface is left down: somebody else sets it up.
    #[serde(default)]
    pub is_down: bool,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// Whether what it sends to the outside takes the host's address (`ipMasq`).
    #[serde(default)]
    pub masquerade: bool,
    /// How fast its packets may go.
    #[serde(default, skip_serializing_if = "Bandwidth::is_empty")]
    pub bandwidth: Bandwidth,
    /// Settings of its namespace and interface.
    #[serde(default, skip_serializing_if = "Tuning::is_empty")]
    pub tuning: Tuning,
    /// The path of the pod's network namespace.
    pub netns: String,
    /// The pod's namespace and name, where the runtime gave them: for people and for events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Other plugins that did a part of it and are to undo it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegates: Vec<Delegate>,
    /// Whether its addresses are leased of a DHCP server: the agent holds and renews them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_leased: bool,
}

/// Another plugin that is called for a part of an attachment, and all that its later calls need: by then the configuration may be
/// another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delegate {
    /// The program.
    pub program: PathBuf,
    /// The configuration that it was called with.
    pub conf: Value,
    /// `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub args: String,
    /// `CNI_PATH`: it may call others itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub search_path: String,
}

impl BridgePort {
    /// The host's link that bears the pods' gateways and that their packets come in by: the bridge itself or, on the segment of
    /// a VLAN, the host's own port of it, which has the reference plugin's name. `None`: that would be too long.
    #[must_use]
    pub fn gateway_device(&self) -> Option<IfName> {
        match self.vlans.as_ref().and_then(|vlans| vlans.access) {
            Some(vlan) => IfName::new(&format!("{}.{vlan}", self.bridge)).ok(),
            None => Some(self.bridge),
        }
    }

    /// Whether the host has a port of its own for the gateway.
    #[must_use]
    pub fn has_gateway_port(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.is_gateway) && self.vlans.as_ref().is_some_and(|v| v.access.is_some())
    }

    /// That port: the host's end, and the one at the bridge.
    #[must_use]
    pub fn gateway_port(&self) -> Option<[IfName; 2]> {
        let device = self.gateway_device().filter(|_| self.has_gateway_port())?;
        Some([device, IfName::new(&format!("vlan{}", digits(&[device.as_str()]))).ok()?])
    }
}

/// A part of an attachment that has a plugin of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its addresses.
    Addresses,
    /// Ports of the host that lead to it.
    Ports,
    /// How fast its packets may go.
    Bandwidth,
    /// Settings of its namespace and interface.
    Tuning,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Addresses => "addresses",
            Self::Ports => "ports",
            Self::Bandwidth => "bandwidth",
            Self::Tuning => "settings",
        })
    }
}

impl Attachment {
    /// Whether nothing is left of it that anybody has to take away: another plugin made the link.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let is_foreign = matches!(self.attach, Attach::Foreign { .. });
        let parts = [Part::Addresses, Part::Ports, Part::Bandwidth, Part::Tuning];
        is_foreign && self.delegates.is_empty() && parts.iter().all(|part| !self.has(*part))
    }

    /// Whether it has this part. Addresses that another plugin gave are none.
    #[must_use]
    pub fn has(&self, part: Part) -> bool {
        match part {
            Part::Addresses => self.addresses.iter().any(|address| address.supply.is_some()),
            Part::Ports => !self.ports.is_empty(),
            Part::Bandwidth => !self.bandwidth.is_empty(),
            Part::Tuning => !self.tuning.is_empty(),
        }
    }

    /// The same with a part of another one, and what that one knows of the link where a third plugin made it. Settings go on top
    /// of those that are there: each of several plugins may make some.
    #[must_use]
    pub fn with_part(&self, part: Part, of: &Self) -> Self {
        let mut with = self.clone();
        match part {
            Part::Addresses => with.addresses.clone_from(&of.addresses),
            Part::Ports => with.ports.clone_from(&of.ports),
            Part::Bandwidth => with.bandwidth = of.bandwidth,
            Part::Tuning => with.tuning = with.tuning.overlaid(of.tuning.clone()),
        }
        if let (Attach::Foreign { host_device }, Attach::Foreign { host_device: known }) =
            (&mut with.attach, &of.attach)
        {
            *host_device = known.or(*host_device);
            with.host_side = of.host_side.or(with.host_side);
            if with.addresses.is_empty() {
                with.addresses.clone_from(&of.addresses);
            }
        }
        with
    }

    /// The same without a part. A link that another plugin made may still bear its addresses: they are not ours any more.
    #[must_use]
    pub fn without(&self, part: Part) -> Self {
        let mut rest = self.clone();
        match part {
            Part::Addresses => rest.addresses.iter_mut().for_each(|address| address.supply = None),
            Part::Ports => rest.ports.clear(),
            Part::Bandwidth => rest.bandwidth = Bandwidth::default(),
            Part::Tuning => rest.tuning = Tuning::default(),
        }
        rest
    }

    /// The pod's addresses without lengths.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|address| address.net.addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_shown() {
        for text in ["net/c1/eth0", "n.1/a-b_c/net1.5"] {
            assert_eq!(text.parse::<AttachmentKey>().map(|key| key.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "net", "net/c1", "net/c1/", "net/c1/eth0/x", "../c1/eth0", "net/../eth0", "net/c1/a b"] {
            assert!(text.parse::<AttachmentKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_of_senders_is_changed_in_four_ways() {
        let [a, b, c] = [1, 2, 3].map(|last| Mac([2, 0, 0, 0, 0, last]));
        for (change, from, to) in [
            (SourceChange::None, vec![b, a], vec![a, b]),
            (SourceChange::Set(vec![c, a, c]), vec![b], vec![a, c]),
            (SourceChange::Set(Vec::new()), vec![b], vec![]),
            (SourceChange::Add(vec![a, b]), vec![b], vec![a, b]),
            (SourceChange::Remove(vec![a, c]), vec![a, b], vec![b]),
        ] {
            assert_eq!(change.of(&from), to, "{change:?}");
        }
    }
}
