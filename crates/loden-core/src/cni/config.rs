//! The network configuration on standard input, as far as this plugin heeds it.

mod attach;
mod bandwidth;
mod dhcp;
mod ipam;
mod tuning;

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::keys::Keys;
use super::{CniError, Code, Role, Success, Verb, Version};
use crate::model::{Bandwidth, IfName, Mac, PLAIN_NAME, PortMapping, Transport, is_plain_name};

pub use attach::{AttachConf, BridgeConf, MacvlanConf};
pub use dhcp::DhcpConf;
pub use ipam::{IpamConf, IpamSource};
pub use tuning::{TuningConf, tuning};

/// Kubernetes annotations of a pod, where the runtime passes them on: addresses that it asks for, and its Ethernet address.
const IPS_ANNOTATION: &str = "loden.dev/ips";
const MAC_ANNOTATION: &str = "loden.dev/mac";

/// The configuration. What it does not know is left alone: the specification has other plugins' keys in the same object.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// Its version.
    pub version: Version,
    /// The network's name; only VERSION comes without one.
    pub name: Option<String>,
    /// `runDir`: where the agent's files are; default `/run/loden`.
    pub run_dir: String,
    /// `quarantineSeconds`: how long a freed address rests before it is given again; default 30.
    pub quarantine: u32,
    /// What an ADD makes; most other verbs do not ask.
    pub make: Option<MakeConf>,
    /// What the plugins before this one, or the ADD, came to.
    pub previous: Option<Success>,
    /// The same as it was given, to be passed on.
    pub passed_on: Option<Value>,
    /// GC: the attachments that are to stay; `None` when the runtime did not say (which does not mean that none is).
    pub valid: Option<Vec<(String, IfName)>>,
    /// `ipam.type`, where it names another plugin: that one is called too.
    pub ipam_plugin: Option<String>,
    /// `ipam.dataDir`: where the plugin host-local writes what it gives; default `/var/lib/cni/networks`. What stands there from before
    /// is heeded, unless another plugin gives the addresses, whose it may be.
    pub data_dir: Option<String>,
}

/// What an ADD is to make.
#[derive(Debug, Clone, PartialEq)]
pub struct MakeConf {
    /// `attach` and its keys: how pods are attached; default by the node's bridge.
    pub attach: AttachConf,
    /// `ipam`: where addresses come from; default the node's blocks, with macvlan nowhere.
    pub ipam: IpamConf,
    /// `mtu`, in bytes; default: what the node or the master has.
    pub mtu: Option<u32>,
    /// The Ethernet address that is asked for: `mac`, `args.cni.mac`, the pod's annotation, `runtimeConfig.mac`; the last of
    /// them that is there.
    pub mac: Option<Mac>,
    /// The addresses that are asked for, by all of `args.cni.ips`, the pod's annotation and `runtimeConfig.ips`.
    pub ips: Vec<AskedIp>,
    /// `runtimeConfig.portMappings`: ports of the host that lead to the pod.
    pub ports: Vec<PortMapping>,
    /// `ipMasq`: whether what the pod sends to the outside takes the host's address.
    pub masquerade: bool,
    /// How fast the pod's packets may go: `ingressRate` and its like, or `runtimeConfig.bandwidth`.
    pub bandwidth: Bandwidth,
    /// `sysctl`, and in the place of `tuning` its other keys.
    pub tuning: TuningConf,
    /// `dns`, or what the runtime says instead, in the result's form.
    pub dns: Option<Value>,
}

/// An address that is asked for. Its length is heeded where the configuration has none for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskedIp {
    /// The address.
    pub addr: IpAddr,
    /// The prefix length, where one was given.
    pub len: Option<u8>,
}

