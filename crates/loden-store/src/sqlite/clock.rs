//! Time for records that end: since boot and with the boot's identity, so that a step of the wall clock changes nothing.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, suspended time included.
pub fn now_ms() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// The moment after a time to live.
pub fn after(ttl: Duration) -> i64 {
    now_ms().saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
}

/// Which boot this is; a record of an earlier one has ended.
pub fn boot() -> String {
    // Without procfs every boot looks alike: then records end by the clock alone.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| String::new(), |id| id.trim().to_owned())
}
