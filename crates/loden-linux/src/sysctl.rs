//! Sysctls with whole numbers as values, by their path below `/proc/sys`.
//!
//! `/proc/sys/net` shows the network namespace of the thread that looks.

use std::fs;

use crate::error::LinuxError;

/// Reads one; `None` when this kernel (or this device) has none.
///
/// # Errors
/// [`LinuxError::System`] or [`LinuxError::File`].
pub fn read(path: &str) -> Result<Option<i64>, LinuxError> {
    match fs::read_to_string(format!("/proc/sys/{path}")) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| LinuxError::File {
            path: format!("/proc/sys/{path}"),
            cause: format!("holds {:?}, a whole number was expected", text.trim()),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LinuxError::system(format!("sysctl {path}"), error)),
    }
}

/// Sets one.
///
/// # Errors
/// [`LinuxError::System`]; read-only where `/proc/sys` is mounted so.
pub fn write(path: &str, value: i64) -> Result<(), LinuxError> {
    fs::write(format!("/proc/sys/{path}"), value.to_string())
        .map_err(|error| LinuxError::system(format!("sysctl {path}"), error))
}
