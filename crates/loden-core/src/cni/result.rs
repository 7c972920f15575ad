//! Results, in all the shapes that the versions have: written and read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{CniError, Code, Version};
use crate::attach::{self, ROUTED_HOST_MAC};
use crate::kernel::default_priority;
use crate::model::{Attach, Attachment, IfName, Mac, PodAddress, PodRoute, RouteExtras};

/// `dns` out of a file in the form of `resolv.conf` (man 5 resolv.conf): the last `search` or `domain` counts.
#[must_use]
pub fn dns_of_resolv_conf(text: &str) -> Value {
    let (mut servers, mut search, mut options, mut domain) = (Vec::new(), Vec::new(), Vec::new(), None);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next()),
            Some("domain") => domain = words.next(),
            Some("search") => search = words.collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
    let mut dns = Map::new();
    for (key, list) in [("nameservers", servers), ("search", search), ("options", options)] {
        if !list.is_empty() {
            dns.insert(key.to_owned(), list.into());
        }
    }
    if let Some(domain) = domain {
        dns.insert("domain".to_owned(), domain.into());
    }
    Value::Object(dns)
}

/// What an ADD came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Success {
    /// Interfaces made, on the host and in the pod.
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    pub ips: Vec<IpConfig>,
    /// Routes in the pod.
    pub routes: Vec<Route>,
    /// `dns`, as it came.
    pub dns: Option<Value>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes (1.1.0).
    pub mtu: Option<u32>,
    /// The pod's namespace; `None`: on the host.
    pub sandbox: Option<String>,
}

/// An address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpConfig {
    /// With its prefix length.
    pub address: IpNet,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Its interface, by place in the list.
    pub interface: Option<usize>,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Gateway.
    pub gw: Option<IpAddr>,
    /// Priority (metric; 1.1.0), where it is not the usual one.
    pub priority: Option<u32>,
    /// What it has besides (1.1.0).
    pub extras: RouteExtras,
}

impl Success {
    /// The result of an attachment.
    #[must_use]
    pub fn of(attachment: &Attachment, dns: Option<Value>) -> Self {
        let on_host =
            |name: IfName, mac| Interface { name: name.to_string(), mac, mtu: Some(attachment.mtu), sandbox: None };
        let host_side = |mac| attachment.host_side.map(|name| on_host(name, mac));
        let mut interfaces: Vec<Interface> = match &attachment.attach {
            Attach::Bridge(port) => [Some(on_host(port.bridge, None)), host_side(None)].into_iter().flatten().collect(),
            Attach::Routed => host_side(Some(ROUTED_HOST_MAC)).into_iter().collect(),
            Attach::Ptp => host_side(None).into_iter().collect(),
            Attach::Macvlan(_) | Attach::Foreign { .. } => Vec::new(),
        };
        let pod = Interface {
            name: attachment.key.ifname.to_string(),
            mac: Some(attachment.mac),
            mtu: Some(attachment.mtu),
            sandbox: Some(attachment.netns.clone()),
        };
        let place = interfaces.len();
        interfaces.push(pod);
        if let Attach::Bridge(port) = &attachment.attach {
            let own = port.gateway_device().filter(|_| port.has_gateway_port());
            interfaces.extend(own.map(|name| on_host(name, None)));
        }
        let gateways = attachment.addresses.iter().map(|address| address.gateway);
        let ip = |(net, gateway)| IpConfig { address: net, gateway, interface: Some(place) };
        Self {
            interfaces,
            ips: attach::pod_nets(attachment).into_iter().zip(gateways).map(ip).collect(),
            routes: attachment.routes.iter().map(Route::of).collect(),
            dns,
        }
    }

    /// The result of a loopback interface in a namespace.
    #[must_use]
    pub fn of_loopback(netns: &str) -> Self {
        let ip = |addr: IpAddr, len| {
            IpNet::new(addr, len).ok().map(|address| IpConfig { address, gateway: None, interface: Some(0) })
        };
        let lo =
            Interface { name: "lo".to_owned(), mac: Some(Mac([0; 6])), mtu: None, sandbox: Some(netns.to_owned()) };
        let ips = [ip(Ipv4Addr::LOCALHOST.into(), 8), ip(Ipv6Addr::LOCALHOST.into(), 128)];
        Self { interfaces: vec![lo], ips: ips.into_iter().flatten().collect(), ..Self::default() }
    }

    /// The result of a plugin that gives addresses alone.
    #[must_use]
    pub fn of_addresses(attachment: &Attachment, dns: Option<Value>) -> Self {
        let ip = |address: &PodAddress| IpConfig { address: address.net, gateway: address.gateway, interface: None };
        Self {
            interfaces: Vec::new(),
            ips: attachment.addresses.iter().map(ip).collect(),
            routes: attachment.routes.iter().map(Route::of).collect(),
            dns,
        }
    }

