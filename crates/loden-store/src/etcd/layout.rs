//! loden's own records in etcd: which key a record stands under, and what a key and its value say.
//!
//! `PREFIX/node/NAME`, `PREFIX/pool/NAME`, `PREFIX/lease/NAME`, `PREFIX/block/ADDRESS-LENGTH`: the record as JSON, as in every
//! store. `PREFIX/id` is the store's identity. Nothing else is expected there.

use etcd_client::KeyValue;
use loden_core::model::{Entry, Key, Record};

use crate::{Change, StoreError};

/// The name of the store's identity below the prefix.
const ID: &str = "id";

/// The keys under one prefix.
#[derive(Debug, Clone)]
pub struct Layout {
    /// With a slash at its end.
    root: String,
}

/// A key and its value, as records.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// The store's identity.
    Id(String),
    /// A record.
    Entry(Entry),
    /// No record.
    Flaw {
        /// The record's name as it reads, or what stands behind the prefix.
        place: String,
        /// Why not.
        cause: String,
    },
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

    /// What stands there.
    pub fn read(&self, kv: &KeyValue) -> Found {
        if kv.key() == self.id().as_bytes() {
            return Found::Id(String::from_utf8_lossy(kv.value()).into_owned());
        }
        let key = match self.key(kv.key()) {
            Ok(key) => key,
            Err(place) => return Found::Flaw { place, cause: "its name is that of no record".to_owned() },
        };
        let place = key.to_string();
        match serde_json::from_slice::<Record>(kv.value()) {
            Ok(record) if record.key() == key => {
                let (created, revision) = (unsigned(kv.create_revision()), unsigned(kv.mod_revision()));
                Found::Entry(Entry { record, created, revision })
            }
            Ok(record) => Found::Flaw { place, cause: format!("its value is the record {}", record.key()) },
            Err(error) => Found::Flaw { place, cause: error.to_string() },
        }
    }

    /// The record that stands there, where one is asked for by name.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] when it is none.
    pub fn entry(&self, kv: &KeyValue) -> Result<Entry, StoreError> {
        match self.read(kv) {
            Found::Entry(entry) => Ok(entry),
            Found::Flaw { place, cause } => Err(StoreError::Unreadable { key: place, cause }),
            Found::Id(_) => Err(StoreError::Unreadable { key: ID.to_owned(), cause: "it is no record".to_owned() }),
        }
    }

    /// What an event says: `None` for the identity.
    pub fn change(&self, kv: &KeyValue, is_put: bool) -> Option<Change> {
        let revision = unsigned(kv.mod_revision());
        if is_put {
            return match self.read(kv) {
                Found::Entry(entry) => Some(Change::Put(entry)),
                Found::Flaw { place, cause } => Some(Change::Flaw { place, cause: Some(cause), revision }),
                Found::Id(_) => None,
            };
        }
        if kv.key() == self.id().as_bytes() {
            return None;
        }
        Some(match self.key(kv.key()) {
            Ok(key) => Change::Delete { key, revision },
            Err(place) => Change::Flaw { place, cause: None, revision },
        })
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
