//! A watch on the file: sleeps until inotify says that some process wrote, or until a record's time is over. Where
//! the kernel gives no inotify instance it looks every second, and tries again to get one.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use loden_core::advice::{self, LOOK_EVERY};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::clock;
use super::database::{Database, bell, io_error};
use crate::StoreError;
use crate::watch::{Hindrance, Sender};

/// A log that was written becomes readable a moment later, when its index has been updated: it is looked at once more.
const SECOND_LOOK: Duration = Duration::from_millis(5);
/// How often a receiver that is gone is noticed when nothing happens, and how often a lost wake-up would be made good.
const IDLE: Duration = Duration::from_secs(60);

/// Feeds the changes behind `after` to the watch until it is dropped or the store fails.
pub fn run(
    path: &Path,
    after: u64,
    changes: &Sender,
    hindrance: Hindrance,
    ready: oneshot::Sender<Result<(), StoreError>>,
) {
    let begun = Watcher::begin(path, after, changes, hindrance);
    let mut watcher = match begun {
        Ok(watcher) => {
            let _ = ready.send(Ok(()));
            watcher
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    loop {
        match watcher.step(changes) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                // A receiver that is gone does not want it.
                let _ = changes.send(Err(error));
                return;
            }
        }
    }
}

struct Watcher {
    path: PathBuf,
    /// Device and inode of the file.
    identity: (u64, u64),
    inotify: Option<OwnedFd>,
    hindrance: Hindrance,
    database: Database,
    seen: u64,
}

impl Watcher {
    /// Listens first and reads then, so that nothing falls between.
    fn begin(path: &Path, after: u64, changes: &Sender, hindrance: Hindrance) -> Result<Self, StoreError> {
        let inotify = listen(path, &hindrance);
        let (database, identity) = (Database::open_existing(path)?, identity(path)?);
        let mut watcher = Self { path: path.to_owned(), identity, inotify, hindrance, database, seen: after };
        watcher.read(changes)?;
        Ok(watcher)
    }

    /// Sleeps, reads, hands on. `false`: nobody listens any more.
    fn step(&mut self, changes: &Sender) -> Result<bool, StoreError> {
        let due = self.database.expire()?;
        let mut is_open = self.read(changes)?;
        let most = if self.inotify.is_some() { IDLE } else { LOOK_EVERY };
        let pause =
            due.map_or(most, |due| Duration::from_millis((due - clock::now_ms()).max(1).unsigned_abs()).min(most));
        if self.sleep(pause)? {
            is_open &= self.read(changes)?;
            self.sleep(SECOND_LOOK)?;
        }
        Ok(is_open && !changes.is_closed())
    }

    fn read(&mut self, changes: &Sender) -> Result<bool, StoreError> {
        let mut is_open = true;
        for change in self.database.changes(self.seen)? {
            self.seen = change.revision();
            is_open &= changes.send(Ok(change)).is_ok();
        }
        Ok(is_open)
    }

    /// Whether one of the store's files was written.
    fn sleep(&mut self, pause: Duration) -> Result<bool, StoreError> {
        let fail = |error: Errno| io_error(&self.path, &error);
        let Some(inotify) = &self.inotify else {
            thread::sleep(pause);
            if identity(&self.path)? != self.identity {
                return Err(self.replaced());
            }
            // What comes before this is read next.
            self.inotify = listen(&self.path, &self.hindrance);
            return Ok(false);
        };
        let timeout = Timespec::try_from(pause).map_err(|_| fail(Errno::INVAL))?;
        match poll(&mut [PollFd::new(inotify, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(fail(error)),
        }
        let mut buf = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buf);
        let (bell, file) = (bell(&self.path), self.path.file_name().unwrap_or_default());
        let mut is_ours = false;
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(is_ours),
                Err(error) => return Err(fail(error)),
            };
            let name = event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default();
            let is_file = name == file.as_encoded_bytes();
            if is_file && event.events().intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO) {
                return Err(self.replaced());
            }
            let log = [file.as_encoded_bytes(), b"-wal"].concat();
            is_ours |=
                is_file || name == log || Some(name.as_slice()) == bell.file_name().map(|n| n.as_encoded_bytes());
        }
    }

    fn replaced(&self) -> StoreError {
        io_error(&self.path, &"the file was removed or replaced")
    }
}

/// Listens to the file's directory, or says why that cannot be.
fn listen(path: &Path, hindrance: &Hindrance) -> Option<OwnedFd> {
    let dir = path.parent().unwrap_or(path);
    let flags = WatchFlags::MODIFY | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::CREATE;
    let listened = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .and_then(|inotify| inotify::add_watch(&inotify, dir, flags).map(|_| inotify));
    let why = listened.as_ref().err().map(|error| {
        let cause = advice::on_listening(error.raw_os_error(), &error.to_string());
        format!("inotify on {}, which is looked at every second instead: {cause}", dir.display())
    });
    if let Ok(mut told) = hindrance.lock() {
        *told = why;
    }
    listened.ok()
}

fn identity(path: &Path) -> Result<(u64, u64), StoreError> {
    let meta = fs::metadata(path).map_err(|error| io_error(path, &error))?;
    Ok((meta.dev(), meta.ino()))
}
