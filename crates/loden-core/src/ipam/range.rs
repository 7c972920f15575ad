//! Which addresses may be given: a range of a subnet, and who shares its state.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::{Family, Prefix, PrefixError, is_plain_name};

/// Addresses of a range that are counted: an IPv6 subnet has more than any node has pods.
const WINDOW: u128 = 65_536;

/// Addresses of a subnet, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    subnet: Prefix,
    first: IpAddr,
    last: IpAddr,
}

/// Why a range does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// It leads out of its subnet, or backwards.
    #[error("{first} to {last} is no range of addresses that pods can have in {subnet}")]
    Outside {
        /// The subnet.
        subnet: Prefix,
        /// Its beginning as given.
        first: IpAddr,
        /// Its end as given.
        last: IpAddr,
    },
    /// The subnet has too few addresses.
    #[error("{0} has no address for a pod besides its own, its gateway's and its broadcast address")]
    TooSmall(Prefix),
    /// No prefix, address or name.
    #[error("{0:?} names no range")]
    Text(String),
}

impl Range {
    /// The addresses of a node's block: all but the network's own, the gateway's (the first) and in IPv4 the broadcast
    /// address.
    ///
    /// # Errors
    /// [`RangeError::TooSmall`].
    pub fn of_block(block: Prefix) -> Result<Self, RangeError> {
        let first = block.nth(2).ok_or(RangeError::TooSmall(block))?;
        Self::new(block, Some(first), None)
    }

    /// A part of a subnet; without a beginning from the first address behind the network's own, without an end to the last
    /// one, in IPv4 that before the broadcast address.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn new(subnet: Prefix, first: Option<IpAddr>, last: Option<IpAddr>) -> Result<Self, RangeError> {
        let host_bits = subnet.family().bits() - subnet.len();
        let too_small = || RangeError::TooSmall(subnet);
        let lowest = subnet.nth(1).filter(|_| host_bits >= 2).ok_or_else(too_small)?;
        let highest = match subnet.family() {
            Family::V4 => subnet.nth((1_u128 << host_bits) - 2).ok_or_else(too_small)?,
            Family::V6 => subnet.last(),
        };
        let (first, last) = (first.unwrap_or(lowest), last.unwrap_or(highest));
        let is_inside = |addr: IpAddr| subnet.contains(addr) && (lowest..=highest).contains(&addr);
        if is_inside(first) && is_inside(last) && first <= last {
            Ok(Self { subnet, first, last })
        } else {
            Err(RangeError::Outside { subnet, first, last })
        }
    }

    /// The subnet that it is a part of.
    #[must_use]
    pub fn subnet(self) -> Prefix {
        self.subnet
    }

    /// Whether an address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    /// How many addresses of it are counted, at most 65,536.
    #[must_use]
    pub fn size(self) -> u32 {
        let of = |addr| self.subnet.index_of(addr).unwrap_or(0);
        let size = (of(self.last) - of(self.first) + 1).min(WINDOW);
        u32::try_from(size).unwrap_or(u32::MAX)
    }

    /// The address at a distance from its beginning.
    #[must_use]
    pub fn nth(self, index: u32) -> Option<IpAddr> {
        let first = self.subnet.index_of(self.first)?;
        self.subnet.nth(first + u128::from(index)).filter(|_| index < self.size())
    }

    /// An address's distance from its beginning, when it is one of those that are counted.
    #[must_use]
    pub fn index_of(self, addr: IpAddr) -> Option<u32> {
        let index = self.subnet.index_of(addr)?.checked_sub(self.subnet.index_of(self.first)?)?;
        u32::try_from(index).ok().filter(|index| *index < self.size())
    }
}

/// `10.1.0.0/24` for the whole block of a node, else `10.1.0.0/24 10.1.0.9-10.1.0.20`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.subnet)?;
        if Self::of_block(self.subnet) == Ok(*self) { Ok(()) } else { write!(f, " {}-{}", self.first, self.last) }
    }
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(s: &str) -> Result<Self, RangeError> {
        let wrong = || RangeError::Text(s.to_owned());
        let prefix = |text: &str| text.parse().map_err(|_: PrefixError| wrong());
        let Some((subnet, ends)) = s.split_once(' ') else { return Self::of_block(prefix(s)?) };
        let (first, last) = ends.split_once('-').ok_or_else(wrong)?;
        let addr = |text: &str| text.parse::<IpAddr>().map(Some).map_err(|_| wrong());
        Self::new(prefix(subnet)?, addr(first)?, addr(last)?)
    }
}

