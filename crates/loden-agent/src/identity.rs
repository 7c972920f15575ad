//! Who this node is: its name, and an identity that was made once and survives reboots.

use std::fs;
use std::path::Path;
use std::time::Duration;

use loden_core::config::node::NodeConfig;
use loden_core::model::{NodeName, NodeUid};
use loden_linux::run_dir;
use loden_store::StoreError;

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

/// The name of the node that a pod of Kubernetes is on, by Kubernetes' word, however long that takes: a host's name need not be its
/// node's. Once known it is kept in the state directory, for a start while nobody answers.
///
/// # Errors
/// [`AgentError::Store`] for a datastore that is not Kubernetes'.
pub async fn node_of_pod(config: &NodeConfig, namespace: &str, pod: &str) -> Result<NodeName, AgentError> {
    let kept = Path::new(&config.state_dir).join("node-name");
    let mut pause = Duration::from_secs(1);
    loop {
        let error = match loden_store::node_of_pod(&config.store, namespace, pod).await {
            Ok(name) => {
                if let Err(error) = run_dir::write_atomically(&kept, name.as_str().as_bytes()) {
                    tracing::warn!(%error, "the node's name cannot be kept: a start while Kubernetes is away will wait for it");
                }
                return Ok(name);
            }
            Err(error @ StoreError::Address(_)) => return Err(error.into()),
            Err(error) => error,
        };
        let known = fs::read_to_string(&kept).ok().and_then(|name| name.trim().parse().ok());
        if let Some(name) = known {
            tracing::warn!(%error, node = %name, "which node this is cannot be asked; it is taken to be the same as before");
            return Ok(name);
        }
        tracing::warn!(%error, "which node pod {namespace}/{pod} is on cannot be asked; it is tried again, and NODE_NAME would say it");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
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
