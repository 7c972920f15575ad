//! flannel's `subnet.env`: written when the plugin is told of the node's blocks, read once at the start, removed never.
//!
//! Who reads it attaches pods by what it says, so it is written only when it says all: a node that is to have both families and has a
//! block of one of them yet has none for its pods.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use loden_core::cni::NodeFile;
use loden_core::dialect::flannel::SubnetEnv;
use loden_core::ipam;
use loden_core::model::{Family, Pool, Prefix};
use loden_core::view::{Problem, View};
use loden_linux::run_dir::{make_dir, write_for_all};

/// The subject of what is wrong with it.
pub const SUBJECT: &str = "subnet.env";

/// The file.
#[derive(Debug, Clone)]
pub struct SubnetFile {
    path: PathBuf,
}

impl SubnetFile {
    /// The file at this path.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self { path: path.into() }
    }

    /// The blocks that a former agent, flanneld or this one, had on this host by the file, and what is wrong with it.
    #[must_use]
    pub fn former(&self) -> (Vec<Prefix>, Option<Problem>) {
        let odd = |cause: String| {
            let text = format!("{}: {cause}; what this node had before is not known by it", self.path.display());
            (Vec::new(), Some(Problem::new(SUBJECT, text)))
        };
        match fs::read_to_string(&self.path) {
            Ok(text) => match text.parse::<SubnetEnv>() {
                Ok(env) => (env.subnets, None),
                Err(cause) => odd(cause),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => odd(error.to_string()),
        }
    }

    /// Writes what the plugin is told, unless the file says it already.
    ///
    /// # Errors
    /// What is missing, or keeps it from being written.
    pub fn write(&self, view: &View, node: &NodeFile) -> Result<(), Problem> {
        let text = content(view, node, &self.former().0)?.to_string();
        if fs::read(&self.path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        let dir = self.path.parent().map_or(Ok(()), make_dir);
        let written = dir.and_then(|()| write_for_all(&self.path, text.as_bytes()));
        written.map_err(|error| Problem::new(SUBJECT, error.to_string()))
    }
}

/// What the file is to say: of each family a block, the one that it says already as long as that is this node's, else the first; and the
/// networks, that of the block first.
///
/// # Errors
/// The family that has no block yet.
fn content(view: &View, node: &NodeFile, said: &[Prefix]) -> Result<SubnetEnv, Problem> {
    // The pods of other bridges are none of flannel's.
    let is_on_bridge = |pool: &Pool| view.bridge_of_pool(pool) == view.local.bridge;
    let is_for_this_node = |pool: &&Pool| is_on_bridge(pool) && ipam::is_selected(pool, &view.local.labels);
    let families: BTreeSet<Family> =
        view.pools.values().filter(is_for_this_node).map(|pool| pool.cidr.family()).collect();
    let (mut networks, mut subnets) = (Vec::new(), Vec::new());
    for family in families {
        let of_family = || node.blocks_of(&[]).filter(|block| block.cidr.family() == family);
        let Some(first) = of_family().find(|block| said.contains(&block.cidr)).or_else(|| of_family().next()) else {
            return Err(Problem::new(SUBJECT, format!("it is not written: this node has no {family} block yet")));
        };
        subnets.push(first.cidr);
        let of_family = view.pools.values().filter(|pool| is_on_bridge(pool) && pool.cidr.family() == family);
        let (mut own, others): (Vec<&Pool>, Vec<&Pool>) = of_family.partition(|pool| pool.name == first.pool);
        own.extend(others);
        networks.extend(own.into_iter().map(|pool| pool.cidr));
    }
    // Whether what leaves the pools is masqueraded is said pool by pool, or by this host: either way the plugin has nothing to do for it.
    let masquerades = view.local.rules.masquerade.unwrap_or(true);
    Ok(SubnetEnv { networks, subnets, mtu: node.mtu_pod, masquerades })
}