impl NetConf {
    /// Reads what a verb needs of it. What the verb does not need is not looked at: a pod must be able to go whatever has become
    /// of the configuration since it came.
    ///
    /// # Errors
    /// Code 6 when it is no JSON, 1 for a version that is not spoken, 2 for what is not supported, 7 for values that do not do.
    pub fn parse(bytes: &[u8], verb: Verb, role: Role) -> Result<Self, CniError> {
        let decode = |error: &dyn std::fmt::Display| {
            CniError::new(Code::Decode, "the configuration on standard input is no JSON object").with(error.to_string())
        };
        let Value::Object(map) = serde_json::from_slice(bytes).map_err(|error| decode(&error))? else {
            return Err(decode(&"it is another JSON value"));
        };
        let keys = Keys::new(&map);
        let get_for = |verbs: &[Verb], key: &str| keys.get(key).filter(|_| verbs.contains(&verb));
        let version = keys.text("cniVersion")?.map_or(Ok(Version::V0_1_0), Version::parse)?;
        let name = keys.text("name")?.map(str::to_owned);
        if let Some(name) = name.as_ref().filter(|name| !is_plain_name(name)) {
            return Err(CniError::new(
                Code::InvalidConfig,
                format!("the network's name {name:?} is not valid: {PLAIN_NAME}"),
            ));
        }
        // CHECK of a plugin behind others asks whether what it was to make was made.
        let is_making = matches!(verb, Verb::Add | Verb::Status) || (verb == Verb::Check && role.part().is_some());
        let quarantine = if is_making { keys.number("quarantineSeconds")? } else { None };
        let given = get_for(&[Verb::Add, Verb::Check], "prevResult");
        let previous = given.map(|value| Success::parse(value, version)).transpose()?;
        // A runtime turns it into the configuration's version; else it is done here.
        let is_of_version = |value: &&Value| value.get("cniVersion").and_then(Value::as_str) == Some(version.as_str());
        let turned = || previous.as_ref().map(|previous| previous.to_json(version));
        let valid = get_for(&[Verb::Gc], "cni.dev/valid-attachments").map(|_| parse_valid(&keys)).transpose()?;
        // Texts or nothing: a DEL is not kept from its work by what has become of the configuration.
        let ipam = keys.object("ipam").ok().flatten();
        let ipam_plugin = ipam.as_ref().and_then(ipam::plugin).map(str::to_owned);
        let data_dir = ipam.as_ref().and_then(ipam::data_dir);
        Ok(Self {
            version,
            name,
            run_dir: keys.text("runDir")?.unwrap_or("/run/loden").to_owned(),
            quarantine: quarantine.unwrap_or(30),
            make: is_making.then(|| MakeConf::parse(&keys, role)).transpose()?,
            passed_on: given.filter(is_of_version).cloned().or_else(turned),
            previous,
            valid,
            data_dir: ipam_plugin.is_none().then(|| data_dir.unwrap_or("/var/lib/cni/networks").to_owned()),
            ipam_plugin,
        })
    }
}

impl MakeConf {
    fn parse(keys: &Keys<'_>, role: Role) -> Result<Self, CniError> {
        let attach = AttachConf::parse(keys, role)?;
        let usual = match attach {
            AttachConf::Bridge(_) | AttachConf::Routed if role == Role::Loden => IpamSource::Node,
            _ => IpamSource::Nowhere,
        };
        if !matches!(keys.text("ipMasqBackend")?, None | Some("nftables" | "iptables")) {
            // Either way it is by nftables, which both programs' users see with `nft`.
            return Err(keys.wrong("ipMasqBackend", "\"nftables\" or \"iptables\""));
        }
        let asked = Asked::parse(keys)?;
        let mac = keys.parsed("mac", "an Ethernet address")?;
        // flannel's is a part of what another plugin will be given.
        let ipam = if role == Role::Flannel { IpamConf::of(usual) } else { IpamConf::parse(keys, usual)? };
        if let IpamSource::Dhcp(_) = ipam.source {
            dhcp::check_attach(&attach)?;
        }
        // The reference plugins have only the routes that are asked for.
        let routes = ipam.routes.clone().or_else(|| (role != Role::Loden).then(Vec::new));
        Ok(Self {
            attach,
            mtu: keys.number("mtu")?.filter(|mtu| *mtu > 0),
            mac: asked.mac.or(mac),
            ips: asked.ips,
            ports: asked.ports,
            masquerade: keys.is_set("ipMasq")?,
            bandwidth: match role {
                Role::Loden | Role::Bandwidth => bandwidth::parse(keys)?,
                _ => Bandwidth::default(),
            },
            tuning: TuningConf::parse(keys, role)?,
            dns: asked.dns.or_else(|| keys.get("dns").cloned()).or_else(|| ipam.dns.clone()),
            ipam: IpamConf { routes, ..ipam },
        })
    }

