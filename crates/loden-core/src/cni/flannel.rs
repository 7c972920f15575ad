//! The configuration of the plugin `flannel`, and what flanneld leaves in `subnet.env`, turned into that of the plugin which makes
//! the interface.

use std::collections::BTreeSet;
use std::str::FromStr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{CniError, Code};
use crate::model::{Family, Prefix};

/// Where flanneld leaves it.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// What flanneld tells of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The networks of the cluster.
    pub networks: Vec<Prefix>,
    /// The node's subnets: one of each family at most.
    pub subnets: Vec<Prefix>,
    /// MTU for pods, in bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades itself.
    pub masquerades: bool,
}

/// The plugin that is to be called, and with what.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// Its name; `bridge` unless the configuration says another.
    pub plugin: String,
    /// Its configuration.
    pub conf: Value,
}

/// The path of `subnet.env`.
///
/// # Errors
/// Code 7 when `subnetFile` is no text.
pub fn subnet_file(conf: &Map<String, Value>) -> Result<String, CniError> {
    Ok(Keys::new(conf).text("subnetFile")?.unwrap_or(SUBNET_FILE).to_owned())
}

impl FromStr for SubnetEnv {
    type Err = String;

    /// Says all that is missing or wrong.
    fn from_str(text: &str) -> Result<Self, String> {
        let pairs: Vec<(&str, &str)> = text.lines().filter_map(|line| line.trim().split_once('=')).collect();
        let get = |key: &str| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| value.trim());
        let mut faults = Vec::new();
        let mut list = |key: &str, family: Family| -> Vec<Prefix> {
            let texts = get(key).unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty());
            let prefix = |text: &str| {
                let net = text.parse::<IpNet>().ok().filter(|net| Family::of(net.addr()) == family);
                let found = net.map(|net| Prefix::holding(net.addr(), net.prefix_len()));
                if found.is_none() {
                    faults.push(format!("{key}={text} is no {family} network"));
                }
                found
            };
            texts.filter_map(prefix).collect()
        };
        let networks = [list("FLANNEL_NETWORK", Family::V4), list("FLANNEL_IPV6_NETWORK", Family::V6)].concat();
        let subnets = [list("FLANNEL_SUBNET", Family::V4), list("FLANNEL_IPV6_SUBNET", Family::V6)].concat();
        let mtu = get("FLANNEL_MTU").and_then(|mtu| mtu.parse().ok());
        let masquerades = get("FLANNEL_IPMASQ").and_then(|flag| flag.parse().ok());
        if networks.is_empty() {
            faults.push("FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK is missing".to_owned());
        }
        if subnets.is_empty() {
            faults.push("FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET is missing".to_owned());
        }
        for (key, is_there) in [("FLANNEL_MTU", mtu.is_some()), ("FLANNEL_IPMASQ", masquerades.is_some())] {
            if !is_there {
                faults.push(format!("{key} is missing or not understood"));
            }
        }
        match (mtu, masquerades) {
            (Some(mtu), Some(masquerades)) if faults.is_empty() => Ok(Self { networks, subnets, mtu, masquerades }),
            _ => Err(faults.join(", ")),
        }
    }
}

/// The configuration of the plugin that makes the interface: what the user gives for it, filled up with what flanneld says.
///
/// # Errors
/// Code 7 when `delegate` or `ipam` is not what it should be.
pub fn render(conf: &Map<String, Value>, env: &SubnetEnv) -> Result<Rendered, CniError> {
    let keys = Keys::new(conf);
    let delegate = keys.object("delegate")?;
    for key in ["name", "ipam"] {
        if delegate.as_ref().is_some_and(|delegate| delegate.get(key).is_some()) {
            return Err(CniError::new(
                Code::InvalidConfig,
                format!("`delegate.{key}` is not for the user to give: {key} is the network's own"),
            ));
        }
    }
    let plugin = match &delegate {
        Some(delegate) => delegate.text("type")?.unwrap_or("bridge"),
        None => "bridge",
    };
    let mut out = delegate.as_ref().map(|delegate| delegate.all().clone()).unwrap_or_default();
    let has = |key: &str| delegate.as_ref().is_some_and(|delegate| delegate.get(key).is_some());
    let mut usual = vec![("mtu", json!(env.mtu)), ("ipMasq", json!(!env.masquerades))];
    if plugin == "bridge" {
        usual.push(("isGateway", json!(true)));
    }
    for (key, value) in usual {
        if !has(key) {
            out.insert(key.to_owned(), value);
        }
    }
    out.insert("type".to_owned(), plugin.into());
    // What every plugin of a list is given, and what this one has of its own.
    for key in ["cniVersion", "name", "runtimeConfig", "prevResult", "args", "runDir", "quarantineSeconds"] {
        if let Some(value) = keys.get(key) {
            out.insert(key.to_owned(), value.clone());
        }
    }
    out.insert("ipam".to_owned(), ipam(&keys, env)?);
    Ok(Rendered { plugin: plugin.to_owned(), conf: Value::Object(out) })
}

