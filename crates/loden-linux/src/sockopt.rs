//! Socket options that safe libraries do not have.

use std::os::fd::{AsRawFd, BorrowedFd};

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
    // SAFETY: the pointer and the length are those of a live integer.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(LinuxError::system("forbid fragments", std::io::Error::last_os_error()));
    }
    Ok(())
}
