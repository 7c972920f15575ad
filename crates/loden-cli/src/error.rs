//! What the command line tells of a failure.

use loden_core::config::ConfigError;
use loden_lab::LabError;
use loden_linux::ledger::SourcesError;
use loden_store::StoreError;

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No agent.
    #[error(
        "{cause}\n  lodend does not answer on {socket}: is it running on this host? (`--run-dir` says where its socket is)"
    )]
    NoAgent {
        /// Where it was looked for.
        socket: String,
        /// The system's words.
        cause: String,
    },
    /// A file.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// A configuration.
    #[error("{path}: {source}")]
    Config {
        /// Which file.
        path: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// The datastore.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A list of senders.
    #[error(transparent)]
    Sources(#[from] SourcesError),
    /// A lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Output.
    #[error("output: {0}")]
    Output(String),
}
