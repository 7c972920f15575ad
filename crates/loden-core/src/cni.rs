//! The Container Network Interface, specification 0.1.0 to 1.1.0: what comes in, what goes out, and the errors between.

mod config;
mod environment;
mod error;
mod node_file;
mod result;
mod version;

pub use config::{AttachKind, NetConf};
pub use environment::{Environment, Verb};
pub use error::{CniError, Code};
pub use node_file::{NodeBlock, NodeFile};
pub use result::{Interface, IpConfig, Route, Success};
pub use version::Version;
