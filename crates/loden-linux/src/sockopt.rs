//! Socket options and requests about interfaces (netdevice(7)) that safe libraries do not have.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use loden_core::model::{Family, IfName};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use crate::error::LinuxError;

/// Forbids fragments: a packet larger than the path's MTU is refused (`IP_PMTUDISC_PROBE` also leaves out what was learned
/// of the path before).
///
/// # Errors
/// [`LinuxError::System`].
pub fn forbid_fragments(fd: BorrowedFd<'_>, family: Family) -> Result<(), LinuxError> {
    let (level, name, value) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    set(&fd, level, name, value).map_err(|error| LinuxError::system("forbid fragments", error))
}

/// Opens a UDP socket on a port of one interface, of the calling thread's namespace; it does not block and may send to all.
///
/// # Errors
/// [`LinuxError::System`], as when another program has the port.
pub fn udp_on(ifname: IfName, port: u16) -> Result<UdpSocket, LinuxError> {
    let fail = |error: io::Error| LinuxError::system(format!("UDP port {port} on {ifname}"), error);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).map_err(|error| fail(error.into()))?;
    set(&fd, libc::SOL_SOCKET, libc::SO_BROADCAST, 1).map_err(fail)?;
    let name = ifname.to_string();
    // SAFETY: the pointer and the length are those of a live text.
    let bound = unsafe {
        let len = name.len() as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_ptr().cast(), len)
    };
    if bound < 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    // Behind the interface: one of another interface may have the port too.
    bind(&fd, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).map_err(|error| fail(error.into()))?;
    Ok(fd.into())
}

/// Has the kernel keep from a netlink socket all messages of a kind, or with `is_only` all others, before they take room in it.
///
/// # Errors
/// [`LinuxError::System`].
pub fn filter_kind(fd: &impl AsFd, kind: u16, is_only: bool) -> Result<(), LinuxError> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let (kept, dropped) = (u32::MAX, 0);
    let (its, others) = if is_only { (kept, dropped) } else { (dropped, kept) };
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let mut steps = [
        // The kind stands behind the length, in the machine's order; what is loaded is taken for the network's.
        step(LOAD_HALF, 4),
        libc::sock_filter { jf: 1, ..step(JUMP_EQUAL, u16::from_be_bytes(kind.to_ne_bytes()).into()) },
        step(RETURN, its),
        step(RETURN, others),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the pointer and the length are those of a live program, whose steps live as long.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(LinuxError::system("filter of a socket", io::Error::last_os_error())) } else { Ok(()) }
}

/// Sets an option whose value is a whole number.
pub(crate) fn set(fd: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live integer.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct ifreq` with a device's name.
pub(crate) fn request(dev: IfName) -> libc::ifreq {
    // SAFETY: all zeros are a valid `ifreq`: it holds numbers, and pointers that nobody follows.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A name is shorter than the field, so that a zero ends it.
    for (to, from) in request.ifr_name.iter_mut().zip(dev.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request
}
