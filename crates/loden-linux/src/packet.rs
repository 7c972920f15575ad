//! Frames as they are on a link: to see what passes by, and to send what no other socket would (packet(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::LinuxError;

/// `ETH_P_ALL`
const ALL: u16 = 3;

/// A socket on one link of the namespace that it was opened in.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// A frame, from its Ethernet header on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Whether it was sent by the link; else it came in by it.
    pub is_sent: bool,
    /// What it is made of.
    pub bytes: Vec<u8>,
}

impl PacketSocket {
    /// Opens it on the link of a number.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn open(link: u32) -> Result<Self, LinuxError> {
        let failed = || LinuxError::system(format!("packet socket on link {link}"), io::Error::last_os_error());
        // Nothing is heard before it is bound to its link.
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(failed());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: zero is a value of each field.
        let mut addr: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = ALL.to_be();
        addr.sll_ifindex = link.cast_signed();
        // SAFETY: the address and its length are those of a live structure.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        };
        if bound < 0 { Err(failed()) } else { Ok(Self(fd)) }
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn send(&self, frame: &[u8]) -> Result<(), LinuxError> {
        // SAFETY: the pointer and the length are those of a live slice.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(LinuxError::system("send a frame", io::Error::last_os_error())) } else { Ok(()) }
    }

    /// Waits for the next frame, `patience` at most.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn receive(&self, patience: Duration) -> Result<Option<Frame>, LinuxError> {
        let patience = Timespec::try_from(patience).ok();
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], patience.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(LinuxError::system("poll of a packet socket", error)),
        }
        // SAFETY: zero is a value of each field.
        let mut from: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let mut bytes = vec![0; 65536];
        // SAFETY: the pointers and lengths are those of live buffers.
        let received = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        match usize::try_from(received) {
            Ok(received) => bytes.truncate(received),
            Err(_) => return Err(LinuxError::system("receive a frame", io::Error::last_os_error())),
        }
        Ok(Some(Frame { is_sent: from.sll_pkttype == libc::PACKET_OUTGOING, bytes }))
    }
}