    /// Whether it takes what the agent tells of the node.
    #[must_use]
    pub fn needs_node(&self) -> bool {
        let is_node_bridge = matches!(&self.attach, AttachConf::Bridge(conf) if conf.bridge.is_none());
        self.ipam.source == IpamSource::Node || is_node_bridge || self.attach == AttachConf::Routed
    }
}

/// What the runtime asks for, pod by pod.
#[derive(Debug, Default)]
struct Asked {
    mac: Option<Mac>,
    ips: Vec<AskedIp>,
    ports: Vec<PortMapping>,
    dns: Option<Value>,
}

impl Asked {
    fn parse(keys: &Keys<'_>) -> Result<Self, CniError> {
        let mut asked = Self::default();
        let args = keys.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
        let runtime = keys.object("runtimeConfig")?;
        let annotations = runtime.as_ref().map(|all| all.object("io.kubernetes.cri.pod-annotations")).transpose()?;
        if let Some(args) = &args {
            asked.take(args, "mac", &args.all_parsed("ips", "addresses")?)?;
        }
        if let Some(annotations) = annotations.flatten() {
            let texts = annotations.text(IPS_ANNOTATION)?.unwrap_or_default();
            let texts = texts.split([',', ' ', '[', ']', '"']).filter(|text| !text.is_empty());
            asked.take(&annotations, MAC_ANNOTATION, &texts.map(str::to_owned).collect::<Vec<_>>())?;
        }
        if let Some(runtime) = &runtime {
            asked.take(runtime, "mac", &runtime.all_parsed("ips", "addresses")?)?;
            asked.ports = runtime
                .objects("portMappings")?
                .iter()
                .filter_map(|p| port(p).transpose())
                .collect::<Result<_, _>>()?;
            asked.dns = runtime.object("dns")?.map(|dns| dns_result(&dns)).transpose()?;
        }
        Ok(asked)
    }

    fn take(&mut self, keys: &Keys<'_>, mac: &str, ips: &[String]) -> Result<(), CniError> {
        self.mac = keys.parsed(mac, "an Ethernet address")?.or(self.mac);
        for text in ips {
            let asked = AskedIp::parse(text).ok_or_else(|| {
                CniError::new(Code::InvalidConfig, format!("{text:?} is asked for as an address and is none"))
            })?;
            if self.ips.iter().all(|other| other.addr != asked.addr) {
                self.ips.push(asked);
            }
        }
        Ok(())
    }
}

/// A port of the host; one without a number on the host's side leads from nowhere.
fn port(keys: &Keys<'_>) -> Result<Option<PortMapping>, CniError> {
    let Some(host_port) = keys.number::<u16>("hostPort")?.filter(|port| *port > 0) else { return Ok(None) };
    let container_port = keys.number::<u16>("containerPort")?.filter(|port| *port > 0);
    Ok(Some(PortMapping {
        protocol: keys.parsed("protocol", "a protocol")?.unwrap_or(Transport::Tcp),
        host_port,
        container_port: container_port.ok_or_else(|| keys.wrong("containerPort", "a port from 1 to 65535"))?,
        host_ip: keys.parsed("hostIP", "an address of the host")?,
    }))
}

