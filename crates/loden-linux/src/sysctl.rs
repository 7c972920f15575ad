//! Sysctls, most of them with whole numbers as values, by their path below `/proc/sys`.
//!
//! `/proc/sys/net` shows the network namespace of the thread that looks.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::fs::inotify;
use rustix::io::Errno;

use crate::error::LinuxError;

/// Notices who writes a sysctl: netlink reports some of them only, but a file of `/proc/sys` is a file.
///
/// Where the system gives no inotify instance, or not enough watches, they are to be looked at now and then. For writes through another
/// mount of `/proc` there is the reconciler's timer. Clones share what is watched.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Ears>);

#[derive(Debug, Default)]
struct Ears {
    inotify: OnceLock<OwnedFd>,
    hindrance: Mutex<Option<LinuxError>>,
}

impl Watch {
    /// Watches nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let watch = Self(Arc::default());
        watch.listen([]);
        watch
    }

    /// Watches these too; those that are watched already stay so. What hindered it before is tried again.
    pub fn listen<'a>(&self, paths: impl IntoIterator<Item = &'a str>) {
        let hindrance = self.try_to_listen(paths).err();
        if let Ok(mut known) = self.0.hindrance.lock() {
            *known = hindrance;
        }
    }

    fn try_to_listen<'a>(&self, paths: impl IntoIterator<Item = &'a str>) -> Result<(), LinuxError> {
        let fail = |what: &str, error: Errno| LinuxError::listening(format!("inotify on {what}"), error);
        if self.0.inotify.get().is_none() {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
            // One that another thread was quicker to put there is as good.
            let _ = self.0.inotify.set(fd.map_err(|error| fail("sysctls", error))?);
        }
        let Some(fd) = self.0.inotify.get() else { return Ok(()) };
        let mut first = Ok(());
        for path in paths {
            match inotify::add_watch(fd, format!("/proc/sys/{path}"), inotify::WatchFlags::MODIFY) {
                // This kernel has none, or the device is gone.
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => first = first.and_then(|()| Err(fail(path, error))),
            }
        }
        first
    }

    /// Why some are not watched, if that is so.
    #[must_use]
    pub fn hindrance(&self) -> Option<LinuxError> {
        self.0.hindrance.lock().ok().and_then(|known| known.clone())
    }

    /// What becomes readable when something was written.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.inotify.get().map(AsFd::as_fd)
    }

    /// Forgets what was written so far; says whether something was.
    pub fn drain(&self) -> bool {
        let mut buf = [MaybeUninit::uninit(); 4096];
        let Some(fd) = self.0.inotify.get() else { return false };
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
