//! Socket options that safe libraries do not have.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use loden_core::model::Family;

use crate::error::LinuxError;

/// Forbids fragments: a packet larger than the path's MTU is refused (`IP_PMTUDISC_PROBE` also leaves out what was learned
/// of the path before).
///
/// # Errors
/// [`LinuxError::System`].
pub fn forbid_fragments(fd: BorrowedFd<'_>, family: Family) -> Result<(), LinuxError> {
    let (level, name, value) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    set(&fd, level, name, value).map_err(|error| LinuxError::system("forbid fragments", error))
}

/// Sets an option whose value is a whole number.
pub(crate) fn set(fd: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live integer.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
