//! What the kernel asks for: neighbours that it has no entry of, on devices where it is told to ask (`app_solicit`), or that report
//! what they miss. One message a question and no limit to them, so they have a socket of their own: what overruns it is lost and
//! asked again, and the monitor's own reports are not lost with it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket};
use crate::rt::neighbour;
use crate::sockopt;

/// `RTNLGRP_NEIGH`.
const GROUP: u32 = 3;

/// A question: the link's number, and the address.
pub type Miss = (u32, IpAddr);

/// Listens to questions.
#[derive(Debug)]
pub struct Misses {
    socket: Socket,
}

impl Misses {
    /// Begins to listen, in the calling thread's namespace.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn open() -> Result<Self, LinuxError> {
        let socket = Socket::open(Protocol::Route)?;
        sockopt::filter_kind(&socket, neighbour::GET, true)?;
        socket.join(GROUP)?;
        Ok(Self { socket })
    }

    /// Waits for a question, and takes those that have come with it, `most` at a time; each once. Says whether some were lost.
    ///
    /// # Errors
    /// [`LinuxError`] when the socket fails.
    pub fn wait(&mut self, most: usize, asked: &mut BTreeSet<Miss>) -> Result<bool, LinuxError> {
        let mut is_overrun = false;
        let mut patience = None;
        for _ in 0..most {
            if !self.has_more(patience)? {
                break;
            }
            patience = Some(Duration::ZERO);
            match self.socket.receive(|message| {
                if message.kind == neighbour::GET {
                    asked.extend(neighbour::parse_miss(message.payload));
                }
            }) {
                Err(LinuxError::Overrun) => is_overrun = true,
                received => received?,
            }
        }
        Ok(is_overrun)
    }

    fn has_more(&self, patience: Option<Duration>) -> Result<bool, LinuxError> {
        let patience = patience.map(Timespec::try_from).transpose().ok().flatten();
        match poll(&mut [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)], patience.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(LinuxError::system("poll of netlink", error)),
        }
    }
}
