//! What an ADD makes: names, addresses, routes and the host's side, as data. The same answers for DEL and for the sweep, which ask
//! without any state, and for the agent, which keeps the host's side right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::cni::{AttachKind, NodeFile};
use crate::kernel::link::{Link, LinkKind, PodSide};
use crate::kernel::{DeviceSysctl, Key, LINK_GROUP, Object, Via, default_priority};
use crate::model::{Attach, Attachment, AttachmentKey, Family, Fnv, IfName, Mac, Prefix};

/// The Ethernet address of the host's end of every routed pod: what a pod has learned of its gateway is true for the next one.
pub const ROUTED_HOST_MAC: Mac = Mac([0xee; 6]);
/// A routed pod's gateway. Nothing bears it: the host answers for it as a proxy.
pub const ROUTED_GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// A routed pod's gateway in a family: in IPv6 the link-local address of the host's end.
fn routed_gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => ROUTED_GATEWAY_V4,
        Family::V6 => ROUTED_HOST_MAC.link_local().into(),
    }
}

/// The host's end of a pod's veth pair: `veth` or (routed, as Calico's) `cali`, and 11 hexadecimal digits that depend on the
/// attachment alone.
#[must_use]
pub fn host_side(key: &AttachmentKey, attach: Attach) -> IfName {
    let [bridged, routed] = host_sides(key);
    match attach {
        Attach::Bridge { .. } => bridged,
        Attach::Routed => routed,
    }
}

/// The host's ends that an attachment may have, however it was made.
#[must_use]
pub fn host_sides(key: &AttachmentKey) -> [IfName; 2] {
    ["veth", "cali"].map(|prefix| {
        IfName::new(&format!("{prefix}{}", mark(key))).unwrap_or_else(|_| unreachable!("15 letters and digits"))
    })
}

/// The attachment's short form: 11 hexadecimal digits.
#[must_use]
pub fn mark(key: &AttachmentKey) -> String {
    let mut hash = Fnv::new();
    for part in [key.network.as_str(), key.container.as_str(), key.ifname.as_str()] {
        hash.write(part.as_bytes());
        hash.write(&[0xff]);
    }
    format!("{:011x}", hash.finish() & 0xfff_ffff_ffff)
}

/// A route inside the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRoute {
    /// Destination.
    pub prefix: Prefix,
    /// Gateway; `None`: straight out of the pod's interface.
    pub gateway: Option<IpAddr>,
    /// Priority (metric).
    pub priority: u32,
}

/// A pod's attachment, not yet made. `addresses` are of the node's blocks.
#[must_use]
pub fn attachment(
    key: AttachmentKey,
    kind: AttachKind,
    node: &NodeFile,
    addresses: Vec<IpNet>,
    netns: String,
    pod: Option<String>,
) -> Attachment {
    let mac = Mac::derived(&["pod", &key.network, &key.container, key.ifname.as_str()]);
    let attach = match kind {
        AttachKind::Bridge => Attach::Bridge { bridge: node.bridge },
        AttachKind::Routed => Attach::Routed,
    };
    let host_side = host_side(&key, attach);
    Attachment { key, complete: false, addresses, host_side, attach, mac, mtu: node.mtu_pod, netns, pod }
}

/// The addresses as the pod's interface bears them: on a bridge with the block's length, since the other pods of it are on the
/// same segment; routed alone.
#[must_use]
pub fn pod_nets(attachment: &Attachment) -> Vec<IpNet> {
    match attachment.attach {
        Attach::Bridge { .. } => attachment.addresses.clone(),
        Attach::Routed => attachment.ips().map(|addr| Prefix::host(addr).ipnet()).collect(),
    }
}

/// The pod's routes, in the order in which they need each other: everything by one gateway a family.
#[must_use]
pub fn routes(attachment: &Attachment) -> Vec<PodRoute> {
    let mut routes = Vec::new();
    for net in &attachment.addresses {
        let family = Family::of(net.addr());
        let priority = default_priority(family);
        let gateway = match attachment.attach {
            Attach::Bridge { .. } => Prefix::holding(net.addr(), net.prefix_len()).nth(1),
            Attach::Routed => Some(routed_gateway(family)),
        };
        let Some(gateway) = gateway else { continue };
        if attachment.attach == Attach::Routed && family == Family::V4 {
            routes.push(PodRoute { prefix: Prefix::host(gateway), gateway: None, priority });
        }
        let anywhere: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        routes.push(PodRoute { prefix: Prefix::holding(anywhere, 0), gateway: Some(gateway), priority });
    }
    routes
}

/// The host's end as it should be, with the MTU for pods in bytes.
#[must_use]
pub fn host_link(attachment: &Attachment, mtu: u32) -> Link {
    let (mac, master) = match attachment.attach {
        Attach::Bridge { bridge } => (None, Some(bridge)),
        Attach::Routed => (Some(ROUTED_HOST_MAC), None),
    };
    Link {
        kind: LinkKind::Veth { pod: Some(PodSide { netns: attachment.netns.clone(), ifname: attachment.key.ifname }) },
        mtu,
        mac,
        up: true,
        master,
        group: LINK_GROUP,
    }
}

/// What the host holds for an attachment besides its end of the pair, with what each is for. The plugin makes it, the agent
/// keeps it right.
#[must_use]
pub fn host_objects(attachment: &Attachment) -> Vec<(Key, Object, &'static str)> {
    let dev = attachment.host_side;
    if attachment.attach != Attach::Routed {
        return Vec::new();
    }
    // Without its delay the proxy answers at once (`neigh_proxy_process` waits up to 0.8 s by default). A pod sends from its own
    // addresses only (RFC 3704 section 2.2).
    let sysctls = [
        (DeviceSysctl::AcceptRa, 0, "host's end"),
        (DeviceSysctl::ProxyDelay, 0, "answers for the pod's gateway"),
        (DeviceSysctl::ProxyArp, 1, "answers for the pod's gateway"),
        (DeviceSysctl::RpFilter, 1, "the pod sends from its own address"),
    ];
    let mut objects: Vec<_> = sysctls
        .into_iter()
        .map(|(sysctl, value, role)| (Key::DeviceSysctl(dev, sysctl), Object::Sysctl(value), role))
        .collect();
    if attachment.ips().any(|addr| addr.is_ipv6())
        && let Ok(net) = IpNet::new(routed_gateway(Family::V6), 64)
    {
        objects.push((Key::Address(dev, net), Object::Address { ours: true }, "the pod's gateway"));
    }
    for addr in attachment.ips() {
        let key = Key::Route(Prefix::host(addr), default_priority(Family::of(addr)));
        objects.push((key, Object::Route(Via::Link(dev)), "route to a pod"));
    }
    objects
}
