//! loden's own objects, `Pool` and `Block` of `loden.dev`, as records: the `spec` is the record without its name.

use std::net::IpAddr;

use loden_core::config::cluster::default_block_len;
use loden_core::model::{BackendConfig, Block, Key, Pool, Prefix, Record, VxlanConfig};
use serde_json::{Map, Value, json};

use super::object::{GROUP_VERSION, Kind, Object};

/// The sort of object that a record of this key is; `None`: none of these.
pub fn place(key: &Key) -> Option<(Kind, String)> {
    match key {
        Key::Pool(name) => Some((Kind::Pool, name.to_string())),
        Key::Block(cidr) => Some((Kind::Block, block_name(*cidr))),
        Key::Node(_) | Key::Lease(_) => None,
    }
}

/// The name of a block's object: an object's name has neither slash nor colon, and begins and ends with a letter or digit, so
/// an IPv6 address has all its groups. 10.244.1.0/24 is `10-244-1-0-24`.
fn block_name(cidr: Prefix) -> String {
    let words: Vec<String> = match cidr.network() {
        IpAddr::V4(addr) => addr.octets().iter().map(ToString::to_string).collect(),
        IpAddr::V6(addr) => addr.segments().iter().map(|group| format!("{group:x}")).collect(),
    };
    format!("{}-{}", words.join("-"), cidr.len())
}

/// What an object says.
///
/// # Errors
/// What cannot be read, and why.
pub fn read(kind: Kind, object: &Object) -> Result<Record, String> {
    let Value::Object(mut spec) = object.spec.clone() else { return Err("it has no spec".to_owned()) };
    let name = &object.metadata.name;
    let fault = |error: serde_json::Error| format!("spec: {error}");
    if kind == Kind::Pool {
        spec.insert("name".to_owned(), name.clone().into());
        fill_in(&mut spec);
        return serde_json::from_value::<Pool>(Value::Object(spec)).map(Record::Pool).map_err(fault);
    }
    let block: Block = serde_json::from_value(Value::Object(spec)).map_err(fault)?;
    let expected = block_name(block.cidr);
    if expected == *name {
        Ok(Record::Block(block))
    } else {
        // The name is what makes a claim exclusive.
        Err(format!("a block of {} is named {expected}: remove this one", block.cidr))
    }
}

/// What a Pool leaves out. The defaults are here and not in the schema: what nobody said is nobody's field, for server-side apply.
fn fill_in(spec: &mut Map<String, Value>) {
    let cidr: Option<Prefix> = spec.get("cidr").and_then(|cidr| cidr.as_str()?.parse().ok());
    if let Some(cidr) = cidr {
        spec.entry("blockLen").or_insert_with(|| default_block_len(cidr).into());
    }
    spec.entry("natOutgoing").or_insert(true.into());
    let usual = serde_json::to_value(BackendConfig::Vxlan(VxlanConfig::default())).unwrap_or_default();
    match spec.entry("backend").or_insert_with(|| usual.clone()) {
        Value::Object(backend) if backend.get("type") == usual.get("type") => {
            for (key, value) in usual.as_object().into_iter().flatten() {
                backend.entry(key.clone()).or_insert_with(|| value.clone());
            }
            if backend.get("control").is_some_and(|control| control == "learn") {
                backend.entry("bridged").or_insert(true.into());
            }
        }
        _ => {}
    }
}

/// The object that says this.
pub fn write(kind: Kind, name: &str, record: &Record) -> Value {
    let mut spec = match record {
        Record::Pool(pool) => serde_json::to_value(pool),
        Record::Block(block) => serde_json::to_value(block),
        Record::Node(_) | Record::Lease(_) => Ok(Value::Object(Map::new())),
    }
    .unwrap_or_default();
    if let (Kind::Pool, Value::Object(spec)) = (kind, &mut spec) {
        spec.remove("name");
    }
    json!({"apiVersion": GROUP_VERSION, "kind": kind.word(), "metadata": {"name": name}, "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_named_by_its_prefix() {
        for (cidr, name) in [
            ("10.244.1.0/24", "10-244-1-0-24"),
            ("fd00:244::/64", "fd00-244-0-0-0-0-0-0-64"),
            ("::/0", "0-0-0-0-0-0-0-0-0"),
        ] {
            assert_eq!(block_name(cidr.parse().expect("a prefix")), name);
        }
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let pool = json!({"kind": "pool", "name": "p", "cidr": "10.0.0.0/16", "blockLen": 26, "natOutgoing": true,
            "nodeSelector": {"zone": "a"}, "firstBlock": "10.0.1.0/26", "backend": {"type": "vxlan", "vni": 1, "port": 8472}});
        let block = json!({"kind": "block", "cidr": "fd00:1::/64", "pool": "p", "owner": "n", "ownerUid": "u"});
        for value in [pool, block] {
            let record: Record = serde_json::from_value(value).expect("a record");
            let (kind, name) = place(&record.key()).expect("a place");
            let object: Object = serde_json::from_value(write(kind, &name, &record)).expect("an object");
            assert_eq!(read(kind, &object), Ok(record));
        }
    }

    #[test]
    fn a_pool_by_hand_may_leave_out_what_is_usual_and_a_block_may_not_lie_about_its_name() {
        let object = |spec: Value| {
            serde_json::from_value::<Object>(json!({"metadata": {"name": "x"}, "spec": spec})).expect("an object")
        };
        let pool = object(json!({"cidr": "10.0.0.0/16", "backend": {"type": "vxlan", "vni": 7}}));
        let Ok(Record::Pool(pool)) = read(Kind::Pool, &pool) else { panic!("a pool") };
        assert!(pool.block_len == 24 && pool.nat_outgoing);
        let vni = 7.try_into().expect("a VNI");
        assert_eq!(pool.backend, BackendConfig::Vxlan(VxlanConfig { vni, ..VxlanConfig::default() }));
        let pool = object(json!({"cidr": "10.0.0.0/16", "backend": {"type": "vxlan", "control": "learn"}}));
        let Ok(Record::Pool(pool)) = read(Kind::Pool, &pool) else { panic!("a pool") };
        assert!(pool.backend.segment().is_some(), "what learns is on an extended bridge");
        let block = object(json!({"cidr": "10.0.1.0/24", "pool": "p", "owner": "n", "ownerUid": "u"}));
        assert!(read(Kind::Block, &block).expect_err("another name").contains("10-0-1-0-24"));
    }
}
