//! Settings of a pod's namespace and interface, as a configuration says them: with the keys of the reference plugin `tuning`. And
//! which sysctls may be set at all.

use regex_lite::Regex;
use serde_json::Value;

use crate::cni::keys::Keys;
use crate::cni::{CniError, Code, Environment, MakeConf, Role};
use crate::model::{IfName, Mac, Setting, Sysctl, Tuning};

/// What stands in a sysctl's key for the name of the pod's interface.
const IFNAME: &str = "IFNAME";

/// The settings, as they are given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TuningConf {
    /// `sysctl`: keys and values.
    pub sysctls: Vec<(String, String)>,
    /// `promisc`: set only when it is true, as in the reference plugin.
    pub promiscuous: Option<bool>,
    /// `allmulti`.
    pub all_multicast: Option<bool>,
    /// `txQLen`, in packets.
    pub tx_queue_len: Option<u32>,
    /// `mac` as the runtime gives it or, over it, `args.cni`.
    pub mac: Option<Mac>,
    /// `mtu`, in bytes.
    pub mtu: Option<u32>,
}

impl TuningConf {
    /// Reads what a role heeds: loden's own plugin the sysctls alone, since the rest has keys of its own there.
    pub(super) fn parse(keys: &Keys<'_>, role: Role) -> Result<Self, CniError> {
        let mut conf = Self::default();
        if !matches!(role, Role::Loden | Role::Tuning) {
            return Ok(conf);
        }
        conf.take_sysctls(keys)?;
        if role == Role::Tuning {
            conf.take(keys)?;
            let runtime = keys.object("runtimeConfig")?;
            conf.mac = runtime.map(|runtime| runtime.parsed("mac", "an Ethernet address")).transpose()?.flatten();
            // What is asked for here goes last.
            if let Some(args) = keys.object("args")?.map(|args| args.object("cni")).transpose()?.flatten() {
                conf.take_sysctls(&args)?;
                conf.take(&args)?;
                conf.mac = args.parsed("mac", "an Ethernet address")?.or(conf.mac);
            }
        }
        Ok(conf)
    }

    fn take(&mut self, keys: &Keys<'_>) -> Result<(), CniError> {
        self.promiscuous = keys.flag("promisc")?.map_or(self.promiscuous, |on| on.then_some(true));
        self.all_multicast = keys.flag("allmulti")?.or(self.all_multicast);
        self.tx_queue_len = keys.number("txQLen")?.or(self.tx_queue_len);
        self.mtu = keys.number("mtu")?.or(self.mtu).filter(|mtu| *mtu > 0);
        Ok(())
    }

    fn take_sysctls(&mut self, keys: &Keys<'_>) -> Result<(), CniError> {
        let Some(all) = keys.object("sysctl")? else { return Ok(()) };
        for (key, value) in all.all() {
            let value = match value {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return Err(all.wrong(key, "a text or a number")),
            };
            if value.chars().any(char::is_control) {
                return Err(all.wrong(key, "one line of text"));
            }
            self.sysctls.retain(|(there, _)| there != key);
            self.sysctls.push((key.to_owned(), value));
        }
        Ok(())
    }

    /// As settings of a pod's interface. Which sysctls may be set, the text of the host's file of regular expressions says, where
    /// there is one.
    ///
    /// # Errors
    /// Code 7 for a key that is none, that is not allowed or that comes twice, and for an expression that is none.
    pub fn resolve(&self, ifname: IfName, allow_list: Option<&str>) -> Result<Tuning, CniError> {
        let mut sysctls: Vec<Sysctl> = Vec::new();
        let allowed = allow_list.filter(|_| !self.sysctls.is_empty()).map(expressions).transpose()?;
        for (key, value) in &self.sysctls {
            if let Some(allowed) = &allowed
                && !allowed.iter().any(|expression| expression.is_match(key))
            {
                let list: Vec<&str> = allowed.iter().map(Regex::as_str).collect();
                return Err(refused(key, &format!("the host allows only what matches one of: {}", list.join(" "))));
            }
            let path = path(key, ifname)?;
            if sysctls.iter().any(|other| other.path == path) {
                return Err(refused(key, &format!("another key means /proc/sys/{path} too")));
            }
            sysctls.push(Sysctl { path, setting: Setting::new(value.clone()) });
        }
        Ok(Tuning {
            sysctls,
            promiscuous: self.promiscuous.map(Setting::new),
            all_multicast: self.all_multicast.map(Setting::new),
            tx_queue_len: self.tx_queue_len.map(Setting::new),
            mac: self.mac.map(Setting::new),
            mtu: self.mtu.map(Setting::new),
        })
    }
}

