//! Addresses by DHCP (RFC 2131): what is asked of a server, what it gives, and what that makes of a pod's attachment.
//!
//! [`client`] is the protocol as a machine without sockets and clock. The wire format is the agent's.

pub mod client;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::model::{Attachment, AttachmentKey, IfName, Mac, PodAddress, PodRoute, Prefix, RouteExtras};

/// A lease time that never ends (RFC 2131 section 3.3).
pub const FOREVER: u32 = u32::MAX;

/// The smallest MTU that is taken from a server, in bytes: what every host must be able to receive (RFC 791 section 3.2).
const MTU_LEAST: u32 = 576;

/// What a server says of an address that it gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// The address, with the length of its subnet.
    pub net: Ipv4Net,
    /// The first router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Ipv4Addr>,
    /// Classless routes (RFC 3442); one without a gateway is on the link. Where there are some the router does not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<PodRoute>,
    /// How names are looked up.
    #[serde(default)]
    pub dns: Dns,
    /// The link's MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The server's identifier.
    pub server: Ipv4Addr,
    /// For how long, in seconds; [`FOREVER`] has no end.
    pub lease_s: u32,
    /// When to renew it with its server (T1), in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_s: Option<u32>,
    /// When to renew it with any server (T2), in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebinding_s: Option<u32>,
}

/// How names are looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Servers, the preferred one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<Ipv4Addr>,
    /// The host's own domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Where short names are looked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
}

/// An address that a server has given, in milliseconds of the clock that begins at boot: steps of the wall clock do not matter, and
/// the leases are gone with a reboot as the pods are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// On which terms.
    #[serde(flatten)]
    pub terms: Terms,
    /// When the request was sent that the server granted: from then on it counts.
    pub begun_ms: u64,
    /// Whose frame brought it, the server or a relay: it is told when the pod goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_mac: Option<Mac>,
}

/// What an attachment asks of DHCP servers: `POST /v1/dhcp/lease`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseRequest {
    /// The attachment.
    pub key: AttachmentKey,
    /// The path of the pod's network namespace.
    pub netns: String,
    /// The pod's interface's Ethernet address.
    pub mac: Mac,
    /// An interface of the host on the same wire, by which a server is told of a pod that is gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_device: Option<IfName>,
    /// The pod's namespace and name: for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// An address that is wished for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<Ipv4Addr>,
    /// Options that are sent, by number, as text.
    #[serde(default)]
    pub provide: Vec<(u8, String)>,
    /// Options that are asked for, by number.
    pub request: Vec<u8>,
    /// The metric of its routes.
    #[serde(default)]
    pub priority: u32,
    /// Routes that the configuration asks for besides; one without a gateway takes the router.
    #[serde(default)]
    pub routes: Vec<PodRoute>,
    /// Whether the server's MTU is taken.
    #[serde(default)]
    pub mtu_is_open: bool,
    /// How long an answer is waited for, in seconds.
    pub timeout_s: u32,
}

/// What is written down of a lease while its pod lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// What was asked.
    pub request: LeaseRequest,
    /// Device and inode of the pod's network namespace: its path may lead to another's one day.
    pub netns_id: (u64, u64),
    /// What is held; `None`: it was lost, and is asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// What the pod was told of names when it was attached.
    #[serde(default)]
    pub dns_told: Dns,
}

