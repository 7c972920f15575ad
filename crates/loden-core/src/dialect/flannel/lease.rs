//! A lease: the key of a node's subnets, and what the node says of itself (its attributes), byte for byte as flanneld writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde_json::Value;

use super::{FlannelError, json};
use crate::model::{BackendConfig, Family, Mac, Node, NodeName, NodeUid, PerFamily, Pool, Prefix, Receive};

/// The name of a node of flannel's that has none: its address.
#[must_use]
pub fn node_name(ip: Ipv4Addr) -> NodeName {
    NodeName::new(&ip.to_string()).unwrap_or_else(|_| unreachable!("{ip} is a name"))
}

/// The identity of all nodes that are flannel's.
#[must_use]
pub fn node_uid() -> NodeUid {
    NodeUid::new("flannel").unwrap_or_else(|_| unreachable!("letters are an identity"))
}

/// The key of a lease below `subnets/`: `10.5.34.0-24`, or `10.5.34.0-24&fc00:0:0:1::-64` for both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubnetKey {
    /// The subnet for IPv4, which is always there.
    pub v4: Prefix,
    /// The subnet for IPv6.
    pub v6: Option<Prefix>,
}

impl SubnetKey {
    /// Its subnets.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }
}

impl FromStr for SubnetKey {
    type Err = FlannelError;

    fn from_str(given: &str) -> Result<Self, FlannelError> {
        let wrong = |cause: String| FlannelError::SubnetKey { given: given.to_owned(), cause };
        let prefix = |text: &str, family: Family| {
            let prefix: Prefix =
                plain(text).and_then(|text| text.parse().map_err(|error| format!("{error}"))).map_err(wrong)?;
            match prefix.family() == family {
                true => Ok(prefix),
                false => Err(wrong(format!("{prefix} is not {family}"))),
            }
        };
        let (v4, v6) = match given.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (given, None),
        };
        Ok(Self { v4: prefix(v4, Family::V4)?, v6: v6.map(|v6| prefix(v6, Family::V6)).transpose()? })
    }
}

/// A subnet with the slash that a key cannot hold.
fn plain(text: &str) -> Result<String, String> {
    let (addr, len) = text.rsplit_once('-').ok_or_else(|| format!("{text:?} has no length"))?;
    // What reads otherwise than it is written would be another key for the same subnet.
    if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) || (len.len() > 1 && len.starts_with('0')) {
        return Err(format!("{len:?} is no length"));
    }
    if addr.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("{addr:?} is not in lower case"));
    }
    Ok(format!("{addr}/{len}"))
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.network(), self.v4.len())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.network(), v6.len()),
            None => Ok(()),
        }
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attributes {
    /// Where peers reach it.
    pub public: PerFamily<IpAddr>,
    /// How.
    pub backend: Announced,
}

/// A backend as a lease has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Announced {
    /// `udp`, which flannel leaves empty; of a node of loden's: nothing that a peer could use yet.
    #[default]
    Udp,
    /// `vxlan`, with the VTEP for each family of the underlay.
    Vxlan(PerFamily<Vtep>),
    /// `host-gw`.
    HostGw,
    /// `ipip`.
    Ipip,
    /// `wireguard`, with the peer for each device.
    Wireguard(PerFamily<WireguardPeer>),
    /// Any other.
    Other {
        /// Its name.
        kind: String,
        /// What it says for each family.
        data: PerFamily<Value>,
    },
}

/// A VTEP as a lease has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vtep {
    /// The lower 16 bits of the network's identifier: flannel's lease has no room for more.
    pub vni: u16,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// A peer of WireGuard's as a lease has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Its public key in base64.
    pub public_key: String,
    /// Its UDP port; older flannels leave it out.
    pub port: Option<u16>,
}

