//! What an ADD makes: names, addresses, routes and the host's side, as data. The same answers for DEL and for the sweep, which ask
//! without any state, and for the agent, which keeps the host's side right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::ipam::Demand;
use crate::kernel::link::{Link, LinkKind, PodSide, Port};
use crate::kernel::{DeviceSysctl, Key, LINK_GROUP, NO_GROUP, Object, Via, default_priority};
use crate::model::{
    Attach, Attachment, AttachmentKey, Bandwidth, Delegate, Family, IfName, Mac, PodAddress, PodRoute, PortMapping,
    PortVlans, Prefix, RouteExtras, Tuning, digits,
};
use crate::ports;

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
/// attachment alone. A macvlan has none.
#[must_use]
pub fn host_side(key: &AttachmentKey, attach: &Attach) -> Option<IfName> {
    let [bridged, routed] = host_sides(key);
    match attach {
        Attach::Bridge(_) | Attach::Ptp => Some(bridged),
        Attach::Routed => Some(routed),
        Attach::Macvlan(_) | Attach::Foreign { .. } => None,
    }
}

/// The Ethernet address of the host's end, where it matters.
fn host_mac(key: &AttachmentKey, attach: &Attach) -> Option<Mac> {
    match attach {
        Attach::Routed => Some(ROUTED_HOST_MAC),
        Attach::Ptp => Some(Mac::derived(&["host", &key.network, &key.container, key.ifname.as_str()])),
        _ => None,
    }
}

/// The host's ends that an attachment may have, however it was made.
#[must_use]
pub fn host_sides(key: &AttachmentKey) -> [IfName; 2] {
    ["veth", "cali"].map(|prefix| {
        IfName::new(&format!("{prefix}{}", mark(key))).unwrap_or_else(|_| unreachable!("15 letters and digits"))
    })
}

/// Whether its packets go by a link that it has in common with others: the bridge, or a macvlan's master on the host.
#[must_use]
pub fn shares(attachment: &Attachment, link: IfName) -> bool {
    match &attachment.attach {
        Attach::Bridge(port) => port.bridge == link,
        Attach::Macvlan(macvlan) => macvlan.master == link && !macvlan.in_container,
        Attach::Routed | Attach::Ptp | Attach::Foreign { .. } => false,
    }
}

/// Whether an address or a route is on the host's end of some attachment. That is known by the end's name: the report of the link
/// may still be on its way, or what is remembered of the link may be of a former one of that name.
#[must_use]
pub fn is_on_host_side(key: &Key, object: Option<&Object>) -> bool {
    match (key, object) {
        (Key::Address(dev, _), _) | (Key::Route(..), Some(Object::Route(Via::Link(dev)))) => is_host_side(*dev),
        _ => false,
    }
}

