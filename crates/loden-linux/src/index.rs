//! Names and numbers: links by name and by index, nexthop objects by what they lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use loden_core::model::IfName;

/// Nexthop numbers of loden's begin here (76 in the top byte), out of the way of routing daemons that count from 1.
const FIRST_NEXTHOP: u32 = 76 << 24;

/// What the driver remembers between calls; the kernel is the truth and observations renew it.
#[derive(Debug, Default)]
pub struct Index {
    by_name: BTreeMap<IfName, u32>,
    by_number: BTreeMap<u32, IfName>,
    /// Links whose nexthops are on-link by decree: tunnels for many remote ends.
    tunnels: BTreeSet<IfName>,
    nexthops: BTreeMap<(IfName, IpAddr), u32>,
    nexthops_by_number: BTreeMap<u32, (IfName, IpAddr)>,
    next_nexthop: u32,
}

impl Index {
    /// Forgets the links.
    pub fn clear_links(&mut self) {
        self.by_name.clear();
        self.by_number.clear();
        self.tunnels.clear();
    }

    /// Notes a link.
    pub fn put_link(&mut self, name: IfName, number: u32, is_tunnel: bool) {
        if let Some(former) = self.by_number.insert(number, name).filter(|former| *former != name) {
            self.by_name.remove(&former);
            self.tunnels.remove(&former);
        }
        if let Some(former) = self.by_name.insert(name, number).filter(|former| *former != number) {
            self.by_number.remove(&former);
        }
        if is_tunnel {
            self.tunnels.insert(name);
        } else {
            self.tunnels.remove(&name);
        }
    }

    /// Forgets a link, and the nexthops that went with it.
    pub fn remove_link(&mut self, name: IfName) {
        let numbers = &mut self.nexthops_by_number;
        self.nexthops.retain(|(dev, _), number| {
            if *dev == name {
                numbers.remove(number);
            }
            *dev != name
        });
        if let Some(number) = self.by_name.remove(&name) {
            self.by_number.remove(&number);
        }
        self.tunnels.remove(&name);
    }

    /// A link's index.
    #[must_use]
    pub fn number(&self, name: IfName) -> Option<u32> {
        self.by_name.get(&name).copied()
    }

    /// The link with an index.
    #[must_use]
    pub fn name(&self, number: u32) -> Option<IfName> {
        self.by_number.get(&number).copied()
    }

    /// Whether nexthops on the link need not lie in a prefix of it.
    #[must_use]
    pub fn is_tunnel(&self, name: IfName) -> bool {
        self.tunnels.contains(&name)
    }

    /// Forgets the nexthops.
    pub fn clear_nexthops(&mut self) {
        self.nexthops.clear();
        self.nexthops_by_number.clear();
        self.next_nexthop = FIRST_NEXTHOP;
    }

    /// Notes that a number is in use, by whomever.
    pub fn saw_nexthop_number(&mut self, number: u32) {
        if number >= self.next_nexthop {
            self.next_nexthop = number.wrapping_add(1).max(FIRST_NEXTHOP);
        }
    }

    /// Notes one of loden's.
    pub fn put_nexthop(&mut self, dev: IfName, gateway: IpAddr, number: u32) {
        self.nexthops.insert((dev, gateway), number);
        self.nexthops_by_number.insert(number, (dev, gateway));
        self.saw_nexthop_number(number);
    }

    /// Forgets one of loden's.
    pub fn remove_nexthop(&mut self, dev: IfName, gateway: IpAddr) {
        if let Some(number) = self.nexthops.remove(&(dev, gateway)) {
            self.nexthops_by_number.remove(&number);
        }
    }

    /// The number of the nexthop object.
    #[must_use]
    pub fn nexthop(&self, dev: IfName, gateway: IpAddr) -> Option<u32> {
        self.nexthops.get(&(dev, gateway)).copied()
    }

    /// What a nexthop object of loden's leads to.
    #[must_use]
    pub fn nexthop_by_number(&self, number: u32) -> Option<(IfName, IpAddr)> {
        self.nexthops_by_number.get(&number).copied()
    }

    /// A number that nobody uses, as far as is known.
    pub fn fresh_nexthop(&mut self) -> u32 {
        let number = self.next_nexthop.max(FIRST_NEXTHOP);
        self.next_nexthop = number.wrapping_add(1);
        number
    }
}
