//! The route family of netlink: each kernel object as messages. A file a sort; encode and parse stand side by side.

pub mod address;
pub mod link;
pub mod neighbour;
pub mod nexthop;
pub mod qdisc;
pub mod route;
pub mod vlan;

use loden_core::model::Family;

/// `AF_INET` or `AF_INET6`.
#[must_use]
pub fn af(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}
