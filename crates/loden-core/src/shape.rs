//! A bound on a pod's rate as the kernel's token bucket (`tbf`, net/sched/sch_tbf.c) takes it.
//!
//! Tokens come in at the rate and at most a burst of them is kept; what finds none waits in a queue. The burst decides how exact
//! the rate is on a busy host and how many packets go in one piece; the queue how long a packet may wait. Both follow from the rate,
//! since a fixed one is seconds of waiting at a low rate and starves a high one.

use crate::model::Shape;

/// For how long tokens are kept, in microseconds: a host that is late by less loses nothing of the rate.
const BURST_US: u64 = 10_000;
/// How long a packet may wait, in microseconds: about a round trip on a continent, which one stream needs to fill the rate.
const QUEUE_US: u64 = 25_000;
/// At a low rate the burst is so many whole frames at least.
const BURST_FRAMES: u64 = 4;
/// And the queue so many: with fewer a stream loses more than it sends when it begins (ten segments, RFC 6928).
const QUEUE_FRAMES: u64 = 16;
/// The largest packet that the kernel hands over in one piece, in bytes of all the frames that it will be (`GSO_MAX_SIZE`,
/// linux/netdevice.h). The bucket cuts up only what is larger than the burst; what is smaller and does not fit into the queue is dropped
/// each time, and a stream that sends nothing else stands still.
const LARGEST_PACKET: u64 = 576 * 1024;
/// An Ethernet header, which the kernel counts in, in bytes.
const HEADER: u64 = 14;
/// Bits of a nanosecond count that a tick leaves out (`PSCHED_SHIFT`, net/pkt_sched.h).
const TICK_SHIFT: u32 = 6;
/// A queue is to notice a lasting wait from this on, in microseconds (`CODEL_TARGET`, RFC 8289 section 4.3).
const TARGET_US: u64 = 5_000;

/// A token bucket with its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second.
    pub rate: u64,
    /// Tokens that are kept, in bytes. Larger packets are cut into segments, or dropped where they cannot be.
    pub burst: u32,
    /// What may wait, in bytes.
    pub limit: u32,
    /// How long packets may wait on and on, in microseconds, where the kernel has a queue that heeds it.
    pub target_us: u32,
}

impl Bucket {
    /// The bucket of a bound, for an interface of an MTU in bytes.
    #[must_use]
    pub fn of(shape: Shape, mtu: u32) -> Self {
        let rate = (shape.rate / 8).max(1);
        let frame = u64::from(mtu) + HEADER;
        let in_time = |us: u64| u64::try_from(u128::from(rate) * u128::from(us) / 1_000_000).unwrap_or(u64::MAX);
        // Less than a frame would let none through.
        let burst = shape.burst.map_or(in_time(BURST_US).max(BURST_FRAMES * frame), |bits| (bits / 8).max(frame));
        let frame_us = frame * 1_000_000 / rate;
        Self {
            rate,
            burst: saturated(burst),
            limit: saturated(in_time(QUEUE_US).max(QUEUE_FRAMES * frame).max(burst.min(LARGEST_PACKET))),
            target_us: saturated(TARGET_US.max(frame_us.saturating_mul(3) / 2)),
        }
    }

    /// How long the burst takes at the rate, in ticks of 64 ns, as `tc_tbf_qopt.buffer` counts.
    #[must_use]
    pub fn burst_ticks(&self) -> u32 {
        saturated(self.ticks())
    }

    fn ticks(&self) -> u64 {
        let ns = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate);
        u64::try_from(ns >> TICK_SHIFT).unwrap_or(u64::MAX)
    }

    /// Whether a bucket that the kernel tells of, with its burst in ticks, is this one. The kernel multiplies and shifts where a
    /// division is meant (`psched_ratecfg_precompute`), so that its ticks are a little off; and it tells their lower 32 bits.
    #[must_use]
    pub fn is(&self, rate: u64, limit: u32, burst_ticks: u32) -> bool {
        let meant = self.ticks();
        let off = (meant as u32).wrapping_sub(burst_ticks);
        self.rate == rate && self.limit == limit && u64::from(off.min(off.wrapping_neg())) <= 2 + meant / 1000
    }
}

fn saturated(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rate_comes_to() {
        let bucket = |rate, burst, limit, target_us| Bucket { rate, burst, limit, target_us };
        for (bits, burst, mtu, expected, ticks) in [
            // Floors: four frames and sixteen.
            (1_000_000, None, 1500, bucket(125_000, 6056, 24_224, 18_168), 757_000),
            (1_000_000, None, 1450, bucket(125_000, 5856, 23_424, 17_568), 732_000),
            (10_000_000, None, 1500, bucket(1_250_000, 12_500, 31_250, 5000), 156_250),
            (100_000_000, None, 1500, bucket(12_500_000, 125_000, 312_500, 5000), 156_250),
            (1_000_000_000, None, 1500, bucket(125_000_000, 1_250_000, 3_125_000, 5000), 156_250),
            // Above 2^32 bytes a second, which the old field of the rate does not hold.
            (40_000_000_000, None, 9000, bucket(5_000_000_000, 50_000_000, 125_000_000, 5000), 156_250),
            (u64::MAX, None, 1500, bucket(u64::MAX / 8, u32::MAX, u32::MAX, 5000), 0),
            // A burst that is asked for is heeded, down to what one frame needs.
            (10_000_000, Some(200_000), 1500, bucket(1_250_000, 25_000, 31_250, 5000), 312_500),
            // The queue holds what the bucket does not cut up.
            (10_000_000, Some(1_000_000), 1500, bucket(1_250_000, 125_000, 125_000, 5000), 1_562_500),
            (10_000_000, Some(80_000_000), 1500, bucket(1_250_000, 10_000_000, 589_824, 5000), 125_000_000),
            (10_000_000, Some(1), 1500, bucket(1_250_000, 1514, 31_250, 5000), 18_925),
            // Slow as an old telephone line, and slower than anything.
            (8_000, None, 1500, bucket(1000, 6056, 24_224, 2_271_000), 94_625_000),
            (1, None, 1500, bucket(1, 6056, 24_224, 2_271_000_000), u32::MAX),
        ] {
            let of = Bucket::of(Shape { rate: bits, burst }, mtu);
            assert_eq!((of, of.burst_ticks()), (expected, ticks), "{bits} bit/s");
        }
    }

    #[test]
    fn a_bucket_is_told_from_another() {
        let shape = |rate| Shape { rate, burst: None };
        let ten = Bucket::of(shape(10_000_000), 1500);
        assert!(ten.is(ten.rate, ten.limit, ten.burst_ticks() - 1));
        assert!(!ten.is(ten.rate + 1, ten.limit, ten.burst_ticks()));
        assert!(!ten.is(ten.rate, ten.limit - 1, ten.burst_ticks()));
        assert!(!ten.is(ten.rate, ten.limit, ten.burst_ticks() * 2));
    }
}
