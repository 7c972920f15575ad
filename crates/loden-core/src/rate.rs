//! Bounded rates, by a clock that the caller reads.

/// A bucket of tokens: so many a second, and so many at once after a quiet spell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    per_second: u64,
    most: u64,
    /// Thousandths of tokens.
    level: u64,
    filled_ms: u64,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(per_second: u32, most: u32, now_ms: u64) -> Self {
        let most = u64::from(most) * 1000;
        Self { per_second: per_second.into(), most, level: most, filled_ms: now_ms }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        // So many a second are so many thousandths a millisecond.
        let fresh = now_ms.saturating_sub(self.filled_ms).saturating_mul(self.per_second);
        self.level = self.level.saturating_add(fresh).min(self.most);
        self.filled_ms = self.filled_ms.max(now_ms);
        let has = self.level >= 1000;
        self.level -= if has { 1000 } else { 0 };
        has
    }
}

/// How many seconds a [`Meter`] looks back.
const SPAN: u64 = 10;

/// How often something happens, over the last ten seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meter {
    total: u64,
    /// The counts of the last seconds, each with its number.
    seconds: [(u64, u64); SPAN as usize],
}

impl Meter {
    /// It has happened so often.
    pub fn add(&mut self, count: u64, now_ms: u64) {
        self.total += count;
        let second = now_ms / 1000;
        let slot = &mut self.seconds[(second % SPAN) as usize];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 += count;
    }

    /// How often it has happened at all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How often a second it has happened lately, rounded up.
    #[must_use]
    pub fn per_second(&self, now_ms: u64) -> u64 {
        let now = now_ms / 1000;
        let recent = self.seconds.iter().filter(|(second, _)| *second + SPAN > now && *second <= now);
        recent.map(|(_, count)| count).sum::<u64>().div_ceil(SPAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_fill_at_once_and_then_so_many_a_second() {
        let mut bucket = Bucket::new(100, 5, 1000);
        let take = |bucket: &mut Bucket, now| (0..20).filter(|_| bucket.take(now)).count();
        assert_eq!(take(&mut bucket, 1000), 5);
        assert_eq!(take(&mut bucket, 1009), 0);
        assert_eq!(take(&mut bucket, 1010), 1);
        assert_eq!(take(&mut bucket, 1040), 3);
        assert_eq!(take(&mut bucket, 90_000), 5);
        // A clock that goes back gives nothing and takes nothing.
        assert_eq!(take(&mut bucket, 0), 0);
        assert_eq!(take(&mut bucket, 90_010), 1);
    }

    #[test]
    fn a_meter_forgets_after_ten_seconds() {
        let mut meter = Meter::default();
        meter.add(95, 5_000);
        meter.add(5, 6_500);
        assert_eq!((meter.total(), meter.per_second(7_000)), (100, 10));
        assert_eq!(meter.per_second(14_999), 10);
        assert_eq!(meter.per_second(15_000), 1);
        assert_eq!(meter.per_second(17_000), 0);
        meter.add(10, 25_000);
        assert_eq!((meter.total(), meter.per_second(25_000)), (110, 1));
    }
}
