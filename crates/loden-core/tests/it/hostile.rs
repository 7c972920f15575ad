//! What the fuzz targets check, on the ordinary toolchain: the fixtures, each with something else in places that nobody chose, and
//! bytes of any kind. `cargo xtask fuzz` goes on where this ends.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fuzzed;
use crate::picture;

/// The values of all fixtures of one ending: calls, or what they come to.
fn fixtures(ending: &str) -> Vec<Value> {
    let paths =
        fs::read_dir(picture::fixtures().join("cni")).expect("fixtures").map(|entry| entry.expect("entry").path());
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == ending));
    let values = |path| {
        let text = fs::read(path).expect("read");
        let all = serde_json::Deserializer::from_slice(&text).into_iter().map_while(Result::ok).collect::<Vec<Value>>();
        all.into_iter().filter(Value::is_object)
    };
    let found: Vec<Value> = paths.flat_map(values).collect();
    assert!(found.len() > 15, "the fixtures are not where they are looked for");
    found
}

/// The JSON of what flannel wrote: configurations and the values of leases.
fn flannels() -> Vec<Value> {
    let paths =
        fs::read_dir(picture::fixtures().join("flannel")).expect("fixtures").map(|entry| entry.expect("entry").path());
    let texts = paths.filter(|path| path.extension().is_some_and(|e| e == "lease" || e == "net-conf")).map(|path| {
        let text = fs::read_to_string(path).expect("read");
        text.split_once('{').map(|(_, rest)| format!("{{{rest}")).expect("an object")
    });
    let found: Vec<Value> = texts.map(|text| serde_json::from_str(&text).expect("JSON")).collect();
    assert!(found.len() > 15, "the fixtures are not where they are looked for");
    found
}

/// What may stand in the place of something else.
fn anything() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        "10.1.0.0/24",
        "10.1.0.9",
        "::/0",
        "fd01::/64",
        "fd01::2/128",
        "0.0.0.0/0",
        "0.3.1",
        "1.1.0",
        "9.9.9",
        "eth0",
        "../x",
        "bridge",
        "routed",
        "macvlan",
        "source",
        "host-local",
        "static",
        "loden",
        "02:00:00:00:00:01",
        "a-name-of-more-than-fifteen",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![0, 1, 2, 68, 1500, 4094, 65_535, 65_536, u64::from(u32::MAX), u64::MAX])
            .prop_map(Value::from),
        Just(json!(-1)),
        Just(json!(0.5)),
        prop::sample::select(texts.to_vec()).prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            (prop::sample::select(vec!["subnet", "address", "dst", "type", "mac", "name"]), inner)
                .prop_map(|(key, value)| json!({ key: value })),
        ]
    })
}

/// Puts something into the place of a number, counted through all places.
fn put(value: &mut Value, place: &mut usize, new: &Value) {
    if *place == 0 {
        *value = new.clone();
    }
    *place = place.wrapping_sub(1);
    let inner: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    for item in inner {
        if *place < usize::MAX / 2 {
            put(item, place, new);
        }
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// One of these values, changed in a few places.
fn spoilt(values: Vec<Value>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), anything()), 0..4);
    (prop::sample::select(values), changes).prop_map(|(mut value, changes)| {
        for (place, new) in changes {
            let mut place = place.index(count(&value));
            put(&mut value, &mut place, &new);
        }
        value.to_string().into_bytes()
    })
}

proptest! {
    #[test]
    fn configurations(bytes in spoilt(fixtures("json").into_iter().map(|call| call["conf"].clone()).collect())) {
        fuzzed::stdin(&bytes);
    }

    #[test]
    fn what_flannel_writes(bytes in spoilt(flannels())) {
        fuzzed::flannel(&bytes);
        fuzzed::flannel(&[b"config ", &bytes[..], b"\nsubnets/10.5.34.0-24 ", &bytes[..]].concat());
    }

    #[test]
    fn results_and_what_is_stored(bytes in spoilt(fixtures("golden"))) {
        fuzzed::prev_result(&bytes);
        fuzzed::stored(&bytes);
    }

    #[test]
    fn bytes_of_any_kind(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        fuzzed::stdin(&bytes);
        fuzzed::prev_result(&bytes);
        fuzzed::stored(&bytes);
        fuzzed::flannel(&bytes);
    }

    #[test]
    fn states_that_nothing_has_written(
        fresh in 0_u32..9, freed in prop::collection::vec((0_u32..8, 0_u32..99), 0..4), ahead in prop::collection::vec(0_u32..9, 0..3),
    ) {
        let waiting = u32::try_from(freed.len()).expect("a few");
        let numbers = [fresh, waiting].into_iter().chain(freed.into_iter().flat_map(|(index, at)| [index, at])).chain(ahead);
        fuzzed::stored(&b"LDB2".iter().copied().chain(numbers.flat_map(u32::to_le_bytes)).collect::<Vec<u8>>());
    }
}
