//! Longest-prefix match: a table that is made once, looked into by every packet, and exchanged as a whole.
//!
//! The prefixes are cut into ranges that do not overlap, each with what the longest prefix around it has. A look-up is a search in a
//! sorted list, and its answer is the whole range, so that a thread may keep the last one: most packets lie in it again.

use std::net::IpAddr;

use loden_core::model::{Family, Prefix};

/// An address as a number: that of IPv4 in the low 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Its bits.
    pub bits: u128,
}

impl Addr {
    /// Whether it stands for many hosts: multicast, or all of a link.
    #[must_use]
    pub fn is_multicast(self) -> bool {
        match self.family {
            Family::V4 => self.bits >> 28 == 0xe || self.bits == 0xffff_ffff,
            Family::V6 => self.bits >> 120 == 0xff,
        }
    }

    /// Whether it means something on one link alone (169.254.0.0/16, fe80::/10).
    #[must_use]
    pub fn is_link_local(self) -> bool {
        match self.family {
            Family::V4 => self.bits >> 16 == 0xa9fe,
            Family::V6 => self.bits >> 118 == 0x3fa,
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        let bits = match addr {
            IpAddr::V4(addr) => u128::from(u32::from(addr)),
            IpAddr::V6(addr) => u128::from(addr),
        };
        Self { family: Family::of(addr), bits }
    }
}

/// Which value each address has.
#[derive(Debug, Clone, Default)]
pub struct Table<T> {
    v4: Vec<Range<T>>,
    v6: Vec<Range<T>>,
}

/// Addresses from one to another, both of them in, that have one value or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<T> {
    first: u128,
    last: u128,
    /// What they have.
    pub value: Option<T>,
}

impl<T> Range<T> {
    /// Whether it holds the address, of its own family.
    #[must_use]
    pub fn contains(&self, bits: u128) -> bool {
        self.first <= bits && bits <= self.last
    }
}

impl<T: Copy> Table<T> {
    /// Makes it. Of two values for one prefix, the later one counts.
    #[must_use]
    pub fn build(entries: impl IntoIterator<Item = (Prefix, T)>) -> Self {
        let mut entries: Vec<(Prefix, T)> = entries.into_iter().collect();
        // By family, then first address, then length: whatever holds a prefix stands before it.
        entries.sort_by_key(|(prefix, _)| (prefix.family(), Addr::from(prefix.network()).bits, prefix.len()));
        let of = |family| {
            let of_family = entries.iter().filter(|(prefix, _)| prefix.family() == family);
            ranges(
                family,
                of_family
                    .map(|(prefix, value)| (Addr::from(prefix.network()).bits, Addr::from(prefix.last()).bits, *value)),
            )
        };
        Self { v4: of(Family::V4), v6: of(Family::V6) }
    }

    /// The range that an address lies in.
    #[must_use]
    pub fn range(&self, addr: Addr) -> Range<T> {
        let ranges = if addr.family == Family::V4 { &self.v4 } else { &self.v6 };
        let behind = ranges.partition_point(|range| range.first <= addr.bits);
        let found = behind.checked_sub(1).and_then(|n| ranges.get(n)).copied();
        found.unwrap_or(Range { first: 0, last: max(addr.family), value: None })
    }

    /// The value of the longest prefix around an address.
    #[must_use]
    pub fn get(&self, addr: Addr) -> Option<T> {
        self.range(addr).value
    }
}

