//! A netlink socket that sends batches: many messages a send, an ACK asked only of the last as a barrier.
//!
//! The kernel works a send off in order and reports each failure by itself, ACK asked or not; failures are matched to
//! their messages by sequence number and carry the kernel's extended acknowledgement. Bound to the network namespace of
//! the thread that opens it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::attr::{Attrs, HEADER, Writer, align, text, u16_at, u32_at};
use crate::error::{LinuxError, errno_text};
use crate::sockopt;

/// `NETLINK_ROUTE` or `NETLINK_NETFILTER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nftables, conntrack.
    Netfilter,
}

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x4;
/// `NLM_F_ECHO`: the kernel sends back what it made.
pub const ECHO: u16 = 0x8;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Bytes and messages of one send: far under the socket's buffer, far over what makes a system call cheap.
const SEND_BYTES: usize = 192 * 1024;
const SEND_MESSAGES: usize = 1000;
/// What a refusal takes of the receive buffer at most, in bytes: its text, and the kernel's own book-keeping.
const REFUSAL_BYTES: usize = 2048;
/// How much is asked for the socket's buffers, in bytes.
const BUFFER: libc::c_int = 8 << 20;
/// A guard against an acknowledgement that never comes; the kernel answers in the call.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a listing that changes under the reader is begun anew.
const DUMP_TRIES: usize = 16;

