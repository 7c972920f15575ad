//! Pairs as they are read: leases of flannel's, records of loden's.

use std::net::IpAddr;

use super::{Layout, Pair};
use crate::dialect::flannel::{Attributes, FlannelError, SubnetKey, node_name};
use crate::model::{Entry, Key, NodeName, Prefix, Record};

/// A lease that was read.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub subnets: Vec<Prefix>,
    pub attributes: Result<Attributes, String>,
    /// The node of flannel's that it is for, if it is one.
    pub node: Option<NodeName>,
}

impl Lease {
    /// From the key behind `subnets/` and its value. A value that cannot be read leaves the subnets named.
    pub fn parse(name: &str, value: &[u8]) -> Result<Self, String> {
        let key: SubnetKey = name.parse().map_err(|error: FlannelError| error.to_string())?;
        let attributes = Attributes::parse(value).map_err(|error| error.to_string());
        let node = match &attributes {
            Ok(Attributes { public, .. }) => match public.v4 {
                Some(IpAddr::V4(addr)) => Some(node_name(addr)),
                _ => None,
            },
            Err(_) => None,
        };
        Ok(Self { subnets: key.prefixes().collect(), attributes, node })
    }
}

/// The record that is to stand under a key; `None`: it is nobody's business here.
pub(super) fn record_key(path: &str) -> Option<Result<Key, String>> {
    let (kind, name) = path.strip_prefix("loden/")?.split_once('/')?;
    let key = match kind {
        "node" => name.parse().map(Key::Node).map_err(|error| format!("{error}")),
        "lease" => name.parse().map(Key::Lease).map_err(|error| format!("{error}")),
        "block" => {
            let cidr = name.rsplit_once('-').map_or_else(|| name.to_owned(), |(addr, len)| format!("{addr}/{len}"));
            cidr.parse().map(Key::Block).map_err(|error| format!("{error}"))
        }
        _ => return None,
    };
    Some(key.and_then(|key| match Layout::path(&key) {
        canonical if canonical == path => Ok(key),
        canonical => Err(format!("it should be called {canonical}")),
    }))
}

/// The record of loden's that stands under a key.
pub(super) fn read_own(key: &Key, pair: &Pair) -> Result<Entry, String> {
    let record: Record = serde_json::from_slice(&pair.value).map_err(|error| error.to_string())?;
    if record.key() != *key {
        return Err(format!("it holds the record {}", record.key()));
    }
    Ok(Entry { record, created: pair.created, revision: pair.revision })
}