/// The user's `ipam` with the node's subnets as ranges and a route to each network; the gateway of the subnet leads there.
fn ipam(keys: &Keys<'_>, env: &SubnetEnv) -> Result<Value, CniError> {
    let user = keys.object("ipam")?;
    let mut out = user.as_ref().map(|ipam| ipam.all().clone()).unwrap_or_default();
    let plugin = user.as_ref().map(|ipam| ipam.text("type")).transpose()?.flatten().unwrap_or("host-local");
    let mut routes: Vec<Value> = match &user {
        Some(ipam) => ipam.objects("routes")?.iter().map(|route| Value::Object(route.all().clone())).collect(),
        None => Vec::new(),
    };
    routes.extend(env.networks.iter().map(|network| json!({ "dst": network.to_string() })));
    let mut seen = BTreeSet::new();
    routes.retain(|route| seen.insert(route.to_string()));
    let ranges: Vec<Value> = env.subnets.iter().map(|subnet| json!([{ "subnet": subnet.to_string() }])).collect();
    out.retain(|key, _| !["type", "routes", "ranges"].iter().any(|ours| key.eq_ignore_ascii_case(ours)));
    out.insert("type".to_owned(), plugin.into());
    out.insert("routes".to_owned(), routes.into());
    out.insert("ranges".to_owned(), ranges.into());
    Ok(Value::Object(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\n\
                       FLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn the_usual_form() {
        let env: SubnetEnv = ENV.parse().expect("readable");
        let conf = map(json!({
            "cniVersion": "0.3.1", "name": "cbr0", "type": "flannel",
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        }));
        let rendered = render(&conf, &env).expect("rendered");
        assert_eq!(rendered.plugin, "bridge");
        assert_eq!(
            rendered.conf,
            json!({
                "cniVersion": "0.3.1", "name": "cbr0", "type": "bridge", "hairpinMode": true, "isDefaultGateway": true,
                "isGateway": true, "ipMasq": false, "mtu": 1450,
                "ipam": {
                    "type": "host-local", "ranges": [[{ "subnet": "10.244.7.0/24" }], [{ "subnet": "fd00:0:0:7::/64" }]],
                    "routes": [{ "dst": "10.244.0.0/16" }, { "dst": "fd00::/48" }],
                },
            })
        );
    }

    #[test]
    fn what_the_user_says_goes_first() {
        let env: SubnetEnv = ENV.parse().expect("readable");
        let conf = map(json!({
            "name": "n", "Delegate": { "Type": "macvlan", "MTU": 1400, "ipmasq": true },
            "ipam": { "type": "other", "dataDir": "/x", "routes": [{ "dst": "10.244.0.0/16" }, { "dst": "0.0.0.0/0" }] },
        }));
        let rendered = render(&conf, &env).expect("rendered");
        assert_eq!(rendered.plugin, "macvlan");
        assert_eq!(rendered.conf["MTU"], 1400);
        assert!(rendered.conf.get("mtu").is_none() && rendered.conf.get("isGateway").is_none(), "{}", rendered.conf);
        assert_eq!(rendered.conf["ipam"]["type"], "other");
        assert_eq!(rendered.conf["ipam"]["dataDir"], "/x");
        assert_eq!(
            rendered.conf["ipam"]["routes"],
            json!([{ "dst": "10.244.0.0/16" }, { "dst": "0.0.0.0/0" }, { "dst": "fd00::/48" }])
        );
        for delegate in [json!({ "name": "x" }), json!({ "ipam": {} }), json!({ "type": 5 }), json!("bridge")] {
            let error = render(&map(json!({ "delegate": delegate })), &env).expect_err("refused");
            assert_eq!(error.code, Code::InvalidConfig, "{delegate}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(ENV.parse::<SubnetEnv>().is_ok());
        for (text, expected) in [
            ("", "FLANNEL_MTU is missing"),
            ("FLANNEL_SUBNET=10.1.0.0/33\n", "FLANNEL_SUBNET=10.1.0.0/33 is no IPv4 network"),
            ("FLANNEL_SUBNET=fd00::/64\n", "FLANNEL_SUBNET=fd00::/64 is no IPv4 network"),
            (&ENV.replace("FLANNEL_MTU=1450", ""), "FLANNEL_MTU is missing"),
            (&ENV.replace("=true", "=perhaps"), "FLANNEL_IPMASQ is missing or not understood"),
        ] {
            let error = text.parse::<SubnetEnv>().expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
        let both = ENV.replace("FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16");
        assert_eq!(both.parse::<SubnetEnv>().expect("readable").networks.len(), 3);
    }
}