/// A thread's memory of the last range in each family.
#[derive(Debug, Clone)]
pub struct Memory<T> {
    v4: Option<Range<T>>,
    v6: Option<Range<T>>,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T: Copy> Memory<T> {
    /// As [`Table::get`] of the same table as ever: forget it all (`default`) with another one.
    pub fn get(&mut self, table: &Table<T>, addr: Addr) -> Option<T> {
        let known = if addr.family == Family::V4 { &mut self.v4 } else { &mut self.v6 };
        match known {
            Some(range) if range.contains(addr.bits) => range.value,
            _ => known.insert(table.range(addr)).value,
        }
    }
}

/// Cuts sorted, nested ranges into ones that do not overlap and leave no gap.
fn ranges<T: Copy>(family: Family, entries: impl Iterator<Item = (u128, u128, T)>) -> Vec<Range<T>> {
    let mut cut: Vec<Range<T>> = vec![Range { first: 0, last: max(family), value: None }];
    // Those that the present address lies in, the longest last: (last address, value).
    let mut around: Vec<(u128, Option<T>)> = vec![(max(family), None)];
    let mut begin = |first: u128, value: Option<T>| {
        if let Some(before) = cut.last_mut() {
            if before.first == first {
                before.value = value;
                return;
            }
            before.last = first - 1;
        }
        cut.push(Range { first, last: max(family), value });
    };
    // Where one ends, the one around it goes on.
    let end = |around: &mut Vec<(u128, Option<T>)>, upto: Option<u128>, begin: &mut dyn FnMut(u128, Option<T>)| {
        while let Some(&(last, _)) = around.last()
            && around.len() > 1
            && upto.is_none_or(|first| last < first)
        {
            around.pop();
            if let (Some(next), Some(&(outer_last, value))) = (last.checked_add(1), around.last())
                && next <= outer_last
            {
                begin(next, value);
            }
        }
    };
    for (first, last, value) in entries {
        end(&mut around, Some(first), &mut begin);
        begin(first, Some(value));
        around.push((last, Some(value)));
    }
    end(&mut around, None, &mut begin);
    cut
}

fn max(family: Family) -> u128 {
    u128::MAX >> (128 - u32::from(family.bits()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(entries: &[(&str, u32)]) -> Table<u32> {
        Table::build(entries.iter().map(|(prefix, value)| (prefix.parse().expect("prefix"), *value)))
    }

    fn at(addr: &str) -> Addr {
        addr.parse::<IpAddr>().expect("address").into()
    }

    #[test]
    fn the_longest_prefix_counts() {
        let table = table(&[
            ("10.244.0.0/16", 1),
            ("10.244.1.0/24", 2),
            ("10.244.1.7/32", 3),
            ("10.244.2.0/24", 4),
            ("255.255.255.255/32", 5),
            ("fd00:244::/32", 6),
            ("fd00:244:1::/48", 7),
        ]);
        let of = |addr| table.get(at(addr));
        assert_eq!(of("10.243.255.255"), None);
        assert_eq!(of("10.244.0.0"), Some(1));
        assert_eq!(of("10.244.1.6"), Some(2));
        assert_eq!(of("10.244.1.7"), Some(3));
        assert_eq!(of("10.244.1.8"), Some(2));
        assert_eq!(of("10.244.2.0"), Some(4));
        assert_eq!(of("10.244.3.0"), Some(1));
        assert_eq!(of("10.245.0.0"), None);
        assert_eq!(of("255.255.255.255"), Some(5));
        assert_eq!(of("fd00:244:1:2::3"), Some(7));
        assert_eq!(of("fd00:244:2::"), Some(6));
        assert_eq!(of("fd01::"), None);
        assert_eq!(of("::"), None);
        assert_eq!(Table::<u32>::default().get(at("1.2.3.4")), None);
        assert_eq!(self::table(&[("0.0.0.0/0", 1), ("::/0", 2)]).get(at("ffff::")), Some(2));
    }

    proptest! {
        #[test]
        fn as_if_every_prefix_were_looked_at(
            entries in proptest::collection::vec((any::<bool>(), any::<u8>(), 0_u8..=16), 0..20),
            asked in proptest::collection::vec((any::<bool>(), any::<u16>()), 40),
        ) {
            let address = |is_v6: bool, bits: u16| -> IpAddr {
                let [a, b] = bits.to_be_bytes();
                if is_v6 { [u16::from_be_bytes([a, b]), 0, 0, 0, 0, 0, 0, 0].into() } else { [a, b, 0, 0].into() }
            };
            let entries: Vec<(Prefix, usize)> = entries.iter().enumerate()
                .map(|(n, (is_v6, bits, len))| (Prefix::holding(address(*is_v6, u16::from(*bits) << 6), *len), n)).collect();
            let table = Table::build(entries.iter().copied());
            let mut memory = Memory::default();
            for (is_v6, bits) in asked {
                let addr = address(is_v6, bits);
                let around = entries.iter().filter(|(prefix, _)| prefix.contains(addr));
                let wanted = around.max_by_key(|(prefix, n)| (prefix.len(), *n)).map(|(_, n)| *n);
                prop_assert_eq!(table.get(addr.into()), wanted);
                prop_assert_eq!(memory.get(&table, addr.into()), wanted);
            }
        }
    }
}