    /// The JSON of a version.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut map = Map::new();
        map.insert("cniVersion".to_owned(), version.as_str().into());
        if version <= Version::V0_2_0 {
            for (key, v4) in [("ip4", true), ("ip6", false)] {
                if let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4) {
                    let routes: Vec<_> = self
                        .routes
                        .iter()
                        .filter(|r| r.dst.addr().is_ipv4() == v4)
                        .map(|r| r.to_json(version))
                        .collect();
                    let mut old = json!({ "ip": ip.address.to_string(), "routes": routes });
                    if let Some(gateway) = ip.gateway {
                        old["gateway"] = gateway.to_string().into();
                    }
                    map.insert(key.to_owned(), old);
                }
            }
        } else {
            let interfaces: Vec<_> = self.interfaces.iter().map(|i| i.to_json(version)).collect();
            let ips: Vec<_> = self.ips.iter().map(|ip| ip.to_json(version)).collect();
            let routes: Vec<_> = self.routes.iter().map(|route| route.to_json(version)).collect();
            for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
                if !list.is_empty() {
                    map.insert(key.to_owned(), list.into());
                }
            }
        }
        map.insert("dns".to_owned(), self.dns.clone().unwrap_or_else(|| json!({})));
        Value::Object(map)
    }

    /// The JSON of a version, behind what the plugins before this one came to: that stays as it is, and this is put to it.
    #[must_use]
    pub fn behind(&self, previous: Option<&Value>, version: Version) -> Value {
        let ours = self.to_json(version);
        let (Some(Value::Object(previous)), Value::Object(ours)) = (previous, &ours) else { return ours };
        let mut all = previous.clone();
        all.insert("cniVersion".to_owned(), version.as_str().into());
        let before = previous.get("interfaces").and_then(Value::as_array).map_or(0, Vec::len);
        for (key, value) in ours {
            match (all.get_mut(key), value) {
                (Some(Value::Array(there)), Value::Array(more)) => {
                    there.extend(more.iter().cloned().map(|mut item| {
                        if let Some(place) = item.get("interface").and_then(Value::as_u64) {
                            item["interface"] = (place + before as u64).into();
                        }
                        item
                    }))
                }
                (Some(Value::Object(there)), Value::Object(_)) if there.is_empty() => {
                    all.insert(key.clone(), value.clone());
                }
                // Of the two oldest versions there is one address of a family, and one `dns` in all of them.
                (Some(there), _) if !there.is_null() => {}
                _ => drop(all.insert(key.clone(), value.clone())),
            }
        }
        Value::Object(all)
    }

    /// Reads a result; its own `cniVersion` goes before the configuration's.
    ///
    /// # Errors
    /// Code 6 when it cannot be understood.
    pub fn parse(value: &Value, version: Version) -> Result<Self, CniError> {
        let version = value.get("cniVersion").and_then(Value::as_str).map_or(Ok(version), Version::parse)?;
        let wrong = |what: &str| CniError::new(Code::Decode, format!("prevResult: {what} cannot be understood"));
        let list = |key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let ip = |value: &Value, key: &str| text(value, key).and_then(|text| text.parse::<IpAddr>().ok());
        let route = |value: &Value| {
            let dst = text(value, "dst").and_then(|dst| dst.parse().ok()).ok_or_else(|| wrong("a route"))?;
            let priority = value.get("priority").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
            let extras = RouteExtras::deserialize(value).map_err(|error| wrong("a route").with(error.to_string()))?;
            Ok(Route { dst, gw: ip(value, "gw"), priority, extras })
        };
        let mut result = Self { dns: value.get("dns").cloned(), ..Self::default() };
        if version <= Version::V0_2_0 {
            for old in [value.get("ip4"), value.get("ip6")].into_iter().flatten() {
                let address = text(old, "ip").and_then(|ip| ip.parse().ok()).ok_or_else(|| wrong("an address"))?;
                result.ips.push(IpConfig { address, gateway: ip(old, "gateway"), interface: None });
                for entry in old.get("routes").and_then(Value::as_array).into_iter().flatten() {
                    result.routes.push(route(entry)?);
                }
            }
            return Ok(result);
        }
        for entry in list("interfaces") {
            result.interfaces.push(Interface {
                name: text(&entry, "name").ok_or_else(|| wrong("an interface"))?,
                mac: text(&entry, "mac").and_then(|mac| mac.parse().ok()),
                mtu: entry.get("mtu").and_then(Value::as_u64).and_then(|mtu| u32::try_from(mtu).ok()),
                sandbox: text(&entry, "sandbox").filter(|sandbox| !sandbox.is_empty()),
            });
        }
        for entry in list("ips") {
            let address = text(&entry, "address").and_then(|a| a.parse().ok()).ok_or_else(|| wrong("an address"))?;
            let interface = entry.get("interface").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
            result.ips.push(IpConfig { address, gateway: ip(&entry, "gateway"), interface });
        }
        for entry in list("routes") {
            result.routes.push(route(&entry)?);
        }
        Ok(result)
    }
}

