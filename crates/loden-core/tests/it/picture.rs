//! Cluster pictures: a TOML file that says what one host sees, read into a [`View`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use loden_core::config::cluster::parse_pools;
use loden_core::desired::Desired;
use loden_core::model::{Attachment, Block, Entry, IfName, Node, Record};
use loden_core::underlay::Underlay;
use loden_core::view::{Abilities, Changed, HostRules, Local, View};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// `fixtures/` at the workspace's root.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The picture's own keys; pools are in the form of the cluster's configuration, the rest as the datastore has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Picture {
    local: Host,
    underlay: Option<Underlay>,
    #[serde(default)]
    pool: Vec<Value>,
    #[serde(default)]
    node: Vec<Node>,
    #[serde(default)]
    block: Vec<Block>,
    #[serde(default)]
    attachment: Vec<Attachment>,
    /// What the kernel has asked for: device and address.
    #[serde(default)]
    asked: Vec<(IfName, IpAddr)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    node: String,
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    masquerade: Option<bool>,
    forward_rules: Option<bool>,
    blackhole_route: Option<bool>,
    tunnel_guard: Option<bool>,
    #[serde(default)]
    ipip: bool,
}

/// Reads a picture.
pub fn read(text: &str) -> View {
    let picture: Picture = from_toml(text);
    let mut view = View::new(Local {
        node: picture.local.node.parse().expect("node name"),
        uid: picture.local.uid.parse().expect("identity"),
        labels: picture.local.labels,
        bridge: "cni0".parse().expect("interface name"),
        found: BTreeMap::new(),
        rules: HostRules {
            masquerade: picture.local.masquerade,
            forward: picture.local.forward_rules.unwrap_or(true),
            blackhole: picture.local.blackhole_route.unwrap_or(false),
            guard: picture.local.tunnel_guard.unwrap_or(true),
        },
        underlay: picture.underlay,
        abilities: Abilities { ipip: picture.local.ipip },
    });
    let pools = parse_pools(serde_json::json!({ "pool": picture.pool })).expect("pools");
    let pools = pools.into_iter().map(Record::Pool);
    let nodes = picture.node.into_iter().map(Record::Node);
    let blocks = picture.block.into_iter().map(Record::Block);
    for (n, record) in pools.chain(nodes).chain(blocks).enumerate() {
        let revision = n as u64 + 1;
        view.put(&Entry { record, created: revision, revision });
    }
    for attachment in picture.attachment {
        view.set_attachment(attachment.key.clone(), Some(Arc::new(attachment)));
    }
    for (dev, addr) in picture.asked {
        // For one without an answer nothing is wanted.
        let _ = view.ask(dev, addr, 1);
    }
    view
}

/// TOML as the tree of values that configuration is parsed from.
pub fn from_toml<T: DeserializeOwned>(text: &str) -> T {
    let tree: toml::Table = toml::from_str(text).unwrap_or_else(|error| panic!("{error}"));
    let tree = serde_json::to_value(tree).expect("a tree");
    serde_json::from_value(tree).unwrap_or_else(|error| panic!("{error}"))
}

/// Everything thought over.
pub fn everything() -> Changed {
    Changed { all: true, ..Changed::default() }
}

/// What a view gives when all of it is thought over at once.
pub fn desired(view: &View) -> Desired {
    let mut desired = Desired::new();
    desired.update(view, &everything());
    desired
}

/// The problems as text, one a line.
pub fn problems(view: &View, desired: &Desired) -> String {
    view.problems().chain(desired.problems()).map(|problem| format!("{problem}\n")).collect()
}
