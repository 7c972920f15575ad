//! Which address of a range: never used ones first (while few others wait), then the one that has been idle longest, none in
//! quarantine.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use super::Range;

/// Marks the form of the stored state.
const MAGIC: [u8; 4] = *b"LDB2";

/// From this many freed addresses on, the one that has waited longest goes before one that was never used: the state is read
/// and written at each ADD and DEL, and an IPv6 block would let it grow to half a megabyte over a node's life.
const LONG_QUEUE: usize = 1024;

/// What is known of a range's addresses: those below `fresh` have been used, and those of them that are free again wait in
/// the order in which they were freed. Above it only those `ahead` are in use: somebody asked for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeState {
    range: Range,
    fresh: u32,
    freed: VecDeque<Freed>,
    ahead: BTreeSet<u32>,
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
    "{} {range} has no free address: {in_use} of {capacity} are in use and {quarantined} were freed less than \
     {quarantine} s ago", if range.to_string().contains(' ') { "range" } else { "block" }
)]
pub struct Exhausted {
    /// Which range.
    pub range: Range,
    /// Addresses that pods have.
    pub in_use: u32,
    /// Addresses that are still in quarantine.
    pub quarantined: u32,
    /// Addresses that pods can have.
    pub capacity: u32,
    /// How long a freed address rests, in seconds.
    pub quarantine: u32,
}

/// How an address is chosen.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    /// Seconds since boot.
    pub now: u32,
    /// How long a freed address rests, in seconds.
    pub quarantine: u32,
    /// Addresses that are given to nobody unless asked for: the gateway, and what is reserved.
    pub avoid: &'a dyn Fn(IpAddr) -> bool,
}

impl RangeState {
    /// A range that nobody has used yet.
    #[must_use]
    pub fn new(range: Range) -> Self {
        Self { range, fresh: 0, freed: VecDeque::new(), ahead: BTreeSet::new() }
    }

    /// The state that follows from the addresses in use: for when the stored one cannot be read. What is free below the
    /// highest is taken to have been freed now.
    #[must_use]
    pub fn rebuilt(range: Range, in_use: impl Iterator<Item = IpAddr>, now: u32) -> Self {
        let used: BTreeSet<u32> = in_use.filter_map(|addr| range.index_of(addr)).collect();
        let fresh = used.last().map_or(0, |last| last + 1);
        // One far ahead was asked for: those before it were not all used.
        if used.len() < fresh as usize / 2 && used.last().is_some_and(|last| *last as usize > LONG_QUEUE) {
            return Self { ahead: used, ..Self::new(range) };
        }
        let freed = (0..fresh).filter(|index| !used.contains(index)).map(|index| Freed { index, at: now });
        Self { range, fresh, freed: freed.collect(), ahead: BTreeSet::new() }
    }

    /// Frees what counts as in use and is not among `in_use`; says whether there was such. Such an address has rested: it was
    /// never given to a pod, or its pod was detached before its process was killed.
    pub fn reclaim(&mut self, in_use: impl Iterator<Item = IpAddr>) -> bool {
        let used: BTreeSet<u32> = in_use.filter_map(|addr| self.range.index_of(addr)).collect();
        let before = self.ahead.len();
        self.ahead.retain(|index| used.contains(index));
        let waiting: BTreeSet<u32> = self.freed.iter().map(|freed| freed.index).collect();
        let is_lost = |index: &u32| !used.contains(index) && !waiting.contains(index);
        let lost: Vec<u32> = (0..self.fresh).filter(is_lost).collect();
        lost.iter().for_each(|index| self.freed.push_front(Freed { index: *index, at: 0 }));
        !lost.is_empty() || self.ahead.len() != before
    }

