//! flanneld's flags as keys of `lodend`'s configuration ([`crate::config::node`]).

use std::net::SocketAddr;

use serde_json::{Map, Value};

use super::Flanneld;
use crate::config::node::NodeConfig;
use crate::config::store::StoreAddress;
use crate::dialect::flannel::FlannelError;

impl Flanneld {
    /// The keys that the flags say; what they do not say is left to `lodend`'s own defaults, or to its file.
    ///
    /// An address of a datastore holds no secret: `password_file` is where the caller has put [`Flanneld::etcd_password`].
    ///
    /// # Errors
    /// [`FlannelError::Usage`] for what `lodend` refuses, in the words of its configuration.
    pub fn config(&self, password_file: Option<&str>) -> Result<Map<String, Value>, FlannelError> {
        let mut keys = Map::new();
        let mut set = |key: &str, value: Option<Value>| value.map(|value| keys.insert(key.to_owned(), value));
        let text = |value: &Option<String>| value.clone().map(Value::from);
        set("node", text(&self.node_name));
        set("store", Some(self.store(password_file)?.to_string().into()));
        set("iface", (!self.iface.is_empty()).then(|| self.iface.clone().into()));
        set("iface_regex", self.one_regex().map(Value::from));
        set("iface_can_reach", text(&self.iface_can_reach));
        set("public_ip", self.public.v4.map(|addr| addr.to_string().into()));
        set("public_ipv6", self.public.v6.map(|addr| addr.to_string().into()));
        set("listen", self.healthz().map(|addr| addr.to_string().into()));
        // klog's levels: up to 1 is what is always said, from 2 what is for debugging.
        let level = match self.verbosity {
            ..=1 => None,
            2..=5 => Some("debug"),
            _ => Some("trace"),
        };
        set("log_level", level.map(Value::from));
        NodeConfig::parse(Value::Object(keys.clone())).map_err(|error| FlannelError::Usage(error.to_string()))?;
        Ok(keys)
    }

    /// Where health is served, if anywhere.
    #[must_use]
    pub fn healthz(&self) -> Option<SocketAddr> {
        (self.healthz_port != 0).then(|| SocketAddr::new(self.healthz_ip, self.healthz_port))
    }

    fn store(&self, password_file: Option<&str>) -> Result<StoreAddress, FlannelError> {
        // What is usual is not said.
        let margin = (self.renew_margin != Self::default().renew_margin).then(|| self.renew_margin.to_string());
        let (place, options) = if self.kube_subnet_mgr {
            let options = vec![
                ("kubeconfig", self.kubeconfig_file.as_deref()),
                ("server", self.kube_api_url.as_deref()),
                ("annotations", Some(self.kube_annotation_prefix.as_str())),
                ("net_conf", Some(self.net_config_path.as_str())),
            ];
            ("kubernetes:".to_owned(), options)
        } else {
            let user = self.etcd_username.as_deref();
            if user.is_some() != self.etcd_password.is_some() {
                return Err(FlannelError::Usage("-etcd-username and -etcd-password go together".to_owned()));
            }
            let options = vec![
                ("prefix", Some(self.etcd_prefix.as_str())),
                ("ca", self.etcd_cafile.as_deref()),
                ("cert", self.etcd_certfile.as_deref()),
                ("key", self.etcd_keyfile.as_deref()),
                ("user", user),
                ("password_file", password_file.filter(|_| user.is_some())),
                ("renew_margin", margin.as_deref()),
            ];
            (format!("flannel:{}", self.endpoints().join(",")), options)
        };
        // A character that parts options would make another address of it.
        if let Some((key, value)) = options.iter().find(|(_, value)| value.is_some_and(|value| value.contains('&'))) {
            let value = value.unwrap_or_default();
            return Err(FlannelError::Usage(format!(
                "`{key}` of the datastore's address is {value:?}: it holds an '&'"
            )));
        }
        let given: Vec<String> =
            options.iter().filter_map(|(key, value)| Some(format!("{key}={}", (*value)?))).collect();
        let address = format!("{place}?{}", given.join("&"));
        address.parse().map_err(|error| FlannelError::Usage(format!("{error}")))
    }

    /// etcd's client takes them with a slash at the end, and without a scheme.
    fn endpoints(&self) -> Vec<String> {
        let is_secured = self.etcd_cafile.is_some() || self.etcd_certfile.is_some();
        let scheme = if is_secured { "https" } else { "http" };
        let whole = |endpoint: &String| match endpoint.trim_end_matches('/') {
            endpoint if endpoint.contains("://") => endpoint.to_owned(),
            endpoint => format!("{scheme}://{endpoint}"),
        };
        self.etcd_endpoints.iter().map(whole).collect()
    }

