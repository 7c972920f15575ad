//! Finds the external interface: what the host has, what the operator said, and the core's choice.

use std::net::IpAddr;

use loden_core::config::node::NodeConfig;
use loden_core::model::PerFamily;
use loden_core::underlay::{Underlay, Wish, choose};
use loden_core::view::Problem;

use crate::AgentError;

/// Looks for the external interface, again and again as the host changes.
#[derive(Debug)]
pub struct Finder {
    config: NodeConfig,
    regex: Option<regex_lite::Regex>,
}

impl Finder {
    /// A finder by the configuration.
    ///
    /// # Errors
    /// [`AgentError::ConfigFile`] when `iface_regex` is no regular expression.
    pub fn new(config: &NodeConfig, path: &std::path::Path) -> Result<Self, AgentError> {
        let regex = config.iface_regex.as_deref().map(regex_lite::Regex::new).transpose().map_err(|error| {
            AgentError::ConfigFile { path: path.to_owned(), cause: format!("`iface_regex`: {error}") }
        })?;
        Ok(Self { config: config.clone(), regex })
    }

    /// The external interface as it is now; `asked`: the addresses that this node's record asks for.
    ///
    /// # Errors
    /// A problem that says what is missing; the agent waits for it.
    pub fn find(&self, asked: PerFamily<IpAddr>) -> Result<Underlay, Problem> {
        let problem = |cause: String| Problem::new("the external interface", cause);
        let facts =
            loden_linux::underlay::facts(self.config.iface_can_reach).map_err(|error| problem(error.to_string()))?;
        let fits = |name: &str| self.regex.as_ref().is_some_and(|regex| regex.is_match(name));
        let wish = Wish {
            iface: &self.config.iface,
            iface_regex: self.regex.is_some().then_some(&fits as &dyn Fn(&str) -> bool),
            can_reach: self.config.iface_can_reach.is_some(),
            public: self.config.public,
            asked,
        };
        choose(&facts, &wish).map_err(|error| problem(error.to_string()))
    }
}
