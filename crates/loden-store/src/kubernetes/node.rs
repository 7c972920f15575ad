//! A Node object as a record: what its annotations say, and how they are written.
//!
//! `loden.dev/node` holds the record as other stores have it, without the name, and two things beside it: `podCIDRs`, which a
//! watch of metadata does not show, and `flannel`, a mark of flannel's annotations as they were written with it. Where those are
//! others now, a flanneld has served the node since, and what it says is so.

use std::collections::BTreeMap;

use loden_core::dialect::flannel::{Attributes, annotations};
use loden_core::model::{Node, NodeName, NodeUid, Pool, Prefix};
use serde_json::Value;

use super::object::{Meta, Object};

/// The annotation with the record.
pub const RECORD: &str = "loden.dev/node";
const POD_CIDRS: &str = "podCIDRs";
const FLANNEL: &str = "flannel";

/// How Nodes are read and written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dialect {
    /// What flannel's annotations begin with.
    pub prefix: String,
    /// The pools of net-conf.json. `None`: the pools are objects of their own, and no node is flannel's.
    pub net_conf: Option<Vec<Pool>>,
}

/// What a Node object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The record.
    pub node: Node,
    /// Its podCIDRs, if it says them.
    pub cidrs: Option<Vec<Prefix>>,
    /// What of it is of no use here.
    pub flaw: Option<String>,
}

impl Dialect {
    /// What an object says; `None` when nobody of loden's or flannel's serves it.
    ///
    /// # Errors
    /// What cannot be read, and why.
    pub fn read(&self, meta: &Meta) -> Result<Option<Reading>, String> {
        let name: NodeName = meta.name.parse().map_err(text)?;
        let wishes = annotations::wishes(&self.prefix, &meta.annotations).map_err(text)?;
        let own = meta.annotations.get(RECORD).map(|json| read_record(&name, json)).transpose()?;
        let mark = || Some(self.mark(&meta.annotations));
        let (own, is_current) = match own {
            Some((reading, written_with)) => {
                let is_current = self.net_conf.is_none() || written_with.is_none() || written_with == mark();
                (Some(reading), is_current)
            }
            None => (None, false),
        };
        let flannels = match &self.net_conf {
            Some(pools) if !is_current => annotations::read(&self.prefix, &meta.annotations)
                .map_err(text)?
                .map(|attributes| flannels(&attributes, name, &meta.uid, pools))
                .transpose()?,
            _ => None,
        };
        let Some(mut reading) = flannels.or(own) else { return Ok(None) };
        reading.node.public = wishes.public;
        reading.node.asked = wishes.asked;
        Ok(Some(reading))
    }

    /// The annotations that say this; `None` stands for one that is to go.
    pub fn write(&self, node: &Node, cidrs: Option<&[Prefix]>) -> BTreeMap<String, Option<String>> {
        let pools = self.net_conf.as_ref().filter(|pools| !pools.is_empty());
        let said = pools.map(|pools| Attributes::of(node, &pools[0].backend).in_network(pools));
        let flannels = said.map(|said| annotations::write(&self.prefix, &said));
        let mut record = serde_json::to_value(node).unwrap_or_default();
        if let Value::Object(map) = &mut record {
            for theirs in ["name", "public", "asked"] {
                map.remove(theirs);
            }
            if let Some(cidrs) = cidrs {
                map.insert(POD_CIDRS.to_owned(), cidrs.iter().map(ToString::to_string).collect());
            }
            if let Some(flannels) = &flannels {
                map.insert(FLANNEL.to_owned(), self.mark(flannels).into());
            }
        }
        let mut all: BTreeMap<String, Option<String>> = match flannels {
            Some(flannels) => {
                let mut all: BTreeMap<_, _> = self.written().map(|name| (name, None)).collect();
                all.extend(flannels.into_iter().map(|(name, value)| (name, Some(value))));
                all
            }
            None => BTreeMap::new(),
        };
        all.insert(RECORD.to_owned(), Some(record.to_string()));
        all
    }

    /// What is to go when a node is no longer served.
    pub fn cleared(&self) -> BTreeMap<String, Option<String>> {
        let flannels = self.net_conf.is_some().then(|| self.written()).into_iter().flatten();
        flannels.chain([RECORD.to_owned()]).map(|name| (name, None)).collect()
    }

    fn written(&self) -> impl Iterator<Item = String> {
        annotations::written(&self.prefix).into_iter()
    }

    /// A mark of what flannel's annotations say (the ones that flanneld writes, not an operator's).
    fn mark(&self, given: &BTreeMap<String, String>) -> String {
        // FNV-1a: it is stored, so it must be the same in every version.
        let texts =
            self.written().map(|name| given.get(&name).map_or_else(|| "-".to_owned(), |value| format!("+{value}")));
        let bytes = texts.flat_map(|text| [text.into_bytes(), vec![0]]).flatten();
        let hash = bytes
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("{hash:016x}")
    }
}

/// The podCIDRs of an object that was read whole; empty while Kubernetes has given it none.
///
/// # Errors
/// The one that is no prefix.
pub fn pod_cidrs(object: &Object) -> Result<Vec<Prefix>, String> {
    match &object.spec[POD_CIDRS] {
        Value::Null => Ok(Vec::new()),
        list => serde_json::from_value(list.clone()).map_err(|error| format!("spec.podCIDRs: {error}")),
    }
}

fn read_record(name: &NodeName, json: &str) -> Result<(Reading, Option<String>), String> {
    let fault = |error: serde_json::Error| format!("annotation {RECORD}: {error}");
    let mut map: serde_json::Map<String, Value> = serde_json::from_str(json).map_err(fault)?;
    let mark = map.remove(FLANNEL).and_then(|mark| Some(mark.as_str()?.to_owned()));
    let cidrs = map.remove(POD_CIDRS).map(serde_json::from_value).transpose().map_err(fault)?;
    map.insert("name".to_owned(), name.to_string().into());
    let node = serde_json::from_value(Value::Object(map)).map_err(fault)?;
    Ok((Reading { node, cidrs, flaw: None }, mark))
}

fn flannels(attributes: &Attributes, name: NodeName, uid: &str, pools: &[Pool]) -> Result<Reading, String> {
    let mut node = attributes.node(name, pools);
    node.uid = NodeUid::new(uid).map_err(text)?;
    let flaw = pools.iter().find_map(|pool| attributes.receives(&pool.backend).err()).map(text);
    Ok(Reading { node, cidrs: None, flaw })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