    /// Takes an address.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn allocate(&mut self, choice: Choice<'_>) -> Result<IpAddr, Exhausted> {
        let is_avoided = |index: u32| self.range.nth(index).is_none_or(choice.avoid);
        let rested = |freed: &Freed| {
            (freed.at > choice.now || choice.now - freed.at >= choice.quarantine) && !is_avoided(freed.index)
        };
        let first_rested = self.freed.iter().position(rested);
        let next_fresh = (self.fresh..self.range.size()).find(|n| !self.ahead.contains(n) && !is_avoided(*n));
        let index = match (next_fresh, first_rested) {
            (Some(index), place) if self.freed.len() < LONG_QUEUE || place.is_none() => {
                self.open_up_to(index);
                index
            }
            (_, Some(place)) => self.freed.remove(place).map_or(0, |freed| freed.index),
            (_, None) => return Err(self.exhausted(choice)),
        };
        // The index lies inside the range, or it would not have been handed out.
        Ok(self.range.nth(index).unwrap_or_else(|| self.range.subnet().network()))
    }

    /// Takes the address that is asked for, though it be in quarantine: whoever asks means this one. Says whether it was free;
    /// one outside the range is not.
    pub fn claim(&mut self, addr: IpAddr) -> bool {
        let Some(index) = self.range.index_of(addr) else { return false };
        if index >= self.fresh {
            return self.ahead.insert(index);
        }
        let place = self.freed.iter().position(|freed| freed.index == index);
        place.and_then(|place| self.freed.remove(place)).is_some()
    }

    /// Gives an address back. One that is not in use is left as it is.
    pub fn release(&mut self, addr: IpAddr, now: u32) {
        let Some(index) = self.range.index_of(addr) else { return };
        if index >= self.fresh {
            self.ahead.remove(&index);
        } else if !self.freed.iter().any(|freed| freed.index == index) {
            self.freed.push_back(Freed { index, at: now });
        }
    }

    /// Moves the border of what was used behind an index. What is passed over was never used and waits as if it had rested.
    fn open_up_to(&mut self, index: u32) {
        for passed in self.fresh..index {
            if !self.ahead.remove(&passed) {
                self.freed.push_back(Freed { index: passed, at: 0 });
            }
        }
        self.fresh = index + 1;
    }

    fn exhausted(&self, choice: Choice<'_>) -> Exhausted {
        let is_avoided = |index: u32| self.range.nth(index).is_none_or(choice.avoid);
        let avoided = (0..self.range.size()).filter(|index| is_avoided(*index));
        let free = self.freed.iter().filter(|freed| !is_avoided(freed.index));
        Exhausted {
            range: self.range,
            in_use: self.in_use(),
            quarantined: u32::try_from(free.count()).unwrap_or(u32::MAX),
            capacity: self.range.size() - u32::try_from(avoided.count()).unwrap_or(0),
            quarantine: choice.quarantine,
        }
    }

    /// Addresses in use.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        let count = (self.fresh as usize + self.ahead.len()).saturating_sub(self.freed.len());
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Whether nobody has an address, and none was freed within so many seconds.
    #[must_use]
    pub fn is_idle(&self, now: u32, for_s: u32) -> bool {
        let has_rested = |freed: &Freed| freed.at > now || now - freed.at >= for_s;
        self.in_use() == 0 && self.freed.iter().all(has_rested)
    }

    /// The stored form: a mark, the border, how many wait, those, those ahead, and a sum; numbers in little-endian order.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut put = |number: u32| bytes.extend_from_slice(&number.to_le_bytes());
        put(self.fresh);
        put(u32::try_from(self.freed.len()).unwrap_or(u32::MAX));
        for freed in &self.freed {
            put(freed.index);
            put(freed.at);
        }
        self.ahead.iter().for_each(|index| put(*index));
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the stored form; `None` when it is not whole or not of this range.
    #[must_use]
    pub fn decode(range: Range, bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if u32::from_le_bytes(sum.try_into().ok()?) != checksum(body) || body.get(..4)? != MAGIC {
            return None;
        }
        let numbers: Vec<u32> = body.get(4..)?.chunks(4).map(number).collect::<Option<_>>()?;
        let (&[fresh, waiting], rest) = numbers.split_first_chunk()?;
        let (freed, ahead) = rest.split_at_checked(usize::try_from(waiting).ok()?.checked_mul(2)?)?;
        let freed: VecDeque<Freed> = freed.chunks(2).map(|pair| Freed { index: pair[0], at: pair[1] }).collect();
        let ahead: BTreeSet<u32> = ahead.iter().copied().collect();
        let is_ahead = |index: &u32| (fresh..range.size()).contains(index);
        let is_sound = fresh <= range.size() && wait_once(&freed, fresh) && ahead.iter().all(is_ahead);
        is_sound.then_some(Self { range, fresh, freed, ahead })
    }
}

