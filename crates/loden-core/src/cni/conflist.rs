//! A runtime's list of plugins, as the installer puts it in and takes it out: whether it does for loden, and what it needs.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{CniError, Code, NetConf, Role, Verb, Version};
use crate::model::{PLAIN_NAME, is_plain_name};

/// What the program is called in a directory of plugins, and in lists of them.
pub const PROGRAM: &str = "loden-cni";

/// A list that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflist {
    /// Where the agent's files are.
    pub run_dir: String,
    /// Whether its pods need what the agent tells of the node.
    pub needs_node: bool,
}

impl Conflist {
    /// The list that is put in when none is given. Runtimes that do not know `cniVersions` take 1.0.0.
    #[must_use]
    pub fn built_in(run_dir: Option<&str>) -> String {
        let asked = ["portMappings", "bandwidth", "ips", "mac", "dns", "io.kubernetes.cri.pod-annotations"];
        let capabilities: Map<String, Value> = asked.iter().map(|key| ((*key).to_owned(), true.into())).collect();
        let mut plugin = json!({ "type": PROGRAM, "capabilities": capabilities });
        if let Some(run_dir) = run_dir {
            plugin["runDir"] = run_dir.into();
        }
        let list = json!({
            "cniVersion": Version::V1_0_0.as_str(),
            "cniVersions": [Version::V1_0_0.as_str(), Version::V1_1_0.as_str()],
            "name": "loden",
            "plugins": [plugin],
        });
        format!("{list:#}\n")
    }

    /// Reads a list as the runtime will, and loden's plugins in it as they will; `roles` are the other names that this program is
    /// installed under.
    ///
    /// # Errors
    /// Code 6 when it is no JSON, 1 for a version that is not spoken, 7 for all else, as when no plugin of it is loden's.
    pub fn parse(bytes: &[u8], roles: &[String]) -> Result<Self, CniError> {
        let decode = |cause: String| CniError::new(Code::Decode, "it is no JSON object").with(cause);
        let invalid = |message: String| CniError::new(Code::InvalidConfig, message);
        let Value::Object(map) = serde_json::from_slice(bytes).map_err(|error| decode(error.to_string()))? else {
            return Err(decode("it is another JSON value".to_owned()));
        };
        let keys = Keys::new(&map);
        let version = version(&keys)?;
        let name = keys.text("name")?.filter(|name| is_plain_name(name));
        let name = name.ok_or_else(|| invalid(format!("`name` must be the network's name: {PLAIN_NAME}")))?;
        let mut found: Option<Self> = None;
        for (place, plugin) in keys.objects("plugins")?.iter().enumerate() {
            let kind = plugin.text("type")?.ok_or_else(|| plugin.wrong("type", "a plugin's name"))?;
            if kind != PROGRAM && !roles.iter().any(|role| role == kind) {
                continue;
            }
            let mut conf = plugin.all().clone();
            conf.insert("name".to_owned(), name.into());
            conf.insert("cniVersion".to_owned(), version.as_str().into());
            let text = Value::Object(conf).to_string();
            let conf = NetConf::parse(text.as_bytes(), Verb::Add, Role::of_program(kind))
                .map_err(|error| CniError { message: format!("`plugins[{place}]`: {}", error.message), ..error })?;
            let needs_node = conf.make.as_ref().is_some_and(super::MakeConf::needs_node);
            match &mut found {
                Some(found) if found.run_dir != conf.run_dir => {
                    let text =
                        format!("`plugins[{place}].runDir` is another than {}, that of the one before", found.run_dir);
                    return Err(invalid(text));
                }
                Some(found) => found.needs_node |= needs_node,
                None => found = Some(Self { run_dir: conf.run_dir, needs_node }),
            }
        }
        found.ok_or_else(|| invalid(format!("no plugin of it has the type {PROGRAM}")))
    }
}

/// The highest that is known, as a runtime chooses it.
fn version(keys: &Keys<'_>) -> Result<Version, CniError> {
    let mut given: Vec<String> = keys.all_parsed("cniVersions", "versions")?;
    given.extend(keys.text("cniVersion")?.map(str::to_owned));
    let known = given.iter().filter_map(|text| Version::parse(text).ok()).max();
    match (known, given.first()) {
        (Some(version), _) => Ok(version),
        (None, Some(text)) => Version::parse(text),
        (None, None) => Ok(Version::V0_1_0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_does() {
        let parse = |run_dir| Conflist::parse(Conflist::built_in(run_dir).as_bytes(), &[]);
        assert_eq!(parse(None), Ok(Conflist { run_dir: "/run/loden".to_owned(), needs_node: true }));
        assert_eq!(parse(Some("/x")).map(|list| list.run_dir), Ok("/x".to_owned()));
    }

    #[test]
    fn lists_are_read_as_their_plugins_will_be() {
        let own = r#"{"type":"bridge","bridge":"br1","ipam":{"type":"host-local","subnet":"10.7.0.0/24"}}"#;
        for (what, text, expected) in [
            ("another plugin behind", r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"loden-cni"},{"type":"tuning"}]}"#.to_owned(), Ok(true)),
            ("a role", format!(r#"{{"cniVersions":["1.0.0","9.9.9"],"name":"n","plugins":[{own},{{"type":"portmap"}}]}}"#), Ok(false)),
            ("no JSON", "{".to_owned(), Err(Code::Decode)),
            ("a list alone", "[]".to_owned(), Err(Code::Decode)),
            ("only a future version", r#"{"cniVersion":"9.9.9","name":"n","plugins":[{"type":"loden-cni"}]}"#.to_owned(), Err(Code::IncompatibleVersion)),
            ("no name", r#"{"cniVersion":"1.0.0","plugins":[{"type":"loden-cni"}]}"#.to_owned(), Err(Code::InvalidConfig)),
            ("no plugins", r#"{"cniVersion":"1.0.0","name":"n"}"#.to_owned(), Err(Code::InvalidConfig)),
            ("others' plugins", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}"#.to_owned(), Err(Code::InvalidConfig)),
            ("one without a type", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#.to_owned(), Err(Code::InvalidConfig)),
            ("a wrong value", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"loden-cni","attach":"x"}]}"#.to_owned(), Err(Code::InvalidConfig)),
            ("two run directories", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"loden-cni"},{"type":"portmap","runDir":"/x"}]}"#.to_owned(), Err(Code::InvalidConfig)),
        ] {
            let roles = ["bridge".to_owned(), "portmap".to_owned()];
            let read = Conflist::parse(text.as_bytes(), &roles).map(|list| list.needs_node);
            assert_eq!(read.map_err(|error| error.code), expected, "{what}");
        }
    }
}
