//! The tunnel in user space: packets of a TUN device to and from UDP as flannel has it, or IP in IP where the kernel has no device for it.
//!
//! It is fast because nearly nothing is done for each packet: the kernel hands over packets as large as it has them, and takes in as many
//! as it can cut apart itself. [`engine`] has the two directions, which know no system call; [`worker`] has the threads. What a packet
//! passes outward is [`packet`] → [`table`] → [`split`] → [`group`], inward [`guard`] → [`router`] → [`coalesce`].

pub mod coalesce;
pub mod counters;
pub mod engine;
pub mod group;
pub mod guard;
pub mod packet;
pub mod peers;
pub mod router;
pub mod split;
pub mod table;
pub mod vnet;

pub mod worker;

mod board;
mod ipip;
