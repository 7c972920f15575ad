//! Who computes the checksums of what a device sends (`ethtool -K DEV tx on|off`), by ioctl: every kernel has that, its netlink form
//! not.

use std::io;
use std::os::fd::AsRawFd;

use loden_core::model::IfName;
use loden_core::offload::By;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::LinuxError;
use crate::sockopt;

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM` (linux/ethtool.h): all features of transmit checksums together.
const GET: u32 = 0x16;
const SET: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Who computes on a device of the calling thread's namespace.
///
/// # Errors
/// [`LinuxError::System`], as when there is no such device (ENODEV).
pub fn checksums(dev: IfName) -> Result<By, LinuxError> {
    ask(dev, GET, 0).map(|data| if data == 0 { By::Host } else { By::Card })
}

/// Sets who computes. Without the card large packets are cut apart by the host as well: the kernel turns that off together with the
/// checksums and on again (`netdev_fix_features`, net/core/dev.c).
///
/// # Errors
/// [`LinuxError::System`], as when the device's checksums cannot be set (EOPNOTSUPP).
pub fn set_checksums(dev: IfName, by: By) -> Result<(), LinuxError> {
    ask(dev, SET, (by == By::Card).into()).map(drop)
}

fn ask(dev: IfName, command: u32, data: u32) -> Result<u32, LinuxError> {
    let failed = |error: io::Error| LinuxError::system(format!("transmit checksums of {dev}"), error);
    let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let fd = fd.map_err(|error| failed(error.into()))?;
    let mut value = Value { command, data };
    let mut request = sockopt::request(dev);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads and writes the request and the value that it leads to, which outlive the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
    if result < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(value.data) }
}
