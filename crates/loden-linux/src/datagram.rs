//! Datagrams by the batch: many in a call, runs of one length in one piece, each with its mark of congestion (udp(7), ip(7), raw(7)).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use loden_core::model::Family;
use rustix::net::{AddressFamily, Protocol, RawProtocol, SocketFlags, SocketType, bind, getsockname, socket_with};

use crate::error::LinuxError;
use crate::sockopt;

mod control;
mod inbox;
mod outbox;

pub use inbox::{Inbox, Received};
pub use outbox::{Message, Outbox, Sent};

/// Room for datagrams that wait, in bytes, each way.
const BUFFER: libc::c_int = 8 << 20;

/// A socket for datagrams of one family. It never blocks, and what it sends is never fragmented on the way.
#[derive(Debug)]
pub struct Datagrams {
    fd: OwnedFd,
    family: Family,
    /// What it is, for errors.
    name: String,
    has_segmentation: bool,
    has_gro: bool,
}

impl Datagrams {
    /// Opens one for UDP in the calling thread's namespace; with port 0 the kernel chooses one. Several sockets may share an address:
    /// the kernel deals out by the hash of both ends.
    ///
    /// # Errors
    /// [`LinuxError::System`], as when the address is not this host's or another program has the port.
    pub fn udp(local: SocketAddr) -> Result<Self, LinuxError> {
        let mut socket = Self::open(local, SocketType::DGRAM, None, format!("UDP socket on {local}"))?;
        // Both are tried by doing: segmentation since Linux 4.18, GRO since 5.0.
        let fd = socket.fd.as_fd();
        socket.has_segmentation = sockopt::set(&fd, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        socket.has_gro = sockopt::set(&fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        Ok(socket)
    }

    /// From now on each datagram is received by itself, as by a program that knows nothing of runs.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn without_gro(mut self) -> Result<Self, LinuxError> {
        if self.has_gro {
            sockopt::set(&self.fd, libc::SOL_UDP, libc::UDP_GRO, 0).map_err(|error| self.failed(error))?;
            self.has_gro = false;
        }
        Ok(self)
    }

    /// Opens one for an IP protocol. Of IPv4 whole packets are received, header first; of IPv6 what is behind the headers.
    ///
    /// # Errors
    /// [`LinuxError::System`], as when the address is not this host's.
    pub fn raw(local: IpAddr, protocol: u8) -> Result<Self, LinuxError> {
        let what = format!("raw socket on {local} for protocol {protocol}");
        let number = RawProtocol::new(u32::from(protocol));
        let number = number.ok_or_else(|| LinuxError::system(what.clone(), rustix::io::Errno::INVAL))?;
        Self::open((local, 0).into(), SocketType::RAW, Some(Protocol::from_raw(number)), what)
    }

    fn open(local: SocketAddr, kind: SocketType, protocol: Option<Protocol>, name: String) -> Result<Self, LinuxError> {
        let fail = |error: io::Error| LinuxError::system(name.clone(), error);
        let family = Family::of(local.ip());
        let domain = if family == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(domain, kind, flags, protocol).map_err(|error| fail(error.into()))?;
        let set = |level, option, value| sockopt::set(&fd, level, option, value).map_err(fail);
        set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        for (forced, asked) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
            // In a user namespace only the second is allowed, which stops at the host's limit.
            set(libc::SOL_SOCKET, forced, BUFFER).or_else(|_| set(libc::SOL_SOCKET, asked, BUFFER))?;
        }
        // What routers on the way have said of its MTU counts: a datagram that is too large for it is refused (EMSGSIZE).
        match family {
            Family::V4 => {
                set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
                set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            }
            Family::V6 => {
                // A raw socket of IPv6 has no other packets anyway, and the kernel refuses to be told so.
                if kind == SocketType::DGRAM {
                    set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
                }
                set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
                set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            }
        }
        bind(&fd, &local).map_err(|error| fail(error.into()))?;
        Ok(Self { fd, family, name, has_segmentation: false, has_gro: false })
    }

    /// Whether a message may hold many datagrams ([`Message::segment`]).
    #[must_use]
    pub fn has_segmentation(&self) -> bool {
        self.has_segmentation
    }

    /// Whether many datagrams may be received as one ([`Received::segment`]).
    #[must_use]
    pub fn has_gro(&self) -> bool {
        self.has_gro
    }

    /// Of its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The address and port that it has.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn local(&self) -> Result<SocketAddr, LinuxError> {
        let address = getsockname(&self.fd).and_then(SocketAddr::try_from);
        address.map_err(|error| self.failed(error.into()))
    }

    fn failed(&self, error: io::Error) -> LinuxError {
        LinuxError::system(self.name.clone(), error)
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The MTU of the way to a host as it is known now, in bytes: that of the link, or less when a router has said so.
///
/// # Errors
/// [`LinuxError::System`], as when there is no way.
pub fn path_mtu(to: IpAddr) -> Result<u32, LinuxError> {
    let fail = |error: io::Error| LinuxError::system(format!("MTU of the way to {to}"), error);
    let (any, level, option): (SocketAddr, _, _) = match Family::of(to) {
        Family::V4 => (([0, 0, 0, 0], 0).into(), libc::IPPROTO_IP, libc::IP_MTU),
        Family::V6 => (([0_u16; 8], 0).into(), libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let socket = std::net::UdpSocket::bind(any).map_err(fail)?;
    // Any port: nothing is sent.
    socket.connect((to, 9)).map_err(fail)?;
    let (mut mtu, mut len): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the pointers are to a live number and to its length.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut len) };
    if result < 0 { Err(fail(io::Error::last_os_error())) } else { Ok(mtu.unsigned_abs()) }
}
