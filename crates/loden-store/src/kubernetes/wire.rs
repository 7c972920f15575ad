//! Kubernetes' protobuf, as far as metadata need it (`generated.proto` of k8s.io/apimachinery, `meta/v1` and `runtime`).
//!
//! A Node's metadata are mostly the names of fields that somebody manages, and annotations with quotes in quotes: as protobuf they are a
//! tenth smaller than as JSON. A message stands in an envelope behind four bytes; a watch sends frames with their length before them.

use super::fault::Status;
use super::object::{Line, List, ListMeta, Meta, Object};

/// What an envelope begins with.
const MAGIC: &[u8] = b"k8s\0";
/// The length of a frame's length.
const LENGTH: usize = 4;

/// Whether this is protobuf, and not JSON.
pub fn is_enveloped(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// `PartialObjectMetadataList`.
///
/// # Errors
/// What is wrong with it.
pub fn list(bytes: &[u8]) -> Result<List, String> {
    let mut list = List { metadata: ListMeta::default(), items: Vec::new() };
    for field in fields(unwrapped(bytes)?) {
        match field? {
            (1, Value::Bytes(metadata)) => {
                for field in fields(metadata) {
                    match field? {
                        (2, Value::Bytes(revision)) => list.metadata.resource_version = text(revision)?,
                        (3, Value::Bytes(token)) => list.metadata.token = text(token)?,
                        _ => {}
                    }
                }
            }
            (2, Value::Bytes(item)) => list.items.push(partial(item)?),
            _ => {}
        }
    }
    Ok(list)
}

/// `PartialObjectMetadata`.
///
/// # Errors
/// What is wrong with it.
pub fn object(bytes: &[u8]) -> Result<Object, String> {
    partial(unwrapped(bytes)?)
}

/// `Status`.
///
/// # Errors
/// What is wrong with it.
pub fn status(bytes: &[u8]) -> Result<Status, String> {
    let mut status = Status::default();
    for field in fields(unwrapped(bytes)?) {
        match field? {
            (3, Value::Bytes(message)) => status.message = text(message)?,
            (4, Value::Bytes(reason)) => status.reason = text(reason)?,
            (5, Value::Bytes(details)) => {
                for field in fields(details) {
                    match field? {
                        (1, Value::Bytes(name)) => status.details.name = text(name)?,
                        (5, Value::Number(seconds)) if seconds > 0 => {
                            status.details.retry_after_seconds = Some(seconds)
                        }
                        _ => {}
                    }
                }
            }
            (6, Value::Number(code)) => status.code = u16::try_from(code).unwrap_or(0),
            _ => {}
        }
    }
    Ok(status)
}

/// `WatchEvent`: what stands in a frame.
///
/// # Errors
/// What is wrong with it.
pub fn line(frame: &[u8]) -> Result<Line, String> {
    let (mut word, mut raw) = (String::new(), &frame[..0]);
    for field in fields(frame) {
        match field? {
            (1, Value::Bytes(kind)) => word = text(kind)?,
            (2, Value::Bytes(extension)) => {
                for field in fields(extension) {
                    if let (1, Value::Bytes(inner)) = field? {
                        raw = inner;
                    }
                }
            }
            _ => {}
        }
    }
    match word.as_str() {
        "ADDED" => object(raw).map(Line::Added),
        "MODIFIED" => object(raw).map(Line::Modified),
        "DELETED" => object(raw).map(Line::Deleted),
        "BOOKMARK" => object(raw).map(Line::Bookmark),
        "ERROR" => status(raw).map(Line::Error),
        other => Err(format!("a watch says {other:?}")),
    }
}

/// The first frame of a stream, if all of it is there: what stands in it, and where the next one begins.
pub fn frame(stream: &[u8]) -> Option<(&[u8], usize)> {
    let length = u32::from_be_bytes(*stream.first_chunk::<LENGTH>()?);
    let end = LENGTH.checked_add(usize::try_from(length).ok()?)?;
    Some((stream.get(LENGTH..end)?, end))
}

/// `runtime.Unknown`.
fn unwrapped(bytes: &[u8]) -> Result<&[u8], String> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or("it is no protobuf of Kubernetes")?;
    let mut raw = &envelope[..0];
    for field in fields(envelope) {
        if let (2, Value::Bytes(inner)) = field? {
            raw = inner;
        }
    }
    Ok(raw)
}

