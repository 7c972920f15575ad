//! A user of the test's own: what the kernel gives each user only so much of is then neither taken from the machine nor lacking because
//! others have it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::fs::inotify::{self, CreateFlags};
use rustix::io::Errno;
use rustix::process::{Uid, getpid};
use rustix::thread::set_thread_res_uid;

/// How many users one process may need.
const PLACES: u32 = 64;

/// Runs something in a thread of a user whom nobody else is, and gives what it gives. Threads that it starts are that user's, too.
/// Needs root.
///
/// # Panics
/// When the thread cannot be made, or what runs in it panics.
#[allow(clippy::panic, reason = "it is only for tests")]
pub fn as_somebody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let place = NEXT.fetch_add(1, Ordering::Relaxed) % PLACES;
    let process = getpid().as_raw_nonzero().get().unsigned_abs();
    // Above all that systems give to people, services and containers' users.
    let uid = Uid::from_raw(0x7000_0000 + process % (1 << 20) * PLACES + place);
    let run = move || {
        set_thread_res_uid(uid, uid, uid).unwrap_or_else(|error| panic!("this test needs root: {error}"));
        work()
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// All inotify instances that the kernel gives the calling thread's user. Dropped, they can be had again.
///
/// # Panics
/// When the kernel refuses them for another reason than their number.
#[must_use]
#[allow(clippy::panic, reason = "it is only for tests")]
pub fn all_inotify_instances() -> Vec<OwnedFd> {
    let mut all = Vec::new();
    loop {
        match inotify::init(CreateFlags::CLOEXEC) {
            Ok(one) => all.push(one),
            Err(Errno::MFILE) => return all,
            Err(error) => panic!("inotify: {error}"),
        }
    }
}
