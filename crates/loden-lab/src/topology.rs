//! What a lab looks like: segments, hosts, pods and pools, from a TOML file.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use loden_core::config::{ConfigError, fields::Fields};
use loden_core::model::{Family, NodeName, PerFamily, Prefix};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::LabError;

/// A lab, before it is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// Its name.
    pub name: String,
    /// Underlay segments; a router joins them, and the outside is behind it.
    pub segments: Vec<Segment>,
    /// Hosts.
    pub hosts: Vec<Host>,
    /// Machines beside them that have no agent: servers.
    pub servers: Vec<Host>,
    /// The address of the cluster's datastore; `None`: an SQLite file of the lab.
    pub store: Option<String>,
    /// The file of `[[pool]]` tables for the cluster, as TOML.
    pub pools: String,
    /// Keys for the plugin's configuration, on all hosts.
    pub plugin: Map<String, Value>,
}

/// An underlay segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Its name.
    pub name: String,
    /// Its prefixes.
    pub prefixes: PerFamily<Prefix>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A host.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its name, which is its node's.
    pub name: String,
    /// The segment that it is on, by place.
    pub segment: usize,
    /// Its addresses.
    pub addresses: PerFamily<IpNet>,
    /// How many pods are attached at once.
    pub pods: u32,
    /// Keys for its agent's configuration.
    pub agent: Map<String, Value>,
    /// Whether its agent is started with the lab.
    pub starts: bool,
}

impl Topology {
    /// Parses and checks a topology.
    ///
    /// # Errors
    /// [`LabError`] for the first fault.
    pub fn parse(text: &str) -> Result<Self, LabError> {
        let tree: Map<String, Value> = toml::from_str(text).map_err(|error| LabError::Topology(error.to_string()))?;
        let mut fields = Fields::new("", Value::Object(tree))?;
        let name = fields.text("name")?.ok_or_else(|| fields.missing("name", "a name for the lab"))?;
        if !loden_core::model::is_plain_name(&name) {
            return Err(fields.invalid("name", &name, "letters, digits, '-', '_' and '.' were meant").into());
        }
        let mut segments = Vec::new();
        for table in fields.tables("segment")? {
            segments.push(segment(table)?);
        }
        if segments.is_empty() {
            return Err(fields.missing("segment", "at least one underlay segment").into());
        }
        let mut hosts: Vec<Host> = Vec::new();
        for table in fields.tables("host")? {
            hosts.push(host(table, &segments, hosts.len())?);
        }
        let mut servers: Vec<Host> = Vec::new();
        for table in fields.tables("server")? {
            servers.push(host(table, &segments, hosts.len() + servers.len())?);
        }
        let names: BTreeSet<_> = hosts.iter().chain(&servers).map(|host| &host.name).collect();
        if names.len() != hosts.len() + servers.len() {
            return Err(LabError::Topology("two hosts have one name".to_owned()));
        }
        if hosts.is_empty() {
            return Err(fields.missing("host", "at least one host").into());
        }
        let pools = match fields.take("pool") {
            Some(pools) => toml::to_string(&serde_json::json!({ "pool": pools }))
                .map_err(|error| LabError::Topology(error.to_string()))?,
            None => String::new(),
        };
        let store = fields.text("store")?;
        let plugin = keys(&mut fields, "plugin")?;
        fields.finish()?;
        Ok(Self { name, segments, hosts, servers, store, pools, plugin })
    }
}

/// A table whose keys are another program's.
fn keys(fields: &mut Fields, of: &'static str) -> Result<Map<String, Value>, ConfigError> {
    match fields.take(of) {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(other) => Err(fields.invalid(of, &other, &format!("a table of the {of}'s keys was meant"))),
    }
}

fn segment(mut fields: Fields) -> Result<Segment, ConfigError> {
    let mut prefixes = PerFamily::default();
    for (family, key) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        if let Some(prefix) = fields.parsed::<Prefix>(key)? {
            if prefix.family() != family {
                return Err(fields.invalid(key, &prefix, &format!("an {family} prefix was meant")));
            }
            prefixes.set(family, prefix);
        }
    }
    let name = fields.text("name")?.ok_or_else(|| fields.missing("name", "a name for the segment"))?;
    if prefixes.is_empty() {
        return Err(fields.missing("v4", "a prefix for the segment (`v4`, `v6` or both)"));
    }
    let segment = Segment { name, prefixes, mtu: fields.number("mtu", 1280, 65535)?.unwrap_or(1500) };
    fields.finish()?;
    Ok(segment)
}

/// A host's addresses are the segment's first, second, … in the order of the hosts.
fn host(mut fields: Fields, segments: &[Segment], place: usize) -> Result<Host, ConfigError> {
    let name: NodeName = fields.parsed("name")?.ok_or_else(|| fields.missing("name", "a name for the host"))?;
    if name.as_str().len() > 12 {
        return Err(fields.invalid("name", &name, "at most 12 characters were meant: interfaces are named after it"));
    }
    let segment = match fields.text("segment")? {
        None => 0,
        Some(wanted) => segments
            .iter()
            .position(|segment| segment.name == wanted)
            .ok_or_else(|| fields.invalid("segment", &wanted, "no segment has this name"))?,
    };
    let mut addresses = PerFamily::default();
    for (family, prefix) in segments[segment].prefixes.iter() {
        let addr: Option<IpAddr> = prefix.nth(place as u128 + 1);
        let net = addr.and_then(|addr| IpNet::new(addr, prefix.len()).ok());
        addresses.set(family, net.ok_or_else(|| fields.invalid("segment", &prefix, "it is too small for its hosts"))?);
    }
    let agent = keys(&mut fields, "agent")?;
    let starts = fields.flag("starts")?.unwrap_or(true);
    let pods = fields.number("pods", 0, 200)?.unwrap_or(if starts { 2 } else { 0 });
    if !starts && pods > 0 {
        return Err(fields.invalid(
            "pods",
            &pods,
            "a host whose agent does not start with the lab has no pods at first",
        ));
    }
    fields.finish()?;
    Ok(Host { name: name.to_string(), segment, addresses, pods, agent, starts })
}
