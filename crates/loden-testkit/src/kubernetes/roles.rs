//! The roles of `deploy/rbac.yaml`, and flannel's own: what the double lets an account do.

use serde_json::Value;

use super::schema::objects;

/// The rules of a role.
#[derive(Debug, Clone)]
pub struct Role(Vec<Value>);

/// flannel's ClusterRole, as its manifest has it.
const FLANNEL: &str = r#"
rules:
  - {apiGroups: [""], resources: [pods], verbs: [get]}
  - {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
  - {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
"#;

impl Role {
    /// One of the file's.
    #[must_use]
    pub fn shipped(name: &str) -> Self {
        let all = objects("deploy/rbac.yaml");
        let role = all.iter().find(|object| object["kind"] == "ClusterRole" && object["metadata"]["name"] == name);
        Self(role.expect(name)["rules"].as_array().expect("rules").clone())
    }

    /// flannel's own.
    #[must_use]
    pub fn flannels() -> Self {
        let role: Value = serde_saphyr::from_str(FLANNEL).expect("YAML");
        Self(role["rules"].as_array().expect("rules").clone())
    }

    /// The same without a verb: what somebody forgot.
    #[must_use]
    pub fn without(mut self, verb: &str, resource: &str) -> Self {
        for rule in &mut self.0 {
            if rule["resources"].as_array().is_some_and(|all| all.iter().any(|it| it == resource)) {
                rule["verbs"].as_array_mut().expect("verbs").retain(|it| it != verb);
            }
        }
        self
    }

    /// Whether it allows this; `name` may be empty.
    #[must_use]
    pub fn allows(&self, verb: &str, group: &str, resource: &str, name: &str) -> bool {
        let has = |rule: &Value, key: &str, wanted: &str| {
            rule[key].as_array().is_some_and(|all| all.iter().any(|it| it == wanted))
        };
        self.0.iter().any(|rule| {
            has(rule, "verbs", verb)
                && has(rule, "apiGroups", group)
                && has(rule, "resources", resource)
                && (rule.get("resourceNames").is_none() || has(rule, "resourceNames", name))
        })
    }

    /// All that it allows, as `verb resource`.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        let texts = |value: &Value| {
            value.as_array().into_iter().flatten().filter_map(|it| Some(it.as_str()?.to_owned())).collect()
        };
        let of = |rule: &Value| {
            let (verbs, resources): (Vec<String>, Vec<String>) = (texts(&rule["verbs"]), texts(&rule["resources"]));
            resources
                .iter()
                .flat_map(|resource| verbs.iter().map(move |verb| format!("{verb} {resource}")))
                .collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }
}
