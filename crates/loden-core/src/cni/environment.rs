//! The variables that a runtime sets. An empty one is as good as none (containerd sets all of them, always).

use super::{CniError, Code};
use crate::model::{IfName, Mac, PLAIN_NAME, is_plain_name};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Is it still right.
    Check,
    /// Detach all but the listed ones.
    Gc,
    /// Could an ADD be served.
    Status,
    /// Which versions are spoken.
    Version,
}

/// The variables, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_CONTAINERID`.
    pub container: Option<String>,
    /// `CNI_NETNS`.
    pub netns: Option<String>,
    /// `CNI_IFNAME`.
    pub ifname: Option<IfName>,
    /// `CNI_ARGS`, split.
    pub args: Vec<(String, String)>,
    /// The same, as it was given: another plugin is called with it.
    pub args_given: String,
    /// `CNI_PATH`: the directories that other plugins are in.
    pub search_path: String,
    /// `CNI_NETNS_OVERRIDE`: the plugin's own namespace is wanted.
    pub netns_override: bool,
}

impl Environment {
    /// Reads the variables by `get`.
    ///
    /// # Errors
    /// Code 4, naming every variable that is missing or wrong.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let invalid = |message: String| CniError::new(Code::InvalidEnvironment, message);
        let verb = match get("CNI_COMMAND").as_deref() {
            Some("ADD") => Verb::Add,
            Some("DEL") => Verb::Del,
            Some("CHECK") => Verb::Check,
            Some("GC") => Verb::Gc,
            Some("STATUS") => Verb::Status,
            Some("VERSION") => Verb::Version,
            Some(other) => {
                return Err(invalid(format!(
                    "CNI_COMMAND {other:?} is not known: ADD, DEL, CHECK, GC, STATUS and VERSION are"
                )));
            }
            None => return Err(invalid("CNI_COMMAND is not set".to_owned())),
        };
        let required: &[&str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Verb::Gc => &["CNI_PATH"],
            Verb::Status | Verb::Version => &[],
        };
        let missing: Vec<_> = required.iter().filter(|name| get(name).is_none()).copied().collect();
        if !missing.is_empty() {
            return Err(invalid(format!("{} must be set", missing.join(", "))));
        }
        let is_used = !matches!(verb, Verb::Gc | Verb::Status | Verb::Version);
        let container = get("CNI_CONTAINERID").filter(|_| is_used);
        if let Some(container) = container.as_ref().filter(|container| !is_plain_name(container)) {
            return Err(invalid(format!("CNI_CONTAINERID {container:?} is not valid: {PLAIN_NAME}")));
        }
        let ifname = get("CNI_IFNAME").filter(|_| is_used).map(|name| name.parse::<IfName>()).transpose();
        Ok(Self {
            verb,
            container,
            netns: get("CNI_NETNS").filter(|_| is_used),
            ifname: ifname.map_err(|error| invalid(format!("CNI_IFNAME: {error}")))?,
            args: get("CNI_ARGS").map(|args| split_args(&args)).unwrap_or_default(),
            args_given: get("CNI_ARGS").unwrap_or_default(),
            search_path: get("CNI_PATH").unwrap_or_default(),
            netns_override: matches!(get("CNI_NETNS_OVERRIDE").as_deref(), Some("1" | "true" | "TRUE" | "True")),
        })
    }

    /// The value of a key of `CNI_ARGS`.
    #[must_use]
    pub fn arg(&self, name: &str) -> Option<&str> {
        self.args.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The Ethernet address that `CNI_ARGS` asks for.
    ///
    /// # Errors
    /// Code 4 when it is none.
    pub fn mac(&self) -> Result<Option<Mac>, CniError> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|error| CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS: MAC={text:?}: {error}")))
        };
        self.arg("MAC").filter(|text| !text.is_empty()).map(parse).transpose()
    }

    /// Whether `CNI_ARGS` has only keys that are known; a runtime that sends others says `IgnoreUnknown=1`.
    ///
    /// # Errors
    /// Code 4, naming the keys.
    pub fn check_args(&self) -> Result<(), CniError> {
        if matches!(self.arg("IgnoreUnknown"), Some("1" | "true" | "TRUE" | "True")) {
            return Ok(());
        }
        let is_known =
            |key: &str| ["IP", "MAC", "GATEWAY", "IgnoreUnknown"].contains(&key) || key.starts_with("K8S_POD_");
        let unknown: Vec<_> = self.args.iter().map(|(key, _)| key.as_str()).filter(|key| !is_known(key)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(CniError::new(
            Code::InvalidEnvironment,
            format!("CNI_ARGS has keys that are not known: {}; IgnoreUnknown=1 lets them pass", unknown.join(", ")),
        ))
    }

    /// The pod's namespace and name, where the runtime gives them.
    #[must_use]
    pub fn pod(&self) -> Option<String> {
        match (self.arg("K8S_POD_NAMESPACE"), self.arg("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => Some(format!("{namespace}/{name}")),
            (None, Some(name)) => Some(name.to_owned()),
            _ => None,
        }
    }
}

/// `A=b;C=d`. What is not of this form is passed over: the variable is deprecated and runtimes put anything into it.
fn split_args(args: &str) -> Vec<(String, String)> {
    args.split(';').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Environment, String> {
        Environment::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_or_hostile_is_named() {
        let full = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        assert!(read(&full).is_ok());
        let with = |name: &str, value: &'static str| {
            full.map(|(key, old)| if key == name { (key, value) } else { (key, old) })
        };
        for (pairs, expected) in [
            (with("CNI_COMMAND", ""), "CNI_COMMAND is not set"),
            (with("CNI_COMMAND", "ADDD"), "\"ADDD\" is not known"),
            (with("CNI_NETNS", ""), "CNI_NETNS must be set"),
            (with("CNI_CONTAINERID", "../../etc"), "CNI_CONTAINERID \"../../etc\" is not valid"),
            (with("CNI_IFNAME", "a/b"), "CNI_IFNAME"),
            (with("CNI_IFNAME", "1234567890123456"), "1 to 15"),
        ] {
            let error = read(&pairs).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
        // DEL does without a namespace; VERSION without anything.
        assert!(
            read(&with("CNI_COMMAND", "DEL").map(|(k, v)| if k == "CNI_NETNS" { (k, "") } else { (k, v) })).is_ok()
        );
        assert!(read(&[("CNI_COMMAND", "VERSION"), ("CNI_IFNAME", "dummy/x")]).is_ok());
    }
}
