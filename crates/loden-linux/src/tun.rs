//! A TUN device of several queues whose packets carry what is left undone: segments not cut, checksums not filled in (tun(4)).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use loden_core::model::IfName;
use rustix::fs::{Mode, OFlags};

use crate::error::LinuxError;
use crate::sockopt;

/// Bytes of the header that stands before each packet, read or written (`struct virtio_net_hdr`, linux/virtio_net.h).
pub const HEADER: usize = 10;
/// What a queue is asked for: bare packets with that header, one queue of several.
const SHAPE: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
/// What is taken in undone on every kernel that loden runs on.
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// Datagrams of UDP that are not cut either (Linux 6.2).
const USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A queue of a TUN device. It never blocks.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    dev: IfName,
    has_uso: bool,
}

/// Makes a device in the calling thread's namespace that stays when nobody has it open; one that is there already, in this shape, is
/// left as it is. It is still down.
///
/// # Errors
/// [`LinuxError::System`], as when there is a link of that name in another shape.
pub fn create(dev: IfName) -> Result<(), LinuxError> {
    let fd = queue(dev)?;
    // SAFETY: the argument is a number.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) };
    if result < 0 { Err(failed(dev, "make it stay", io::Error::last_os_error())) } else { Ok(()) }
}

impl Tun {
    /// Opens one more queue of a device that [`create`] has made, in the calling thread's namespace.
    ///
    /// # Errors
    /// [`LinuxError::System`]: it is not there, or there in another shape.
    pub fn attach(dev: IfName) -> Result<Self, LinuxError> {
        let fd = queue(dev)?;
        // The kernel makes a device that is not there, and tells nobody; such a one is not to stay, and goes with its descriptor.
        let mut request = sockopt::request(dev);
        // SAFETY: the kernel writes into the request alone, which outlives the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        if result < 0 {
            return Err(failed(dev, "its flags", io::Error::last_os_error()));
        }
        // SAFETY: of all that may be in the field, the kernel has written the flags.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & libc::IFF_PERSIST == 0 {
            return Err(failed(dev, "attach a queue", io::Error::from_raw_os_error(libc::ENODEV)));
        }
        let size = HEADER as libc::c_int;
        // SAFETY: the pointer is to a live number.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        if result < 0 {
            return Err(failed(dev, "length of its header", io::Error::last_os_error()));
        }
        let offload = |what: libc::c_uint| {
            // SAFETY: the argument is a number.
            let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(what)) };
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        let has_uso = match offload(OFFLOADS | USO) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                offload(OFFLOADS).map_err(|error| failed(dev, "offloads", error))?;
                false
            }
            Err(error) => return Err(failed(dev, "offloads", error)),
        };
        Ok(Self { fd, dev, has_uso })
    }

    /// Whether datagrams of UDP come in one piece too, to be cut by the reader.
    #[must_use]
    pub fn has_uso(&self) -> bool {
        self.has_uso
    }

    /// Reads the next packet and its header; `None` when there is none now. What `into` has no room for is lost.
    ///
    /// # Errors
    /// [`LinuxError::System`], as when the device is no more.
    pub fn read(&self, into: &mut [u8]) -> Result<Option<usize>, LinuxError> {
        loop {
            match rustix::io::read(&self.fd, &mut *into) {
                Ok(len) => return Ok(Some(len)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(failed(self.dev, "read a packet", error.into())),
            }
        }
    }

    /// Writes a packet, its header first, from wherever its parts lie.
    ///
    /// # Errors
    /// [`LinuxError::System`]: the packet or its header is malformed (EINVAL), the device is down (EIO).
    pub fn write(&self, parts: &[IoSlice<'_>]) -> Result<(), LinuxError> {
        loop {
            match rustix::io::writev(&self.fd, parts) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(self.dev, "write a packet", error.into())),
            }
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn queue(dev: IfName) -> Result<OwnedFd, LinuxError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
        .map_err(|error| failed(dev, "open /dev/net/tun", error.into()))?;
    let mut request = sockopt::request(dev);
    request.ifr_ifru.ifru_flags = SHAPE as libc::c_short;
    // SAFETY: the kernel reads and writes the request alone, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 {
        return Ok(fd);
    }
    let error = io::Error::last_os_error();
    let what = match error.raw_os_error() {
        Some(libc::EINVAL) => "attach a queue: a link of this name is no TUN device of several queues; remove it",
        _ => "attach a queue",
    };
    Err(failed(dev, what, error))
}

fn failed(dev: IfName, what: &str, error: io::Error) -> LinuxError {
    LinuxError::system(format!("TUN device {dev}: {what}"), error)
}
