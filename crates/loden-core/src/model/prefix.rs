//! Address families and prefixes without host bits.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// IPv4 or IPv6. Code that handles both takes this as a value: there is one code path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        if self == Self::V4 { Self::V6 } else { Self::V4 }
    }

    /// Bits in an address: 32 or 128.
    #[must_use]
    pub fn bits(self) -> u8 {
        if self == Self::V4 { 32 } else { 128 }
    }

    /// The smallest MTU that the family's links must carry: 68 (RFC 791) or 1280 (RFC 8200 section 5), in bytes.
    #[must_use]
    pub fn min_mtu(self) -> u32 {
        if self == Self::V4 { 68 } else { 1280 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}

/// An address prefix whose host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(IpNet);

/// A text that is not a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not of the form address/length.
    #[error("{0:?} is not a prefix such as 10.244.0.0/16 or fd00:244::/56")]
    Syntax(String),
    /// Bits are set behind the prefix length.
    #[error("{given} has bits set behind its length: {meant} was probably meant")]
    HostBits {
        /// What was given.
        given: String,
        /// The same with host bits cleared.
        meant: String,
    },
}

impl Prefix {
    /// The prefix of `len` bits that holds `addr`; `len` is cut to the family's bits.
    #[must_use]
    pub fn holding(addr: IpAddr, len: u8) -> Self {
        let len = len.min(Family::of(addr).bits());
        Self(IpNet::new_assert(addr, len).trunc())
    }

    /// The prefix of the one address: /32 or /128.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self::holding(addr, 128)
    }

    /// The first address: the network's own.
    #[must_use]
    pub fn network(self) -> IpAddr {
        self.0.network()
    }

    /// The last address (IPv4: the broadcast address).
    #[must_use]
    pub fn last(self) -> IpAddr {
        self.0.broadcast()
    }

    /// The prefix length in bits.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a prefix length is no container's length")]
    pub fn len(self) -> u8 {
        self.0.prefix_len()
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub fn family(self) -> Family {
        Family::of(self.0.addr())
    }

    /// Whether the address lies inside.
    #[must_use]
    pub fn contains(self, addr: IpAddr) -> bool {
        self.0.contains(&addr)
    }

    /// Whether `other` lies wholly inside (or is the same).
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The address `n` behind the network's own, or `None` when that is outside.
    #[must_use]
    pub fn nth(self, n: u128) -> Option<IpAddr> {
        let addr = match self.network() {
            IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from(u32::from(a).checked_add(u32::try_from(n).ok()?)?)),
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a).checked_add(n)?)),
        };
        self.contains(addr).then_some(addr)
    }

    /// How far `addr` lies behind the network's own address, or `None` when it is outside.
    #[must_use]
    pub fn index_of(self, addr: IpAddr) -> Option<u128> {
        if !self.contains(addr) {
            return None;
        }
        match (self.network(), addr) {
            (IpAddr::V4(n), IpAddr::V4(a)) => Some(u128::from(u32::from(a) - u32::from(n))),
            (IpAddr::V6(n), IpAddr::V6(a)) => Some(u128::from(a) - u128::from(n)),
            _ => None,
        }
    }

    /// The `n`-th prefix of length `len` inside, or `None` when there are not so many.
    #[must_use]
    pub fn nth_subnet(self, len: u8, n: u128) -> Option<Self> {
        let shift = u32::from(self.family().bits().checked_sub(len)?);
        if len < self.len() || n >= self.count_subnets(len) {
            return None;
        }
        self.nth(n.checked_shl(shift).unwrap_or(0)).map(|addr| Self::holding(addr, len))
    }

    /// How many prefixes of length `len` fit inside (saturating).
    #[must_use]
    pub fn count_subnets(self, len: u8) -> u128 {
        let extra = u32::from(len.saturating_sub(self.len()));
        1_u128.checked_shl(extra).unwrap_or(u128::MAX)
    }

    /// As an [`IpNet`], for arithmetic that this type does not have.
    #[must_use]
    pub fn ipnet(self) -> IpNet {
        self.0
    }
}

/// One of `prefixes` that shares addresses with `prefix`, if there is one: by look-ups, however many there are.
#[must_use]
pub fn overlapping<T>(prefixes: &BTreeMap<Prefix, T>, prefix: Prefix) -> Option<(&Prefix, &T)> {
    // In the order of prefixes, those inside stand right behind it.
    let inside = prefixes.range(prefix..).next().filter(|(other, _)| prefix.covers(**other));
    let around = || (0..prefix.len()).find_map(|len| prefixes.get_key_value(&Prefix::holding(prefix.network(), len)));
    inside.or_else(around)
}

impl FromStr for Prefix {
    type Err = PrefixError;
    fn from_str(s: &str) -> Result<Self, PrefixError> {
        let net: IpNet = s.parse().map_err(|_| PrefixError::Syntax(s.to_owned()))?;
        let trunc = net.trunc();
        if trunc == net {
            Ok(Self(net))
        } else {
            Err(PrefixError::HostBits { given: net.to_string(), meant: trunc.to_string() })
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;
    fn try_from(s: String) -> Result<Self, PrefixError> {
        s.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn p(s: &str) -> Prefix {
        s.parse().expect(s)
    }

    #[test]
    fn host_bits_are_refused_with_what_was_meant() {
        let error = "10.244.1.0/16".parse::<Prefix>().expect_err("host bits");
        assert_eq!(error.to_string(), "10.244.1.0/16 has bits set behind its length: 10.244.0.0/16 was probably meant");
        assert!("10.244.0.0".parse::<Prefix>().is_err());
        assert!("10.244.0.0/33".parse::<Prefix>().is_err());
    }

    #[test]
    fn arithmetic_stays_inside() {
        assert_eq!(p("10.0.0.0/24").nth(1), Some("10.0.0.1".parse().expect("ip")));
        assert_eq!(p("10.0.0.0/24").nth(256), None);
        assert_eq!(p("255.255.255.0/24").nth(256), None);
        assert_eq!(p("fd00::/64").index_of("fd00::1:0".parse().expect("ip")), Some(0x1_0000));
        assert_eq!(p("10.0.0.0/16").nth_subnet(24, 3), Some(p("10.0.3.0/24")));
        assert_eq!(p("10.0.0.0/16").nth_subnet(24, 256), None);
        assert_eq!(p("10.0.0.0/24").nth_subnet(16, 0), None);
        assert_eq!(p("::/0").count_subnets(128), u128::MAX);
        assert_eq!(p("10.0.0.0/16").count_subnets(24), 256);
        assert!(p("10.0.0.0/16").overlaps(p("10.0.1.0/24")));
        assert!(!p("10.0.0.0/16").overlaps(p("fd00::/16")));
    }

    proptest! {
        #[test]
        fn an_overlap_is_found_if_there_is_one(
            list in proptest::collection::vec((any::<u8>(), 20_u8..=32), 0..12), addr in any::<u8>(), len in 20_u8..=32,
        ) {
            let prefix = |n: u8, len| Prefix::holding([10, 0, n >> 4, n << 4].into(), len);
            let map: BTreeMap<_, _> = list.iter().map(|(n, len)| (prefix(*n, *len), ())).collect();
            let wanted = prefix(addr, len);
            let found = overlapping(&map, wanted);
            prop_assert_eq!(found.is_some(), map.keys().any(|other| other.overlaps(wanted)));
            prop_assert!(found.is_none_or(|(other, ())| other.overlaps(wanted)));
        }
    }
}
