//! Locks between processes: `flock` on a file, with a deadline.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::LinuxError;

/// Of a thread that only waits, in bytes.
const STACK: usize = 64 * 1024;

/// A lock that is held until it is dropped or its process ends.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Takes the lock, waiting for it until the deadline. Who waits stands in the kernel's queue, and comes to it about in turn however
    /// many there are (`__locks_insert_block`, fs/locks.c). A blocking `flock` has no deadline: so a thread waits, and is left to
    /// itself when the time is over.
    ///
    /// # Errors
    /// [`LinuxError::System`] with ETIMEDOUT when somebody else held it all the time.
    pub fn acquire(path: &Path, deadline: Instant) -> Result<Self, LinuxError> {
        Self::wait(open(path)?, path, deadline)
    }

    fn wait(file: File, path: &Path, deadline: Instant) -> Result<Self, LinuxError> {
        let what = || format!("lock {}", path.display());
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Self(file)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(LinuxError::system(what(), error)),
        }
        let (send, receive) = mpsc::sync_channel(1);
        let wait = move || {
            let locked = wait_for(file);
            // When nobody listens any more, the lock is let go with the message.
            drop(send.send(locked));
        };
        thread::Builder::new().stack_size(STACK).spawn(wait).map_err(|error| LinuxError::system(what(), error))?;
        match receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(locked) => locked.map_err(|error| LinuxError::system(what(), error)),
            Err(_) => Err(LinuxError::system(what(), Errno::TIMEDOUT)),
        }
    }

    /// Takes the lock if it is free and writes this process's number into the file; else says who holds it. Its holder, and
    /// nobody else, may remove the file.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn try_acquire(path: &Path) -> Result<Result<Self, String>, LinuxError> {
        let what = || format!("lock {}", path.display());
        let mut file = open(path)?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path) => break,
                // Its last holder removed it between our opening and our locking it.
                Ok(()) => file = open(path)?,
                Err(Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder).map_err(|error| LinuxError::system(what(), error))?;
                    return Ok(Err(holder.trim().to_owned()));
                }
                Err(error) => return Err(LinuxError::system(what(), error)),
            }
        }
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| {
            // On a full file system its making may have been all that went; the first error is the one that counts.
            let _ = std::fs::remove_file(path);
            LinuxError::system(what(), error)
        })?;
        Ok(Ok(Self(file)))
    }

    /// Takes a directory itself for the lock, which leaves nothing behind; waits for it until the deadline.
    ///
    /// # Errors
    /// As [`FileLock::acquire`].
    pub fn of_dir(dir: &Path, deadline: Instant) -> Result<Self, LinuxError> {
        let file =
            File::open(dir).map_err(|error| LinuxError::system(format!("directory {}", dir.display()), error))?;
        Self::wait(file, dir, deadline)
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing the file would do, but a child that inherited it must not keep the lock.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Waits without a deadline.
fn wait_for(file: File) -> Result<FileLock, Errno> {
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            done => return done.map(|()| FileLock(file)),
        }
    }
}

/// Whether the path still leads to this file: a lock on one that was removed keeps nobody out.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn open(path: &Path) -> Result<File, LinuxError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| LinuxError::system(format!("lock {}", path.display()), error))
}
