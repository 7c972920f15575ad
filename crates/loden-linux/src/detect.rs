//! Duplicate address detection in the pod (`enabledad`): the kernel asks whether somebody else has an address (RFC 4862 section
//! 5.4), and who added it waits for the answer.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use loden_core::model::IfName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::pod::set_sysctl;
use crate::rt::address;

/// `RTNLGRP_IPV6_IFADDR`.
const GROUP: u32 = 9;
/// One question a second by default, after a pause of up to one more, and a few where somebody has changed that.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hears of the kernel's answers. Made before the addresses are.
pub(crate) struct Detection {
    reports: Socket,
    ifname: IfName,
}

impl Detection {
    /// Turns detection on for an interface of the calling thread's namespace.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub(crate) fn begin(ifname: IfName) -> Result<Self, LinuxError> {
        set_sysctl(&format!("net/ipv6/conf/{ifname}/accept_dad"), 1)?;
        let reports = Socket::open(Protocol::Route)?;
        reports.join(GROUP)?;
        Ok(Self { reports, ifname })
    }

    /// Waits until every address of the link is known to be unique.
    ///
    /// # Errors
    /// EADDRINUSE when one is not, ETIMEDOUT when the kernel does not come to an end.
    pub(crate) fn settle(mut self, socket: &mut Socket, number: u32) -> Result<(), LinuxError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let there = addresses(socket, number)?;
            if let Some(taken) = there.iter().find(|seen| seen.is_duplicate) {
                let cause = "another interface on the link has it (duplicate address detection)".to_owned();
                return Err(self.fault(taken, libc::EADDRINUSE, cause));
            }
            let Some(open) = there.iter().find(|seen| seen.is_tentative) else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let cause = format!("the kernel has not found out in {} s whether it is unique", PATIENCE.as_secs());
                return Err(self.fault(open, libc::ETIMEDOUT, cause));
            }
            self.wait(left)?;
        }
    }

    fn wait(&mut self, patience: Duration) -> Result<(), LinuxError> {
        let patience = Timespec::try_from(patience).ok();
        match poll(&mut [PollFd::from_borrowed_fd(self.reports.as_fd(), PollFlags::IN)], patience.as_ref()) {
            // What it says is looked up; that some of it was lost does not matter then.
            Ok(1) => match self.reports.receive(|_| {}) {
                Ok(()) | Err(LinuxError::Overrun) => Ok(()),
                Err(error) => Err(error),
            },
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(LinuxError::system("poll of netlink", error)),
        }
    }

    fn fault(&self, seen: &address::Seen, errno: i32, cause: String) -> LinuxError {
        LinuxError::Netlink { what: format!("address {} on {} in the pod", seen.net, self.ifname), errno, cause }
    }
}

fn addresses(socket: &mut Socket, number: u32) -> Result<Vec<address::Seen>, LinuxError> {
    let mut w = Writer::default();
    address::list(&mut w);
    socket.dump("list addresses", &mut w, Vec::new, |all: &mut Vec<_>, message| {
        all.extend(address::parse(message.payload).filter(|seen| seen.index == number));
    })
}
