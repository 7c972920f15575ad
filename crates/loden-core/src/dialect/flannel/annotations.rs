//! A lease as annotations of a Kubernetes node, under any prefix (`flannel.alpha.coreos.com/`; it ends in `/` or `-`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::announced::wrong;
use super::lease::parse_public;
use super::{Announced, Attributes, FlannelError, json};
use crate::model::{Family, Node, NodeName, PerFamily, Pool};

/// The annotation that says that a node is served.
const SERVED: &str = "kube-subnet-manager";
const TYPE: &str = "backend-type";

/// The annotations of a family.
struct Names {
    data: &'static str,
    public: &'static str,
    overwrite: &'static str,
    asked: &'static str,
}

fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            data: "backend-data",
            public: "public-ip",
            overwrite: "public-ip-overwrite",
            asked: "node-public-ip",
        },
        Family::V6 => Names {
            data: "backend-v6-data",
            public: "public-ipv6",
            overwrite: "public-ipv6-overwrite",
            asked: "node-public-ipv6",
        },
    }
}

/// What an operator says of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Where peers are to reach it (`public-ip-overwrite`): [`crate::model::Node::public`].
    pub public: PerFamily<IpAddr>,
    /// At which of its own addresses it is to serve (`node-public-ip`): [`crate::model::Node::asked`].
    pub asked: PerFamily<IpAddr>,
}

/// All annotations that [`write()`] writes, and no others: what is not among its result is to be taken away.
#[must_use]
pub fn written(prefix: &str) -> Vec<String> {
    let of = |family| [names(family).data, names(family).public];
    let all = [SERVED, TYPE].into_iter().chain(Family::ALL.into_iter().flat_map(of));
    all.map(|name| format!("{prefix}{name}")).collect()
}

/// What a node says of itself; `None` when it is not served (yet).
///
/// # Errors
/// [`FlannelError`] for the first fault, with its place.
pub fn read(prefix: &str, annotations: &BTreeMap<String, String>) -> Result<Option<Attributes>, FlannelError> {
    let get =
        |name: &str| annotations.get(&format!("{prefix}{name}")).map(String::as_str).filter(|text| !text.is_empty());
    if get(SERVED) != Some("true") {
        return Ok(None);
    }
    let mut public = PerFamily::default();
    let mut data: PerFamily<Value> = PerFamily::default();
    for family in Family::ALL {
        let names = names(family);
        if let Some(addr) = address(prefix, names.public, get(names.public), family)? {
            public.set(family, addr);
        }
        if let Some(text) = get(names.data) {
            let value = json::value(text.as_bytes())
                .map_err(|error| wrong(&format!("{prefix}{}", names.data), &Value::from(text), &error.to_string()))?;
            *(if family == Family::V4 { &mut data.v4 } else { &mut data.v6 }) = Some(value);
        }
    }
    Ok(Some(Attributes { public, backend: Announced::parse(get(TYPE).unwrap_or_default(), data)? }))
}

/// What an operator says of a node, whether it is served or not.
///
/// # Errors
/// [`FlannelError`] for the first fault, with the annotation's name.
pub fn wishes(prefix: &str, annotations: &BTreeMap<String, String>) -> Result<Wishes, FlannelError> {
    let get =
        |name: &str| annotations.get(&format!("{prefix}{name}")).map(String::as_str).filter(|text| !text.is_empty());
    let mut wishes = Wishes::default();
    for family in Family::ALL {
        let names = names(family);
        if let Some(addr) = address(prefix, names.overwrite, get(names.overwrite), family)? {
            wishes.public.set(family, addr);
        }
        if let Some(addr) = address(prefix, names.asked, get(names.asked), family)? {
            wishes.asked.set(family, addr);
        }
    }
    Ok(wishes)
}

