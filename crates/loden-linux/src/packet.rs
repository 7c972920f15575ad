//! Frames as they are on a link: to see what passes by, and to send what no other socket would (packet(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use loden_core::model::IfName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket};
use crate::rt::link;
use crate::sockopt;

/// Every Ethernet type, and what the link sends too (`ETH_P_ALL`).
pub const ALL: u16 = 3;
/// The Ethernet type of IPv4.
pub const IPV4: u16 = 0x0800;
/// That of ARP.
pub const ARP: u16 = 0x0806;

/// A socket on one link of the namespace that it was opened in.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// A frame, from its Ethernet header on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Whether it was sent by the link; else it came in by it.
    pub is_sent: bool,
    /// Whether its sender has left the transport checksum to hardware that it never came through: it is not there to be looked at
    /// then (`TP_STATUS_CSUMNOTREADY`, as between namespaces of one host).
    pub is_checksum_missing: bool,
    /// When the kernel had it, since 1970: the same clock in all namespaces.
    pub at: Duration,
    /// What it is made of.
    pub bytes: Vec<u8>,
}

impl PacketSocket {
    /// Opens it on the link of a number, for frames of one Ethernet type or of all.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn open(link: u32, ethertype: u16) -> Result<Self, LinuxError> {
        let failed = || LinuxError::system(format!("packet socket on link {link}"), io::Error::last_os_error());
        // Nothing is heard before it is bound to its link.
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
        if fd < 0 {
            return Err(failed());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        for (level, name) in [(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS), (libc::SOL_PACKET, libc::PACKET_AUXDATA)] {
            sockopt::set(&fd, level, name, 1).map_err(|_| failed())?;
        }
        // SAFETY: zero is a value of each field.
        let mut addr: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = ethertype.to_be();
        addr.sll_ifindex = link.cast_signed();
        // SAFETY: the address and its length are those of a live structure.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        };
        if bound < 0 { Err(failed()) } else { Ok(Self(fd)) }
    }

    /// Opens it on the link of a name.
    ///
    /// # Errors
    /// [`LinuxError`], also when there is no such link.
    pub fn open_on(ifname: IfName, ethertype: u16) -> Result<Self, LinuxError> {
        let link = link::number_of(&Socket::open(Protocol::Route)?, ifname)?;
        let missing = || LinuxError::system(format!("packet socket on {ifname}"), rustix::io::Errno::NODEV);
        Self::open(link.ok_or_else(missing)?, ethertype)
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
        match self.take() {
            Ok(frame) => Ok(Some(frame)),
            // Another reader of the same socket had it.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(LinuxError::system("receive a frame", error)),
        }
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
        let (mut at, mut is_checksum_missing) = (Duration::ZERO, false);
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
            if (level, kind) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
                // SAFETY: this sort of message holds a `tpacket_auxdata`; it need not be aligned.
                let data = unsafe { libc::CMSG_DATA(next).cast::<libc::tpacket_auxdata>().read_unaligned() };
                is_checksum_missing = data.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
            }
            // SAFETY: as above.
            next = unsafe { libc::CMSG_NXTHDR(&raw const head, next) };
        }
        Ok(Frame { is_sent: from.sll_pkttype == libc::PACKET_OUTGOING, is_checksum_missing, at, bytes })
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