impl AskedIp {
    /// An address, with or without a length.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let alone = text.parse::<IpAddr>().ok().map(|addr| Self { addr, len: None });
        alone.or_else(|| text.parse::<IpNet>().ok().map(|net| Self { addr: net.addr(), len: Some(net.prefix_len()) }))
    }
}

/// The capability's `dns` has other names than the result's.
fn dns_result(keys: &Keys<'_>) -> Result<Value, CniError> {
    let mut dns = serde_json::Map::new();
    for (theirs, ours) in [("servers", "nameservers"), ("searches", "search"), ("options", "options")] {
        let texts: Vec<String> = keys.all_parsed(theirs, "texts")?;
        if !texts.is_empty() {
            dns.insert(ours.to_owned(), texts.into());
        }
    }
    Ok(Value::Object(dns))
}

fn parse_valid(keys: &Keys<'_>) -> Result<Vec<(String, IfName)>, CniError> {
    let key = "cni.dev/valid-attachments";
    let one = |item: &Keys<'_>| {
        let container = item.text("containerID")?.ok_or_else(|| item.wrong("containerID", "a container's ID"))?;
        let ifname = item.parsed("ifname", "an interface's name")?;
        Ok((container.to_owned(), ifname.ok_or_else(|| item.wrong("ifname", "an interface's name"))?))
    };
    keys.objects(key)?.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_is_not_empty() {
        let parse = |text: &str| NetConf::parse(text.as_bytes(), Verb::Gc, Role::Loden).map(|conf| conf.valid);
        assert_eq!(parse(r#"{"cniVersion":"1.1.0","name":"n"}"#), Ok(None));
        assert_eq!(parse(r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[]}"#), Ok(Some(vec![])));
        let one =
            r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerId":"c","ifName":"eth0"}]}"#;
        assert_eq!(parse(one), Ok(Some(vec![("c".to_owned(), "eth0".parse().expect("name"))])));
    }

    #[test]
    fn faults_have_their_codes() {
        for (text, code) in [
            ("", Code::Decode),
            ("[]", Code::Decode),
            (r#"{"cniVersion":"9.9.9","name":"n"}"#, Code::IncompatibleVersion),
            (r#"{"cniVersion":"1.0.0","name":"../n"}"#, Code::InvalidConfig),
            (r#"{"cniVersion":"1.0.0","name":"n","attach":"macvlan9"}"#, Code::InvalidConfig),
            (r#"{"cniVersion":1,"name":"n"}"#, Code::InvalidConfig),
        ] {
            assert_eq!(
                NetConf::parse(text.as_bytes(), Verb::Add, Role::Loden).map_err(|error| error.code),
                Err(code),
                "{text}"
            );
        }
        assert_eq!(
            NetConf::parse(br#"{"name":"n"}"#, Verb::Add, Role::Loden).map(|conf| conf.version),
            Ok(Version::V0_1_0)
        );
        let loose = NetConf::parse(br#"{"NAME":"n","RunDir":"/x"}"#, Verb::Add, Role::Loden);
        assert_eq!(loose.map(|conf| conf.run_dir), Ok("/x".to_owned()));
    }

    #[test]
    fn what_a_verb_does_not_need_does_not_stop_it() {
        for (key, value, needed) in [
            ("attach", r#""macvlan9""#, [true, false, false, false, true]),
            ("quarantineSeconds", r#""soon""#, [true, false, false, false, true]),
            ("prevResult", r#"{"cniVersion":"9.9.9"}"#, [true, false, true, false, false]),
            ("cni.dev/valid-attachments", "5", [false, false, false, true, false]),
        ] {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","{key}":{value}}}"#);
            for (verb, is_needed) in [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status].into_iter().zip(needed)
            {
                assert_eq!(NetConf::parse(text.as_bytes(), verb, Role::Loden).is_err(), is_needed, "{key} at {verb:?}");
            }
        }
    }
}
