//! A backend as a lease has it: its name, and what it says for each family.

use serde_json::Value;

use super::FlannelError;
use crate::config::ConfigError;
use crate::model::{Family, Mac, PerFamily};

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

/// A fault of a key's value.
pub(super) fn wrong(key: &str, value: &Value, meant: &str) -> FlannelError {
    let value: String = value.to_string().chars().take(80).collect();
    ConfigError::Invalid { key: key.to_owned(), value, meant: meant.to_owned() }.into()
}
