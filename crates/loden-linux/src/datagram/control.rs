//! What goes beside a datagram: socket addresses as the kernel has them, and control messages (cmsg(3)).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use loden_core::model::Family;

/// Room for two control messages of a number each, aligned as their headers must be.
pub(super) type Control = [u64; 6];
// SAFETY: only arithmetic.
const _: () = assert!(2 * unsafe { libc::CMSG_SPACE(4) } as usize <= size_of::<Control>());
/// An empty one.
pub(super) const EMPTY: Control = [0; 6];

/// Room for an address of either family.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Address {
    /// Of nobody.
    pub(super) fn empty() -> Self {
        // SAFETY: zero is a value of each field.
        unsafe { std::mem::zeroed() }
    }

    /// The address, and how long it is.
    pub(super) fn of(addr: SocketAddr) -> (Self, libc::socklen_t) {
        let mut this = Self::empty();
        match addr {
            SocketAddr::V4(addr) => {
                this.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (this, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(addr) => {
                this.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                    sin6_scope_id: addr.scope_id(),
                };
                (this, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// As the kernel has filled it in, by a socket of a family.
    pub(super) fn get(&self, family: Family) -> SocketAddr {
        match family {
            Family::V4 => {
                // SAFETY: every field is a number: any bytes are a value of it.
                let addr = unsafe { self.v4 };
                (Ipv4Addr::from(addr.sin_addr.s_addr.to_ne_bytes()), u16::from_be(addr.sin_port)).into()
            }
            Family::V6 => {
                // SAFETY: as above.
                let addr = unsafe { self.v6 };
                let ip = Ipv6Addr::from(addr.sin6_addr.s6_addr);
                SocketAddrV6::new(ip, u16::from_be(addr.sin6_port), 0, addr.sin6_scope_id).into()
            }
        }
    }
}

/// Writes control messages into a buffer of one datagram and gives their length: the length of segments, and the whole byte of the
/// IP header that has the mark of congestion. What is the default is left out.
pub(super) fn write(control: &mut Control, family: Family, segment: Option<u16>, tos: u8) -> usize {
    let mut at = 0;
    if let Some(segment) = segment {
        at += put(control, at, (libc::SOL_UDP, libc::UDP_SEGMENT), &segment.to_ne_bytes());
    }
    if tos != 0 {
        let kind = match family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_TOS),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        at += put(control, at, kind, &libc::c_int::from(tos).to_ne_bytes());
    }
    at
}

/// Writes one message at a place, a number of at most four bytes; gives what it takes.
fn put(control: &mut Control, at: usize, (level, kind): (libc::c_int, libc::c_int), value: &[u8]) -> usize {
    debug_assert!(value.len() <= 4);
    // SAFETY: only arithmetic.
    let (len, space) = unsafe { (libc::CMSG_LEN(value.len() as u32), libc::CMSG_SPACE(value.len() as u32) as usize) };
    debug_assert!(at + space <= size_of::<Control>());
    // SAFETY: two messages of at most four bytes fit into the buffer (asserted above), and `at` is behind at most one; both are aligned as a
    // header is.
    unsafe {
        let header = control.as_mut_ptr().byte_add(at).cast::<libc::cmsghdr>();
        (*header).cmsg_len = len as _;
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        libc::CMSG_DATA(header).copy_from_nonoverlapping(value.as_ptr(), value.len());
    }
    space
}

/// What the kernel has written: the length of segments, and that byte of the IP header.
///
/// # Safety
/// `header` must be as the kernel has filled it in, and its control buffer must live.
pub(super) unsafe fn read(header: &libc::msghdr) -> (Option<usize>, u8) {
    let (mut segment, mut tos) = (None, 0);
    // SAFETY: the caller's promise.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: it is a header within the control buffer, and data of the length that its sort says is behind it, which need not be
        // aligned.
        unsafe {
            let data = libc::CMSG_DATA(next);
            match ((*next).cmsg_level, (*next).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).ok().filter(|len| *len > 0);
                }
                // One byte here, a whole number there (net/ipv4/ip_sockglue.c, net/ipv6/datagram.c).
                (libc::IPPROTO_IP, libc::IP_TOS) => tos = data.read(),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => tos = data.cast::<libc::c_int>().read_unaligned() as u8,
                _ => {}
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
    (segment, tos)
}
