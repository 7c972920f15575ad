//! Behind another plugin: what its result and the variables tell of a pod that it attached.

use serde_json::Value;

use super::{Environment, IpConfig, Success};
use crate::model::{Attach, Attachment, AttachmentKey, Bandwidth, IfName, Mac, PodAddress, Tuning};

/// The pod as an attachment of which nothing is ours yet.
#[must_use]
pub fn foreign(key: AttachmentKey, previous: &Success, environment: &Environment) -> Attachment {
    let in_pod = previous.interfaces.iter().find(|interface| interface.sandbox.is_some());
    let address = |ip: &IpConfig| PodAddress { net: ip.address, gateway: ip.gateway, supply: None };
    Attachment {
        key,
        complete: false,
        addresses: previous.ips.iter().map(address).collect(),
        routes: Vec::new(),
        host_side: None,
        attach: Attach::Foreign { host_device: host_links(previous).first().copied() },
        mac: in_pod.and_then(|interface| interface.mac).unwrap_or(Mac([0; 6])),
        mtu: in_pod.and_then(|interface| interface.mtu).unwrap_or(0),
        mtu_is_asked: true,
        is_down: false,
        ports: Vec::new(),
        masquerade: false,
        bandwidth: Bandwidth::default(),
        tuning: Tuning::default(),
        netns: environment.netns.clone().unwrap_or_default(),
        pod: environment.pod(),
        delegates: Vec::new(),
        is_leased: false,
    }
}

/// The interfaces on the host that a result names.
#[must_use]
pub fn host_links(previous: &Success) -> Vec<IfName> {
    let on_host = previous.interfaces.iter().filter(|interface| interface.sandbox.is_none());
    on_host.filter_map(|interface| IfName::new(&interface.name).ok()).collect()
}

/// A result as it is to be passed on, with what has been set of the pod's interface: each version and each plugin has keys that
/// are not ours.
#[must_use]
pub fn passed_on(mut result: Value, ifname: IfName, tuning: &Tuning) -> Value {
    let interfaces = result.get_mut("interfaces").and_then(Value::as_array_mut);
    for interface in interfaces.into_iter().flatten().filter_map(Value::as_object_mut) {
        let text = |key: &str| interface.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("sandbox").is_empty() || text("name") != ifname.as_str() {
            continue;
        }
        if let Some(mac) = &tuning.mac {
            interface.insert("mac".to_owned(), mac.value.to_string().into());
        }
        // Only 1.1.0 has it.
        if let (Some(mtu), Some(there)) = (&tuning.mtu, interface.get_mut("mtu")) {
            *there = mtu.value.into();
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Setting;

    #[test]
    fn only_the_pods_interface_is_changed() {
        let result = json!({
            "cniVersion": "1.1.0", "x": 7,
            "interfaces": [
                { "name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500 },
                { "name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1500, "sandbox": "/x", "y": 8 },
                { "name": "eth1", "sandbox": "/x" },
            ],
        });
        let mac: Mac = "02:00:00:00:00:09".parse().expect("an address");
        let tuning = Tuning { mac: Some(Setting::new(mac)), mtu: Some(Setting::new(1400)), ..Tuning::default() };
        let ifname = "eth0".parse().expect("a name");
        let mut expected = result.clone();
        expected["interfaces"][1]["mac"] = "02:00:00:00:00:09".into();
        expected["interfaces"][1]["mtu"] = 1400.into();
        assert_eq!(passed_on(result.clone(), ifname, &tuning), expected);
        assert_eq!(passed_on(result.clone(), ifname, &Tuning::default()), result);
        assert_eq!(passed_on(json!({ "ip4": {} }), ifname, &tuning), json!({ "ip4": {} }));
    }
}