    /// Several expressions as one; which of them goes first is lost.
    fn one_regex(&self) -> Option<String> {
        match self.iface_regex.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            several => Some(several.iter().map(|one| format!("(?:{one})")).collect::<Vec<_>>().join("|")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Secret;
    use super::*;

    fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Flanneld, FlannelError> {
        let get = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Flanneld::parse(args.iter().copied(), get)
    }

    fn refusal(args: &[&str], env: &[(&str, &str)]) -> String {
        parse(args, env).and_then(|told| told.config(Some("/p"))).expect_err("refused").to_string()
    }

    #[test]
    fn the_shipped_command_line() {
        let told = parse(
            &["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"],
            &[("POD_NAME", "kube-flannel-ds-x"), ("POD_NAMESPACE", "kube-flannel"), ("EVENT_QUEUE_DEPTH", "5000")],
        )
        .expect("understood");
        assert!(told.ip_masq && told.forward_rules && told.set_node_network_unavailable);
        assert_eq!(told.pod, Some(("kube-flannel".to_owned(), "kube-flannel-ds-x".to_owned())));
        assert_eq!(
            Value::Object(told.config(None).expect("a configuration")),
            json!({
                "store": "kubernetes:?annotations=flannel.alpha.coreos.com/&net_conf=/etc/kube-flannel/net-conf.json",
                "listen": "0.0.0.0:8081",
            })
        );
        let nothing = parse(&[], &[]).expect("understood");
        assert_eq!(nothing, Flanneld::default());
        assert_eq!(
            Value::Object(nothing.config(None).expect("a configuration")),
            json!({ "store": "flannel:http://127.0.0.1:4001,http://127.0.0.1:2379?prefix=/coreos.com/network" })
        );
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let told = parse(
            &[
                "-etcd-endpoints",
                "https://a:2379/,b:2379",
                "--etcd-cafile=/ca",
                "-etcd-username=u",
                "-etcd-password",
                "p=&w",
                "-iface=eth1",
                "--iface",
                "192.0.2.1",
                "-iface-regex=^en",
                "-iface-regex=^bond",
                "-ip-masq=F",
                "-iptables-forward-rules=false",
                "--public-ip=198.51.100.7",
                "--subnet-lease-renew-margin=90",
                "-v=4",
                "--",
                "--unknown",
            ],
            &[
                ("FLANNELD_IFACE", "eth9"),
                ("FLANNELD_ETCD_PREFIX", "/blue"),
                ("FLANNELD_IP_MASQ", "true"),
                ("FLANNELD_V", ""),
            ],
        )
        .expect("understood");
        assert!(!told.ip_masq && !told.forward_rules);
        assert_eq!(told.etcd_password.as_ref().map(Secret::expose), Some("p=&w"));
        assert!(!format!("{told:?}").contains("p=&w"));
        assert_eq!(
            Value::Object(told.config(Some("/run/loden/etcd-password")).expect("a configuration")),
            json!({
                "store": "flannel:https://a:2379,https://b:2379?prefix=/blue&ca=/ca&user=u&password_file=/run/loden/etcd-password&renew_margin=90",
                "iface": ["eth1", "192.0.2.1"],
                "iface_regex": "(?:^en)|(?:^bond)",
                "public_ip": "198.51.100.7",
                "log_level": "debug",
            })
        );
        let told = parse(&["stop", "--unknown"], &[("FLANNELD_IFACE", "eth9"), ("FLANNELD_IP_MASQ", "1")])
            .expect("understood");
        assert_eq!((told.iface, told.ip_masq), (vec!["eth9".to_owned()], true));
        assert!(
            parse(&["-h"], &[]).expect("understood").help && parse(&["--version"], &[]).expect("understood").version
        );
        assert!(Flanneld::usage().contains("--iface-can-reach ADDRESS"));
    }

    #[test]
    fn what_flanneld_refuses_is_refused_in_its_words() {
        for (args, says) in [
            (&["--unknown=1"][..], "flag provided but not defined: -unknown"),
            (&["-iface"], "flag needs an argument: -iface"),
            (&["---iface=x"], "bad flag syntax: ---iface=x"),
            (&["-=x"], "bad flag syntax: -=x"),
            (&["-ip-masq=maybe"], "invalid boolean value \"maybe\" for -ip-masq: parse error"),
            (&["-healthz-port=x"], "invalid value \"x\" for flag -healthz-port: parse error"),
            (&["-healthz-port=65536"], "out of range"),
            (&["-subnet-lease-renew-margin=1440"], "1 to 1439 minutes"),
            (&["-public-ip=fd00::1"], "an IPv4 address was meant"),
            (&["-etcd-username=u"], "go together"),
            (&["-etcd-cafile=/ca", "-etcd-endpoints=http://a:1"], "https://"),
            (&["-etcd-endpoints=https://a:1"], "needs `ca`"),
            (&["-etcd-prefix=x"], "begins with a slash"),
            (&["-etcd-prefix=/x&ca=/y"], "'&'"),
            (&["-kube-subnet-mgr", "-kube-annotation-prefix=a/b/c"], "a domain was meant"),
            (&["-iface-can-reach=x"], "an address was meant"),
        ] {
            let error = refusal(args, &[]);
            assert!(error.contains(says), "{args:?}: {error}");
        }
        let error = refusal(&[], &[("FLANNELD_IP_MASQ", "maybe")]);
        assert_eq!(error, "invalid value \"maybe\" for FLANNELD_IP_MASQ: parse error");
    }
}
