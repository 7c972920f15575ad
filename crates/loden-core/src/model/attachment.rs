//! A pod's attachment to a network, as the plugin leaves it under `/run/loden/attachments`.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{IfName, Mac};

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

/// How a pod is attached to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "attach", rename_all = "kebab-case")]
pub enum Attach {
    /// By a port of a bridge: pods of a host are on one segment.
    Bridge {
        /// The bridge.
        bridge: IfName,
    },
    /// By a wire to the host alone, which routes each packet, as Calico's pods are.
    Routed,
}

/// One attachment: the file that describes it lives as long as the pod's namespace (both are gone with a reboot).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Its identity.
    pub key: AttachmentKey,
    /// Whether ADD came to its end. A file that says `false` and whose process is gone is what a killed plugin left.
    pub complete: bool,
    /// The pod's addresses, with the prefix length of the block that they were taken from.
    pub addresses: Vec<ipnet::IpNet>,
    /// The host's end of the veth pair.
    pub host_side: IfName,
    /// How it is attached.
    #[serde(flatten)]
    pub attach: Attach,
    /// The pod's end's Ethernet address.
    pub mac: Mac,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// The path of the pod's network namespace.
    pub netns: String,
    /// The pod's namespace and name, where the runtime gave them: for people and for events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

impl Attachment {
    /// The pod's addresses without lengths.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(ipnet::IpNet::addr)
    }
}
