//! loden's own records in etcd: which key a record stands under, and what a key and its value say.
//!
//! `PREFIX/node/NAME`, `PREFIX/pool/NAME`, `PREFIX/lease/NAME`, `PREFIX/block/ADDRESS-LENGTH`: the record as JSON, as in every
//! store. `PREFIX/id` is the store's identity. Nothing else is expected there.

use etcd_client::KeyValue;
use loden_core::model::{Entry, Key, Record};

use super::watcher::Event;
use crate::Change;

/// The name of the store's identity below the prefix.
const ID: &str = "id";

/// The keys under one prefix.
#[derive(Debug, Clone)]
pub struct Layout {
    /// With a slash at its end.
    root: String,
}

impl Layout {
    /// The layout under a prefix without a slash at its end.
    pub fn new(prefix: &str) -> Self {
        Self { root: format!("{prefix}/") }
    }

    /// What all keys begin with.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Where the store's identity stands.
    pub fn id(&self) -> String {
        format!("{}{ID}", self.root)
    }

    /// Where a record stands.
    pub fn place(&self, key: &Key) -> String {
        match key {
            Key::Block(cidr) => format!("{}block/{}", self.root, cidr.to_string().replace('/', "-")),
            Key::Node(_) | Key::Pool(_) | Key::Lease(_) => format!("{}{key}", self.root),
        }
    }

    /// The record's name that a place reads as.
    fn key(&self, place: &[u8]) -> Result<Key, String> {
        let text = String::from_utf8_lossy(place);
        let below = text.strip_prefix(&self.root).unwrap_or(&text);
        let (kind, name) = below.split_once('/').unwrap_or((below, ""));
        let name = match name.rsplit_once('-') {
            Some((address, length)) if kind == "block" => format!("{address}/{length}"),
            _ => name.to_owned(),
        };
        match serde_json::from_value::<Key>(serde_json::json!({ kind: name })) {
            // `block/10.0.0.0/24` reads as the same record as `block/10.0.0.0-24`, and is not its place.
            Ok(key) if self.place(&key).as_bytes() == place => Ok(key),
            _ => Err(below.to_owned()),
        }
    }

    /// The record that stands there.
    ///
    /// # Errors
    /// What is no record: its name as it reads (or what stands behind the prefix), and why.
    pub fn read(&self, kv: &KeyValue) -> Result<Entry, (String, String)> {
        let key = self.key(kv.key()).map_err(|place| (place, "its name is that of no record".to_owned()))?;
        match serde_json::from_slice::<Record>(kv.value()) {
            Ok(record) if record.key() == key => {
                let (created, revision) = (unsigned(kv.create_revision()), unsigned(kv.mod_revision()));
                Ok(Entry { record, created, revision })
            }
            Ok(record) => Err((key.to_string(), format!("its value is the record {}", record.key()))),
            Err(error) => Err((key.to_string(), error.to_string())),
        }
    }

    /// What an event says.
    pub fn change(&self, event: &Event<'_>) -> Change {
        let revision = unsigned(event.kv.mod_revision());
        if event.is_put {
            return match self.read(event.kv) {
                Ok(entry) => Change::Put(entry),
                Err((place, cause)) => Change::Flaw { place, cause: Some(cause), revision },
            };
        }
        match self.key(event.kv.key()) {
            Ok(key) => Change::Delete { key, revision },
            Err(place) => Change::Flaw { place, cause: None, revision },
        }
    }
}

/// etcd's revisions are never negative.
pub fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// A revision as etcd counts.
pub fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_as_the_record_that_stands_there() {
        let layout = Layout::new("/loden");
        for (key, place) in [
            (Key::Node("a-1".parse().expect("a name")), "/loden/node/a-1"),
            (Key::Lease("a-1".parse().expect("a name")), "/loden/lease/a-1"),
            (Key::Block("10.9.0.0/24".parse().expect("a prefix")), "/loden/block/10.9.0.0-24"),
            (Key::Block("fd00:1::/64".parse().expect("a prefix")), "/loden/block/fd00:1::-64"),
        ] {
            assert_eq!(layout.place(&key), place);
            assert_eq!(layout.key(place.as_bytes()), Ok(key));
        }
        for place in ["/loden/node/", "/loden/block/10.9.0.0/24", "/loden/block/10.9.0.1-24", "/loden/x/y", "/loden/x"]
        {
            assert_eq!(layout.key(place.as_bytes()), Err(place["/loden/".len()..].to_owned()));
        }
    }
}
