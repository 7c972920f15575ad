//! What the threads of a tunnel share: the board, and when to sleep and to end.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use loden_core::model::IfName;
use loden_linux::LinuxError;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::TunnelError;
use crate::board::Board;

/// Whom to tell that it has ended.
pub(super) type OnFailure = Box<dyn Fn(&TunnelError) + Send + Sync>;

/// What the threads share.
pub(super) struct Shared {
    pub(super) dev: IfName,
    pub(super) board: Board,
    is_over: AtomicBool,
    /// How many threads do not sleep.
    awake: AtomicUsize,
    /// Readable when it is over: wakes those that sleep.
    over: OwnedFd,
    on_failure: OnFailure,
    last_refusal: Mutex<Option<LinuxError>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("dev", &self.dev).field("board", &self.board).finish_non_exhaustive()
    }
}

impl Shared {
    /// For so many threads, all of them awake.
    pub(super) fn new(dev: IfName, board: Board, threads: usize, on_failure: OnFailure) -> Result<Self, LinuxError> {
        let over = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let over = over.map_err(|error| LinuxError::system("eventfd", error))?;
        Ok(Self {
            dev,
            board,
            is_over: AtomicBool::new(false),
            awake: AtomicUsize::new(threads),
            over,
            on_failure,
            last_refusal: Mutex::new(None),
        })
    }

    /// Runs a thread's work, and says so when it ends in a failure.
    pub(super) fn work(&self, run: impl FnOnce(&Self) -> Result<(), LinuxError>) {
        if let Err(cause) = run(self)
            // Only the first of them says so: the others end with it.
            && !self.end()
        {
            (self.on_failure)(&TunnelError::Kernel { dev: self.dev, cause });
        }
    }

    /// Ends it; says whether it was over already.
    pub(super) fn end(&self) -> bool {
        let was_over = self.is_over.swap(true, Ordering::Relaxed);
        // It fails only when it is full, and then it is readable.
        _ = rustix::io::write(&self.over, &1_u64.to_ne_bytes());
        was_over
    }

    /// Keeps what the kernel has said of a packet that it refused.
    pub(super) fn refused(&self, error: LinuxError) {
        *self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn last_refusal(&self) -> Option<String> {
        self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(ToString::to_string)
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// The same of a thread that has nothing in hand.
    pub(super) fn rest<'a>(&'a self, fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<[bool; 2], LinuxError> {
        self.awake.fetch_sub(1, Ordering::SeqCst);
        let ready = self.wait(fds, PollFlags::IN);
        self.awake.fetch_add(1, Ordering::SeqCst);
        ready
    }

    /// Whether no thread has anything in hand.
    pub(super) fn all_rest(&self) -> bool {
        self.awake.load(Ordering::SeqCst) == 0
    }

    /// Sleeps until one of these, at most two, is ready or it is over; says which are.
    pub(super) fn wait<'a>(
        &'a self,
        fds: impl IntoIterator<Item = BorrowedFd<'a>>,
        flags: PollFlags,
    ) -> Result<[bool; 2], LinuxError> {
        let mut list: [PollFd<'_>; 3] =
            std::array::from_fn(|_| PollFd::from_borrowed_fd(self.over.as_fd(), PollFlags::IN));
        let mut used = 1;
        for (place, fd) in list[1..].iter_mut().zip(fds) {
            *place = PollFd::from_borrowed_fd(fd, flags);
            used += 1;
        }
        match poll(&mut list[..used], None) {
            Ok(_) => Ok([1, 2].map(|n: usize| !list[n].revents().is_empty())),
            Err(rustix::io::Errno::INTR) => Ok([true; 2]),
            Err(error) => Err(LinuxError::system(format!("poll of the tunnel on {}", self.dev), error)),
        }
    }
}

/// Whether the kernel says that there is nothing now, or no room.
pub(super) fn is_not_now(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
