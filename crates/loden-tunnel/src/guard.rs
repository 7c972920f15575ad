//! Who may send what through the tunnel: a packet is taken in from a known host, from an address behind that host, to one behind this one.
//! Else whoever reaches the port could speak for any pod.

use std::net::IpAddr;

use crate::counters::Cause;
use crate::packet::Packet;
use crate::peers::{Owner, Peers};
use crate::table::{Addr, Memory};

/// A thread's guard of one picture, with what it saw last.
#[derive(Debug, Default)]
pub struct Guard {
    sender: Option<(IpAddr, Option<u32>)>,
    sources: Memory<Owner>,
    destinations: Memory<Owner>,
}

impl Guard {
    /// The number of the peer that sends from an address.
    ///
    /// # Errors
    /// [`Cause::UnknownSender`].
    pub fn sender(&mut self, peers: &Peers, from: IpAddr) -> Result<u32, Cause> {
        let number = match self.sender {
            Some((known, number)) if known == from => number,
            _ => self.sender.insert((from, peers.sender(Addr::from(from)))).1,
        };
        number.ok_or(Cause::UnknownSender)
    }

    /// The number of the peer that a packet is from, which came from an address of that sender.
    ///
    /// # Errors
    /// [`Cause::ForeignSource`] or [`Cause::ForeignDestination`].
    pub fn admit(&mut self, peers: &Peers, sender: u32, from: IpAddr, packet: &Packet) -> Result<u32, Cause> {
        let number = match self.sources.get(peers.owners(), packet.src) {
            Some(Owner::Peer(number)) => number,
            _ => return Err(Cause::ForeignSource),
        };
        if number != sender && !peers.get(number).sends_from(Addr::from(from)) {
            return Err(Cause::ForeignSource);
        }
        if self.destinations.get(peers.owners(), packet.dst) != Some(Owner::Own) {
            return Err(Cause::ForeignDestination);
        }
        Ok(number)
    }
}