/// The node of flannel's that the annotations are of; `None` when it is not served (yet).
///
/// # Errors
/// [`FlannelError`] for the first fault, with its place.
pub fn node(
    prefix: &str,
    name: &NodeName,
    annotations: &BTreeMap<String, String>,
    pools: &[Pool],
) -> Result<Option<Node>, FlannelError> {
    let Some(attributes) = read(prefix, annotations)? else { return Ok(None) };
    let Wishes { public, asked } = wishes(prefix, annotations)?;
    Ok(Some(Node { public, asked, ..attributes.node(name.clone(), pools) }))
}

/// The annotations that flanneld writes for this: of VXLAN and WireGuard a family is left out that has no data.
#[must_use]
pub fn write(prefix: &str, attributes: &Attributes) -> BTreeMap<String, String> {
    let Attributes { public, backend } = attributes;
    let data = |family| backend.data(family);
    let has_v4 = !matches!(backend, Announced::Vxlan(_)) || data(Family::V4).is_some();
    let has_v6 = public.v6.is_some()
        && match backend {
            Announced::Vxlan(_) | Announced::Wireguard(_) => data(Family::V6).is_some(),
            Announced::HostGw => true,
            Announced::Other { kind, .. } => kind == "extension",
            Announced::Udp | Announced::Ipip => false,
        };
    let mut out = BTreeMap::new();
    let mut set = |name: &str, value: String| out.insert(format!("{prefix}{name}"), value);
    set(SERVED, "true".to_owned());
    set(TYPE, backend.kind().to_owned());
    for (family, has, none) in [(Family::V4, has_v4, "0.0.0.0"), (Family::V6, has_v6, "::")] {
        if has {
            let addr = public.get(family).map_or_else(|| none.to_owned(), |addr| addr.to_string());
            set(names(family).data, data(family).unwrap_or_else(|| "null".to_owned()));
            set(names(family).public, addr);
        }
    }
    out
}

fn address(prefix: &str, name: &str, text: Option<&str>, family: Family) -> Result<Option<IpAddr>, FlannelError> {
    Ok(text.map(|text| parse_public(&format!("{prefix}{name}"), &Value::from(text), family)).transpose()?.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "flannel.example.com/net-";

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect()
    }

    #[test]
    fn a_family_without_data_is_left_out() {
        let mac = "\"VtepMAC\":\"02:00:00:00:00:01\"";
        let v6_only = map(&[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-v6-data", &format!("{{\"VNI\":1,{mac}}}")),
            ("public-ipv6", "2001:db8::1"),
        ]);
        let host_gw = map(&[
            ("kube-subnet-manager", "true"),
            ("backend-type", "host-gw"),
            ("backend-data", "null"),
            ("public-ip", "192.0.2.1"),
            ("backend-v6-data", "null"),
            ("public-ipv6", "2001:db8::1"),
        ]);
        let udp = map(&[
            ("kube-subnet-manager", "true"),
            ("backend-type", ""),
            ("backend-data", "null"),
            ("public-ip", "192.0.2.1"),
        ]);
        for given in [v6_only, host_gw, udp] {
            let read = read(PREFIX, &given).expect("readable").expect("served");
            assert_eq!(write(PREFIX, &read), given);
            assert!(given.keys().all(|name| written(PREFIX).contains(name)));
        }
    }

    #[test]
    fn only_served_nodes_say_something_and_wishes_are_read_of_all() {
        let mut given = map(&[("public-ip-overwrite", "203.0.113.7"), ("node-public-ipv6", "2001:db8::7")]);
        assert_eq!(read(PREFIX, &given), Ok(None));
        let wishes = wishes(PREFIX, &given).expect("readable");
        assert_eq!(wishes.public, PerFamily { v4: Some([203, 0, 113, 7].into()), v6: None });
        assert_eq!(wishes.asked, PerFamily { v4: None, v6: "2001:db8::7".parse().ok() });
        given.extend(map(&[("kube-subnet-manager", "true"), ("public-ip", "fd00::1")]));
        let error = read(PREFIX, &given).expect_err("another family").to_string();
        assert!(error.contains("flannel.example.com/net-public-ip") && error.contains("IPv4"), "{error}");
        assert_eq!(read("other/", &given), Ok(None));
    }
}
