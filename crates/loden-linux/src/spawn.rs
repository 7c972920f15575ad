//! Starting programs inside a network namespace.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::LinuxError;
use crate::netns::NetNs;

/// Makes the command start inside the namespace, and with `dies_with_parent` be killed when the thread that starts it
/// ends.
///
/// # Errors
/// [`LinuxError::System`] when the namespace cannot be kept open for it.
pub fn in_netns(command: &mut Command, ns: &NetNs, dies_with_parent: bool) -> Result<(), LinuxError> {
    let fd = ns
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| LinuxError::system("a descriptor of a network namespace", error))?;
    let enter = move || {
        // SAFETY: plain system calls, which are async-signal-safe; the descriptor is owned by this closure.
        let result = unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) };
        if result < 0 {
            return Err(std::io::Error::last_os_error());
        }
        if dies_with_parent {
            // SAFETY: as above.
            let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if result < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only: it neither allocates nor takes locks between fork and exec.
    unsafe { command.pre_exec(enter) };
    Ok(())
}
