//! Points at which a test kills the plugin. Without the feature they are nothing.

/// Stops here, if this is the point that the environment names: the process kills itself as SIGKILL would.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    if std::env::var("LODEN_FAULT_POINT").as_deref() == Ok(name) {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
pub fn point(_name: &str) {}
