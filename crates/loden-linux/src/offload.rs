//! Datagrams whose checksum is left to the device, and others that differ in nothing but that: does the peer get them whole?

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use loden_core::model::Family;
use loden_core::offload::{By, Probe};
use rustix::net::{SendFlags, send};

use crate::error::LinuxError;
use crate::sockopt;

/// For who looks at it on the way.
const WORDS: &[u8] = b"loden tries whether checksums arrive right";

/// Sends one from the calling thread's namespace to a port that nobody listens on; says whether the peer's kernel has answered that
/// (ICMP, port unreachable) within `patience`.
///
/// # Errors
/// [`LinuxError::System`] when it cannot be sent, as when there is no route.
pub fn is_answered(probe: &Probe, patience: Duration) -> Result<bool, LinuxError> {
    let failed =
        |error: io::Error| LinuxError::system(format!("datagram to {} port {}", probe.addr, probe.port), error);
    let any: SocketAddr = match Family::of(probe.addr) {
        Family::V4 => ([0, 0, 0, 0], 0).into(),
        Family::V6 => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).map_err(failed)?;
    sockopt::set(&socket, libc::SOL_SOCKET, libc::SO_MARK, probe.mark.cast_signed()).map_err(failed)?;
    // What is answered to a socket that is connected is its error.
    socket.connect((probe.addr, probe.port)).map_err(failed)?;
    // Of a datagram that is put together by several calls the kernel computes the checksum itself, whatever the device can do
    // (`__ip_append_data`, net/ipv4/ip_output.c, and its like in net/ipv6).
    match probe.by {
        By::Card => send(&socket, WORDS, SendFlags::empty()),
        By::Host => send(&socket, WORDS, SendFlags::MORE).and_then(|_| send(&socket, &[], SendFlags::empty())),
    }
    .map_err(|error| failed(error.into()))?;
    wait(&socket, patience).map_err(failed)
}

fn wait(socket: &UdpSocket, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would be for ever.
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut [0; 64]) {
            // Somebody does listen there, and has got it.
            Ok(_) => return Ok(true),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => return Ok(true),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                // A router's or a firewall's word, which says nothing of the checksum.
                _ => return Ok(false),
            },
        }
    }
}
