//! Kubernetes' objects, as far as anything of them matters here. What is not named is dropped while it is read.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::fault::Status;
use super::wire;

/// The API's words for "an object's metadata alone" and "a list of those", rather in protobuf than in JSON.
pub const ONE_PARTIAL: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,\
                               application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const LIST_PARTIAL: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                            application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const JSON: &str = "application/json";

/// The group and version of loden's own objects.
pub const GROUP_VERSION: &str = "loden.dev/v1alpha1";

/// The sorts of objects that the store is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The cluster's Nodes.
    Node,
    /// loden's Pools.
    Pool,
    /// loden's Blocks.
    Block,
}

impl Kind {
    /// Where its objects are.
    pub fn path(self) -> &'static str {
        match self {
            Self::Node => "/api/v1/nodes",
            Self::Pool => "/apis/loden.dev/v1alpha1/pools",
            Self::Block => "/apis/loden.dev/v1alpha1/blocks",
        }
    }

    /// Its name in roles and messages.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Pool => "pools.loden.dev",
            Self::Block => "blocks.loden.dev",
        }
    }

    /// `kind` of its objects.
    pub fn word(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pool => "Pool",
            Self::Block => "Block",
        }
    }

    /// What a list is asked for as. Of a Node its metadata are enough: the rest is most of it (images, conditions), and changes
    /// all the time.
    pub fn list_type(self) -> &'static str {
        if self == Self::Node { LIST_PARTIAL } else { JSON }
    }

    /// What a watch is asked for as.
    pub fn object_type(self) -> &'static str {
        if self == Self::Node { ONE_PARTIAL } else { JSON }
    }
}

/// An object.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Object {
    /// Its metadata.
    pub metadata: Meta,
    /// What it is to be; absent when only the metadata were asked for.
    #[serde(default)]
    pub spec: Value,
    /// How it is; likewise.
    #[serde(default)]
    pub status: Value,
}

/// An object's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Its name.
    pub name: String,
    /// Which of all objects that have ever had the name.
    pub uid: String,
    /// Its revision. The API's concepts say since 1.35 that it is a number that grows; it has always been etcd's.
    pub resource_version: String,
    /// When it was made, in seconds since 1970; a bookmark's is null, which is 0 here.
    #[serde(rename = "creationTimestamp", deserialize_with = "read_time")]
    pub created: u64,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Meta {
    /// Its revision as a number.
    pub fn revision(&self) -> u64 {
        self.resource_version.parse().unwrap_or(0)
    }
}

/// A list, or a page of one.
#[derive(Debug, Deserialize)]
pub struct List {
    /// Its own metadata.
    pub metadata: ListMeta,
    /// The objects.
    #[serde(default = "Vec::new")]
    pub items: Vec<Object>,
}

/// A list's metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMeta {
    /// The revision that the list is of.
    pub resource_version: String,
    /// What brings the next page; empty on the last.
    #[serde(rename = "continue")]
    pub token: String,
}

/// What an answer's body is read as: protobuf where that was asked for and is spoken, else JSON.
pub trait Answer: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    fn read(body: &[u8]) -> Result<Self, String>;
}

impl Answer for List {
    fn read(body: &[u8]) -> Result<Self, String> {
        if wire::is_enveloped(body) { wire::list(body) } else { from_json(body) }
    }
}

impl Answer for Object {
    fn read(body: &[u8]) -> Result<Self, String> {
        if wire::is_enveloped(body) { wire::object(body) } else { from_json(body) }
    }
}

impl Answer for Value {
    fn read(body: &[u8]) -> Result<Self, String> {
        from_json(body)
    }
}

fn from_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// How a watch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One JSON object a line.
    Lines,
    /// Protobuf in frames.
    Frames,
}

impl Form {
    /// The first message of a stream, if all of it is there, and where the next one begins. An empty line says nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn first(self, stream: &[u8]) -> Result<Option<(Option<Line>, usize)>, String> {
        match self {
            Self::Frames => match wire::frame(stream) {
                Some((frame, next)) => Ok(Some((Some(wire::line(frame)?), next))),
                None => Ok(None),
            },
            Self::Lines => match stream.iter().position(|byte| *byte == b'\n') {
                Some(0) => Ok(Some((None, 1))),
                Some(end) => Ok(Some((Some(from_json(&stream[..end])?), end + 1))),
                None => Ok(None),
            },
        }
    }
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub enum Line {
    /// The object is new.
    Added(Object),
    /// It has changed.
    Modified(Object),
    /// It is gone; this is the last of it, with the revision that removed it.
    Deleted(Object),
    /// So far everything has been said.
    Bookmark(Object),
    /// The watch cannot go on.
    Error(Status),
}

fn read_time<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.as_deref().and_then(seconds).unwrap_or(0))
}

/// Seconds since 1970 of a time such as `2026-11-25T14:52:44Z`, as Kubernetes writes it.
fn seconds(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    // Days since 1 March of year 0, with the leap day at a year's end.
    let (y, m) = if month < 3 { (year.checked_sub(1)?, month + 9) } else { (year, month - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day.checked_sub(1)?;
    Some(days.checked_sub(719_468)? * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_that_grow() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:00Z", Some(951_825_600)),
            ("2026-11-25T14:52:44Z", Some(1_795_618_364)),
            ("", None),
            ("yesterday", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn a_line_is_read_as_what_it_is() {
        let line = r#"{"type":"BOOKMARK","object":{"kind":"PartialObjectMetadata","metadata":{"resourceVersion":"7","creationTimestamp":null}}}"#;
        assert!(matches!(serde_json::from_str(line), Ok(Line::Bookmark(object)) if object.metadata.revision() == 7));
        let line = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
        let Ok(Line::Error(status)) = serde_json::from_str(line) else { panic!("an error") };
        assert!(super::super::fault::Fault::from_status(status, "nodes").is_gone());
    }
}
