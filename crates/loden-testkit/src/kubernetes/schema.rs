//! The schemas of `deploy/crds.yaml`, as far as a double can hold objects against them: all but the CEL rules.

use std::collections::BTreeMap;

use serde_json::Value;

/// The schemas by resource.
#[derive(Default)]
pub struct Schemas(BTreeMap<String, Value>);

/// A file of the repository.
#[must_use]
pub fn file(name: &str) -> String {
    std::fs::read_to_string(path(name)).expect(name)
}

/// The objects in a file of YAML of the repository.
#[must_use]
pub fn objects(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&file(name)).expect(name)
}

/// Where it is.
pub(super) fn path(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

impl Schemas {
    /// Those of the file.
    #[must_use]
    pub fn shipped() -> Self {
        let all = objects("deploy/crds.yaml");
        let of = |crd: &Value| {
            let plural = crd["spec"]["names"]["plural"].as_str().expect("a name").to_owned();
            (plural, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
        };
        Self(all.iter().map(of).collect())
    }

    /// What a resource's `spec` may have.
    #[must_use]
    pub fn spec(&self, resource: &str) -> &Value {
        &self.0[resource]["properties"]["spec"]["properties"]
    }

    /// Drops what the schema does not know, and says what it does not allow.
    ///
    /// # Errors
    /// Where, and what.
    pub fn admit(&self, resource: &str, object: &mut Value) -> Result<(), String> {
        match self.0.get(resource) {
            Some(schema) => admit("", schema, object),
            None => Ok(()),
        }
    }
}

fn admit(path: &str, schema: &Value, value: &mut Value) -> Result<(), String> {
    let fault = |what: String| Err(format!("{path}: {what}"));
    let is_fit = match schema["type"].as_str().expect("a type") {
        "object" => value.is_object(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("the schema has a type {other}"),
    };
    if !is_fit {
        return fault(format!("{value} is no {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|known| !known.contains(value)) {
        return fault(format!("{value} is none of {}", schema["enum"]));
    }
    for (bound, is_broken) in [("minimum", u64::lt as fn(&u64, &u64) -> bool), ("maximum", u64::gt)] {
        if let (Some(bound), Some(number)) = (schema[bound].as_u64(), value.as_u64())
            && is_broken(&number, &bound)
        {
            return fault(format!("{number} is out of bounds"));
        }
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str())
        && !regex_lite::Regex::new(pattern).expect("a pattern").is_match(text)
    {
        return fault(format!("{text:?} does not match {pattern}"));
    }
    let (Some(known), Value::Object(map)) = (schema["properties"].as_object(), &mut *value) else { return Ok(()) };
    map.retain(|key, _| known.contains_key(key));
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(key) {
            return fault(format!("{key} is missing"));
        }
    }
    for (key, value) in map {
        admit(&format!("{path}.{key}"), &known[key], value)?;
    }
    Ok(())
}
