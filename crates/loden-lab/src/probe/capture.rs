//! What passes by on a link, written down from a moment on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use loden_core::model::IfName;
use loden_linux::LinuxError;
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::netns::NetNs;
use loden_linux::packet::{self, Frame, PacketSocket};
use loden_linux::rt::link;

use crate::LabError;

/// How often it looks whether it is over.
const STEP: Duration = Duration::from_millis(20);

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Frame>, LinuxError>>,
}

impl Capture {
    /// Begins on a link of a namespace: what passes from now on is seen.
    ///
    /// # Errors
    /// [`LabError`] when there is no such link.
    pub fn start(ns: &NetNs, dev: IfName) -> Result<Self, LabError> {
        let open = || {
            let number = link::number_of(&Socket::open(Protocol::Route)?, dev)?;
            let missing = || LinuxError::system(format!("capture on {dev}"), std::io::Error::from_raw_os_error(ENODEV));
            let socket = PacketSocket::open(number.ok_or_else(missing)?, packet::ALL)?;
            await_stamps().map(|()| socket)
        };
        let socket = ns.run(open).flatten().map_err(LabError::linux(format!("capture on {dev}")))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        Ok(Self { is_over, thread: thread::spawn(move || listen(&socket, &over)) })
    }

    /// Ends it and gives what passed, in order.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn stop(self) -> Result<Vec<Frame>, LabError> {
        self.is_over.store(true, Ordering::Relaxed);
        let frames = self.thread.join().map_err(|_| LabError::system("a capture", "its thread panicked"))?;
        frames.map_err(LabError::linux("a capture"))
    }
}

/// The kernel stamps frames as they pass only from a moment on, some time after it was asked to (`net_enable_timestamp`,
/// net/core/dev.c); until then they are stamped when they are read, too late to tell their order.
#[allow(clippy::disallowed_methods, reason = "frames are stamped by the wall clock")]
fn await_stamps() -> Result<(), LinuxError> {
    const LOOPBACK: u32 = 1;
    let socket = PacketSocket::open(LOOPBACK, packet::ALL)?;
    // Of the type for local experiments, so that nobody takes it in.
    let frame = [&[0; 12][..], &[0x88, 0xb5], &[0; 46]].concat();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        socket.send(&frame)?;
        thread::sleep(READ_LATER);
        while let Some(frame) = socket.receive(Duration::ZERO)? {
            if frame.at >= begun && frame.at < begun + READ_LATER {
                return Ok(());
            }
        }
    }
    Err(LinuxError::system("time stamps of frames", std::io::Error::from_raw_os_error(ETIME)))
}

const READ_LATER: Duration = Duration::from_millis(4);
const PATIENCE: Duration = Duration::from_secs(5);
/// `ETIME`.
const ETIME: i32 = 62;
/// `ENODEV`.
const ENODEV: i32 = 19;

/// What had passed when it ended is taken to the last.
fn listen(socket: &PacketSocket, is_over: &AtomicBool) -> Result<Vec<Frame>, LinuxError> {
    let mut frames = Vec::new();
    loop {
        let ends = is_over.load(Ordering::Relaxed);
        match socket.receive(if ends { Duration::ZERO } else { STEP })? {
            Some(frame) => frames.push(frame),
            None if ends => return Ok(frames),
            None => {}
        }
    }
}
