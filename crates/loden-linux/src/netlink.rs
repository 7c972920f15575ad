//! Netlink: attributes, messages, and a socket that sends them in batches.

pub mod attr;
pub mod socket;

pub use attr::{Attrs, Writer};
pub use socket::{Family as Protocol, Message, Socket};
