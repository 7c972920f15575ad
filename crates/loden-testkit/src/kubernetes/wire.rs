//! Metadata in Kubernetes' protobuf, as its own code writes them (`generated.proto` of k8s.io/apimachinery): fields in the order of
//! their numbers, texts even when they are empty, maps by their keys.

use serde_json::Value;

const META: &str = "meta.k8s.io/v1";

/// A list of objects' metadata.
#[must_use]
pub fn list(revision: &str, token: &str, items: &[Value]) -> Vec<u8> {
    let metadata = [text(1, ""), text(2, revision), text(3, token)].concat();
    let items = items.iter().map(|item| bytes(2, &bytes(1, &meta(&item["metadata"]))));
    envelope(META, "PartialObjectMetadataList", &[vec![bytes(1, &metadata)], items.collect()].concat().concat())
}

/// One object's metadata.
#[must_use]
pub fn object(object: &Value) -> Vec<u8> {
    envelope(META, "PartialObjectMetadata", &bytes(1, &meta(&object["metadata"])))
}

/// A frame of a watch.
#[must_use]
pub fn event(word: &str, object: &Value) -> Vec<u8> {
    let inner = if word == "ERROR" { status(object) } else { self::object(object) };
    let event = [text(1, word), bytes(2, &bytes(1, &inner))].concat();
    let length = u32::try_from(event.len()).expect("a short frame").to_be_bytes();
    [length.to_vec(), event].concat()
}

fn status(status: &Value) -> Vec<u8> {
    let list = [text(1, ""), text(2, ""), text(3, "")].concat();
    let word = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    let fields = [
        bytes(1, &list),
        text(2, &word("status")),
        text(3, &word("message")),
        text(4, &word("reason")),
        number(6, status["code"].as_u64().unwrap_or(0)),
    ];
    envelope("v1", "Status", &fields.concat())
}

fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let of = [text(1, version), text(2, kind)].concat();
    [b"k8s\0".to_vec(), bytes(1, &of), bytes(2, raw), text(3, ""), text(4, "")].concat()
}

fn meta(meta: &Value) -> Vec<u8> {
    let word = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
    let mut fields = vec![
        text(1, &word("name")),
        text(2, ""),
        text(3, ""),
        text(4, ""),
        text(5, &word("uid")),
        text(6, &word("resourceVersion")),
        number(7, 0),
        bytes(8, &meta["creationTimestamp"].as_str().map(time).unwrap_or_default()),
    ];
    for (tag, key) in [(11, "labels"), (12, "annotations")] {
        for (key, value) in meta[key].as_object().into_iter().flatten() {
            let pair = [text(1, key), text(2, value.as_str().expect("a text"))].concat();
            fields.push(bytes(tag, &pair));
        }
    }
    for entry in meta["managedFields"].as_array().into_iter().flatten() {
        let word = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let parts = [
            text(1, &word("manager")),
            text(2, &word("operation")),
            text(3, &word("apiVersion")),
            bytes(4, &time(&word("time"))),
            text(6, &word("fieldsType")),
            bytes(7, &text(1, &entry["fieldsV1"].to_string())),
            text(8, &word("subresource")),
        ];
        fields.push(bytes(17, &parts.concat()));
    }
    fields.concat()
}

/// A time such as `2026-01-01T00:00:00Z`: seconds since 1970, and no nanoseconds.
fn time(text: &str) -> Vec<u8> {
    let part = |range: std::ops::Range<usize>| text[range].parse::<u64>().expect("a number");
    let (year, month, day) = (part(0..4), part(5..7), part(8..10));
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let lengths = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let years: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let months: u64 = lengths.iter().take(usize::try_from(month).expect("small") - 1).sum();
    let seconds = (years + months + day - 1) * 86_400 + part(11..13) * 3600 + part(14..16) * 60 + part(17..19);
    [number(1, seconds), number(2, 0)].concat()
}

fn text(tag: u64, text: &str) -> Vec<u8> {
    bytes(tag, text.as_bytes())
}

fn bytes(tag: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(tag << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn number(tag: u64, value: u64) -> Vec<u8> {
    [varint(tag << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::schema::path;
    use super::*;

    /// The fixtures were written by k8s.io/apimachinery 0.37.0.
    #[test]
    fn it_is_written_as_kubernetes_writes_it() {
        let one: Value = serde_json::from_str(&super::super::file("fixtures/kubernetes/metadata.json")).expect("JSON");
        let other = json!({"metadata": {"name": "suite-b", "uid": "u-b", "resourceVersion": "7"}});
        let theirs = std::fs::read(path("fixtures/kubernetes/list.pb")).expect("there");
        assert_eq!(list("1234567", "abc", &[one.clone(), other]), theirs);
        let mark = json!({"metadata": {"resourceVersion": "99"}});
        let gone = json!({"status": "Failure", "code": 410, "reason": "Expired", "message": "too old resource version: 1 (2)"});
        let ours = [event("MODIFIED", &one), event("BOOKMARK", &mark), event("ERROR", &gone)].concat();
        assert_eq!(ours, std::fs::read(path("fixtures/kubernetes/watch.pb")).expect("there"));
    }
}
