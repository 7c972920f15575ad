//! Configuration: parsed from a tree of values (TOML and JSON alike), defaulted, checked, and never half understood.
//!
//! Every error names the key, the value and what was meant. Files are read elsewhere.

pub mod cluster;
pub mod fields;
pub mod node;
pub(crate) mod segment;
pub mod store;

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A key that nobody knows.
    #[error("unknown key `{key}`{}", hint(.nearest.as_deref(), .known))]
    UnknownKey {
        /// With its path.
        key: String,
        /// The nearest known one, if it is near enough to have been meant.
        nearest: Option<String>,
        /// All that are known in its place.
        known: Vec<&'static str>,
    },
    /// A key that must be there is not.
    #[error("`{key}` is missing: {meant}")]
    Missing {
        /// With its path.
        key: String,
        /// What it should say.
        meant: String,
    },
    /// A value that does not do.
    #[error("`{key}` is {value}: {meant}")]
    Invalid {
        /// With its path.
        key: String,
        /// As given.
        value: String,
        /// What is wrong and what was meant.
        meant: String,
    },
    /// Two pools that cannot both be.
    #[error("pool {pool} clashes with pool {with}: {why}")]
    Clash {
        /// The one that is refused.
        pool: String,
        /// The one that stays.
        with: String,
        /// In what.
        why: String,
    },
}

fn hint(nearest: Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(key) => format!(": did you mean `{key}`?"),
        None => format!("; known here are `{}`", known.join("`, `")),
    }
}
