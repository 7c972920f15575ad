//! Signals that ask a process to end: put off while something is half-done that takes a few milliseconds.

use std::mem::MaybeUninit;

use crate::error::LinuxError;

/// The signals that ask; KILL does not.
const ASKING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// How this thread takes them, until it is dropped: then as before.
#[must_use]
pub struct Masked(libc::sigset_t);

/// Puts them off. To be called in a process of one thread: in others another thread takes them.
///
/// # Errors
/// [`LinuxError::System`].
pub fn put_off() -> Result<Masked, LinuxError> {
    mask(libc::SIG_BLOCK)
}

/// Takes them, those that came meanwhile at once.
///
/// # Errors
/// [`LinuxError::System`].
pub fn let_in() -> Result<Masked, LinuxError> {
    mask(libc::SIG_UNBLOCK)
}

impl Drop for Masked {
    fn drop(&mut self) {
        // SAFETY: the set is one that the kernel gave. It fails for a wrong first argument only.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

fn mask(how: libc::c_int) -> Result<Masked, LinuxError> {
    let (mut set, mut before) = (MaybeUninit::<libc::sigset_t>::uninit(), MaybeUninit::uninit());
    // SAFETY: the set is made by sigemptyset before anything else looks at it; all the pointers are to this frame.
    let failed = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ASKING {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), before.as_mut_ptr())
    };
    if failed != 0 {
        return Err(LinuxError::system("mask of signals", std::io::Error::from_raw_os_error(failed)));
    }
    // SAFETY: a call that succeeds fills it in.
    Ok(Masked(unsafe { before.assume_init() }))
}
