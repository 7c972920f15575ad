//! The kernel, for real: netlink driver, nftables, namespaces, sysctls. The only crate of loden's that may use `unsafe`.
//!
//! [`LinuxKernel`] is the seam's real implementation: it observes what is loden's and applies plans. Below it are
//! [`netlink`] (sockets, batches, attributes), [`rt`] (links, addresses, routes, … as messages) and `nft`.

pub mod abilities;
pub mod agent;
pub mod bridge;
pub mod checksum;
pub mod clock;
pub mod datagram;
pub mod delegate;
pub mod error;
pub mod ethtool;
pub mod fault;
pub mod host_local;
pub mod ledger;
pub mod lock;
pub mod macvlan;
pub mod misses;
pub mod monitor;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod offload;
pub mod packet;
pub mod place;
pub mod pod;
pub mod pod_tables;
pub mod rt;
pub mod run_dir;
pub mod shape;
pub mod signals;
pub mod sockopt;
pub mod spawn;
pub mod sysctl;
pub mod tun;
pub mod underlay;
pub mod veth;
pub mod watch;

mod apply;
mod conntrack;
mod detect;
mod index;
mod observe;
mod tuning;

pub use error::LinuxError;
pub use observe::LinuxKernel;