impl Attributes {
    /// Reads the value of a lease in etcd.
    ///
    /// # Errors
    /// [`FlannelError`] for the first fault.
    pub fn parse(text: &[u8]) -> Result<Self, FlannelError> {
        let mut map = json::object(text)?;
        let mut public = PerFamily::default();
        for (family, key) in [(Family::V4, "PublicIP"), (Family::V6, "PublicIPv6")] {
            if let Some(addr) = map.get(key).map(|value| parse_public(key, value, family)).transpose()?.flatten() {
                public.set(family, addr);
            }
        }
        let kind = match map.get("BackendType") {
            None => "",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return Err(wrong("BackendType", other, "a text was meant")),
        }
        .to_owned();
        let data = PerFamily { v4: map.remove("BackendData"), v6: map.remove("BackendV6Data") };
        Ok(Self { public, backend: Announced::parse(&kind, data)? })
    }

    /// Writes it as flanneld does.
    #[must_use]
    pub fn render(&self) -> String {
        let v4 = self.public.v4.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let v6 = self.public.v6.map_or_else(|| "null".to_owned(), |addr| format!("\"{addr}\""));
        let mut out = format!("{{\"PublicIP\":\"{v4}\",\"PublicIPv6\":{v6}");
        let kind = match self.backend.kind() {
            "" => None,
            kind => Some(Value::from(kind).to_string()),
        };
        let parts = [
            ("BackendType", kind),
            ("BackendData", self.backend.data(Family::V4)),
            ("BackendV6Data", self.backend.data(Family::V6)),
        ];
        for (key, value) in parts {
            out.extend(value.into_iter().flat_map(|value| [",\"", key, "\":", &value].map(str::to_owned)));
        }
        out + "}"
    }

    /// What a node of loden's says in flannel's words. It names a backend only when it has published that it takes its packets in,
    /// so that no peer sends into a void.
    #[must_use]
    pub fn of(node: &Node, backend: &BackendConfig) -> Self {
        let mut public = PerFamily::default();
        for family in Family::ALL {
            if let Some(addr) = node.reached_at(family) {
                public.set(family, addr);
            }
        }
        let announced = match backend {
            BackendConfig::Vxlan(vxlan) => {
                let mut vteps = PerFamily::default();
                for receive in &node.receives {
                    if let Receive::Vxlan { vni, underlay, mac, port } = *receive
                        && (vni, port) == (vxlan.vni, vxlan.port)
                    {
                        vteps.set(underlay, Vtep { vni: short(vni.get()), mac });
                    }
                }
                if vteps.is_empty() { Announced::Udp } else { Announced::Vxlan(vteps) }
            }
            BackendConfig::HostGw(_) if node.receives.contains(&Receive::HostGw) => Announced::HostGw,
            BackendConfig::HostGw(_) => Announced::Udp,
        };
        Self { public, backend: announced }
    }

    /// What the node takes in, as far as a pool of this backend can use it. The port of a VTEP is not in a lease: all nodes have the
    /// pool's.
    ///
    /// # Errors
    /// [`FlannelError::OtherBackend`] when it is served by another.
    pub fn receives(&self, backend: &BackendConfig) -> Result<Vec<Receive>, FlannelError> {
        match (backend, &self.backend) {
            (BackendConfig::Vxlan(vxlan), Announced::Vxlan(vteps)) => {
                // A VTEP of another network is as good as none: its node has not been started with this configuration yet.
                let is_ours = |vtep: &Vtep| vtep.vni == short(vxlan.vni.get());
                let ours = vteps.iter().filter(|(_, vtep)| is_ours(vtep));
                let receive = |(underlay, vtep): (Family, Vtep)| Receive::Vxlan {
                    vni: vxlan.vni,
                    underlay,
                    mac: vtep.mac,
                    port: vxlan.port,
                };
                Ok(ours.map(receive).collect())
            }
            (BackendConfig::HostGw(_), Announced::HostGw) => Ok(vec![Receive::HostGw]),
            (ours, theirs) => Err(FlannelError::OtherBackend {
                at: self.public.v4.or(self.public.v6),
                theirs: if theirs.kind().is_empty() { "udp" } else { theirs.kind() }.to_owned(),
                ours: ours.kind(),
            }),
        }
    }

