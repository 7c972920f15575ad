//! Calling the agent by its socket: whether somebody is there, and a GET, which is enough of HTTP for its local API.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::LinuxError;

/// Whether an agent listens. Never waits: one that is so busy that its queue of callers is full is there all the same.
#[must_use]
pub fn listens(socket: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let called = SocketAddrUnix::new(socket)
        .and_then(|address| connect(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, &address));
    matches!(called, Ok(()) | Err(Errno::AGAIN))
}

/// The status code and the body. An answer is waited for as long as `patience`.
///
/// # Errors
/// [`LinuxError`] when nobody answers.
pub fn get(socket: &Path, path: &str, patience: Duration) -> Result<(u16, String), LinuxError> {
    let what = || format!("GET {path} from {}", socket.display());
    let fail = |error: std::io::Error| LinuxError::system(what(), error);
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    stream.set_read_timeout(Some(patience)).map_err(fail)?;
    // HTTP/1.0: the end of the stream is the end of the body.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").map_err(fail)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(fail)?;
    let malformed = || LinuxError::Malformed { what: what(), detail: "it is no HTTP".to_owned() };
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((code, body.to_owned()))
}
