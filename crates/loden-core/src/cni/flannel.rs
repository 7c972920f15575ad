//! The configuration of the plugin `flannel`, and what flanneld leaves in `subnet.env` ([`SubnetEnv`]), turned into that of the
//! plugin which makes the interface.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{CniError, Code};
use crate::dialect::flannel::SubnetEnv;

/// Where flanneld leaves it.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Where the plugin keeps what it called another one with, a file a container.
pub const DATA_DIR: &str = "/var/lib/cni/flannel";

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

/// The directory of its files.
///
/// # Errors
/// Code 7 when `dataDir` is no text.
pub fn data_dir(conf: &Map<String, Value>) -> Result<String, CniError> {
    Ok(Keys::new(conf).text("dataDir")?.unwrap_or(DATA_DIR).to_owned())
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
}
