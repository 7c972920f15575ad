//! flanneld's command line and its `FLANNELD_*` variables, and the configuration of `lodend` that they come to.

mod config;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::FlannelError;
use crate::model::{Family, PerFamily};

/// What flanneld is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flanneld {
    /// `etcd-endpoints`.
    pub etcd_endpoints: Vec<String>,
    /// `etcd-prefix`.
    pub etcd_prefix: String,
    /// `etcd-keyfile`: the private key, in PEM.
    pub etcd_keyfile: Option<String>,
    /// `etcd-certfile`: the certificate, in PEM.
    pub etcd_certfile: Option<String>,
    /// `etcd-cafile`: whom to trust, in PEM.
    pub etcd_cafile: Option<String>,
    /// `etcd-username`.
    pub etcd_username: Option<String>,
    /// `etcd-password`. An address of a datastore names the file that holds it: whoever makes the address writes that.
    pub etcd_password: Option<Secret>,
    /// `kube-subnet-mgr`: Kubernetes instead of etcd.
    pub kube_subnet_mgr: bool,
    /// `kube-api-url`.
    pub kube_api_url: Option<String>,
    /// `kubeconfig-file`.
    pub kubeconfig_file: Option<String>,
    /// `kube-annotation-prefix`, as it was given.
    pub kube_annotation_prefix: String,
    /// `net-config-path`: net-conf.json, with Kubernetes.
    pub net_config_path: String,
    /// `set-node-network-unavailable`: whether the node's condition in Kubernetes is set.
    pub set_node_network_unavailable: bool,
    /// `iface`: names or addresses, in the order in which they are tried.
    pub iface: Vec<String>,
    /// `iface-regex`: the same by names, behind all of `iface`.
    pub iface_regex: Vec<String>,
    /// `iface-can-reach`.
    pub iface_can_reach: Option<String>,
    /// `public-ip` and `public-ipv6`: what peers dial.
    pub public: PerFamily<IpAddr>,
    /// `subnet-file`: where [`super::SubnetEnv`] is written.
    pub subnet_file: String,
    /// `subnet-lease-renew-margin`: how long before its end a lease is renewed, in minutes: 1 to 1439.
    pub renew_margin: u16,
    /// `ip-masq`: whether packets to the outside take the host's address.
    pub ip_masq: bool,
    /// `ip-masq-fully-random-disable`.
    pub ip_masq_fully_random_disable: bool,
    /// `iptables-forward-rules`: whether the pods' packets are let through the host.
    pub forward_rules: bool,
    /// `iptables-resync`: how often the rules are looked at again, in seconds.
    pub resync_seconds: u32,
    /// `ip-blackhole-route`: whether packets to addresses of the node's own block that no pod has are dropped.
    pub ip_blackhole_route: bool,
    /// `healthz-ip`.
    pub healthz_ip: IpAddr,
    /// `healthz-port`; 0: none.
    pub healthz_port: u16,
    /// `v`: how much is logged.
    pub verbosity: i32,
    /// `version`: whether only that is wanted.
    pub version: bool,
    /// `help` or `h`: whether only that is wanted.
    pub help: bool,
    /// `NODE_NAME`: the node's name in Kubernetes.
    pub node_name: Option<String>,
    /// `POD_NAMESPACE` and `POD_NAME`: the pod whose `spec.nodeName` is the node's name where `NODE_NAME` does not say it.
    pub pod: Option<(String, String)>,
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// All flags, each with what it is for. One that is on or off stands with nothing behind the name.
const FLAGS: [(&str, &str, &str); 33] = [
    ("etcd-cafile", "FILE", "whom to trust among etcd's members"),
    ("etcd-certfile", "FILE", "the certificate for etcd"),
    ("etcd-endpoints", "LIST", "etcd's endpoints, parted by commas"),
    ("etcd-keyfile", "FILE", "the certificate's private key"),
    ("etcd-password", "TEXT", "the password for etcd"),
    ("etcd-prefix", "TEXT", "what all keys in etcd begin with"),
    ("etcd-username", "TEXT", "the user for etcd"),
    ("healthz-ip", "ADDRESS", "where health is served"),
    ("healthz-port", "NUMBER", "at which port; 0: nowhere"),
    ("iface", "TEXT", "the external interface, by name or address; may be repeated"),
    ("iface-can-reach", "ADDRESS", "the external interface, by the route to an address"),
    ("iface-regex", "TEXT", "the external interface, by a regular expression; may be repeated"),
    ("ip-blackhole-route", "", "drop packets to addresses that no pod has"),
    ("ip-masq", "", "packets to the outside take the host's address"),
    ("ip-masq-fully-random-disable", "", "their ports are not drawn by lot"),
    ("iptables-forward-rules", "", "let the pods' packets through the host (on)"),
    ("iptables-resync", "NUMBER", "seconds between two looks at the rules"),
    ("kube-annotation-prefix", "TEXT", "what the annotations begin with"),
    ("kube-api-url", "URL", "Kubernetes' API"),
    ("kube-subnet-mgr", "", "Kubernetes assigns the subnets, not etcd"),
    ("kubeconfig-file", "FILE", "how Kubernetes is reached"),
    ("log_backtrace_at", "TEXT", "has no effect"),
    ("net-config-path", "FILE", "net-conf.json"),
    ("public-ip", "ADDRESS", "where peers reach this node by IPv4"),
    ("public-ipv6", "ADDRESS", "where peers reach this node by IPv6"),
    ("set-node-network-unavailable", "", "set the node's condition in Kubernetes (on)"),
    ("subnet-file", "FILE", "where the node's subnet is written"),
    ("subnet-lease-renew-margin", "NUMBER", "minutes before a lease's end at which it is renewed"),
    ("v", "NUMBER", "how much is logged"),
    ("version", "", "print the version"),
    ("vmodule", "TEXT", "has no effect"),
    ("h", "", "print this"),
    ("help", "", "print this"),
];

