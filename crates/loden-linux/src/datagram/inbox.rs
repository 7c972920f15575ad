//! Receiving by the batch, into the caller's memory (recvmmsg(2)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use super::Datagrams;
use super::control::{self, Address, Control};
use crate::error::LinuxError;

/// One message: a datagram, or a run of them from one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Where from; of a raw socket the port says nothing.
    pub from: SocketAddr,
    /// How many bytes there are in it.
    pub len: usize,
    /// Of how many bytes each datagram in it is, the last one maybe shorter; all of it when it is one.
    pub segment: usize,
    /// The type of service or traffic class that it came with.
    pub tos: u8,
    /// Whether there was more of it than there was room for.
    pub is_truncated: bool,
}

/// What is used again from batch to batch, and what is known of those received last.
#[derive(Default)]
pub struct Inbox {
    headers: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
    addresses: Vec<Address>,
    controls: Vec<Control>,
    received: Vec<Received>,
}

// SAFETY: the pointers in the headers are followed only within the call of `receive` that has written them.
unsafe impl Send for Inbox {}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("received", &self.received).finish()
    }
}

impl Inbox {
    /// Takes what is there now: the n-th message is put at the beginning of the n-th piece of `room` bytes of `into`, and there are at
    /// most as many as there are whole pieces. None is there when none is given.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn receive(&mut self, socket: &Datagrams, into: &mut [u8], room: usize) -> Result<&[Received], LinuxError> {
        self.received.clear();
        let pieces = into.chunks_exact_mut(room.max(1));
        let count = pieces.len();
        // SAFETY: zero is a value of each field.
        self.headers.resize_with(count, || unsafe { std::mem::zeroed() });
        self.parts.resize(count, libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });
        self.addresses.resize(count, Address::empty());
        self.controls.resize(count, control::EMPTY);
        let lists = self.headers.iter_mut().zip(&mut self.parts).zip(&mut self.addresses).zip(&mut self.controls);
        for ((((header, part), address), control), piece) in lists.zip(pieces) {
            *part = libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() };
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut *address).cast();
            header.msg_namelen = size_of::<Address>() as libc::socklen_t;
            header.msg_iov = &raw mut *part;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        let count = loop {
            // SAFETY: each pointer in the headers is to something of the length beside it that outlives the call: the lists here, and
            // pieces of `into` that do not overlap.
            let received = unsafe {
                libc::recvmmsg(
                    socket.fd.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    self.headers.len() as _,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            if let Ok(count) = usize::try_from(received) {
                break count;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => break 0,
                _ => return Err(socket.failed(error)),
            }
        };
        let filled = self.headers.iter().zip(&self.addresses).take(count);
        self.received.extend(filled.map(|(header, address)| {
            let len = room.min(header.msg_len as usize);
            // SAFETY: the kernel has filled it in, and its control buffer is one of the list's.
            let (segment, tos) = unsafe { control::read(&header.msg_hdr) };
            Received {
                from: address.get(socket.family),
                len,
                segment: segment.unwrap_or(len),
                tos,
                is_truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            }
        }));
        Ok(&self.received)
    }
}
