//! Receiving by the batch, into buffers that are used again (recvmmsg(2)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use loden_core::model::Family;

use super::Datagrams;
use super::control::{self, Address, Control};
use crate::error::LinuxError;

/// One message: a datagram, or a run of them from one source.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// Where from; of a raw socket the port says nothing.
    pub from: SocketAddr,
    /// What is in it.
    pub bytes: &'a [u8],
    /// Of how many bytes each datagram in it is, the last one maybe shorter; all of it when it is one.
    pub segment: usize,
    /// The type of service or traffic class that it came with.
    pub tos: u8,
    /// Whether there was more of it than there was room for.
    pub is_truncated: bool,
}

/// Buffers for a batch, and what was received last.
pub struct Inbox {
    bytes: Vec<u8>,
    /// Length of a buffer, in bytes.
    room: usize,
    headers: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
    addresses: Vec<Address>,
    controls: Vec<Control>,
    /// How many were received last, and by a socket of which family.
    filled: usize,
    family: Family,
}

// SAFETY: the pointers are only to what the lists here hold, which stays in its place when they are moved.
unsafe impl Send for Inbox {}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("room", &self.room).field("filled", &self.filled).finish()
    }
}

impl Inbox {
    /// Buffers for `count` messages of at most `room` bytes each.
    #[must_use]
    pub fn new(count: usize, room: usize) -> Self {
        Self {
            bytes: vec![0; count * room],
            room,
            // SAFETY: zero is a value of each field.
            headers: vec![unsafe { std::mem::zeroed() }; count],
            parts: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; count],
            addresses: vec![Address::empty(); count],
            controls: vec![control::EMPTY; count],
            filled: 0,
            family: Family::V4,
        }
    }

    /// Takes what is there, as many as there are buffers, in place of what was received last; gives how many.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn receive(&mut self, socket: &Datagrams) -> Result<usize, LinuxError> {
        self.filled = 0;
        self.family = socket.family;
        let buffers = self.bytes.chunks_exact_mut(self.room.max(1));
        let lists = self.headers.iter_mut().zip(&mut self.parts).zip(&mut self.addresses).zip(&mut self.controls);
        for ((((header, part), address), control), buffer) in lists.zip(buffers) {
            *part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut *address).cast();
            header.msg_namelen = size_of::<Address>() as libc::socklen_t;
            header.msg_iov = &raw mut *part;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        loop {
            // SAFETY: each pointer in the headers is to a live buffer of the length beside it.
            let received = unsafe {
                libc::recvmmsg(
                    socket.fd.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    self.headers.len() as _,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            if let Ok(received) = usize::try_from(received) {
                self.filled = received;
                return Ok(received);
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(0),
                _ => return Err(socket.failed(error)),
            }
        }
    }

    /// What was received last.
    pub fn messages(&self) -> impl Iterator<Item = Received<'_>> {
        let lists = self.headers.iter().zip(&self.addresses).zip(self.bytes.chunks_exact(self.room.max(1)));
        lists.take(self.filled).map(|((header, address), buffer)| {
            let bytes = &buffer[..buffer.len().min(header.msg_len as usize)];
            // SAFETY: the kernel has filled it in, and its control buffer is one of the list's.
            let (segment, tos) = unsafe { control::read(&header.msg_hdr) };
            Received {
                from: address.get(self.family),
                bytes,
                segment: segment.unwrap_or(bytes.len()),
                tos,
                is_truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            }
        })
    }
}
