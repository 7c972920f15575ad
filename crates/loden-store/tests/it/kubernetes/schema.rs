//! The schemas of `deploy/crds.yaml` against the records that they are of.

use loden_core::model::Record;
use loden_testkit::kubernetes::Schemas;
use serde_json::json;

/// All that a record can say is in the schema: nothing is pruned, and the schema knows nothing else.
#[test]
fn the_schemas_are_the_records() {
    let schemas = Schemas::shipped();
    let backend = json!({"type": "vxlan", "vni": 5, "port": 4789, "mtu": 1400, "gbp": true, "directRouting": true,
        "control": "learn", "bridged": true, "group": {"v4": "239.1.1.42", "v6": "ff05::42"}, "bridge": "tenant1"});
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
        let known = schemas.spec(resource);
        let known: Vec<_> = known.as_object().expect("properties").keys().collect();
        assert_eq!(known, map.keys().collect::<Vec<_>>(), "{resource}");
        let object = json!({"apiVersion": "loden.dev/v1alpha1", "metadata": {}, "spec": spec});
        let mut admitted = object.clone();
        assert_eq!(schemas.admit(resource, &mut admitted), Ok(()));
        assert_eq!(admitted, object, "nothing of it is pruned");
    }
    let kinds = &schemas.spec("pools")["backend"]["properties"]["type"]["enum"];
    for kind in kinds.as_array().expect("names") {
        let pool = json!({"kind": "pool", "name": "p", "cidr": "10.0.0.0/16", "blockLen": 26, "natOutgoing": false,
            "backend": {"type": kind, "vni": 1, "port": 1}});
        assert!(serde_json::from_value::<Record>(pool).is_ok(), "{kind}");
    }
}
