//! Waiting until something happens to files, instead of looking again and again.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use loden_core::advice::LOOK_EVERY;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::error::LinuxError;

/// Listens to directories. It is to be made before what is in them is looked at, so that nothing falls between. Where the system does
/// not let it, whoever waits looks every second.
#[derive(Debug)]
pub struct Watch(Result<OwnedFd, LinuxError>);

impl Watch {
    /// Listens to what comes into and goes out of these directories; for one that is not there yet, to the nearest above it.
    pub fn on<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> Self {
        Self(listen(dirs))
    }

    /// Why nothing is heard, if that is so.
    #[must_use]
    pub fn hindrance(&self) -> Option<&LinuxError> {
        self.0.as_ref().err()
    }

    /// Waits until something has happened (or may have, where nothing is heard), or for as long as is said. Says whether something has.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn wait(&self, most: Duration) -> Result<bool, LinuxError> {
        let Ok(inotify) = &self.0 else {
            thread::sleep(most.min(LOOK_EVERY));
            return Ok(true);
        };
        let fail = |error| LinuxError::system("waiting for files", error);
        let timeout = Timespec::try_from(most).map_err(|_| fail(Errno::INVAL))?;
        match poll(&mut [PollFd::new(inotify, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(fail(error)),
        }
        let mut buf = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buf);
        loop {
            match reader.next() {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(true),
                Err(error) => return Err(fail(error)),
            }
        }
    }
}

fn listen<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> Result<OwnedFd, LinuxError> {
    let fail = |path: &Path, error| LinuxError::listening(format!("inotify on {}", path.display()), error);
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
    let fd = fd.map_err(|error| fail(Path::new("directories"), error))?;
    let changes = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::MOVED_FROM;
    for dir in dirs {
        for nearest in dir.ancestors() {
            match inotify::add_watch(&fd, nearest, changes | WatchFlags::ONLYDIR) {
                Ok(_) => break,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(fail(nearest, error)),
            }
        }
    }
    Ok(fd)
}