/// What the plugin `tuning` is to set. The Ethernet address is that of `args.cni`, else of `runtimeConfig`, of `CNI_ARGS`, or the
/// configuration's own.
///
/// # Errors
/// As [`TuningConf::resolve`]; code 4 for `CNI_ARGS`.
pub fn tuning(
    make: &MakeConf,
    environment: &Environment,
    ifname: IfName,
    allow_list: Option<&str>,
) -> Result<Tuning, CniError> {
    let mac = make.tuning.mac.or(environment.mac()?).or(make.mac);
    TuningConf { mac, ..make.tuning.clone() }.resolve(ifname, allow_list)
}

/// The reference plugin's file: an expression a line, matched anywhere in the key.
fn expressions(text: &str) -> Result<Vec<Regex>, CniError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let one = |line: &str| {
        Regex::new(line).map_err(|error| {
            CniError::new(
                Code::InvalidConfig,
                format!("the allow-list of sysctls has {line:?}, which is no expression"),
            )
            .with(error.to_string())
        })
    };
    lines.map(one).collect()
}

/// The path below `/proc/sys`. The first separator says which one it is, and the other one is part of names: `net.ipv4.conf.eth0/1.arp_filter`
/// and `net/ipv4/conf/eth0.1/arp_filter` are the same (sysctl.d(5)).
fn path(key: &str, ifname: IfName) -> Result<String, CniError> {
    let is_dotted = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('.'));
    let (separator, other) = if is_dotted { ('.', '/') } else { ('/', '.') };
    let parts: Vec<String> = key
        .split(separator)
        .map(|part| if part == IFNAME { ifname.to_string() } else { part.replace(other, ".") })
        .collect();
    let is_name = |part: &String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:@".contains(c);
        !part.is_empty() && part != "." && part != ".." && part.chars().all(is_plain)
    };
    match parts.first().map(String::as_str) {
        Some("net") if parts.len() > 2 => {}
        _ => return Err(refused(key, "only keys below `net.` are of a pod alone")),
    }
    let wrong = parts.iter().find(|part| !is_name(part) && **part != ifname.as_str());
    wrong.map_or(Ok(parts.join("/")), |part| Err(refused(key, &format!("{part:?} is no name in it"))))
}

