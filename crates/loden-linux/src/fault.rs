//! Points at which a test stops a process: between any two steps that leave something behind. Without the feature they are nothing.

/// Every point. A test has a row for each, and one that is not listed here ends the process that comes by it.
#[cfg(feature = "fault-points")]
pub const POINTS: [&str; 29] = [
    "add-begun",
    "add-marked",
    "add-counted",
    "add-reserved",
    "add-delegated",
    "add-linked",
    "add-host-set",
    "add-made",
    "add-leased",
    "add-addressed",
    "add-ports-open",
    "add-part-asked",
    "add-part-made",
    "add-completed",
    "del-begun",
    "del-leased",
    "del-parked",
    "del-part-taken",
    "del-ports-closed",
    "del-forgotten",
    "del-freed",
    "gc-detached",
    "file-written",
    "file-placed",
    "link-written",
    "link-placed",
    "original-linked",
    "uninstall-closed",
    "uninstall-removed",
];

/// Raises the signal that `LODEN_FAULT_SIGNAL` names (default KILL) in this process, if this is the point that `LODEN_FAULT_POINT` names,
/// passed for the time that `LODEN_FAULT_PASS` says (default 1).
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::atomic::{AtomicU32, Ordering};

    static PASSED: AtomicU32 = AtomicU32::new(0);
    assert!(POINTS.contains(&name), "the point {name} is not listed");
    let said = |variable| std::env::var(variable).ok();
    if said("LODEN_FAULT_POINT").as_deref() != Some(name) {
        return;
    }
    let wanted = said("LODEN_FAULT_PASS").and_then(|text| text.parse().ok()).unwrap_or(1);
    if PASSED.fetch_add(1, Ordering::Relaxed) + 1 != wanted {
        return;
    }
    let signal = match said("LODEN_FAULT_SIGNAL").as_deref() {
        Some("HUP") => Signal::HUP,
        Some("INT") => Signal::INT,
        Some("STOP") => Signal::STOP,
        Some("TERM") => Signal::TERM,
        _ => Signal::KILL,
    };
    let raised = kill_process(getpid(), signal);
    assert!(raised.is_ok(), "{raised:?}");
}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
pub fn point(_name: &str) {}
