//! Real packets: echoes of all sorts, a stream that counts what is lost, and a flow that fills its way.

pub mod capture;
pub mod flow;
pub mod icmp;
pub mod reach;
pub mod responder;
pub mod stream;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use loden_core::model::Family;
use loden_linux::sockopt;

/// Where responders listen, in UDP and TCP.
pub const PORT: u16 = 7007;
/// How long an answer is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The protocols that are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// ICMP or ICMPv6 echo.
    Icmp,
    /// A datagram there and back.
    Udp,
    /// A connection, 64 KiB there, the count back.
    Tcp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Icmp, Self::Udp, Self::Tcp];
}

/// Sends a datagram of `payload` bytes that must not be fragmented, and gives the source address that the other side saw (and
/// that it got the whole).
///
/// # Errors
/// What went wrong, in the system's words.
pub fn udp(to: IpAddr, payload: usize) -> Result<IpAddr, String> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).map_err(|error| error.to_string())?;
    sockopt::forbid_fragments(socket.as_fd(), Family::of(to)).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    socket.send_to(&vec![b'u'; payload], (to, PORT)).map_err(|error| error.to_string())?;
    let mut answer = [0; 128];
    // A host of many addresses may answer from another one: the socket is not tied to the one that was asked.
    let (len, _) = socket.recv_from(&mut answer).map_err(|error| silence(&error))?;
    parse_answer(&answer[..len], payload)
}

/// Connects, sends `payload` bytes, and gives the source address that the other side saw.
///
/// # Errors
/// What went wrong, in the system's words.
pub fn tcp(to: IpAddr, payload: usize) -> Result<IpAddr, String> {
    let mut stream = TcpStream::connect_timeout(&(to, PORT).into(), PATIENCE).map_err(|error| silence(&error))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    stream.write_all(&vec![b't'; payload]).map_err(|error| error.to_string())?;
    stream.shutdown(std::net::Shutdown::Write).map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|error| silence(&error))?;
    parse_answer(&answer, payload)
}

/// `<bytes> <source address>`
fn parse_answer(answer: &[u8], payload: usize) -> Result<IpAddr, String> {
    let text = String::from_utf8_lossy(answer);
    let (bytes, source) = text.trim().split_once(' ').ok_or_else(|| format!("odd answer {text:?}"))?;
    if bytes.parse() != Ok(payload) {
        return Err(format!("of {payload} bytes {bytes} arrived"));
    }
    source.parse().map_err(|_| format!("odd answer {text:?}"))
}

fn silence(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            format!("no answer in {} s", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    }
}
