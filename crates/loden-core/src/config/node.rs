//! One node's configuration: `/etc/loden/lodend.toml`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::ConfigError;
use super::fields::{Fields, nearest};
use crate::model::{Family, IfName, NodeName, PerFamily};
use crate::view::HostRules;

/// What `lodend` is told about its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// `node`: this node's name; default: the host's name.
    pub node: Option<NodeName>,
    /// `store`: where the cluster's state is; default `sqlite:/var/lib/loden/loden.db`.
    pub store: String,
    /// `run_dir`: what lives as long as the pods; default `/run/loden`.
    pub run_dir: String,
    /// `state_dir`: what survives a reboot (the node's identity); default `/var/lib/loden`.
    pub state_dir: String,
    /// `iface`: the external interface, by name or address; several are tried in order.
    pub iface: Vec<String>,
    /// `iface_regex`: the same by a regular expression over names.
    pub iface_regex: Option<String>,
    /// `iface_can_reach`: the same by the route to this address.
    pub iface_can_reach: Option<IpAddr>,
    /// `public_ip` and `public_ipv6`: what peers dial, when it is not the interface's own address.
    pub public: PerFamily<IpAddr>,
    /// `bridge`: the bridge for pods; default `cni0`.
    pub bridge: IfName,
    /// `labels`: this node's labels, for pools' node selectors.
    pub labels: BTreeMap<String, String>,
    /// `listen`: where `/metrics`, `/healthz` and `/readyz` are served besides the Unix socket; default: nowhere.
    pub listen: Option<SocketAddr>,
    /// `log`: `text` or `json`; default `text`.
    pub log_json: bool,
    /// `log_level`: a filter such as `info` or `lodend=debug`; default `info`.
    pub log_level: String,
    /// `masquerade`: whether this host masquerades; default: what leaves a pool is, as the pool's `nat_outgoing` says. `true`: what
    /// leaves any pool, and what enters them by this host from elsewhere; `false`: nothing. `forward_rules`: whether what is
    /// forwarded for pods is let through; default true. `blackhole_route`: whether this host's blocks have a route to nowhere behind
    /// that of the bridge; default false.
    pub rules: HostRules,
    /// `checksum_test`: whether it is tried out if the network card gets checksums inside tunnels right; default true.
    pub checksum_test: bool,
    /// `announce`: whether Kubernetes is told how the node is (its condition `NetworkUnavailable`); default true.
    pub announce: bool,
    /// `subnet_file`: flannel's `subnet.env`, written for its CNI plugin and others that read it; a block that it names at the start is
    /// asked for again, and the rules that flanneld left are removed. Default: none.
    pub subnet_file: Option<String>,
    /// `resync_seconds`: how often everything is looked at again though nothing was reported; 5 to 86400, default 60.
    pub resync_seconds: u32,
    /// `block_idle_seconds`: how long a block stays without a pod before it is given back; 0: it is kept; at most 31536000, default 600.
    pub block_idle_seconds: u32,
    /// `flow_seconds`: how long an answer stays that the kernel has asked for (VXLAN under the control `miss`) before it has to ask again;
    /// 1 to 86400, default 600.
    pub flow_seconds: u32,
}

impl NodeConfig {
    /// Parses the file's tree.
    ///
    /// # Errors
    /// [`ConfigError`] for the first fault.
    pub fn parse(file: Value) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("", file)?;
        let bridge = IfName::new("cni0").map_err(|error| fields.invalid("bridge", &"cni0", &error.to_string()))?;
        let mut public = PerFamily::default();
        for (family, key) in [(Family::V4, "public_ip"), (Family::V6, "public_ipv6")] {
            let meant = format!("an {family} address was meant");
            if let Some(addr) = fields.parsed_as::<IpAddr>(key, &meant)? {
                if Family::of(addr) != family {
                    return Err(fields.invalid(key, &addr, &meant));
                }
                public.set(family, addr);
            }
        }
        let log_json = match fields.text("log")?.as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => {
                let meant = match nearest(other, ["text", "json"].into_iter()) {
                    Some(near) => format!("\"{near}\" was probably meant"),
                    None => "\"text\" or \"json\" was meant".to_owned(),
                };
                return Err(fields.invalid("log", &format!("{other:?}"), &meant));
            }
        };
        let text = |fields: &mut Fields, key, usual: &str| {
            fields.text(key).map(|given| given.unwrap_or_else(|| usual.to_owned()))
        };
        let config = Self {
            node: fields.parsed("node")?,
            store: text(&mut fields, "store", "sqlite:/var/lib/loden/loden.db")?,
            run_dir: text(&mut fields, "run_dir", "/run/loden")?,
            state_dir: text(&mut fields, "state_dir", "/var/lib/loden")?,
            iface: fields.texts("iface")?,
            iface_regex: fields.text("iface_regex")?,
            iface_can_reach: fields.parsed_as("iface_can_reach", "an address was meant, such as 192.0.2.1")?,
            public,
            bridge: fields.parsed("bridge")?.unwrap_or(bridge),
            labels: fields.labels("labels")?,
            listen: fields.parsed_as("listen", "an address with a port was meant, such as 127.0.0.1:9476")?,
            log_json,
            log_level: text(&mut fields, "log_level", "info")?,
            rules: HostRules {
                masquerade: fields.flag("masquerade")?,
                forward: fields.flag("forward_rules")?.unwrap_or(true),
                blackhole: fields.flag("blackhole_route")?.unwrap_or(false),
                guard: fields.flag("tunnel_guard")?.unwrap_or(true),
            },
            checksum_test: fields.flag("checksum_test")?.unwrap_or(true),
            announce: fields.flag("announce")?.unwrap_or(true),
            subnet_file: fields.text("subnet_file")?,
            resync_seconds: fields.number("resync_seconds", 5, 86_400)?.unwrap_or(60),
            block_idle_seconds: fields.number("block_idle_seconds", 0, 31_536_000)?.unwrap_or(600),
            flow_seconds: fields.number("flow_seconds", 1, 86_400)?.unwrap_or(600),
        };
        fields.finish()?;
        Ok(config)
    }
}