/// Whose range it is: addresses of a node's block are shared by all networks of the node, those of a range that a network's
/// configuration names are that network's alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Supply {
    /// The network; `None`: the node's.
    pub network: Option<String>,
    /// The range.
    pub range: Range,
}

impl Supply {
    /// The name of the file of its state: `10.1.0.0_24`, `net@10.1.0.0_24+10.1.0.9-10.1.0.20`.
    #[must_use]
    pub fn file_stem(&self) -> String {
        self.to_string().replace('/', "_").replace(' ', "+")
    }

    /// The supply that a file's name names.
    #[must_use]
    pub fn from_file_stem(stem: &str) -> Option<Self> {
        // A network's name may hold '_', a range's never does but once.
        let (network, range) = stem.split_once('@').map_or((None, stem), |(network, range)| (Some(network), range));
        let text = range.replace('_', "/").replace('+', " ");
        network.map_or(text.clone(), |network| format!("{network}@{text}")).parse().ok()
    }
}

impl fmt::Display for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.network {
            Some(network) => write!(f, "{network}@{}", self.range),
            None => self.range.fmt(f),
        }
    }
}

impl FromStr for Supply {
    type Err = RangeError;

    fn from_str(s: &str) -> Result<Self, RangeError> {
        let (network, range) = s.split_once('@').map_or((None, s), |(network, range)| (Some(network), range));
        if network.is_some_and(|network| !is_plain_name(network)) {
            return Err(RangeError::Text(s.to_owned()));
        }
        Ok(Self { network: network.map(str::to_owned), range: range.parse()? })
    }
}

impl TryFrom<String> for Supply {
    type Error = RangeError;

    fn try_from(s: String) -> Result<Self, RangeError> {
        s.parse()
    }
}

impl From<Supply> for String {
    fn from(supply: Supply) -> Self {
        supply.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> Prefix {
        s.parse().expect(s)
    }

    fn ip(s: &str) -> Option<IpAddr> {
        Some(s.parse().expect(s))
    }

    #[test]
    fn sizes() {
        for (block, expected) in
            [("10.0.0.0/24", 253), ("10.0.0.0/30", 1), ("10.0.0.0/26", 61), ("fd00::/64", 65_536), ("fd00::/122", 62)]
        {
            assert_eq!(Range::of_block(p(block)).map(Range::size), Ok(expected), "{block}");
        }
        assert_eq!(Range::of_block(p("10.0.0.0/31")), Err(RangeError::TooSmall(p("10.0.0.0/31"))));
        assert_eq!(Range::new(p("10.0.0.0/24"), None, None).map(Range::size), Ok(254));
        assert_eq!(Range::new(p("fd00::/64"), ip("fd00::f0"), ip("fd00::ff")).map(Range::size), Ok(16));
    }

    #[test]
    fn ends_lie_inside_and_in_order() {
        let subnet = p("10.0.0.0/24");
        for (first, last) in [
            ("10.0.0.9", "10.0.0.8"),
            ("10.0.0.0", "10.0.0.8"),
            ("10.0.0.1", "10.0.0.255"),
            ("10.0.1.1", "10.0.1.2"),
            ("fd00::1", "fd00::2"),
        ] {
            assert!(Range::new(subnet, ip(first), ip(last)).is_err(), "{first} {last}");
        }
        let range = Range::new(subnet, ip("10.0.0.9"), ip("10.0.0.11")).expect("a range");
        assert_eq!((range.nth(0), range.nth(2), range.nth(3)), (ip("10.0.0.9"), ip("10.0.0.11"), None));
        assert_eq!(range.index_of("10.0.0.8".parse().expect("ip")), None);
    }

    #[test]
    fn a_supply_and_its_file_are_one() {
        for text in
            ["10.1.0.0/24", "net_1@10.1.0.0/24", "net@10.1.0.0/24 10.1.0.1-10.1.0.20", "n@fd00::/64 fd00::1-fd00::ff"]
        {
            let supply: Supply = text.parse().expect(text);
            assert_eq!(supply.to_string(), text);
            let stem = supply.file_stem();
            assert!(!stem.contains(['/', ' ']), "{stem}");
            assert_eq!(Supply::from_file_stem(&stem), Some(supply), "{stem}");
        }
        for text in ["", "@10.1.0.0/24", "../x@10.1.0.0/24", "n@10.1.0.0/24 10.1.0.9", "n@10.1.0.0/33"] {
            assert!(text.parse::<Supply>().is_err(), "{text}");
        }
    }
}