fn is_host_side(name: IfName) -> bool {
    let name = name.as_str();
    let mark = name.strip_prefix("veth").or_else(|| name.strip_prefix("cali"));
    mark.is_some_and(|mark| mark.len() == 11 && mark.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// The attachment's short form: 11 hexadecimal digits.
#[must_use]
pub fn mark(key: &AttachmentKey) -> String {
    digits(&[&key.network, &key.container, key.ifname.as_str()])
}

/// An attachment of which all is known but its addresses.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its identity.
    pub key: AttachmentKey,
    /// How it is attached.
    pub attach: Attach,
    /// What it needs of addresses.
    pub demand: Demand,
    /// Routes that the configuration asks for; one without a gateway takes that of the address.
    pub routes: Vec<PodRoute>,
    /// Whether the gateway is also the way to everywhere else.
    pub is_default: bool,
    /// The pod's end's Ethernet address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether the configuration asks for that MTU.
    pub mtu_is_asked: bool,
    /// Whether the pod's interface is left down.
    pub is_down: bool,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortMapping>,
    /// Whether what it sends to the outside takes the host's address.
    pub masquerade: bool,
    /// How fast its packets may go.
    pub bandwidth: Bandwidth,
    /// Settings of its namespace and interface.
    pub tuning: Tuning,
    /// The path of the pod's network namespace.
    pub netns: String,
    /// The pod's namespace and name.
    pub pod: Option<String>,
    /// Other plugins that do a part of it.
    pub delegates: Vec<Delegate>,
    /// Whether its addresses are leased of a DHCP server.
    pub is_leased: bool,
}

impl Draft {
    /// The attachment with its addresses, not yet made.
    #[must_use]
    pub fn attachment(&self, addresses: Vec<PodAddress>) -> Attachment {
        let addresses: Vec<PodAddress> = addresses.into_iter().map(|address| self.with_gateway(address)).collect();
        Attachment {
            key: self.key.clone(),
            complete: false,
            routes: self.routes_of(&addresses),
            addresses,
            host_side: host_side(&self.key, &self.attach),
            attach: self.attach.clone(),
            mac: self.mac,
            mtu: self.mtu,
            mtu_is_asked: self.mtu_is_asked,
            is_down: self.is_down,
            ports: self.ports.clone(),
            masquerade: self.masquerade,
            bandwidth: self.bandwidth,
            tuning: self.tuning.clone(),
            netns: self.netns.clone(),
            pod: self.pod.clone(),
            delegates: self.delegates.clone(),
            is_leased: self.is_leased,
        }
    }

    /// A routed pod's gateway is always the same; a bridge that is to be a gateway is one in every network.
    fn with_gateway(&self, mut address: PodAddress) -> PodAddress {
        let net = Prefix::holding(address.net.addr(), address.net.prefix_len());
        match &self.attach {
            Attach::Routed => address.gateway = Some(routed_gateway(net.family())),
            Attach::Bridge(port) if port.own.as_ref().is_some_and(|own| own.is_gateway) => {
                address.gateway = address.gateway.or_else(|| net.nth(1));
            }
            Attach::Ptp => address.gateway = address.gateway.or_else(|| net.nth(1)),
            Attach::Bridge(_) | Attach::Macvlan(_) | Attach::Foreign { .. } => {}
        }
        address
    }

    /// The pod's routes, in the order in which they need each other.
    fn routes_of(&self, addresses: &[PodAddress]) -> Vec<PodRoute> {
        let mut routes = Vec::new();
        for family in Family::ALL {
            let mut of_family = addresses.iter().filter(|address| Family::of(address.net.addr()) == family);
            let route = |prefix, gateway| PodRoute {
                prefix,
                gateway,
                priority: default_priority(family),
                extras: RouteExtras::default(),
            };
            let gateway = of_family.find_map(|address| address.gateway);
            let is_wire = self.attach == Attach::Ptp || (self.attach == Attach::Routed && family == Family::V4);
            if let Some(gateway) = gateway.filter(|_| is_wire) {
                routes.push(route(Prefix::host(gateway), None));
            }
            // The rest of the pod's subnet is behind the host too.
            let nets = addresses.iter().map(|address| address.net).filter(|net| Family::of(net.addr()) == family);
            if let Some(gateway) = gateway.filter(|_| self.attach == Attach::Ptp) {
                let through = |net: IpNet| Prefix::holding(net.addr(), net.prefix_len());
                routes.extend(nets.map(|net| route(through(net), Some(gateway))));
            }
            let asked = self.routes.iter().filter(|route| route.prefix.family() == family);
            // The other plugin, which makes the routes, takes the address's gateway by itself.
            let usual = gateway.filter(|_| !matches!(self.attach, Attach::Foreign { .. }));
            let asked = asked.map(|route| PodRoute { gateway: route.gateway.or(usual), ..*route });
            let asked: Vec<PodRoute> = asked.collect();
            let is_usual_default = |route: &PodRoute| route.prefix.len() == 0 && route.extras.table.is_none();
            let has_default = asked.iter().any(is_usual_default);
            if let Some(gateway) = gateway.filter(|_| self.is_default && !has_default) {
                routes.push(route(anywhere(family), Some(gateway)));
            }
            routes.extend(asked);
        }
        routes
    }
}

fn anywhere(family: Family) -> Prefix {
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    Prefix::holding(any, 0)
}

/// The addresses as the pod's interface bears them: on a segment with the subnet's length, since others of it are on the same
/// one; routed alone.
#[must_use]
pub fn pod_nets(attachment: &Attachment) -> Vec<IpNet> {
    match attachment.attach {
        Attach::Bridge(_) | Attach::Ptp | Attach::Macvlan(_) | Attach::Foreign { .. } => {
            attachment.addresses.iter().map(|address| address.net).collect()
        }
        Attach::Routed => attachment.ips().map(|addr| Prefix::host(addr).ipnet()).collect(),
    }
}

/// The MTU of an attachment in bytes: the node's, where that is known, unless it was asked for.
#[must_use]
pub fn mtu(attachment: &Attachment, mtu_node: Option<u32>) -> u32 {
    mtu_node.filter(|_| !attachment.mtu_is_asked).unwrap_or(attachment.mtu)
}

/// The host's end as it should be, with the node's MTU for pods in bytes; a macvlan has none.
#[must_use]
pub fn host_link(attachment: &Attachment, mtu_node: Option<u32>) -> Option<(IfName, Link)> {
    let (mac, master, port) = match &attachment.attach {
        Attach::Bridge(on) => (None, Some(on.bridge), Port { hairpin: on.hairpin, isolated: on.isolated }),
        Attach::Routed | Attach::Ptp => (host_mac(&attachment.key, &attachment.attach), None, Port::default()),
        Attach::Macvlan(_) | Attach::Foreign { .. } => return None,
    };
    let link = Link {
        kind: LinkKind::Veth { pod: Some(PodSide { netns: attachment.netns.clone(), ifname: attachment.key.ifname }) },
        mtu: mtu(attachment, mtu_node),
        mac,
        up: true,
        master,
        port,
        // The agent does not know of VLANs: it must not make such a port anew without them.
        group: if vlans(attachment).is_some() { NO_GROUP } else { LINK_GROUP },
    };
    Some((attachment.host_side?, link))
}

/// The VLANs of its port of a bridge, if it has any of its own.
#[must_use]
pub fn vlans(attachment: &Attachment) -> Option<&PortVlans> {
    match &attachment.attach {
        Attach::Bridge(port) => port.vlans.as_ref(),
        _ => None,
    }
}

/// What the host holds for an attachment besides its end of the pair, with what each is for. The plugin makes it, the agent
/// keeps it right.
#[must_use]
pub fn host_objects(attachment: &Attachment) -> Vec<(Key, Object, &'static str)> {
    let mut objects = match (&attachment.attach, attachment.host_side) {
        (Attach::Routed, Some(dev)) => routed_objects(attachment, dev),
        (Attach::Ptp, Some(dev)) => ptp_objects(attachment, dev),
        (Attach::Macvlan(macvlan), _) => {
            let dev = macvlan.host_link;
            dev.map(|dev| attachment.ips().map(|addr| pod_route(addr, dev)).collect()).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    if let Some(dev) = ports::host_device(attachment).filter(|_| ports::serves_loopback(attachment)) {
        let key = Key::DeviceSysctl(dev, DeviceSysctl::RouteLocalnet);
        objects.push((key, Object::Sysctl(1), "the host calls the pod by its loopback address"));
    }
    objects
}

fn pod_route(addr: IpAddr, dev: IfName) -> (Key, Object, &'static str) {
    let key = Key::Route(Prefix::host(addr), default_priority(Family::of(addr)));
    (key, Object::Route(Via::Link(dev)), "route to a pod")
}

/// The host bears each gateway alone, and has a route to the pod.
fn ptp_objects(attachment: &Attachment, dev: IfName) -> Vec<(Key, Object, &'static str)> {
    let mut objects = Vec::new();
    for address in &attachment.addresses {
        if let Some(gateway) = address.gateway {
            let key = Key::Address(dev, Prefix::host(gateway).ipnet());
            objects.push((key, Object::Address { ours: true }, "the pod's gateway"));
        }
        objects.push(pod_route(address.net.addr(), dev));
    }
    if let Some(mac) = host_mac(&attachment.key, &attachment.attach)
        && attachment.ips().any(|addr| addr.is_ipv6())
        && let Ok(net) = IpNet::new(mac.link_local().into(), 64)
    {
        objects.push((Key::Address(dev, net), Object::Address { ours: true }, "asks for the pod's neighbours"));
    }
    objects
}

fn routed_objects(attachment: &Attachment, dev: IfName) -> Vec<(Key, Object, &'static str)> {
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
    objects.extend(attachment.ips().map(|addr| pod_route(addr, dev)));
    objects
}
