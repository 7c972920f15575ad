//! A stream of numbered datagrams at a steady rate: what is lost, doubled or out of order, and the longest silence.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use loden_linux::netns::NetNs;

use crate::LabError;

/// What the receiver's socket holds at most, in bytes: some seconds of a stream.
const BUFFER: usize = 16 << 20;

/// What a stream came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Datagrams sent.
    pub sent: u64,
    /// Different ones that arrived.
    pub received: u64,
    /// Those that did not.
    pub lost: u64,
    /// Arrivals of one that had arrived before.
    pub doubled: u64,
    /// Arrivals behind a later one.
    pub reordered: u64,
    /// The longest time between two arrivals, in milliseconds.
    pub longest_gap_ms: u64,
}

/// A stream that runs.
#[derive(Debug)]
pub struct Stream {
    is_over: Arc<AtomicBool>,
    /// A sender that does not get its turn for a while on a busy machine sends its last one late.
    is_all_sent: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<Report>,
}

impl Stream {
    /// Starts to send from one namespace to an address in another, `rate` times a second.
    ///
    /// # Errors
    /// [`LabError`] when the sockets cannot be had.
    pub fn start(from: &NetNs, to: &NetNs, addr: IpAddr, rate: u32) -> Result<Self, LabError> {
        let fail = |error: std::io::Error| LabError::system("a stream", error);
        let any = || -> SocketAddr { if addr.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() } };
        let inbound = to.run(|| UdpSocket::bind(any())).map_err(LabError::linux("a stream"))?.map_err(fail)?;
        // A receiver that does not get its turn for a while on a busy machine has lost nothing on the way.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&inbound, BUFFER)
            .map_err(|error| fail(error.into()))?;
        inbound.set_read_timeout(Some(Duration::from_millis(50))).map_err(fail)?;
        let port = inbound.local_addr().map_err(fail)?.port();
        let outbound = from
            .run(|| {
                let socket = UdpSocket::bind(any())?;
                socket.connect((addr, port)).map(|()| socket)
            })
            .map_err(LabError::linux("a stream"))?
            .map_err(fail)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let sender = thread::spawn(move || send(&outbound, rate, &over));
        let is_all_sent = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_all_sent);
        let receiver = thread::spawn(move || receive(&inbound, &over));
        Ok(Self { is_over, is_all_sent, sender, receiver })
    }

    /// Ends it, waits for what is under way, and says what it came to.
    ///
    /// # Errors
    /// [`LabError`] when a thread of it panicked.
    pub fn stop(self) -> Result<Report, LabError> {
        self.is_over.store(true, Ordering::Relaxed);
        let panicked = |_| LabError::system("a stream", "a thread of it panicked");
        let sent = self.sender.join().map_err(panicked)?;
        self.is_all_sent.store(true, Ordering::Relaxed);
        let report = self.receiver.join().map_err(panicked)?;
        Ok(Report { sent, lost: sent.saturating_sub(report.received), ..report })
    }
}

fn send(socket: &UdpSocket, rate: u32, is_over: &AtomicBool) -> u64 {
    let (begun, step) = (Instant::now(), Duration::from_secs(1) / rate.max(1));
    let mut number: u64 = 0;
    while !is_over.load(Ordering::Relaxed) {
        // A send that the kernel refuses (no route, no buffer) is a datagram lost: it is counted as sent.
        let _ = socket.send(&number.to_be_bytes());
        number += 1;
        let next = begun + step * u32::try_from(number).unwrap_or(u32::MAX);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    number
}

fn receive(socket: &UdpSocket, is_over: &AtomicBool) -> Report {
    let mut report = Report::default();
    let mut seen = std::collections::BTreeSet::new();
    let (mut highest, mut last) = (None, Instant::now());
    // After the end a little is waited for what is under way.
    let mut patience = 6;
    while patience > 0 {
        let mut bytes = [0; 16];
        match socket.recv(&mut bytes) {
            Ok(8) => {
                let number = u64::from_be_bytes(bytes[..8].try_into().unwrap_or_default());
                if seen.insert(number) {
                    report.received += 1
                } else {
                    report.doubled += 1
                }
                report.reordered += u64::from(highest.is_some_and(|highest| number < highest));
                highest = highest.max(Some(number));
                let gap = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
                report.longest_gap_ms = report.longest_gap_ms.max(gap);
                last = Instant::now();
            }
            _ => patience -= i32::from(is_over.load(Ordering::Relaxed)),
        }
    }
    report
}