impl Interface {
    fn to_json(&self, version: Version) -> Value {
        let mut map = Map::new();
        map.insert("name".to_owned(), self.name.clone().into());
        if let Some(mac) = self.mac {
            map.insert("mac".to_owned(), mac.to_string().into());
        }
        if let Some(mtu) = self.mtu.filter(|_| version >= Version::V1_1_0) {
            map.insert("mtu".to_owned(), mtu.into());
        }
        if let Some(sandbox) = &self.sandbox {
            map.insert("sandbox".to_owned(), sandbox.clone().into());
        }
        Value::Object(map)
    }
}

impl IpConfig {
    fn to_json(self, version: Version) -> Value {
        let mut map = Map::new();
        if version < Version::V1_0_0 {
            map.insert("version".to_owned(), if self.address.addr().is_ipv4() { "4" } else { "6" }.into());
        }
        if let Some(interface) = self.interface {
            map.insert("interface".to_owned(), interface.into());
        }
        map.insert("address".to_owned(), self.address.to_string().into());
        if let Some(gateway) = self.gateway {
            map.insert("gateway".to_owned(), gateway.to_string().into());
        }
        Value::Object(map)
    }
}

impl Route {
    fn of(route: &PodRoute) -> Self {
        let usual = default_priority(route.prefix.family());
        let priority = Some(route.priority).filter(|priority| *priority != usual);
        Self { dst: route.prefix.ipnet(), gw: route.gateway, priority, extras: route.extras }
    }

    fn to_json(self, version: Version) -> Value {
        let mut route = json!({ "dst": self.dst.to_string() });
        if let Some(gw) = self.gw {
            route["gw"] = gw.to_string().into();
        }
        if version < Version::V1_1_0 {
            return route;
        }
        let extras = self.extras;
        let numbers = [
            ("priority", self.priority),
            ("table", extras.table),
            ("scope", extras.scope.map(u32::from)),
            ("mtu", extras.mtu),
            ("advmss", extras.advmss),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                route[key] = number.into();
            }
        }
        route
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_is_read() {
        let text = "# x\nnameserver 192.0.2.53\nnameserver 2001:db8::53 # y\ndomain example\nsearch a b\nsearch c\noptions ndots:5\noptions edns0\nnonsense\n";
        assert_eq!(
            dns_of_resolv_conf(text),
            json!({ "nameservers": ["192.0.2.53", "2001:db8::53"], "domain": "example", "search": ["c"], "options": ["ndots:5", "edns0"] })
        );
        assert_eq!(dns_of_resolv_conf(""), json!({}));
    }

    #[test]
    fn every_version_reads_what_it_writes() {
        let result = Success {
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                mtu: Some(1450),
                sandbox: Some("/run/netns/x".to_owned()),
            }],
            ips: vec![
                IpConfig {
                    address: "10.0.0.2/24".parse().expect("net"),
                    gateway: "10.0.0.1".parse().ok(),
                    interface: Some(0),
                },
                IpConfig { address: "fd00::2/64".parse().expect("net"), gateway: None, interface: Some(0) },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().expect("net"),
                gw: "10.0.0.1".parse().ok(),
                priority: Some(7),
                extras: RouteExtras { table: Some(300), mtu: Some(1400), ..RouteExtras::default() },
            }],
            dns: Some(json!({})),
        };
        for version in Version::ALL {
            let json = result.to_json(version);
            let read = Success::parse(&json, Version::V1_1_0).expect("readable");
            assert_eq!(read.to_json(version), json, "{version}");
            assert_eq!(read.ips.len(), 2, "{version}");
        }
        let both = result.behind(Some(&result.to_json(Version::V1_0_0)), Version::V1_0_0);
        assert_eq!(both["ips"][0]["interface"], 0);
        assert_eq!(both["ips"][2]["interface"], 1, "{both}");
        assert_eq!((both["interfaces"].as_array().map(Vec::len), both["dns"].clone()), (Some(2), json!({})));
        let unknown = json!({ "ips": [], "theirs": 7, "dns": { "domain": "x" } });
        let both = result.behind(Some(&unknown), Version::V1_1_0);
        assert_eq!(
            (&both["theirs"], &both["dns"]["domain"], &both["ips"][0]["interface"]),
            (&json!(7), &json!("x"), &json!(0))
        );
        let old = result.to_json(Version::V0_2_0);
        assert_eq!(result.behind(Some(&old), Version::V0_2_0), old);
        assert_eq!(old["ip4"]["gateway"], "10.0.0.1");
        assert_eq!(result.to_json(Version::V0_3_1)["ips"][1]["version"], "6");
        assert!(result.to_json(Version::V1_0_0)["interfaces"][0].get("mtu").is_none());
    }
}
