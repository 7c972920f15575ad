//! Errors as the specification has them.

use serde_json::{Value, json};

use super::Version;

/// The specification's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's version is not spoken.
    IncompatibleVersion = 1,
    /// A field that is not supported.
    UnsupportedField = 2,
    /// No such container.
    UnknownContainer = 3,
    /// A variable of the environment is missing or wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// What was read cannot be understood.
    Decode = 6,
    /// The network configuration is not valid.
    InvalidConfig = 7,
    /// The network namespace is not usable.
    InvalidNetns = 8,
    /// Try again later.
    TryAgain = 11,
    /// STATUS: no ADD can be served.
    NotAvailable = 50,
    /// STATUS: no ADD can be served, and pods that are there are limited.
    Limited = 51,
    /// An address is not to be had: exhausted, or in use.
    NoAddress = 100,
    /// CHECK found something wrong.
    CheckFailed = 101,
    /// A port of the host that is asked for leads to another pod.
    PortTaken = 102,
    /// Anything else.
    Internal = 999,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", if .details.is_empty() { String::new() } else { format!(": {details}") })]
pub struct CniError {
    /// Its code.
    pub code: Code,
    /// What happened, in one sentence.
    pub message: String,
    /// What lies behind it, and what to do.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// With details.
    #[must_use]
    pub fn with(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The JSON that goes to standard output.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        json!({
            "cniVersion": version.as_str(),
            "code": self.code as u32,
            "msg": self.message,
            "details": self.details,
        })
    }
}
