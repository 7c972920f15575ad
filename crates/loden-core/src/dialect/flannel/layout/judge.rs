//! What pairs come to: which record stands under a key, and what is wrong at a place.

use super::read::{Lease, record_key};
use super::{CONFIG, Layout};
use crate::dialect::flannel::{Attributes, FlannelError, node_uid};
use crate::model::{Block, Entry, Family, Key, Node, NodeName, Pool, Prefix, Record};

/// Whether a record is there.
pub(super) enum Judged {
    /// It is.
    Is(Box<Entry>),
    /// It is not.
    IsNot,
    /// It cannot be said while what it hangs on cannot be read.
    Undecided,
}

impl From<Option<Entry>> for Judged {
    fn from(entry: Option<Entry>) -> Self {
        entry.map_or(Self::IsNot, |entry| Self::Is(Box::new(entry)))
    }
}

impl Layout {
    /// Which record stands under a key.
    pub(super) fn judge(&self, key: &Key) -> Judged {
        match (self.own.get(key), key) {
            (Some(Err(_)), _) => Judged::Undecided,
            (own, Key::Block(cidr)) => match &self.conf {
                Err(_) => Judged::Undecided,
                Ok(_) => self.block(*cidr, own.and_then(|own| own.as_ref().ok())).into(),
            },
            (Some(Ok(entry)), _) => Judged::Is(Box::new(entry.clone())),
            (None, Key::Lease(_)) => Judged::IsNot,
            (None, Key::Pool(_) | Key::Node(_)) if self.conf.is_err() => Judged::Undecided,
            (None, Key::Pool(_)) => {
                let pool = self.pools().iter().find(|pool| Key::Pool(pool.name.clone()) == *key);
                let pair = self.pairs.get(CONFIG);
                let entry = pool.zip(pair).map(|(pool, pair)| Entry {
                    record: Record::Pool(pool.clone()),
                    created: pair.created,
                    revision: pair.revision,
                });
                entry.into()
            }
            (None, Key::Node(name)) => self.node(name).into(),
        }
    }

    /// A block: as loden's own record has it, else as the oldest lease has it.
    fn block(&self, cidr: Prefix, own: Option<&Entry>) -> Option<Entry> {
        let pool = self.pool_of(cidr).ok()?;
        if let Some(entry) = own {
            return matches!(&entry.record, Record::Block(block) if block.pool == pool.name).then(|| entry.clone());
        }
        let (lease, pair) = self.holder(cidr).and_then(|place| Some((self.lease(place)?, self.pairs.get(place)?)))?;
        let block = Block { cidr, pool: pool.name.clone(), owner: lease.node.clone()?, owner_uid: node_uid() };
        Some(Entry { record: Record::Block(block), created: pair.created, revision: pair.revision })
    }

    /// A node of flannel's: as its newest lease has it, of those by which it has a block.
    fn node(&self, name: &NodeName) -> Option<Entry> {
        let holds = |place: &&String| {
            let subnets = self.lease(place).into_iter().flat_map(|lease| &lease.subnets);
            let holder = |subnet: &Prefix| self.pool_of(*subnet).ok().and_then(|_| self.holder(*subnet));
            let node_of = |holder: &str| self.lease(holder).and_then(|lease| lease.node.as_ref());
            subnets.filter_map(holder).any(|holder| node_of(holder) == Some(name))
        };
        let places = self.by_node.get(name)?.iter().filter(holds);
        let pair = places.filter_map(|place| self.pairs.get(place)).max_by_key(|pair| (pair.revision, &pair.key))?;
        let node = self.lease(&pair.key)?.attributes.as_ref().ok()?.node(name.clone(), self.pools());
        Some(Entry { record: Record::Node(node), created: pair.created, revision: pair.revision })
    }

    /// The lease by which a subnet is a node of flannel's: the oldest.
    fn holder(&self, subnet: Prefix) -> Option<&str> {
        if self.own.contains_key(&Key::Block(subnet)) {
            return None;
        }
        let is_claim = |lease: &Lease| lease.node.is_some() && !self.is_twin(lease);
        let claims = self.leases_of(subnet).filter(|place| self.lease(place).is_some_and(is_claim));
        claims.min_by_key(|place| (self.pairs.get(*place).map(|pair| pair.created), *place))
    }

