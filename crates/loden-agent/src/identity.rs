//! Who this node is: its name, and an identity that was made once and survives reboots.

use std::fs;
use std::path::Path;

use loden_core::config::node::NodeConfig;
use loden_core::model::{NodeName, NodeUid};
use loden_linux::run_dir;

use crate::AgentError;

/// The node's name: as configured, else the host's.
///
/// # Errors
/// [`AgentError::NodeName`] when the host's name cannot be one.
pub fn node_name(config: &NodeConfig) -> Result<NodeName, AgentError> {
    if let Some(name) = &config.node {
        return Ok(name.clone());
    }
    let host = rustix::system::uname();
    let given = host.nodename().to_string_lossy().to_lowercase();
    NodeName::new(&given).map_err(|error| AgentError::NodeName { given, cause: error.to_string() })
}

/// The node's identity, kept in the state directory; made at the first start.
///
/// # Errors
/// [`AgentError::File`]: a file that cannot be read is not replaced, since blocks hang on what it says.
pub fn node_uid(state_dir: &Path) -> Result<NodeUid, AgentError> {
    let path = state_dir.join("node-uid");
    let fail = |cause: String| AgentError::File { path: path.clone(), cause };
    match fs::read_to_string(&path) {
        Ok(text) => NodeUid::new(text.trim())
            .map_err(|error| fail(format!("{error}; restore it, or remove it to be a new node"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            run_dir::make_dir(state_dir).map_err(|error| fail(error.to_string()))?;
            let made = random_uid().map_err(&fail)?;
            run_dir::write_atomically(&path, made.as_str().as_bytes()).map_err(|error| fail(error.to_string()))?;
            Ok(made)
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

/// A mark of this start of the agent.
///
/// # Errors
/// [`AgentError::File`] without the kernel's source of randomness.
pub fn instance() -> Result<String, AgentError> {
    random_uid().map(|uid| uid.as_str().to_owned()).map_err(|cause| AgentError::File { path: RANDOM.into(), cause })
}

const RANDOM: &str = "/proc/sys/kernel/random/uuid";

fn random_uid() -> Result<NodeUid, String> {
    let text = fs::read_to_string(RANDOM).map_err(|error| error.to_string())?;
    NodeUid::new(text.trim()).map_err(|error| error.to_string())
}
