//! Frames as they are on a link: to see what passes by, and to send what no other socket would (packet(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::LinuxError;
use crate::sockopt;

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
    /// When the kernel had it, since 1970: the same clock in all namespaces.
    pub at: Duration,
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
        sockopt::set(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1).map_err(|_| failed())?;
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
        self.take().map(Some).map_err(|error| LinuxError::system("receive a frame", error))
    }

    fn take(&self) -> io::Result<Frame> {
        // SAFETY: zero is a value of each field.
        let (mut from, mut head): (libc::sockaddr_ll, libc::msghdr) = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut bytes = vec![0; 65536];
        let mut control = [0_u64; 16];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        head.msg_name = (&raw mut from).cast();
        head.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        head.msg_iov = &raw mut part;
        head.msg_iovlen = 1;
        head.msg_control = control.as_mut_ptr().cast();
        head.msg_controllen = size_of_val(&control) as _;
        // SAFETY: every pointer in the header is to a live buffer of the length beside it.
        let received = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut head, 0) };
        bytes.truncate(usize::try_from(received).map_err(|_| io::Error::last_os_error())?);
        let mut at = Duration::ZERO;
        // SAFETY: the header is as the kernel has filled it in, and its buffers live.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const head) };
        while !next.is_null() {
            // SAFETY: it is a header within the control buffer.
            let (level, kind) = unsafe { ((*next).cmsg_level, (*next).cmsg_type) };
            if (level, kind) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
                // SAFETY: this sort of message holds a `timespec`; it need not be aligned.
                let time: libc::timespec = unsafe { libc::CMSG_DATA(next).cast::<libc::timespec>().read_unaligned() };
                at = Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32);
            }
            // SAFETY: as above.
            next = unsafe { libc::CMSG_NXTHDR(&raw const head, next) };
        }
        Ok(Frame { is_sent: from.sll_pkttype == libc::PACKET_OUTGOING, at, bytes })
    }
}
