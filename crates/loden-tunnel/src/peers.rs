//! Who the peers are and what lies behind each: the picture that both directions look at, exchanged as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use loden_core::kernel::tunnel;
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
    pub blocks: BTreeSet<Prefix>,
    /// The largest packet that fits into the tunnel, in bytes.
    pub mtu: u32,
}

impl Own {
    /// As the tunnel is wanted. Its device has the first address of the first block of each family.
    #[must_use]
    pub fn of(tunnel: &tunnel::Tunnel) -> Self {
        let mut addresses = PerFamily::default();
        for block in tunnel.own.iter().rev() {
            addresses.set(block.family(), block.network());
        }
        Self { addresses, blocks: tunnel.own.clone(), mtu: tunnel.mtu }
    }
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: NodeName,
    from: Vec<Addr>,
    to: Option<SocketAddr>,
    most_packets: u16,
}

impl Peer {
    /// Whether it sends from an address of the underlay.
    #[must_use]
    pub fn sends_from(&self, at: Addr) -> bool {
        self.from.contains(&at)
    }

    /// Where packets go to that are for what lies behind it, if they go by this tunnel.
    #[must_use]
    pub fn to(&self) -> Option<SocketAddr> {
        self.to
    }

    /// How many packets it takes at once.
    #[must_use]
    pub fn most_packets(&self) -> u16 {
        self.most_packets
    }
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
    /// Makes it of blocks and what is known of the host that owns each. A host has one number, as long as the same is known of it for all
    /// its blocks.
    #[must_use]
    pub fn build(own: Own, blocks: &BTreeMap<Prefix, tunnel::Peer>) -> Self {
        let mut numbers: BTreeMap<_, u32> = BTreeMap::new();
        let (mut list, mut senders, mut owners) = (Vec::new(), HashMap::new(), Vec::new());
        for (block, known) in blocks {
            let to = known.to.map(|to| (to.addr, to.port, to.bursts));
            let number = *numbers.entry((&known.node, &known.from, to)).or_insert_with(|| {
                let peer = peer(known);
                let number = list.len() as u32;
                // Of two hosts at one address the first one is known by it; what they may send is looked up by block.
                peer.from.iter().for_each(|at| _ = senders.entry(*at).or_insert(number));
                list.push(peer);
                number
            });
            owners.push((*block, Owner::Peer(number)));
        }
        // The own ones last: they count where a peer says the same.
        let addresses = own.addresses.iter().map(|(_, addr)| Prefix::host(addr));
        owners.extend(own.blocks.iter().copied().chain(addresses).map(|block| (block, Owner::Own)));
        Self { owners: Table::build(owners), own, list, senders }
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

    /// The peer of a number that this picture has given.
    #[must_use]
    pub fn get(&self, number: u32) -> &Peer {
        &self.list[number as usize]
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

fn peer(known: &tunnel::Peer) -> Peer {
    Peer {
        node: known.node.clone(),
        from: known.from.iter().map(|at| Addr::from(*at)).collect(),
        to: known.to.map(|to| SocketAddr::new(to.addr, to.port)),
        most_packets: if known.to.is_some_and(|to| to.bursts) { group::MOST_PACKETS } else { MOST_TO_STRANGERS },
    }
}
