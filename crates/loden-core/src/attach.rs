//! What an ADD makes: names, addresses and routes, as data. The same answers for DEL and for the sweep, which ask without any
//! state.

use ipnet::IpNet;

use crate::cni::NodeFile;
use crate::kernel::default_priority;
use crate::model::{Attachment, AttachmentKey, Family, Fnv, IfName, Mac, Prefix};
use std::net::IpAddr;

/// The host's end of a pod's veth pair: `veth` and 11 hexadecimal digits that depend on the attachment alone.
#[must_use]
pub fn host_side(key: &AttachmentKey) -> IfName {
    let hash = hash(key);
    IfName::new(&format!("veth{:011x}", hash & 0xfff_ffff_ffff))
        .unwrap_or_else(|_| unreachable!("15 letters and digits"))
}

fn hash(key: &AttachmentKey) -> u64 {
    let mut hash = Fnv::new();
    for part in [key.network.as_str(), key.container.as_str(), key.ifname.as_str()] {
        hash.write(part.as_bytes());
        hash.write(&[0xff]);
    }
    hash.finish()
}

/// A route inside the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRoute {
    /// Destination.
    pub prefix: Prefix,
    /// Gateway.
    pub gateway: IpAddr,
    /// Priority (metric).
    pub priority: u32,
}

/// The attachment of a pod to the bridge, not yet made. `addresses` are of the node's blocks.
#[must_use]
pub fn attachment(
    key: AttachmentKey,
    node: &NodeFile,
    addresses: Vec<IpNet>,
    netns: String,
    pod: Option<String>,
) -> Attachment {
    let mac = Mac::derived(&["pod", &key.network, &key.container, key.ifname.as_str()]);
    let host_side = host_side(&key);
    Attachment { key, complete: false, addresses, host_side, bridge: node.bridge, mac, mtu: node.mtu_pod, netns, pod }
}

/// The pod's routes: everything by the gateway of each of its blocks.
#[must_use]
pub fn routes(attachment: &Attachment) -> Vec<PodRoute> {
    let default = |net: &IpNet| {
        let family = Family::of(net.addr());
        let anywhere: IpAddr = match family {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let gateway = Prefix::holding(net.addr(), net.prefix_len()).nth(1)?;
        Some(PodRoute { prefix: Prefix::holding(anywhere, 0), gateway, priority: default_priority(family) })
    };
    attachment.addresses.iter().filter_map(default).collect()
}
