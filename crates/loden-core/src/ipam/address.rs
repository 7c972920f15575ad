//! Which address of a block: never used ones first (while few others wait), then the one that has been idle longest, none in
//! quarantine.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use super::{FIRST_INDEX, capacity, last_index};
use crate::model::Prefix;

/// Marks the form of the stored state.
const MAGIC: [u8; 4] = *b"LDB1";

/// From this many freed addresses on, the one that has waited longest goes before one that was never used: the state is read
/// and written at each ADD and DEL, and an IPv6 block would let it grow to half a megabyte over a node's life.
const LONG_QUEUE: usize = 1024;

/// What is known of a block's addresses: those below `fresh` have been used, and those of them that are free again wait in
/// the order in which they were freed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockState {
    block: Prefix,
    fresh: u32,
    freed: VecDeque<Freed>,
}

/// A freed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Freed {
    index: u32,
    /// Seconds since boot.
    at: u32,
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "block {block} has no free address: {in_use} of {capacity} are in use and {quarantined} were freed less than \
     {quarantine} s ago"
)]
pub struct Exhausted {
    /// Which block.
    pub block: Prefix,
    /// Addresses that pods have.
    pub in_use: u64,
    /// Addresses that are still in quarantine.
    pub quarantined: u64,
    /// Addresses that pods can have.
    pub capacity: u64,
    /// How long a freed address rests, in seconds.
    pub quarantine: u32,
}

impl BlockState {
    /// A block that nobody has used yet.
    #[must_use]
    pub fn new(block: Prefix) -> Self {
        Self { block, fresh: FIRST_INDEX, freed: VecDeque::new() }
    }

    /// The state that follows from the addresses in use: for when the stored one cannot be read. What is free below the
    /// highest is taken to have been freed now.
    #[must_use]
    pub fn rebuilt(block: Prefix, in_use: impl Iterator<Item = IpAddr>, now: u32) -> Self {
        let used: BTreeSet<u32> = in_use.filter_map(|addr| Self::new(block).index(addr)).collect();
        let fresh = used.last().map_or(FIRST_INDEX, |last| last.saturating_add(1).max(FIRST_INDEX));
        let freed = (FIRST_INDEX..fresh).filter(|index| !used.contains(index)).map(|index| Freed { index, at: now });
        Self { block, fresh, freed: freed.collect() }
    }

    /// Frees what counts as in use and is not among `in_use`; says whether there was such. Such an address has rested: it was
    /// never given to a pod, or its pod was detached before its process was killed.
    pub fn reclaim(&mut self, in_use: impl Iterator<Item = IpAddr>) -> bool {
        let mut known: BTreeSet<u32> = in_use.filter_map(|addr| self.index(addr)).collect();
        known.extend(self.freed.iter().map(|freed| freed.index));
        let lost: Vec<u32> = (FIRST_INDEX..self.fresh).filter(|index| !known.contains(index)).collect();
        lost.iter().for_each(|index| self.freed.push_front(Freed { index: *index, at: 0 }));
        !lost.is_empty()
    }