/// Whether all that wait were used, and each waits once: else it would be given twice.
fn wait_once(freed: &VecDeque<Freed>, fresh: u32) -> bool {
    let mut waits = vec![false; fresh as usize];
    freed.iter().all(|freed| waits.get_mut(freed.index as usize).is_some_and(|waits| !std::mem::replace(waits, true)))
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(s: &str) -> Range {
        s.parse().expect(s)
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().expect(s)
    }

    fn at(now: u32) -> Choice<'static> {
        Choice { now, quarantine: 30, avoid: &|_| false }
    }

    #[test]
    fn the_longest_idle_address_comes_first_and_rests_before() {
        let mut state = RangeState::new(block("10.0.0.0/29"));
        let all: Vec<IpAddr> = (0..5).map(|_| state.allocate(at(0)).expect("room")).collect();
        assert_eq!(all[0], IpAddr::from([10, 0, 0, 2]));
        assert_eq!(all[4], IpAddr::from([10, 0, 0, 6]));
        let full = state.allocate(at(0)).expect_err("full");
        assert_eq!(
            full.to_string(),
            "block 10.0.0.0/29 has no free address: 5 of 5 are in use and 0 were freed less than 30 s ago"
        );
        state.release(all[3], 100);
        state.release(all[1], 110);
        state.release(all[1], 111);
        assert_eq!(state.in_use(), 3);
        assert!(state.allocate(at(120)).is_err());
        assert_eq!(state.allocate(at(130)), Ok(all[3]));
        assert!(state.allocate(at(130)).is_err());
        assert_eq!(state.allocate(at(140)), Ok(all[1]));
    }

    #[test]
    fn what_nobody_has_is_free_again_and_what_somebody_has_is_not() {
        let mut state = RangeState::new(block("10.0.0.0/29"));
        let all: Vec<IpAddr> = (0..5).map(|_| state.allocate(at(0)).expect("room")).collect();
        state.release(all[4], 100);
        assert!(!state.reclaim(all[..4].iter().copied()));
        // An address that no pod of this block can have is passed over.
        let elsewhere = ["10.0.0.1", "10.0.0.7", "10.9.9.9"].map(ip);
        assert!(state.reclaim(all[1..4].iter().copied().chain(elsewhere)));
        assert_eq!(state.in_use(), 3);
        assert_eq!(state.allocate(at(101)), Ok(all[0]));
        assert!(state.allocate(at(101)).is_err());
        assert_eq!(state.allocate(at(130)), Ok(all[4]));
    }

    #[test]
    fn who_asks_for_one_gets_it_unless_it_is_in_use() {
        let mut state = RangeState::new(block("10.0.0.0/28"));
        assert!(state.claim(ip("10.0.0.4")));
        assert!(!state.claim(ip("10.0.0.4")), "it is taken");
        assert!(!state.claim(ip("10.0.0.1")), "the gateway's is none");
        let next: Vec<IpAddr> = (0..3).map(|_| state.allocate(at(0)).expect("room")).collect();
        assert_eq!(next, ["10.0.0.2", "10.0.0.3", "10.0.0.5"].map(ip));
        state.release(ip("10.0.0.4"), 10);
        assert!(state.claim(ip("10.0.0.4")), "its rest does not matter to who means it");
        assert_eq!(state.in_use(), 4);
    }

    #[test]
    fn a_clock_that_began_anew_holds_no_address_back_for_ever() {
        let mut state = RangeState::new(block("10.0.0.0/30"));
        let addr = state.allocate(at(1000)).expect("room");
        state.release(addr, 1000);
        assert!(state.allocate(at(1029)).is_err());
        // Seconds since boot never go back while a state lives; if they did, waiting for them to come by again would be no rest.
        assert_eq!(state.allocate(at(5)), Ok(addr));
    }

    #[test]
    fn what_is_avoided_is_given_only_to_who_asks() {
        let range: Range = "10.0.0.0/29 10.0.0.1-10.0.0.6".parse().expect("a range");
        let avoid = |addr: IpAddr| addr == ip("10.0.0.1") || addr == ip("10.0.0.4");
        let choice = Choice { now: 0, quarantine: 30, avoid: &avoid };
        let mut state = RangeState::new(range);
        let all: Vec<IpAddr> = std::iter::from_fn(|| state.allocate(choice).ok()).collect();
        assert_eq!(all, ["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"].map(ip));
        assert_eq!(
            state.allocate(choice).expect_err("full").to_string(),
            "range 10.0.0.0/29 10.0.0.1-10.0.0.6 has no free address: 4 of 4 are in use and 0 were freed less than 30 s ago"
        );
        assert!(state.claim(ip("10.0.0.4")));
    }

    #[test]
    fn the_state_of_a_large_block_stays_small() {
        let mut state = RangeState::new(block("fd00::/64"));
        for now in 0..10_000 {
            let addr = state.allocate(at(now)).expect("room");
            state.release(addr, now);
        }
        assert!(state.encode().len() <= 16 + 8 * (LONG_QUEUE + 30), "{}", state.encode().len());
        assert!(state.claim(ip("fd00::8000")));
        assert!(state.encode().len() <= 20 + 8 * (LONG_QUEUE + 30), "{}", state.encode().len());
        let rebuilt = RangeState::rebuilt(block("fd00::/64"), [ip("fd00::8000")].into_iter(), 0);
        assert!(rebuilt.encode().len() < 100 && rebuilt.in_use() == 1);
        let far = ip("fd00::ffff:ffff");
        assert_eq!(RangeState::rebuilt(block("fd00::/64"), [far].into_iter(), 0), RangeState::new(block("fd00::/64")));
    }

    #[test]
    fn it_is_idle_when_all_are_free_and_have_been_for_a_while() {
        let mut state = RangeState::new(block("10.0.0.0/28"));
        assert!(state.is_idle(5, 600));
        let addr = state.allocate(at(10)).expect("room");
        assert!(!state.is_idle(9999, 600));
        state.release(addr, 100);
        assert!(!state.is_idle(699, 600) && state.is_idle(700, 600));
    }

    #[test]
    fn a_torn_file_is_seen() {
        let range = block("fd00::/64");
        let mut state = RangeState::new(range);
        let addr = state.allocate(at(0)).expect("room");
        state.release(addr, 7);
        state.claim(ip("fd00::99"));
        let bytes = state.encode();
        assert_eq!(RangeState::decode(range, &bytes), Some(state));
        for cut in 0..bytes.len() {
            assert_eq!(RangeState::decode(range, &bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_state_that_would_give_an_address_twice_is_not_read() {
        let range = block("10.0.0.0/29");
        let freed = |index| Freed { index, at: 0 };
        let state = |freed: Vec<Freed>| RangeState { range, fresh: 3, freed: freed.into(), ahead: BTreeSet::new() };
        let is_read = |state: RangeState| RangeState::decode(range, &state.encode()).is_some();
        assert!(is_read(state(vec![freed(2), freed(0)])));
        assert!(!is_read(state(vec![freed(2), freed(2)])));
        assert!(!is_read(state(vec![freed(3)])));
        assert!(!is_read(RangeState { fresh: 7, ..state(vec![]) }));
    }

    proptest! {
        #[test]
        fn nobody_gets_an_address_that_is_in_use(ops in prop::collection::vec((0_u8..4, 0_usize..40), 0..200)) {
            let range = block("10.0.0.0/27");
            let mut state = RangeState::new(range);
            let mut held: Vec<IpAddr> = Vec::new();
            let reserved = ip("10.0.0.9");
            for (now, (op, which)) in (0_u32..).zip(ops) {
                match op {
                    0 | 1 => match state.allocate(Choice { now, quarantine: 5, avoid: &|addr| addr == reserved }) {
                        Ok(addr) => {
                            prop_assert!(!held.contains(&addr) && range.index_of(addr).is_some() && addr != reserved);
                            held.push(addr);
                        }
                        Err(error) => prop_assert_eq!(error.in_use as usize, held.len()),
                    },
                    2 => {
                        let addr = IpAddr::from([10, 0, 0, u8::try_from(which).expect("small")]);
                        let is_free = range.index_of(addr).is_some() && !held.contains(&addr);
                        prop_assert_eq!(state.claim(addr), is_free);
                        if is_free {
                            held.push(addr);
                        }
                    }
                    _ if !held.is_empty() => state.release(held.remove(which % held.len()), now),
                    _ => {}
                }
                prop_assert_eq!(state.in_use() as usize, held.len());
                prop_assert_eq!(RangeState::decode(range, &state.encode()), Some(state.clone()));
                prop_assert!(!state.clone().reclaim(held.iter().copied()));
            }
            let rebuilt = RangeState::rebuilt(range, held.iter().copied(), 1000);
            prop_assert_eq!(rebuilt.in_use() as usize, held.len());
        }
    }
}
