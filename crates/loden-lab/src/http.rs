//! A GET over a Unix socket: enough of HTTP for an agent's local API.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::LabError;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The status code and the body.
///
/// # Errors
/// [`LabError::System`] when nobody answers.
pub fn get(socket: &Path, path: &str) -> Result<(u16, String), LabError> {
    let what = || format!("GET {path} from {}", socket.display());
    let fail = |error: std::io::Error| LabError::system(what(), error);
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    // HTTP/1.0: the end of the stream is the end of the body.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").map_err(fail)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(fail)?;
    let malformed = || LabError::system(what(), "the answer is no HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((code, body.to_owned()))
}

/// The body of a 200 as a value.
///
/// # Errors
/// [`LabError::System`]; with the agent's own words for another code.
pub fn get_json<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, LabError> {
    let what = || format!("GET {path} from {}", socket.display());
    match get(socket, path)? {
        (200, body) => serde_json::from_str(&body).map_err(|error| LabError::system(what(), error)),
        (code, body) => Err(LabError::system(what(), format!("{code}: {}", body.trim()))),
    }
}
