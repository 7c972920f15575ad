//! A watch on the file: sleeps until inotify says that some process wrote, or until a record's time is over.

use std::mem::MaybeUninit;
use std::path::Path;

use loden_core::advice;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::sync::oneshot;

use super::clock;
use super::database::{Database, bell, io_error};
use crate::StoreError;
use crate::watch::Sender;

/// A log that was written becomes readable a moment later, when its index has been updated: it is looked at once more.
const SECOND_LOOK_MS: i64 = 5;
/// How often a receiver that is gone is noticed when nothing happens, and how often a lost wake-up would be made good.
const IDLE_MS: i64 = 60_000;

/// Feeds the changes behind `after` to the watch until it is dropped or the store fails.
pub fn run(path: &Path, after: u64, changes: &Sender, ready: oneshot::Sender<Result<(), StoreError>>) {
    let begun = Watcher::begin(path, after, changes);
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
    path: std::path::PathBuf,
    inotify: std::os::fd::OwnedFd,
    database: Database,
    seen: u64,
}

impl Watcher {
    /// Listens first and reads then, so that nothing falls between.
    fn begin(path: &Path, after: u64, changes: &Sender) -> Result<Self, StoreError> {
        let advised = |error: rustix::io::Errno| advice::on_listening(error.raw_os_error(), &error.to_string());
        let fail = |error: rustix::io::Errno| io_error(path, &advised(error));
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(fail)?;
        let flags = WatchFlags::MODIFY | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::CREATE;
        inotify::add_watch(&inotify, path.parent().unwrap_or(path), flags).map_err(fail)?;
        let database = Database::open_existing(path)?;
        let mut watcher = Self { path: path.to_owned(), inotify, database, seen: after };
        watcher.read(changes)?;
        Ok(watcher)
    }

    /// Sleeps, reads, hands on. `false`: nobody listens any more.
    fn step(&mut self, changes: &Sender) -> Result<bool, StoreError> {
        let due = self.database.expire()?;
        let mut is_open = self.read(changes)?;
        let pause = due.map_or(IDLE_MS, |due| (due - clock::now_ms()).clamp(1, IDLE_MS));
        if self.sleep(pause)? {
            is_open &= self.read(changes)?;
            self.sleep(SECOND_LOOK_MS)?;
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
    fn sleep(&self, ms: i64) -> Result<bool, StoreError> {
        let fail = |error: rustix::io::Errno| io_error(&self.path, &error);
        let timeout = Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(fail(error)),
        }
        let mut buf = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buf);
        let (bell, file) = (bell(&self.path), self.path.file_name().unwrap_or_default());
        let mut is_ours = false;
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(is_ours),
                Err(error) => return Err(fail(error)),
            };
            let name = event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default();
            let is_file = name == file.as_encoded_bytes();
            if is_file && event.events().intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO) {
                return Err(io_error(&self.path, &"the file was removed or replaced"));
            }
            let log = [file.as_encoded_bytes(), b"-wal"].concat();
            is_ours |=
                is_file || name == log || Some(name.as_slice()) == bell.file_name().map(|n| n.as_encoded_bytes());
        }
    }
}
