//! Who the peers are and what lies behind each: the picture that both directions look at, exchanged as a whole.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use loden_core::model::{Family, NodeName, PerFamily, Prefix};

use crate::group;
use crate::table::{Addr, Table};

/// Packets at once for a peer whose receive buffer may be small: flannel's proxy has 212 KiB, and loses what comes in larger bursts.
const MOST_TO_STRANGERS: u16 = 16;

/// This host, as far as the tunnel is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The tunnel device's addresses: what answers to senders come from.
    pub addresses: PerFamily<IpAddr>,
    /// What lies behind this host: packets for anything else are not taken in.
    pub blocks: Vec<Prefix>,
    /// The largest packet that fits into the tunnel, in bytes.
    pub mtu: u32,
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: NodeName,
    /// Its address on the underlay.
    pub at: IpAddr,
    /// The port that it listens on; of no account to IPIP.
    pub port: u16,
    /// What lies behind it.
    pub blocks: Vec<Prefix>,
    /// Whether it is known to run loden, and takes in bursts.
    pub is_loden: bool,
}

/// To whom an address belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// To this host.
    Own,
    /// To the peer of a number.
    Peer(u32),
}

/// The picture.
#[derive(Debug)]
pub struct Peers {
    own: Own,
    list: Vec<Peer>,
    owners: Table<Owner>,
    senders: HashMap<Addr, u32>,
}

impl Peers {
    /// Makes it. Peers are numbered in the order in which they are given; of two at one address the first one is known by it.
    #[must_use]
    pub fn build(own: Own, peers: Vec<Peer>) -> Self {
        let of_peers =
            peers.iter().zip(0..).flat_map(|(peer, n)| peer.blocks.iter().map(move |block| (*block, Owner::Peer(n))));
        let of_own = own.blocks.iter().copied().chain(own.addresses.iter().map(|(_, addr)| Prefix::host(addr)));
        // The own ones last: they count where a peer says the same.
        let owners = Table::build(of_peers.chain(of_own.map(|block| (block, Owner::Own))));
        let mut senders = HashMap::new();
        for (peer, n) in peers.iter().zip(0..) {
            senders.entry(Addr::from(peer.at)).or_insert(n);
        }
        Self { own, list: peers, owners, senders }
    }

    /// This host.
    #[must_use]
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// All of them, in the order of their numbers.
    #[must_use]
    pub fn list(&self) -> &[Peer] {
        &self.list
    }

    /// To whom addresses belong.
    #[must_use]
    pub fn owners(&self) -> &Table<Owner> {
        &self.owners
    }

    /// The number of the peer that sends from an address of the underlay.
    #[must_use]
    pub fn sender(&self, at: Addr) -> Option<u32> {
        self.senders.get(&at).copied()
    }

    /// The tunnel's own address in a family.
    #[must_use]
    pub fn own_address(&self, family: Family) -> Option<Addr> {
        self.own.addresses.get(family).map(Addr::from)
    }
}

impl Peer {
    /// How many packets it takes at once.
    #[must_use]
    pub fn most_packets(&self) -> u16 {
        if self.is_loden { group::MOST_PACKETS } else { MOST_TO_STRANGERS }
    }

    /// Where its packets are sent to.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.at, self.port)
    }
}