/// A received message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// Its sequence number; 0 in a notification.
    pub seq: u32,
    /// The port of the socket whose request caused it; 0: the kernel's own doing.
    pub port: u32,
    /// What stands behind the header.
    pub payload: &'a [u8],
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    seq: u32,
    buf: Vec<u8>,
    /// Messages of one send: if all are refused, all the answers must find room, or none is known.
    send_messages: usize,
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn open(family: Family) -> Result<Self, LinuxError> {
        let protocol = match family {
            Family::Route => libc::NETLINK_ROUTE,
            Family::Netfilter => libc::NETLINK_NETFILTER,
        };
        let what = || format!("netlink socket ({family:?})");
        // SAFETY: a plain system call with constant arguments.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if raw < 0 {
            return Err(LinuxError::system(what(), io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was made just now and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            sockopt::set(&fd, libc::SOL_NETLINK, option, 1).map_err(|error| LinuxError::system(what(), error))?;
        }
        for (force, plain) in [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)] {
            // In a user namespace the limit of the host cannot be passed; a smaller buffer only means more sends.
            if sockopt::set(&fd, libc::SOL_SOCKET, force, BUFFER).is_err() {
                sockopt::set(&fd, libc::SOL_SOCKET, plain, BUFFER)
                    .map_err(|error| LinuxError::system(what(), error))?;
            }
        }
        let timeout = libc::timeval { tv_sec: PATIENCE.as_secs().cast_signed(), tv_usec: 0 };
        // SAFETY: the pointer and the length are those of a live timeval.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const timeout).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(LinuxError::system(what(), io::Error::last_os_error()));
        }
        let port = bind(&fd).map_err(|error| LinuxError::system(what(), error))?;
        let room = receive_buffer(&fd).map_err(|error| LinuxError::system(what(), error))?;
        let send_messages = (room / REFUSAL_BYTES).clamp(16, SEND_MESSAGES);
        Ok(Self { fd, port, seq: 0, buf: vec![0; 64 * 1024], send_messages })
    }

    /// The socket's port: the `nlmsg_pid` of what it causes.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Joins a multicast group.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn join(&self, group: u32) -> Result<(), LinuxError> {
        sockopt::set(&self.fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group.cast_signed())
            .map_err(|error| LinuxError::system(format!("netlink group {group}"), error))
    }

    /// Carries out all messages of the writer and says for each how it went.
    ///
    /// # Errors
    /// [`LinuxError`] when the socket itself fails; a refused message is in the list.
    pub fn batch(&mut self, writer: &mut Writer) -> Result<Vec<Result<(), LinuxError>>, LinuxError> {
        self.batch_with_echo(writer, |_, _| {})
    }

    /// The same; messages that the kernel sends back (`NLM_F_ECHO`) go to `echo` with their place in the batch.
    ///
    /// # Errors
    /// As [`Socket::batch`].
    pub fn batch_with_echo(
        &mut self,
        writer: &mut Writer,
        mut echo: impl FnMut(usize, Message<'_>),
    ) -> Result<Vec<Result<(), LinuxError>>, LinuxError> {
        let spans = spans(writer.as_slice());
        let mut results = vec![Ok(()); spans.len()];
        let mut at = 0;
        while at < spans.len() {
            let begin = spans[at].0;
            let mut next = at;
            while next < spans.len() && next - at < self.send_messages && spans[next].1 - begin <= SEND_BYTES {
                next += 1;
            }
            let next = next.max(at + 1);
            let first_seq = self.seq.wrapping_add(1);
            let bytes = writer.as_mut_slice();
            for (n, &(start, _)) in spans[at..next].iter().enumerate() {
                self.seq = self.seq.wrapping_add(1);
                bytes[start + 8..start + 12].copy_from_slice(&self.seq.to_ne_bytes());
                let flags = u16_at(bytes, start + 6).unwrap_or_default() | REQUEST;
                let flags = if at + n + 1 == next { flags | ACK } else { flags };
                bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
            }
            let last_seq = self.seq;
            let end = align(spans[next - 1].1).min(bytes.len());
            self.send(&writer.as_slice()[begin..end])?;
            let mut is_done = false;
            while !is_done {
                self.receive(|message| {
                    let place = message.seq.wrapping_sub(first_seq) as usize;
                    if place >= next - at {
                        return;
                    }
                    if message.kind == NLMSG_ERROR {
                        if let Err(error) = error_of(message, "request") {
                            results[at + place] = Err(error);
                        }
                        is_done |= message.seq == last_seq;
                    } else {
                        echo(at + place, message);
                    }
                })?;
            }
            at = next;
        }
        Ok(results)
    }

    /// Carries out an nftables transaction: a batch that happens whole or not at all. `names` says for each message what it
    /// is, for the error. The closing message is not acknowledged on all kernels, so the one before it is asked to be.
    ///
    /// # Errors
    /// [`LinuxError::Netlink`] for the first message that was refused.
    pub fn transaction(&mut self, writer: &mut Writer, names: &[String]) -> Result<(), LinuxError> {
        let spans = spans(writer.as_slice());
        let first_seq = self.seq.wrapping_add(1);
        let last = spans.len().saturating_sub(2);
        let bytes = writer.as_mut_slice();
        for (n, &(start, _)) in spans.iter().enumerate() {
            self.seq = self.seq.wrapping_add(1);
            bytes[start + 8..start + 12].copy_from_slice(&self.seq.to_ne_bytes());
            let flags = u16_at(bytes, start + 6).unwrap_or_default() | REQUEST | if n == last { ACK } else { 0 };
            bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.send(writer.as_slice())?;
        let (mut refused, mut is_done) = (None, false);
        while !is_done {
            self.receive(|message| {
                let place = message.seq.wrapping_sub(first_seq) as usize;
                if message.kind != NLMSG_ERROR || place >= spans.len() {
                    return;
                }
                if let Err(error) = error_of(message, names.get(place).map_or("", String::as_str)) {
                    refused.get_or_insert(error);
                }
                // An error of the opening message is the last that is heard of the transaction.
                is_done |= place == last || place == 0;
            })?;
        }
        refused.map_or(Ok(()), Err)
    }

    /// Sends one request and gives every message of the listing to `take`. A listing that something changed meanwhile is
    /// begun again, after `restart`.
    ///
    /// # Errors
    /// [`LinuxError`]; when the listing never comes out whole, too.
    pub fn dump<T>(
        &mut self,
        what: &str,
        writer: &mut Writer,
        mut restart: impl FnMut() -> T,
        mut take: impl FnMut(&mut T, Message<'_>),
    ) -> Result<T, LinuxError> {
        for _ in 0..DUMP_TRIES {
            self.seq = self.seq.wrapping_add(1);
            let seq = self.seq;
            let bytes = writer.as_mut_slice();
            let flags = u16_at(bytes, 6).unwrap_or_default() | REQUEST;
            bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
            bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
            self.send(writer.as_slice())?;
            let mut all = restart();
            let (mut is_done, mut is_torn, mut refused) = (false, false, None);
            while !is_done {
                self.receive(|message| {
                    if message.seq != seq {
                        return;
                    }
                    is_torn |= message.flags & NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        NLMSG_ERROR => {
                            refused = error_of(message, what).err();
                            is_done = true;
                        }
                        NLMSG_DONE => {
                            refused = error_of(message, what).err();
                            is_done = true;
                        }
                        _ => take(&mut all, message),
                    }
                })?;
            }
            match refused {
                None if is_torn => {}
                None => return Ok(all),
                Some(error) if error.errno() == libc::EINTR => {}
                Some(error) => return Err(error),
            }
        }
        Err(LinuxError::Netlink {
            what: what.to_owned(),
            errno: libc::EINTR,
            cause: format!("the listing changed {DUMP_TRIES} times while it was read"),
        })
    }

    /// Receives one datagram and hands out its messages.
    ///
    /// # Errors
    /// [`LinuxError::Overrun`] when notifications were dropped, [`LinuxError::System`] otherwise.
    pub fn receive(&mut self, mut take: impl FnMut(Message<'_>)) -> Result<(), LinuxError> {
        let len = self.receive_datagram()?;
        let mut rest = &self.buf[..len];
        while let (Some(size), Some(kind), Some(flags), Some(seq), Some(port)) =
            (u32_at(rest, 0), u16_at(rest, 4), u16_at(rest, 6), u32_at(rest, 8), u32_at(rest, 12))
        {
            let size = size as usize;
            let Some(payload) = rest.get(HEADER..size) else { break };
            take(Message { kind, flags, seq, port, payload });
            rest = rest.get(align(size)..).unwrap_or_default();
        }
        Ok(())
    }

    fn receive_datagram(&mut self) -> Result<usize, LinuxError> {
        let recv = |buf: &mut [u8], flags| {
            // SAFETY: the pointer and the length are those of a live buffer.
            let n = unsafe { libc::recv(self.fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), flags) };
            usize::try_from(n).map_err(|_| io::Error::last_os_error())
        };
        loop {
            // The size first: a datagram that does not fit would lose its end.
            let size = recv(&mut [], libc::MSG_PEEK | libc::MSG_TRUNC);
            let result = size.and_then(|size| {
                if size > self.buf.len() {
                    self.buf.resize(size.next_power_of_two(), 0);
                }
                recv(&mut self.buf, 0)
            });
            match result {
                Ok(len) => return Ok(len),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => return Err(LinuxError::Overrun),
                    Some(libc::EAGAIN) => {
                        return Err(LinuxError::Netlink {
                            what: "netlink".to_owned(),
                            errno: libc::ETIMEDOUT,
                            cause: format!("no answer in {} s", PATIENCE.as_secs()),
                        });
                    }
                    _ => return Err(LinuxError::system("netlink receive", error)),
                },
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), LinuxError> {
        loop {
            // SAFETY: the pointer and the length are those of a live buffer.
            let n = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
            if n >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(LinuxError::system(format!("netlink send of {} bytes", bytes.len()), error));
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where each message begins and ends.
fn spans(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    let mut at = 0;
    while let Some(len) = u32_at(bytes, at) {
        let end = at + len as usize;
        spans.push((at, end));
        at = align(end).max(at + HEADER);
    }
    spans
}

/// What an error message (or the end of a listing, which has the same form) says; 0 is an acknowledgement.
fn error_of(message: Message<'_>, what: &str) -> Result<(), LinuxError> {
    let errno = match u32_at(message.payload, 0).map(u32::cast_signed) {
        // The end of a listing without a number says nothing.
        None | Some(0) => return Ok(()),
        Some(negative) => negative.wrapping_neg(),
    };
    // Behind the number stands the header of the request, and the request itself unless the answer is capped.
    let behind = match message.kind {
        NLMSG_DONE => 4,
        _ if message.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
        _ => 4 + align(u32_at(message.payload, 4).unwrap_or_default() as usize),
    };
    let words = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| Attrs::behind(message.payload, behind).find(NLMSGERR_ATTR_MSG).and_then(text))
        .flatten();
    let plain = errno_text(errno).unwrap_or_default();
    let cause = match words {
        Some(words) => format!("{words} ({plain})"),
        None => plain,
    };
    Err(LinuxError::Netlink { what: what.to_owned(), errno, cause })
}

/// The size of the receive buffer in bytes, as the kernel gave it.
fn receive_buffer(fd: &OwnedFd) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointers are those of a live integer and its length, both to be written.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw mut value).cast(), &raw mut len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(value).unwrap_or(0)) }
}

/// Binds to a port that the kernel chooses, and says which.
fn bind(fd: &OwnedFd) -> io::Result<u32> {
    // SAFETY: all-zero is a valid sockaddr_nl.
    let mut addr: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    addr.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let mut len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of a live sockaddr_nl.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the same, to be written; the kernel writes at most `len` bytes.
    if unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut addr).cast(), &raw mut len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(addr.nl_pid)
}