    /// Whether a lease is there for flannel's eyes only.
    fn is_twin(&self, lease: &Lease) -> bool {
        lease.subnets.iter().any(|subnet| self.own.contains_key(&Key::Block(*subnet)))
    }

    fn lease(&self, place: &str) -> Option<&Lease> {
        self.leases.get(place)?.as_ref().ok()
    }

    /// The pool that a block can be of.
    fn pool_of(&self, cidr: Prefix) -> Result<&Pool, String> {
        let Some(pool) = self.pools().iter().find(|pool| pool.cidr.covers(cidr)) else {
            let networks: Vec<_> = self.pools().iter().map(|pool| pool.cidr.to_string()).collect();
            return Err(format!("{cidr} is not in the network {}", networks.join(" or ")));
        };
        if cidr.len() != pool.block_len {
            return Err(format!("{cidr} is no block of {}, whose blocks have /{}", pool.cidr, pool.block_len));
        }
        Ok(pool)
    }

    /// What is wrong at a place.
    pub(super) fn flaw(&self, place: &str) -> Option<String> {
        if place == CONFIG {
            return self.conf.as_ref().err().cloned();
        }
        if !self.pairs.contains_key(place) {
            return None;
        }
        match self.leases.get(place) {
            Some(Err(cause)) => Some(cause.clone()),
            Some(Ok(lease)) => self.flaw_of_lease(place, lease).err(),
            None => self.odd.get(place).cloned().or_else(|| self.flaw_of_own(place).err()),
        }
    }

    fn flaw_of_own(&self, place: &str) -> Result<(), String> {
        let Some(Ok(key)) = record_key(place) else { return Ok(()) };
        let Some(read) = self.own.get(&key) else { return Ok(()) };
        let entry = read.as_ref().map_err(String::clone)?;
        match &entry.record {
            Record::Block(block) if self.conf.is_ok() => {
                let pool = self.pool_of(block.cidr)?;
                match block.pool == pool.name {
                    true => Ok(()),
                    false => Err(format!("it is said to be of the pool {}, but is of {}", block.pool, pool.name)),
                }
            }
            _ => Ok(()),
        }
    }

    fn flaw_of_lease(&self, place: &str, lease: &Lease) -> Result<(), String> {
        let attributes = lease.attributes.as_ref().map_err(String::clone)?;
        if self.is_twin(lease) {
            return lease.subnets.iter().try_for_each(|subnet| self.check_twin(place, attributes, *subnet));
        }
        let Some(node) = &lease.node else { return Err(FlannelError::NoPublicIp.to_string()) };
        if self.conf.is_err() {
            return Ok(());
        }
        for subnet in &lease.subnets {
            let pool = self.pool_of(*subnet)?;
            if let Some(holder) = self.holder(*subnet)
                && let Some(other) = self.lease(holder).and_then(|lease| lease.node.as_ref())
                && other != node
            {
                return Err(format!(
                    "{subnet} is {other}'s already, by the older {holder}: {node} and {other} serve the same addresses; \
                     remove one of the two keys and start its node's flanneld again"
                ));
            }
            attributes.receives(&pool.backend).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// A twin that says another host than loden's record, and is newer, was written by a flanneld.
    fn check_twin(&self, place: &str, attributes: &Attributes, subnet: Prefix) -> Result<(), String> {
        let own = |key: &Key| self.own.get(key).and_then(|read| read.as_ref().ok());
        let Some(Entry { record: Record::Block(block), revision: of_block, .. }) = own(&Key::Block(subnet)) else {
            return Ok(());
        };
        let Some(Entry { record: Record::Node(node), revision: of_node, .. }) = own(&Key::Node(block.owner.clone()))
        else {
            return Ok(());
        };
        let written = self.pairs.get(place).map_or(0, |pair| pair.revision);
        let (theirs, ours) = (attributes.public.v4, reached_at(node));
        if theirs == ours || written <= *of_block.max(of_node) {
            return Ok(());
        }
        let name =
            |addr: Option<std::net::IpAddr>| addr.map_or_else(|| "no address".to_owned(), |addr| addr.to_string());
        Err(format!(
            "{subnet} is the block of node {} at {}, but a flanneld at {} has taken it: two hosts serve the same addresses; \
             stop one of them",
            node.name,
            name(ours),
            name(theirs),
        ))
    }
}

fn reached_at(node: &Node) -> Option<std::net::IpAddr> {
    node.reached_at(Family::V4)
}
