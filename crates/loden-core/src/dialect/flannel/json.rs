//! JSON as Go reads it: keys in any letter case, the last of several of one name goes, a null leaves what was there before.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::FlannelError;

/// All keys that flannel knows, as it writes them.
const NAMES: [&str; 26] = [
    "Network",
    "IPv6Network",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
    "Type",
    "VNI",
    "Port",
    "MTU",
    "GBP",
    "Learning",
    "DirectRouting",
    "PublicIP",
    "PublicIPv6",
    "BackendType",
    "BackendData",
    "BackendV6Data",
    "VtepMAC",
    "PublicKey",
];

/// Reads an object; keys that flannel knows have its own letter case.
pub(super) fn object(text: &[u8]) -> Result<Map<String, Value>, FlannelError> {
    match value(text)? {
        Value::Object(map) => Ok(map),
        other => Err(FlannelError::Json(format!("{} instead of an object", sort(&other)))),
    }
}

/// Reads any value.
pub(super) fn value(text: &[u8]) -> Result<Value, FlannelError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Go.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| FlannelError::Json(error.to_string()))
}

fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "a null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn known(key: String) -> String {
    NAMES.iter().find(|name| name.eq_ignore_ascii_case(&key)).map_or(key, |name| (*name).to_owned())
}

/// Puts a value together.
struct Go;

impl<'de> DeserializeSeed<'de> for Go {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Go {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Go)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = pairs.next_key::<String>()? {
            let value = pairs.next_value_seed(Go)?;
            if !value.is_null() {
                map.insert(known(key), value);
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_read_as_go_reads_them() {
        let read = |text: &str| object(text.as_bytes()).map(Value::Object);
        assert_eq!(
            read(
                r#"{"network":"a","NETWORK":"b","Network":null,"backend":{"vtepmac":"c","x":[{"port":1.5}]},"other":-1}"#
            ),
            Ok(json!({ "Network": "b", "Backend": { "VtepMAC": "c", "x": [{ "Port": 1.5 }] }, "other": -1 }))
        );
        for wrong in ["", "{", "[]", "null", "{} {}", r#"{"a":tru}"#, &"[".repeat(10_000)] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
