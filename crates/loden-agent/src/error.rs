//! What can go wrong with the agent itself. What goes wrong with its work is in its status, and it goes on.

use std::path::PathBuf;

use loden_core::config::ConfigError;
use loden_core::dialect::flannel::FlannelError;
use loden_store::StoreError;

/// Why the agent does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration file.
    #[error("configuration {}: {cause}", path.display())]
    ConfigFile {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A key of it.
    #[error("configuration {}: {source}", path.display())]
    Config {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// flanneld's flags.
    #[error("{0} (`flanneld --help` lists them)")]
    Flag(#[from] FlannelError),
    /// The node's name.
    #[error("the host's name {given:?} cannot be the node's name ({cause}): set `node` in the configuration")]
    NodeName {
        /// As the host has it.
        given: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Another agent serves this host.
    #[error("another lodend (process {holder}) serves {}: there can be only one on a host", run_dir.display())]
    SecondAgent {
        /// The run directory that it holds.
        run_dir: PathBuf,
        /// Its process.
        holder: String,
    },
    /// A file or directory of the agent's own.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's words.
        cause: String,
    },
    /// A listening socket.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: String,
        /// The system's words.
        cause: String,
    },
    /// The kernel's netlink sockets.
    #[error("cannot speak with the kernel: {0}")]
    Kernel(String),
    /// The datastore's address.
    #[error("the datastore: {0}")]
    Store(#[from] StoreError),
    /// The runtime for the services.
    #[error("cannot start {what}: {cause}")]
    Start {
        /// What.
        what: &'static str,
        /// The system's words.
        cause: String,
    },
}
