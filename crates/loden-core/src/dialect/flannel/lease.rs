//! A lease's value: what a node says of itself (its attributes), byte for byte as flanneld writes it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::announced::wrong;
use super::{Announced, FlannelError, Vtep, json};
use crate::model::{BackendConfig, Family, Node, NodeName, NodeUid, PerFamily, Pool, Receive};

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

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attributes {
    /// Where peers reach it.
    pub public: PerFamily<IpAddr>,
    /// How.
    pub backend: Announced,
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
                    if let Receive::Vxlan { vni, underlay, mac, port, bridged: false } = *receive
                        && (vni, port) == (vxlan.vni, vxlan.port)
                    {
                        vteps.set(underlay, Vtep { vni: short(vni.get()), mac });
                    }
                }
                if vteps.is_empty() { Announced::Udp } else { Announced::Vxlan(vteps) }
            }
            BackendConfig::HostGw(_) if node.receives.contains(&Receive::HostGw) => Announced::HostGw,
            BackendConfig::Ipip(_) if node.receives.contains(&Receive::Ipip) => Announced::Ipip,
            BackendConfig::HostGw(_) | BackendConfig::Udp(_) | BackendConfig::Ipip(_) => Announced::Udp,
        };
        Self { public, backend: announced }
    }

    /// The same without addresses of a family that no pool is of: flanneld does not look for any.
    #[must_use]
    pub fn in_network(mut self, pools: &[Pool]) -> Self {
        let has = |family: Family| pools.iter().any(|pool| pool.cidr.family() == family);
        self.public.v4 = self.public.v4.filter(|_| has(Family::V4));
        self.public.v6 = self.public.v6.filter(|_| has(Family::V6));
        self
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
                    bridged: false,
                };
                Ok(ours.map(receive).collect())
            }
            (BackendConfig::HostGw(_), Announced::HostGw) => Ok(vec![Receive::HostGw]),
            (BackendConfig::Udp(udp), Announced::Udp) => {
                Ok(vec![Receive::Udp { underlay: Family::V4, port: udp.port, bursts: false }])
            }
            (BackendConfig::Ipip(_), Announced::Ipip) => Ok(vec![Receive::Ipip]),
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
        let mut node = Node { underlay: self.public, ..Node::named(name, node_uid()) };
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

/// An address; the unspecified one is none.
pub(super) fn parse_public(key: &str, value: &Value, family: Family) -> Result<Option<IpAddr>, FlannelError> {
    let addr = value.as_str().and_then(|text| match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    });
    let addr = addr.ok_or_else(|| wrong(key, value, &format!("an {family} address was meant")))?;
    Ok((!addr.is_unspecified()).then_some(addr))
}

#[cfg(test)]
mod tests {
    use super::*;

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
