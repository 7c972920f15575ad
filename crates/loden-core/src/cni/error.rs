//! Errors as the specification has them.

use serde_json::{Value, json};

use super::Version;

/// The specification's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not spoken.
    IncompatibleVersion,
    /// A field that is not supported.
    UnsupportedField,
    /// No such container.
    UnknownContainer,
    /// A variable of the environment is missing or wrong.
    InvalidEnvironment,
    /// Reading or writing failed.
    Io,
    /// What was read cannot be understood.
    Decode,
    /// The network configuration is not valid.
    InvalidConfig,
    /// The network namespace is not usable.
    InvalidNetns,
    /// Try again later.
    TryAgain,
    /// STATUS: no ADD can be served.
    NotAvailable,
    /// STATUS: no ADD can be served, and pods that are there are limited.
    Limited,
    /// An address is not to be had: exhausted, or in use.
    NoAddress,
    /// CHECK found something wrong.
    CheckFailed,
    /// A port of the host that is asked for leads to another pod.
    PortTaken,
    /// Anything else.
    Internal,
    /// What a plugin said that this one called: an error of a delegate is the caller's.
    OfDelegate(u32),
}

impl Code {
    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::InvalidNetns => 8,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::Limited => 51,
            Self::NoAddress => 100,
            Self::CheckFailed => 101,
            Self::PortTaken => 102,
            Self::Internal => 999,
            Self::OfDelegate(number) => number,
        }
    }
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
            "code": self.code.number(),
            "msg": self.message,
            "details": self.details,
        })
    }
}