impl Default for Flanneld {
    fn default() -> Self {
        Self {
            etcd_endpoints: vec!["http://127.0.0.1:4001".to_owned(), "http://127.0.0.1:2379".to_owned()],
            etcd_prefix: "/coreos.com/network".to_owned(),
            etcd_keyfile: None,
            etcd_certfile: None,
            etcd_cafile: None,
            etcd_username: None,
            etcd_password: None,
            kube_subnet_mgr: false,
            kube_api_url: None,
            kubeconfig_file: None,
            kube_annotation_prefix: "flannel.alpha.coreos.com".to_owned(),
            net_config_path: "/etc/kube-flannel/net-conf.json".to_owned(),
            set_node_network_unavailable: true,
            iface: Vec::new(),
            iface_regex: Vec::new(),
            iface_can_reach: None,
            public: PerFamily::default(),
            subnet_file: "/run/flannel/subnet.env".to_owned(),
            renew_margin: 60,
            ip_masq: false,
            ip_masq_fully_random_disable: false,
            forward_rules: true,
            resync_seconds: 5,
            ip_blackhole_route: false,
            healthz_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            healthz_port: 0,
            verbosity: 0,
            version: false,
            help: false,
            node_name: None,
            pod: None,
        }
    }
}

impl Flanneld {
    /// Reads a command line without the program's name, as Go does: `-flag` and `--flag` are the same, a value stands behind `=`
    /// or is the next argument (never that of a flag which is on or off), and the first argument that is no flag ends it. A flag
    /// that is not given is taken from the environment, where it is not empty.
    ///
    /// # Errors
    /// [`FlannelError::Usage`] in Go's words where flanneld would end, too.
    pub fn parse<'a>(
        args: impl IntoIterator<Item = &'a str>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, FlannelError> {
        let mut told = Self::default();
        let mut given = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix('-').filter(|flag| !flag.is_empty()) else { break };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            if flag.is_empty() {
                break;
            }
            if flag.starts_with(['-', '=']) {
                return Err(FlannelError::Usage(format!("bad flag syntax: {arg}")));
            }
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            let Some((known, kind, _)) = FLAGS.iter().find(|(known, ..)| *known == name) else {
                return Err(FlannelError::Usage(format!("flag provided but not defined: -{name}")));
            };
            let value = match (value, kind.is_empty()) {
                (Some(value), _) => value,
                (None, true) => "true",
                (None, false) => {
                    args.next().ok_or_else(|| FlannelError::Usage(format!("flag needs an argument: -{name}")))?
                }
            };
            told.set(known, value).map_err(|cause| {
                let kind = if kind.is_empty() { "boolean value" } else { "value" };
                let (for_flag, shown) = (if kind == "value" { "flag " } else { "" }, shown(known, value));
                FlannelError::Usage(format!("invalid {kind} {shown} for {for_flag}-{name}: {cause}"))
            })?;
            given.push(*known);
        }
        for (name, ..) in FLAGS.iter().filter(|(name, ..)| !given.contains(name) && !["h", "help"].contains(name)) {
            let variable = format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"));
            if let Some(value) = env(&variable).filter(|value| !value.is_empty()) {
                told.set(name, &value).map_err(|cause| {
                    FlannelError::Usage(format!("invalid value {} for {variable}: {cause}", shown(name, &value)))
                })?;
            }
        }
        let text = |name: &str| env(name).filter(|value| !value.is_empty());
        told.node_name = text("NODE_NAME");
        told.pod = text("POD_NAMESPACE").zip(text("POD_NAME"));
        Ok(told)
    }

    /// What `--help` prints.
    #[must_use]
    pub fn usage() -> String {
        let line =
            |(name, kind, what): &(&str, &str, &str)| format!("  --{:<38}{what}\n", format!("{name} {kind}").trim());
        let lines: String = FLAGS.iter().filter(|(name, ..)| *name != "h").map(line).collect();
        format!(
            "Usage: flanneld [OPTION]...\n{lines}Each one can be given as a variable, such as FLANNELD_IP_MASQ=true.\n"
        )
    }

    /// Sets one flag; what may be repeated is added to.
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = || Some(value.to_owned()).filter(|value| !value.is_empty());
        match name {
            "etcd-endpoints" => self.etcd_endpoints = value.split(',').map(|one| one.trim().to_owned()).collect(),
            "etcd-prefix" => self.etcd_prefix = value.to_owned(),
            "etcd-keyfile" => self.etcd_keyfile = text(),
            "etcd-certfile" => self.etcd_certfile = text(),
            "etcd-cafile" => self.etcd_cafile = text(),
            "etcd-username" => self.etcd_username = text(),
            "etcd-password" => self.etcd_password = text().map(Secret),
            "kube-subnet-mgr" => self.kube_subnet_mgr = flag(value)?,
            "kube-api-url" => self.kube_api_url = text(),
            "kubeconfig-file" => self.kubeconfig_file = text(),
            "kube-annotation-prefix" => self.kube_annotation_prefix = value.to_owned(),
            "net-config-path" => self.net_config_path = value.to_owned(),
            "set-node-network-unavailable" => self.set_node_network_unavailable = flag(value)?,
            "iface" => self.iface.push(value.to_owned()),
            "iface-regex" => self.iface_regex.push(value.to_owned()),
            "iface-can-reach" => self.iface_can_reach = text(),
            "public-ip" => self.public.v4 = address(value, Family::V4)?,
            "public-ipv6" => self.public.v6 = address(value, Family::V6)?,
            "subnet-file" => self.subnet_file = value.to_owned(),
            "subnet-lease-renew-margin" => {
                let range = 1..=1439;
                let margin = number(value)?;
                self.renew_margin =
                    u16::try_from(margin).ok().filter(|margin| range.contains(margin)).ok_or_else(|| {
                        format!(
                            "{} to {} minutes were meant, less than the day that a lease lasts",
                            range.start(),
                            range.end()
                        )
                    })?;
            }
            "ip-masq" => self.ip_masq = flag(value)?,
            "ip-masq-fully-random-disable" => self.ip_masq_fully_random_disable = flag(value)?,
            "iptables-forward-rules" => self.forward_rules = flag(value)?,
            "iptables-resync" => self.resync_seconds = u32::try_from(number(value)?).map_err(|_| OUT_OF_RANGE)?,
            "ip-blackhole-route" => self.ip_blackhole_route = flag(value)?,
            "healthz-ip" => self.healthz_ip = value.parse().map_err(|_| "an address was meant, such as 127.0.0.1")?,
            "healthz-port" => self.healthz_port = u16::try_from(number(value)?).map_err(|_| OUT_OF_RANGE)?,
            "v" => self.verbosity = i32::try_from(number(value)?).map_err(|_| OUT_OF_RANGE)?,
            "version" => self.version = flag(value)?,
            "h" | "help" => self.help = flag(value)?,
            // `vmodule` and `log_backtrace_at` name source files of flanneld's.
            _ => {}
        }
        Ok(())
    }
}

const OUT_OF_RANGE: &str = "value out of range";

/// A value as an error shows it.
fn shown(name: &str, value: &str) -> String {
    if name == "etcd-password" { "(secret)".to_owned() } else { format!("{value:?}") }
}

/// As Go's `strconv.ParseBool`.
fn flag(value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("parse error".to_owned()),
    }
}

fn number(value: &str) -> Result<i64, String> {
    value.parse().map_err(|_| "parse error".to_owned())
}

fn address(value: &str, family: Family) -> Result<Option<IpAddr>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let addr = match family {
        Family::V4 => value.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Family::V6 => value.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    };
    addr.map(Some).ok_or_else(|| format!("an {family} address was meant"))
}
