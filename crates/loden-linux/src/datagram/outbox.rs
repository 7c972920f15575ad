//! Sending by the batch, from wherever the parts lie (sendmmsg(2)). Nothing is allocated once a batch of that size has been sent.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use super::Datagrams;
use super::control::{self, Address, Control};

/// One message: a datagram, or a run of them to one destination.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Where to; of a raw socket the port is 0.
    pub to: SocketAddr,
    /// What, one part behind the other.
    pub parts: &'a [IoSlice<'a>],
    /// Cut into datagrams of this many bytes each, the last one maybe shorter: at most 64, and 65,000 bytes in all.
    pub segment: Option<u16>,
    /// The type of service or traffic class, with the mark of congestion in its two low bits.
    pub tos: u8,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Sent {
    /// How many messages the kernel took, from the first on.
    pub count: usize,
    /// Why it did not take the one behind those: there is no room (`WouldBlock`), it is too large for its way (EMSGSIZE), …
    pub error: Option<io::Error>,
}

/// What is used again from batch to batch.
#[derive(Default)]
pub struct Outbox {
    headers: Vec<libc::mmsghdr>,
    addresses: Vec<(Address, libc::socklen_t)>,
    controls: Vec<(Control, usize)>,
}

// SAFETY: the pointers in the headers are followed only within the call of `send` that has written them.
unsafe impl Send for Outbox {}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("capacity", &self.headers.capacity()).finish()
    }
}

impl Outbox {
    /// Sends messages in their order until all are taken or one is not. An interrupted call is made again.
    pub fn send<'a>(&mut self, socket: &Datagrams, messages: impl IntoIterator<Item = Message<'a>>) -> Sent {
        self.headers.clear();
        self.addresses.clear();
        self.controls.clear();
        for message in messages {
            let mut control = control::EMPTY;
            let len = control::write(&mut control, socket.family, message.segment, message.tos);
            self.controls.push((control, len));
            self.addresses.push(Address::of(message.to));
            // SAFETY: zero is a value of each field.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            // An `IoSlice` is an `iovec` (its documentation); the kernel only reads what it points to.
            header.msg_hdr.msg_iov = message.parts.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_iovlen = message.parts.len() as _;
            self.headers.push(header);
        }
        // The lists do not grow any more.
        for ((header, address), control) in self.headers.iter_mut().zip(&mut self.addresses).zip(&mut self.controls) {
            header.msg_hdr.msg_name = (&raw mut address.0).cast();
            header.msg_hdr.msg_namelen = address.1;
            if control.1 > 0 {
                header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = control.1 as _;
            }
        }
        let mut count = 0;
        while let Some(rest) = self.headers.get_mut(count..).filter(|rest| !rest.is_empty()) {
            // SAFETY: each pointer in the headers is to something of the length beside it that outlives the call: the lists here, and
            // the parts, which are borrowed for as long as the call.
            let sent = unsafe {
                libc::sendmmsg(socket.fd.as_raw_fd(), rest.as_mut_ptr(), rest.len() as _, libc::MSG_DONTWAIT as _)
            };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => count += sent,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Sent { count, error: Some(error) };
                    }
                }
            }
        }
        Sent { count, error: None }
    }
}
