//! What can go wrong with a lab.

use loden_core::config::ConfigError;
use loden_linux::LinuxError;

/// An error of a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The topology's file.
    #[error("topology: {0}")]
    Topology(String),
    /// A key of it.
    #[error("topology: {0}")]
    Config(#[from] ConfigError),
    /// The kernel.
    #[error("{what}: {source}")]
    Linux {
        /// What was done.
        what: String,
        /// The kernel's answer.
        source: LinuxError,
    },
    /// A file, directory or program.
    #[error("{what}: {cause}")]
    System {
        /// What was done.
        what: String,
        /// The system's words.
        cause: String,
    },
    /// There is no such lab, host or pod.
    #[error("there is no {what} {name:?}{}", if .known.is_empty() { String::new() } else { format!("; there are {}", .known.join(", ")) })]
    Unknown {
        /// `lab`, `host`, `pod`.
        what: &'static str,
        /// As asked for.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// An agent did not become ready.
    #[error("lodend on {host} is not ready after {seconds} s: {cause}; the end of its log:\n{log}")]
    NotReady {
        /// Which host.
        host: String,
        /// How long it was waited for.
        seconds: u64,
        /// What it says.
        cause: String,
        /// The last lines.
        log: String,
    },
    /// The plugin answered with an error.
    #[error("loden-cni {verb} on {host}: {message}")]
    Plugin {
        /// The verb.
        verb: &'static str,
        /// Which host.
        host: String,
        /// Its answer.
        message: String,
    },
    /// Taking down met several errors.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<LabError>),
}

impl LabError {
    /// An error of the system.
    pub fn system(what: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::System { what: what.into(), cause: cause.to_string() }
    }

    /// An error of the kernel.
    pub fn linux(what: impl Into<String>) -> impl FnOnce(LinuxError) -> Self {
        let what = what.into();
        move |source| Self::Linux { what, source }
    }
}