fn refused(key: &str, why: &str) -> CniError {
    let shown: String = key.chars().take(80).collect();
    CniError::new(Code::InvalidConfig, format!("`sysctl` {shown:?} cannot be set: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn eth0() -> IfName {
        "eth0".parse().expect("a name")
    }

    #[test]
    fn keys_lead_to_paths() {
        for (key, ifname, expected) in [
            ("net.ipv4.ip_forward", "eth0", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "eth0", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.IFNAME.arp_filter", "eth0", "net/ipv4/conf/eth0/arp_filter"),
            ("net.ipv4.conf.IFNAME.arp_filter", "eth0.10", "net/ipv4/conf/eth0.10/arp_filter"),
            ("net.ipv4.conf.eth0/10.arp_filter", "net1", "net/ipv4/conf/eth0.10/arp_filter"),
            ("net/ipv4/conf/eth0.10/arp_filter", "net1", "net/ipv4/conf/eth0.10/arp_filter"),
            ("net.ipv6.neigh.IFNAME.base_reachable_time_ms", "a+b", "net/ipv6/neigh/a+b/base_reachable_time_ms"),
        ] {
            assert_eq!(path(key, ifname.parse().expect("a name")).as_deref(), Ok(expected), "{key}");
        }
    }

    #[test]
    fn hostile_keys_are_refused() {
        for key in [
            "",
            "net",
            "net.",
            "net..",
            "kernel.core_pattern",
            "vm.swappiness",
            "net.../kernel.core_pattern",
            "net/../kernel/core_pattern",
            "net/./ipv4/ip_forward",
            "net.ipv4.//.//.kernel.panic",
            "net//ipv4/ip_forward",
            "/net/ipv4/ip_forward",
            "/proc/sys/net/ipv4/ip_forward",
            "../net/ipv4/ip_forward",
            "..net.ipv4.ip_forward",
            "net.ipv4.ip_forward\0",
            "net.ipv4.ip_forward\n",
            "net.ipv4.conf.%s.x",
            "Net.ipv4.ip_forward",
        ] {
            assert_eq!(path(key, eth0()).map_err(|error| error.code), Err(Code::InvalidConfig), "{key:?}");
        }
    }

    #[test]
    fn the_list_restricts_and_never_widens() {
        let conf = |key: &str| TuningConf { sysctls: vec![(key.to_owned(), "1".to_owned())], ..TuningConf::default() };
        let list = "^net\\.ipv4\\.conf\\.(IFNAME|all)\\.[a-z_]*$\n\n  ^kernel\\.  \n^net\\.ipv6";
        for (key, list, is_allowed) in [
            ("net.ipv4.ip_forward", None, true),
            ("net.ipv4.ip_forward", Some(""), false),
            ("net.ipv4.ip_forward", Some(list), false),
            ("net.ipv4.ip_forward", Some("forward"), true),
            ("net.ipv4.conf.IFNAME.arp_filter", Some(list), true),
            ("net.ipv4.conf.eth0.arp_filter", Some(list), false),
            ("net.ipv6.conf.all.forwarding", Some(list), true),
            ("kernel.core_pattern", Some(list), false),
            ("net.ipv6./../kernel", Some(list), false),
        ] {
            assert_eq!(conf(key).resolve(eth0(), list).is_ok(), is_allowed, "{key} with {list:?}");
        }
        let error = conf("net.ipv4.ip_forward").resolve(eth0(), Some("a(b")).expect_err("no expression");
        assert!(error.to_string().contains("\"a(b\""), "{error}");
        let twice = TuningConf {
            sysctls: ["net.ipv4.conf.IFNAME.x", "net/ipv4/conf/eth0/x"]
                .map(|key| (key.to_owned(), "1".to_owned()))
                .into(),
            ..TuningConf::default()
        };
        assert!(twice.resolve(eth0(), None).expect_err("twice").to_string().contains("another key"));
        assert_eq!(TuningConf::default().resolve(eth0(), Some("a(b")), Ok(Tuning::default()), "nothing is asked");
    }

    #[test]
    fn what_is_asked_for_by_args_goes_last() {
        let conf = json!({
            "sysctl": { "net.core.somaxconn": "100", "net.ipv4.a": 7 }, "mac": "02:00:00:00:00:01", "promisc": false,
            "mtu": 1400, "txQLen": 0, "allmulti": false,
            "runtimeConfig": { "mac": "02:00:00:00:00:02" },
            "args": { "cni": { "sysctl": { "net.core.somaxconn": "200" }, "promisc": true, "mtu": 1300 } },
        });
        let keys = Keys::new(conf.as_object().expect("an object"));
        let read = TuningConf::parse(&keys, Role::Tuning).expect("read");
        let text = |pair: (&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
        assert_eq!(
            read,
            TuningConf {
                sysctls: vec![text(("net.ipv4.a", "7")), text(("net.core.somaxconn", "200"))],
                promiscuous: Some(true),
                all_multicast: Some(false),
                tx_queue_len: Some(0),
                mac: "02:00:00:00:00:02".parse().ok(),
                mtu: Some(1300),
            }
        );
        let own = TuningConf::parse(&keys, Role::Loden).expect("read");
        assert_eq!((own.sysctls.len(), own.mtu, own.mac), (2, None, None));
        assert_eq!(TuningConf::parse(&keys, Role::Bridge), Ok(TuningConf::default()));
        for wrong in [
            json!({ "sysctl": 5 }),
            json!({ "sysctl": { "net.a.b": [1] } }),
            json!({ "sysctl": { "net.a.b": "1\n2" } }),
        ] {
            let keys = Keys::new(wrong.as_object().expect("an object"));
            assert!(TuningConf::parse(&keys, Role::Tuning).is_err(), "{wrong}");
        }
    }
}