    /// Takes an address. `now` is in seconds since boot; a freed address rests for `quarantine` seconds.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn allocate(&mut self, now: u32, quarantine: u32) -> Result<IpAddr, Exhausted> {
        let has_rested = |freed: &Freed| freed.at > now || now - freed.at >= quarantine;
        let is_long = self.freed.len() >= LONG_QUEUE && self.freed.front().is_some_and(has_rested);
        let index = if u64::from(self.fresh) <= last_index(self.block) && !is_long {
            self.fresh += 1;
            self.fresh - 1
        } else if let Some(freed) = self.freed.front().copied().filter(has_rested) {
            self.freed.pop_front();
            freed.index
        } else {
            return Err(Exhausted {
                block: self.block,
                in_use: self.in_use(),
                quarantined: self.freed.len() as u64,
                capacity: capacity(self.block),
                quarantine,
            });
        };
        // The index lies inside the block, or it would not have been handed out.
        Ok(self.block.nth(index.into()).unwrap_or_else(|| self.block.network()))
    }

    /// Gives an address back. One that is not in use is left as it is.
    pub fn release(&mut self, addr: IpAddr, now: u32) {
        let index = self.index(addr);
        if let Some(index) = index.filter(|index| (FIRST_INDEX..self.fresh).contains(index))
            && !self.freed.iter().any(|freed| freed.index == index)
        {
            self.freed.push_back(Freed { index, at: now });
        }
    }

    /// Its distance from the network's own address, when it is one that pods can have.
    fn index(&self, addr: IpAddr) -> Option<u32> {
        let index = self.block.index_of(addr).and_then(|index| u32::try_from(index).ok())?;
        (index >= FIRST_INDEX && u64::from(index) <= last_index(self.block)).then_some(index)
    }

    /// Addresses in use.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        u64::from(self.fresh - FIRST_INDEX).saturating_sub(self.freed.len() as u64)
    }

    /// Whether an address could be taken now.
    #[must_use]
    pub fn has_free(&self, now: u32, quarantine: u32) -> bool {
        self.clone().allocate(now, quarantine).is_ok()
    }

    /// The stored form: a mark, the block's length, numbers in little-endian order, and a sum at the end.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.fresh.to_le_bytes());
        for freed in &self.freed {
            bytes.extend_from_slice(&freed.index.to_le_bytes());
            bytes.extend_from_slice(&freed.at.to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the stored form; `None` when it is not whole or not of this block.
    #[must_use]
    pub fn decode(block: Prefix, bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if u32::from_le_bytes(sum.try_into().ok()?) != checksum(body) || body.get(..4)? != MAGIC {
            return None;
        }
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
        let fresh = number(body.get(4..8)?)?;
        let freed = body.get(8..)?.chunks(8).map(|chunk| {
            let (index, at) = chunk.split_at_checked(4)?;
            Some(Freed { index: number(index)?, at: number(at)? })
        });
        let freed: VecDeque<Freed> = freed.collect::<Option<_>>()?;
        let is_sound = fresh >= FIRST_INDEX
            && u64::from(fresh) <= last_index(block) + 1
            && freed.iter().all(|freed| (FIRST_INDEX..fresh).contains(&freed.index));
        is_sound.then_some(Self { block, fresh, freed })
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn p(s: &str) -> Prefix {
        s.parse().expect(s)
    }

    #[test]
    fn the_longest_idle_address_comes_first_and_rests_before() {
        let mut state = BlockState::new(p("10.0.0.0/29"));
        let all: Vec<IpAddr> = (0..5).map(|_| state.allocate(0, 30).expect("room")).collect();
        assert_eq!(all[0], IpAddr::from([10, 0, 0, 2]));
        assert_eq!(all[4], IpAddr::from([10, 0, 0, 6]));
        let full = state.allocate(0, 30).expect_err("full");
        assert_eq!(
            full.to_string(),
            "block 10.0.0.0/29 has no free address: 5 of 5 are in use and 0 were freed less than 30 s ago"
        );
        state.release(all[3], 100);
        state.release(all[1], 110);
        state.release(all[1], 111);
        assert_eq!(state.in_use(), 3);
        assert!(state.allocate(120, 30).is_err());
        assert_eq!(state.allocate(130, 30), Ok(all[3]));
        assert!(state.allocate(130, 30).is_err());
        assert_eq!(state.allocate(140, 30), Ok(all[1]));
    }

    #[test]
    fn what_nobody_has_is_free_again_and_what_somebody_has_is_not() {
        let mut state = BlockState::new(p("10.0.0.0/29"));
        let all: Vec<IpAddr> = (0..5).map(|_| state.allocate(0, 30).expect("room")).collect();
        state.release(all[4], 100);
        assert!(!state.reclaim(all[..4].iter().copied()));
        // An address that no pod of this block can have is passed over.
        let elsewhere = ["10.0.0.1", "10.0.0.7", "10.9.9.9"].map(|ip| ip.parse().expect(ip));
        assert!(state.reclaim(all[1..4].iter().copied().chain(elsewhere)));
        assert_eq!(state.in_use(), 3);
        assert_eq!(state.allocate(101, 30), Ok(all[0]));
        assert!(state.allocate(101, 30).is_err());
        assert_eq!(state.allocate(130, 30), Ok(all[4]));
    }

    #[test]
    fn the_state_of_a_large_block_stays_small() {
        let mut state = BlockState::new(p("fd00::/64"));
        for now in 0..10_000 {
            let addr = state.allocate(now, 30).expect("room");
            state.release(addr, now);
        }
        assert!(state.encode().len() <= 12 + 8 * (LONG_QUEUE + 30), "{}", state.encode().len());
        let far: IpAddr = "fd00::ffff:ffff".parse().expect("an address");
        assert_eq!(BlockState::rebuilt(p("fd00::/64"), [far].into_iter(), 0), BlockState::new(p("fd00::/64")));
    }

    #[test]
    fn a_torn_file_is_seen() {
        let mut state = BlockState::new(p("fd00::/64"));
        let addr = state.allocate(0, 0).expect("room");
        state.release(addr, 7);
        let bytes = state.encode();
        assert_eq!(BlockState::decode(p("fd00::/64"), &bytes), Some(state));
        for cut in 0..bytes.len() {
            assert_eq!(BlockState::decode(p("fd00::/64"), &bytes[..cut]), None, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn nobody_gets_an_address_that_is_in_use(ops in prop::collection::vec((any::<bool>(), 0_usize..40), 0..200)) {
            let block = p("10.0.0.0/27");
            let mut state = BlockState::new(block);
            let mut held: Vec<IpAddr> = Vec::new();
            for (now, (take, which)) in (0_u32..).zip(ops) {
                if take {
                    match state.allocate(now, 5) {
                        Ok(addr) => {
                            prop_assert!(!held.contains(&addr) && block.contains(addr));
                            prop_assert!(addr != IpAddr::from([10, 0, 0, 0]) && addr != IpAddr::from([10, 0, 0, 1]));
                            prop_assert!(addr != IpAddr::from([10, 0, 0, 31]));
                            held.push(addr);
                        }
                        Err(error) => prop_assert_eq!(error.in_use, held.len() as u64),
                    }
                } else if !held.is_empty() {
                    state.release(held.remove(which % held.len()), now);
                }
                prop_assert_eq!(state.in_use(), held.len() as u64);
                prop_assert_eq!(BlockState::decode(block, &state.encode()), Some(state.clone()));
            }
            let rebuilt = BlockState::rebuilt(block, held.iter().copied(), 1000);
            prop_assert_eq!(rebuilt.in_use(), held.len() as u64);
        }
    }
}
