//! What the kernel asks for: a thread that hears it and passes it on at a bounded rate. What is held back is asked again by the
//! kernel, which holds the packet meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use loden_core::rate::Bucket;
use loden_linux::LinuxError;
use loden_linux::clock::boot_ms;
use loden_linux::misses::{Miss, Misses};

use crate::worker::Inbox;

/// Questions that are passed on, a second and at once after a quiet spell. An answer takes some 50 µs.
const PER_SECOND: u32 = 4_000;
const AT_ONCE: u32 = 2_000;
/// How many are read before they are passed on.
const GATHERED: usize = 256;

/// What was not passed on.
#[derive(Debug, Default)]
pub struct HeldBack {
    /// Questions over the bounded rate.
    pub over_rate: AtomicU64,
    /// How often the kernel had no room for more of them.
    pub overruns: AtomicU64,
}

/// Listens in a thread of its own and fills the inbox.
///
/// # Errors
/// [`LinuxError`] when the socket cannot be opened.
pub fn listen(inbox: Sender<Inbox>, held_back: Arc<HeldBack>) -> Result<(), LinuxError> {
    let mut misses = Misses::open()?;
    let mut bucket = Bucket::new(PER_SECOND, AT_ONCE, boot_ms());
    let work = move || {
        loop {
            let mut asked = BTreeSet::new();
            match misses.wait(GATHERED, &mut asked) {
                Ok(is_overrun) => drop(held_back.overruns.fetch_add(u64::from(is_overrun), Ordering::Relaxed)),
                Err(error) => {
                    tracing::error!(%error, "the kernel's questions for neighbours cannot be heard; it is tried again");
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            let (now, heard) = (boot_ms(), asked.len());
            let passed: Vec<Miss> = asked.into_iter().filter(|_| bucket.take(now)).collect();
            held_back.over_rate.fetch_add((heard - passed.len()) as u64, Ordering::Relaxed);
            if !passed.is_empty() && inbox.send(Inbox::Asked(passed)).is_err() {
                return;
            }
        }
    };
    let spawned = std::thread::Builder::new().name("misses".to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| LinuxError::system("thread for the kernel's questions", error))
}