fn partial(bytes: &[u8]) -> Result<Object, String> {
    let mut object = Object::default();
    for field in fields(bytes) {
        if let (1, Value::Bytes(metadata)) = field? {
            object.metadata = meta(metadata)?;
        }
    }
    Ok(object)
}

fn meta(bytes: &[u8]) -> Result<Meta, String> {
    let mut meta = Meta::default();
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(name)) => meta.name = text(name)?,
            (5, Value::Bytes(uid)) => meta.uid = text(uid)?,
            (6, Value::Bytes(revision)) => meta.resource_version = text(revision)?,
            (8, Value::Bytes(time)) => {
                for field in fields(time) {
                    if let (1, Value::Number(seconds)) = field? {
                        meta.created = seconds;
                    }
                }
            }
            (12, Value::Bytes(entry)) => {
                let (mut key, mut value) = (String::new(), String::new());
                for field in fields(entry) {
                    match field? {
                        (1, Value::Bytes(bytes)) => key = text(bytes)?,
                        (2, Value::Bytes(bytes)) => value = text(bytes)?,
                        _ => {}
                    }
                }
                meta.annotations.insert(key, value);
            }
            _ => {}
        }
    }
    Ok(meta)
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())
}

/// A field's value.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, by their numbers.
fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), String>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let read = field(&mut rest).ok_or_else(|| "a field of it is cut off or of no known sort".to_owned());
        if read.is_err() {
            rest = &[];
        }
        Some(read)
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?),
        1 => Value::Bytes(rest.split_off(..8)?),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Value::Bytes(rest.split_off(..length)?)
        }
        5 => Value::Bytes(rest.split_off(..4)?),
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = rest.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kubernetes").join(name);
        std::fs::read(path).expect(name)
    }

    #[test]
    fn what_kubernetes_wrote_is_read() {
        let list = list(&fixture("list.pb")).expect("a list");
        assert_eq!((list.metadata.resource_version.as_str(), list.metadata.token.as_str()), ("1234567", "abc"));
        let names: Vec<&str> = list.items.iter().map(|item| item.metadata.name.as_str()).collect();
        assert_eq!(names, ["suite-a", "suite-b"]);
        let json: Object = serde_json::from_slice(&fixture("metadata.json")).expect("JSON");
        assert_eq!(list.items[0].metadata, json.metadata, "the same as in JSON");
        assert!(json.metadata.created > 0 && json.metadata.annotations.len() > 5);
    }

    #[test]
    fn what_kubernetes_said_in_a_watch_is_read() {
        let stream = fixture("watch.pb");
        let mut lines = Vec::new();
        let mut at = 0;
        while let Some((inner, next)) = frame(&stream[at..]) {
            lines.push(line(inner).expect("a line"));
            at += next;
        }
        assert_eq!(at, stream.len());
        let [Line::Modified(changed), Line::Bookmark(mark), Line::Error(status)] = &lines[..] else {
            panic!("{lines:?}")
        };
        assert_eq!((changed.metadata.name.as_str(), mark.metadata.revision()), ("suite-a", 99));
        assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
        assert!((0..stream.len()).all(|cut| frame(&stream[..cut]).is_none_or(|(_, next)| next <= cut)));
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0..3000_usize, to in any::<u8>()) {
            let _ = (line(&bytes), status(&[MAGIC, &bytes].concat()), frame(&bytes).is_some());
            let mut spoilt = fixture("list.pb");
            let at = at % spoilt.len();
            spoilt[at] = to;
            let _ = list(&spoilt);
            spoilt.truncate(at);
            let _ = list(&spoilt);
        }
    }
}