    /// The node of flannel's that says this, under a name. A backend that is not the pools' is left out of what it takes in:
    /// [`Attributes::receives`] says so.
    #[must_use]
    pub fn node(&self, name: NodeName, pools: &[Pool]) -> Node {
        let mut node = Node {
            name,
            uid: node_uid(),
            underlay: self.public,
            public: PerFamily::default(),
            asked: PerFamily::default(),
            labels: BTreeMap::new(),
            receives: Vec::new(),
            sends: BTreeMap::new(),
            unknown: BTreeMap::new(),
        };
        for pool in pools {
            let Ok(receives) = self.receives(&pool.backend) else { continue };
            for receive in receives {
                if !node.receives.contains(&receive) {
                    node.receives.push(receive);
                }
            }
            // It sends as it receives: flanneld has one backend from its start to its end.
            node.sends.insert(pool.name.clone(), BTreeSet::from([pool.backend.clone()]));
        }
        node
    }
}

/// flannel keeps 16 bits of the identifier in a lease (and refuses to read more).
fn short(vni: u32) -> u16 {
    (vni & 0xffff) as u16
}

impl Announced {
    /// The backend's name as flannel writes it: empty for `udp`.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            Self::Udp => "",
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Ipip => "ipip",
            Self::Wireguard(_) => "wireguard",
            Self::Other { kind, .. } => kind,
        }
    }

    /// What it says for a family (`BackendData`, `BackendV6Data`), in JSON; `None`: nothing.
    #[must_use]
    pub fn data(&self, family: Family) -> Option<String> {
        match self {
            Self::Udp | Self::HostGw | Self::Ipip => None,
            Self::Vxlan(vteps) => {
                vteps.get(family).map(|vtep| format!("{{\"VNI\":{},\"VtepMAC\":\"{}\"}}", vtep.vni, vtep.mac))
            }
            Self::Wireguard(peers) => pick(peers, family).map(|peer| {
                let key = Value::from(peer.public_key.as_str());
                match peer.port {
                    Some(port) => format!("{{\"PublicKey\":{key},\"Port\":{port}}}"),
                    None => format!("{{\"PublicKey\":{key}}}"),
                }
            }),
            Self::Other { data, .. } => pick(data, family).map(ToString::to_string),
        }
    }

    /// From its name and what it says for each family; a null says nothing.
    pub(super) fn parse(kind: &str, data: PerFamily<Value>) -> Result<Self, FlannelError> {
        let PerFamily { v4, v6 } = data;
        let v4 = v4.filter(|value| !value.is_null()).map(|value| ("BackendData", value));
        let v6 = v6.filter(|value| !value.is_null()).map(|value| ("BackendV6Data", value));
        Ok(match kind {
            "" => Self::Udp,
            "vxlan" => {
                Self::Vxlan(PerFamily { v4: v4.map(parse_vtep).transpose()?, v6: v6.map(parse_vtep).transpose()? })
            }
            "host-gw" => Self::HostGw,
            "ipip" => Self::Ipip,
            "wireguard" => {
                Self::Wireguard(PerFamily { v4: v4.map(parse_peer).transpose()?, v6: v6.map(parse_peer).transpose()? })
            }
            other => Self::Other {
                kind: other.to_owned(),
                data: PerFamily { v4: v4.map(|(_, value)| value), v6: v6.map(|(_, value)| value) },
            },
        })
    }
}

/// Of values that cannot be copied.
fn pick<T>(values: &PerFamily<T>, family: Family) -> Option<&T> {
    if family == Family::V4 { values.v4.as_ref() } else { values.v6.as_ref() }
}

fn parse_vtep((key, value): (&str, Value)) -> Result<Vtep, FlannelError> {
    let vni = value["VNI"].as_u64().and_then(|vni| u16::try_from(vni).ok());
    let mac = value["VtepMAC"].as_str().and_then(|mac| mac.parse().ok());
    match (vni, mac) {
        (Some(vni), Some(mac)) => Ok(Vtep { vni, mac }),
        _ => Err(wrong(key, &value, "such as {\"VNI\":1,\"VtepMAC\":\"12:c6:65:89:b4:e3\"} was meant")),
    }
}

