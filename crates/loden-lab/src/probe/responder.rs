//! Answers probes in a namespace: how much arrived, and from which address.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use loden_linux::netns::NetNs;

use super::PORT;
use crate::LabError;

/// How often a responder looks whether it is still wanted.
const TURN: Duration = Duration::from_millis(100);

/// A responder; it ends when it is dropped.
#[derive(Debug)]
pub struct Responder {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Responder {
    /// Starts one in a namespace, for both families.
    ///
    /// # Errors
    /// [`LabError`] when the ports cannot be had.
    pub fn start(ns: &NetNs) -> Result<Self, LabError> {
        let fail = |error: std::io::Error| LabError::system("a responder", error);
        let bound = ns.run(|| -> std::io::Result<_> {
            // One socket for both families: IPv4 comes in as mapped addresses (RFC 4291 section 2.5.5.2).
            let udp = UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, PORT))?;
            let tcp = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, PORT))?;
            udp.set_read_timeout(Some(TURN))?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        });
        let (udp, tcp) = bound.map_err(LabError::linux("a responder"))?.map_err(fail)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (over_udp, over_tcp) = (Arc::clone(&is_over), Arc::clone(&is_over));
        let threads = vec![
            thread::spawn(move || answer_datagrams(&udp, &over_udp)),
            thread::spawn(move || answer_connections(&tcp, &over_tcp)),
        ];
        Ok(Self { is_over, threads })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, is_over: &AtomicBool) {
    let mut buf = vec![0; 65536];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut buf) {
            // An answer that is lost shows as silence at the other end.
            let _ = socket.send_to(format!("{len} {}", from.ip().to_canonical()).as_bytes(), from);
        }
    }
}

fn answer_connections(listener: &TcpListener, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let Ok((mut stream, from)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let mut received = Vec::new();
        let served = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(super::PATIENCE)))
            .and_then(|()| stream.read_to_end(&mut received))
            .and_then(|len| write!(stream, "{len} {}", from.ip().to_canonical()));
        // A connection that broke shows at the other end.
        drop(served);
    }
}
