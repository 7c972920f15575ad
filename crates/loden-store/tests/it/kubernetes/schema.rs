//! The schemas of `deploy/crds.yaml`, as far as a double can hold objects against them: all but the CEL rules.

use std::collections::BTreeMap;

use loden_core::model::Record;
use serde_json::{Value, json};

/// The schemas by resource.
#[derive(Default)]
pub struct Schemas(BTreeMap<String, Value>);

/// A file of the repository.
pub fn file(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    std::fs::read_to_string(&path).expect(name)
}

impl Schemas {
    pub fn shipped() -> Self {
        let all: Vec<Value> = serde_saphyr::from_multiple(&file("deploy/crds.yaml")).expect("YAML");
        let of = |crd: &Value| {
            let plural = crd["spec"]["names"]["plural"].as_str().expect("a name").to_owned();
            (plural, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
        };
        Self(all.iter().map(of).collect())
    }

    /// Drops what the schema does not know, and says what it does not allow.
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

/// All that a record can say is in the schema: nothing is pruned, and the schema knows nothing else.
#[test]
fn the_schemas_are_the_records() {
    let schemas = Schemas::shipped();
    let backend = json!({"type": "vxlan", "vni": 5, "port": 4789, "mtu": 1400, "gbp": true, "directRouting": true});
    let pool = json!({"kind": "pool", "name": "p", "cidr": "10.0.0.0/16", "blockLen": 26, "firstBlock": "10.0.0.0/26",
        "lastBlock": "10.0.9.0/26", "natOutgoing": false, "nodeSelector": {"zone": "a"}, "backend": backend});
    let block = json!({"kind": "block", "cidr": "10.0.0.0/26", "pool": "p", "owner": "n", "ownerUid": "u-1"});
    for (resource, given) in [("pools", pool), ("blocks", block)] {
        let record: Record = serde_json::from_value(given.clone()).expect("a record");
        let mut spec = serde_json::to_value(&record).expect("JSON");
        assert_eq!(spec, given, "every field of {resource} is set here");
        let map = spec.as_object_mut().expect("an object");
        map.remove("kind");
        map.remove("name");
        let known = &schemas.0[resource]["properties"]["spec"]["properties"];
        let known: Vec<_> = known.as_object().expect("properties").keys().collect();
        assert_eq!(known, map.keys().collect::<Vec<_>>(), "{resource}");
        let object = json!({"apiVersion": "loden.dev/v1alpha1", "metadata": {}, "spec": spec});
        let mut admitted = object.clone();
        assert_eq!(schemas.admit(resource, &mut admitted), Ok(()));
        assert_eq!(admitted, object, "nothing of it is pruned");
    }
    let kinds = &schemas.0["pools"]["properties"]["spec"]["properties"]["backend"]["properties"]["type"]["enum"];
    for kind in kinds.as_array().expect("names") {
        let pool = json!({"kind": "pool", "name": "p", "cidr": "10.0.0.0/16", "blockLen": 26, "natOutgoing": false,
            "backend": {"type": kind, "vni": 1, "port": 1}});
        assert!(serde_json::from_value::<Record>(pool).is_ok(), "{kind}");
    }
}