impl Terms {
    /// What is wrong with them, if they are not to be taken.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        let addr = self.net.addr();
        let is_end = |end| self.net.prefix_len() < 31 && addr == end;
        if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || addr.is_broadcast() {
            Some("the address is none that a host can have")
        } else if is_end(self.net.network()) || is_end(self.net.broadcast()) {
            Some("the address is its subnet's own or that of all hosts in it")
        } else if self.net.prefix_len() == 0 {
            Some("the subnet mask is empty")
        } else if self.lease_s == 0 {
            Some("the lease ends at once")
        } else if self.server.is_unspecified() || self.server.is_multicast() || self.server.is_broadcast() {
            Some("the server has no address")
        } else {
            None
        }
    }

    /// The pod's routes, each behind what it needs. A gateway outside the subnet is on the link.
    fn pod_routes(&self, priority: u32, asked: &[PodRoute]) -> Vec<PodRoute> {
        let anywhere = Prefix::holding(Ipv4Addr::UNSPECIFIED.into(), 0);
        let router = self.router.map(IpAddr::from);
        let mut wanted: Vec<PodRoute> = self.routes.iter().map(|route| PodRoute { priority, ..*route }).collect();
        if let Some(gateway) = router.filter(|_| self.routes.is_empty()) {
            wanted.push(PodRoute {
                prefix: anywhere,
                gateway: Some(gateway),
                priority,
                extras: RouteExtras::default(),
            });
        }
        for route in asked {
            let route = PodRoute {
                gateway: route.gateway.or(router.filter(|_| route.prefix.family() == anywhere.family())),
                ..*route
            };
            // What the configuration says goes before what the server does.
            wanted.retain(|other| (other.prefix, other.priority) != (route.prefix, route.priority));
            wanted.push(route);
        }
        let (mut routes, behind): (Vec<PodRoute>, Vec<PodRoute>) =
            wanted.into_iter().partition(|route| route.gateway.is_none());
        for gateway in behind.iter().filter_map(|route| route.gateway) {
            let is_near =
                IpNet::V4(self.net).contains(&gateway) || routes.iter().any(|route| route.prefix.contains(gateway));
            if !is_near {
                routes.push(PodRoute {
                    prefix: Prefix::host(gateway),
                    gateway: None,
                    priority,
                    extras: RouteExtras::default(),
                });
            }
        }
        routes.extend(behind);
        routes
    }
}

impl Lease {
    /// When it ends; `None`: never.
    #[must_use]
    pub fn end_ms(&self) -> Option<u64> {
        (self.terms.lease_s != FOREVER).then(|| self.after(self.terms.lease_s))
    }

    /// When it is renewed with its server, and when with any: half and seven eighths of it (RFC 2131 section 4.4.5), unless the
    /// server says otherwise in the right order.
    #[must_use]
    pub fn renewals_ms(&self) -> Option<(u64, u64)> {
        let lease = u64::from(self.terms.lease_s);
        self.end_ms()?;
        let said = self.terms.renewal_s.zip(self.terms.rebinding_s);
        Some(match said {
            Some((first, second)) if 0 < first && first < second && second < self.terms.lease_s => {
                (self.after(first), self.after(second))
            }
            _ => (self.begun_ms + lease * 500, self.begun_ms + lease * 875),
        })
    }

    fn after(&self, seconds: u32) -> u64 {
        self.begun_ms + u64::from(seconds) * 1000
    }
}

impl LeaseRequest {
    /// The attachment with what a lease gives it; without one it has no address.
    #[must_use]
    pub fn applied(&self, lease: Option<&Lease>, there: &Attachment) -> Attachment {
        let mut attachment = Attachment { addresses: Vec::new(), routes: Vec::new(), ..there.clone() };
        if let Some(Lease { terms, .. }) = lease {
            let gateway = terms.router.map(IpAddr::from);
            attachment.addresses = vec![PodAddress { net: terms.net.into(), gateway, supply: None }];
            attachment.routes = terms.pod_routes(self.priority, &self.routes);
            // A link is never made wider than what it hangs on.
            let mtu = terms.mtu.filter(|mtu| self.mtu_is_open && (MTU_LEAST..there.mtu).contains(mtu));
            attachment.mtu = mtu.unwrap_or(there.mtu);
        }
        attachment
    }

    /// The client's identifier (option 61): of type 0, as the reference plugin has it, so that a server knows the pod again.
    #[must_use]
    pub fn client_id(&self) -> Vec<u8> {
        let AttachmentKey { network, container, ifname } = &self.key;
        let name = format!("{container}/{network}/{ifname}");
        std::iter::once(0).chain(name.bytes().take(254)).collect()
    }

    /// Whose it is, for people.
    #[must_use]
    pub fn who(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{} of pod {pod} (attachment {})", self.key.ifname, self.key),
            None => format!("{} of attachment {}", self.key.ifname, self.key),
        }
    }
}

impl Dns {
    /// In the form of a CNI result; `None` when nothing is said.
    #[must_use]
    pub fn to_result(&self) -> Option<serde_json::Value> {
        if *self == Self::default() { None } else { serde_json::to_value(self).ok() }
    }
}