fn parse_peer((key, value): (&str, Value)) -> Result<WireguardPeer, FlannelError> {
    let port = value.get("Port").map(|port| port.as_u64().and_then(|port| u16::try_from(port).ok()));
    match (value["PublicKey"].as_str(), port) {
        (Some(public_key), None | Some(Some(_))) => {
            Ok(WireguardPeer { public_key: public_key.to_owned(), port: port.flatten() })
        }
        _ => Err(wrong(key, &value, "such as {\"PublicKey\":\"…\",\"Port\":51820} was meant")),
    }
}

/// An address; the unspecified one is none.
pub(super) fn parse_public(key: &str, value: &Value, family: Family) -> Result<Option<IpAddr>, FlannelError> {
    let addr = value.as_str().and_then(|text| match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    });
    let addr = addr.ok_or_else(|| wrong(key, value, &format!("an {family} address was meant")))?;
    Ok((!addr.is_unspecified()).then_some(addr))
}

fn wrong(key: &str, value: &Value, meant: &str) -> FlannelError {
    let value: String = value.to_string().chars().take(80).collect();
    crate::config::ConfigError::Invalid { key: key.to_owned(), value, meant: meant.to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        for text in ["10.5.34.0-24", "10.5.34.0-24&fc00:0:0:1::-64", "10.5.34.128-26&fc00::1:0-112"] {
            assert_eq!(text.parse::<SubnetKey>().expect(text).to_string(), text);
        }
        for wrong in [
            "",
            "10.5.34.0",
            "10.5.34.0-33",
            "10.5.34.1-24",
            "fc00::-64",
            "10.5.34.0-24&",
            "10.5.34.0-24&10.5.35.0-24",
            "10.5.34.0/24",
            "10.5.34.0-024",
            "10.5.34.0-+24",
            "10.5.34.0-24&FC00::-64",
            "10.5.34.0-24&fc00::-64&fc00::-64",
        ] {
            assert!(wrong.parse::<SubnetKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn wide_vnis_are_cut_as_flannel_cuts_them() {
        let vxlan = BackendConfig::Vxlan(crate::model::VxlanConfig {
            vni: crate::model::Vni::new(0x1_0002).expect("24 bits"),
            ..Default::default()
        });
        let text = r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":2,"VtepMAC":"02:00:00:00:00:01"}}"#;
        let read = Attributes::parse(text.as_bytes()).expect("a lease");
        let receives = read.receives(&vxlan).expect("vxlan");
        assert!(matches!(receives[..], [Receive::Vxlan { vni, port: 8472, .. }] if vni.get() == 0x1_0002));
        let mut node = read.node(node_name(Ipv4Addr::new(10, 0, 0, 1)), &[]);
        node.receives = receives;
        assert_eq!(Attributes::of(&node, &vxlan).render(), text);
    }

    #[test]
    fn a_lease_of_another_backend_is_refused_by_name() {
        let read = |kind: &str| {
            Attributes::parse(format!(r#"{{"PublicIP":"10.0.0.1","BackendType":"{kind}"}}"#).as_bytes()).expect(kind)
        };
        let host_gw = BackendConfig::HostGw(crate::model::HostGwConfig {});
        for (kind, says) in
            [("", "udp"), ("vxlan", "vxlan"), ("ipip", "ipip"), ("wireguard", "wireguard"), ("alloc", "alloc")]
        {
            let error = read(kind).receives(&host_gw).expect_err(kind).to_string();
            assert!(error.contains(says) && error.contains("10.0.0.1") && error.contains("host-gw"), "{error}");
            assert!(read(kind).node(node_name(Ipv4Addr::LOCALHOST), &[]).receives.is_empty());
        }
        assert_eq!(read("host-gw").receives(&host_gw), Ok(vec![Receive::HostGw]));
    }
}
