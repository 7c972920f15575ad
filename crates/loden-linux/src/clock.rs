//! The clock that begins at boot and goes on while the machine sleeps: the wall clock's steps do not matter to it, and what it
//! dates in `/run/loden` is gone with a reboot.

use rustix::time::{ClockId, clock_gettime};

/// Seconds since boot.
#[must_use]
pub fn boot_s() -> u32 {
    u32::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(u32::MAX)
}

/// Milliseconds since boot.
#[must_use]
pub fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let part = |value: i64, unit: u64| u64::try_from(value).unwrap_or(0) * unit;
    part(now.tv_sec, 1000) + part(now.tv_nsec, 1) / 1_000_000
}
