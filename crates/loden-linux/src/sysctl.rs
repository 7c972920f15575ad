//! Sysctls, most of them with whole numbers as values, by their path below `/proc/sys`.
//!
//! `/proc/sys/net` shows the network namespace of the thread that looks.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify;

use crate::error::LinuxError;

/// Notices who writes a sysctl: netlink reports some of them only, but a file of `/proc/sys` is a file.
///
/// A help and no need: where the system gives no more watches, and for writes through another mount of `/proc`, the
/// reconciler's timer finds the change.
#[derive(Debug)]
pub struct Watch(Option<OwnedFd>);

impl Watch {
    /// Watches nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok())
    }

    /// Watches one more; one that is watched already stays so.
    pub fn add(&self, path: &str) {
        if let Some(fd) = &self.0 {
            // See above: nothing is lost without it.
            let _ = inotify::add_watch(fd, format!("/proc/sys/{path}"), inotify::WatchFlags::MODIFY);
        }
    }

    /// Another handle of the same watches, to wait by in another thread.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self(self.0.as_ref().and_then(|fd| fd.try_clone().ok()))
    }

    /// What becomes readable when something was written.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// Forgets what was written so far; says whether something was.
    pub fn drain(&self) -> bool {
        let mut buf = [MaybeUninit::uninit(); 4096];
        let Some(fd) = &self.0 else { return false };
        let mut events = inotify::Reader::new(fd, &mut buf);
        let mut is_written = false;
        // It ends with EAGAIN.
        while events.next().is_ok() {
            is_written = true;
        }
        is_written
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads one; `None` when this kernel (or this device) has none.
///
/// # Errors
/// [`LinuxError::System`] or [`LinuxError::File`].
pub fn read(path: &str) -> Result<Option<i64>, LinuxError> {
    let number = |text: String| {
        text.parse().map_err(|_| LinuxError::File {
            path: format!("/proc/sys/{path}"),
            cause: format!("holds {text:?}, a whole number was expected"),
        })
    };
    read_text(path)?.map(number).transpose()
}

/// Reads one as it stands there; `None` when there is none.
///
/// # Errors
/// [`LinuxError::System`].
pub fn read_text(path: &str) -> Result<Option<String>, LinuxError> {
    match fs::read_to_string(format!("/proc/sys/{path}")) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LinuxError::system(format!("sysctl {path}"), error)),
    }
}

/// Sets one.
///
/// # Errors
/// [`LinuxError::System`]; read-only where `/proc/sys` is mounted so.
pub fn write(path: &str, value: i64) -> Result<(), LinuxError> {
    write_text(path, &value.to_string())
}

/// Sets one to a text. Its line is ended, or else an empty one would say nothing.
///
/// # Errors
/// As [`write`].
pub fn write_text(path: &str, value: &str) -> Result<(), LinuxError> {
    let file = File::options().write(true).open(format!("/proc/sys/{path}"));
    file.and_then(|mut file| file.write_all(format!("{value}\n").as_bytes()))
        .map_err(|error| LinuxError::system(format!("sysctl {path}"), error))
}
