//! Calling the agent by its socket: whether somebody is there, and GET and POST, which are enough of HTTP for its local API.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use serde_json::Value;

use crate::error::LinuxError;

/// The most that an answer may have, in bytes.
const LARGEST: usize = 64 << 20;

/// Whether an agent listens. Never waits: one that is so busy that its queue of callers is full is there all the same.
#[must_use]
pub fn listens(socket: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let called = SocketAddrUnix::new(socket)
        .and_then(|address| connect(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, &address));
    matches!(called, Ok(()) | Err(Errno::AGAIN))
}

/// The status code and the body that GET gives. The whole answer is waited for as long as `patience`.
///
/// # Errors
/// [`LinuxError`] when nobody answers.
pub fn get(socket: &Path, path: &str, patience: Duration) -> Result<(u16, String), LinuxError> {
    call(socket, path, None, patience)
}

/// The same of POST with a body.
///
/// # Errors
/// As [`get`].
pub fn post(socket: &Path, path: &str, body: &Value, patience: Duration) -> Result<(u16, String), LinuxError> {
    call(socket, path, Some(body), patience)
}

fn call(socket: &Path, path: &str, body: Option<&Value>, patience: Duration) -> Result<(u16, String), LinuxError> {
    let verb = if body.is_some() { "POST" } else { "GET" };
    let what = || format!("{verb} {path} on {}", socket.display());
    let fail = |error: io::Error| LinuxError::system(what(), error);
    let deadline = Instant::now() + patience;
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    stream.set_write_timeout(Some(patience)).map_err(fail)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    // HTTP/1.0: the end of the stream is the end of the body.
    let head = format!(
        "{verb} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).map_err(fail)?;
    let (mut answer, mut part) = (Vec::new(), [0; 8192]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinuxError::system(what(), Errno::TIMEDOUT));
        }
        stream.set_read_timeout(Some(left)).map_err(fail)?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(len) if answer.len() + len <= LARGEST => answer.extend_from_slice(&part[..len]),
            Ok(_) => return Err(malformed(what(), "it does not end")),
            // The time that was left is up.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    let answer = String::from_utf8(answer).map_err(|_| malformed(what(), "it is no text"))?;
    let no_http = || malformed(what(), "it is no HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(no_http)?;
    Ok((code, body.to_owned()))
}

fn malformed(what: String, detail: &str) -> LinuxError {
    LinuxError::Malformed { what, detail: detail.to_owned() }
}
