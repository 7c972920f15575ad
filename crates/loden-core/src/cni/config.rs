//! The network configuration on standard input. Keys match without regard to case, as the reference library's do.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{CniError, Code, Success, Verb, Version};
use crate::model::{IfName, PLAIN_NAME, is_plain_name};

/// The ways in which pods are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachKind {
    /// By a port of the node's bridge.
    Bridge,
    /// Without a bridge: the host routes each packet.
    Routed,
}

/// The configuration, as far as this plugin heeds it. What it does not know is left alone: the specification has other plugins'
/// keys in the same object.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// Its version.
    pub version: Version,
    /// The network's name; only VERSION comes without one.
    pub name: Option<String>,
    /// `attach`: how pods are attached; default `bridge`.
    pub attach: AttachKind,
    /// `runDir`: where the agent's files are; default `/run/loden`.
    pub run_dir: String,
    /// `quarantineSeconds`: how long a freed address rests before it is given again; default 30.
    pub quarantine: u32,
    /// What the plugins before this one, or the ADD, came to.
    pub previous: Option<Success>,
    /// GC: the attachments that are to stay; `None` when the runtime did not say (which does not mean that none is).
    pub valid: Option<Vec<(String, IfName)>>,
}

impl NetConf {
    /// Reads what a verb needs of it. What the verb does not need is not looked at: a pod must be able to go whatever has become
    /// of the configuration since it came.
    ///
    /// # Errors
    /// Code 6 when it is no JSON, 1 for a version that is not spoken, 7 for values that do not do.
    pub fn parse(bytes: &[u8], verb: Verb) -> Result<Self, CniError> {
        let decode = |error: &dyn std::fmt::Display| {
            CniError::new(Code::Decode, "the configuration on standard input is no JSON object").with(error.to_string())
        };
        let Value::Object(map) = serde_json::from_slice(bytes).map_err(|error| decode(&error))? else {
            return Err(decode(&"it is another JSON value"));
        };
        let keys = Keys(map);
        let get_for = |verbs: &[Verb], key: &str| keys.get(key).filter(|_| verbs.contains(&verb));
        let invalid = |message: String| CniError::new(Code::InvalidConfig, message);
        let text = |key: &str| match keys.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(invalid(format!("`{key}` is {other}: a text was meant"))),
        };
        let version =
            text("cniVersion")?.filter(|v| !v.is_empty()).map_or(Ok(Version::V0_1_0), |v| Version::parse(&v))?;
        let name = text("name")?;
        if let Some(name) = name.as_ref().filter(|name| !is_plain_name(name)) {
            return Err(invalid(format!("the network's name {name:?} is not valid: {PLAIN_NAME}")));
        }
        let attach = match get_for(&[Verb::Add, Verb::Check, Verb::Status], "attach") {
            None => AttachKind::Bridge,
            Some(value) => AttachKind::deserialize(value)
                .map_err(|_| invalid(format!("`attach` is {value}: \"bridge\" or \"routed\" was meant")))?,
        };
        let quarantine = match get_for(&[Verb::Add, Verb::Status], "quarantineSeconds") {
            None => 30,
            Some(value) => value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| invalid(format!("`quarantineSeconds` is {value}: a whole number was meant")))?,
        };
        let previous = get_for(&[Verb::Add, Verb::Check], "prevResult");
        let previous = previous.map(|value| Success::parse(value, version)).transpose()?;
        let valid = get_for(&[Verb::Gc], "cni.dev/valid-attachments").map(parse_valid).transpose()?;
        let run_dir = text("runDir")?.unwrap_or_else(|| "/run/loden".to_owned());
        Ok(Self { version, name, attach, run_dir, quarantine, previous, valid })
    }
}

/// An object whose keys match without regard to case; an exact match goes first. A null is no value.
struct Keys(Map<String, Value>);

impl Keys {
    fn get(&self, key: &str) -> Option<&Value> {
        let loose = || self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        self.0.get(key).or_else(loose).filter(|value| !value.is_null())
    }
}

fn parse_valid(value: &Value) -> Result<Vec<(String, IfName)>, CniError> {
    let wrong = || {
        CniError::new(
            Code::InvalidConfig,
            format!(
                "`cni.dev/valid-attachments` is {value}: a list of objects with \
                                                    containerID and ifname was meant"
            ),
        )
    };
    let items = value.as_array().ok_or_else(wrong)?;
    items
        .iter()
        .map(|item| {
            let keys = Keys(item.as_object().ok_or_else(wrong)?.clone());
            let text = |key| keys.get(key).and_then(Value::as_str).ok_or_else(wrong);
            let ifname = text("ifname")?.parse().map_err(|_| wrong())?;
            Ok((text("containerID")?.to_owned(), ifname))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_is_not_empty() {
        let parse = |text: &str| NetConf::parse(text.as_bytes(), Verb::Gc).map(|conf| conf.valid);
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
            assert_eq!(NetConf::parse(text.as_bytes(), Verb::Add).map_err(|error| error.code), Err(code), "{text}");
        }
        assert_eq!(NetConf::parse(br#"{"name":"n"}"#, Verb::Add).map(|conf| conf.version), Ok(Version::V0_1_0));
        let loose = NetConf::parse(br#"{"NAME":"n","RunDir":"/x"}"#, Verb::Add);
        assert_eq!(loose.map(|conf| conf.run_dir), Ok("/x".to_owned()));
    }

    #[test]
    fn what_a_verb_does_not_need_does_not_stop_it() {
        for (key, value, needed) in [
            ("attach", r#""macvlan9""#, [true, false, true, false, true]),
            ("quarantineSeconds", r#""soon""#, [true, false, false, false, true]),
            ("prevResult", r#"{"cniVersion":"9.9.9"}"#, [true, false, true, false, false]),
            ("cni.dev/valid-attachments", "5", [false, false, false, true, false]),
        ] {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","{key}":{value}}}"#);
            for (verb, is_needed) in [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status].into_iter().zip(needed)
            {
                assert_eq!(NetConf::parse(text.as_bytes(), verb).is_err(), is_needed, "{key} at {verb:?}");
            }
        }
    }
}
