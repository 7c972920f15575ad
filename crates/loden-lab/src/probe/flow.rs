//! A TCP stream that fills its way: how fast it goes, and how long echoes take beside it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use loden_linux::netns::NetNs;

use super::icmp;
use crate::LabError;

/// How much is written and read at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// An Ethernet header, in bytes.
const HEADER: u32 = 14;
/// TCP's header with its timestamps (RFC 7323), in bytes.
const TCP: u32 = 32;

/// A flow that runs.
#[derive(Debug)]
pub struct Flow<'a> {
    is_over: Arc<AtomicBool>,
    threads: [JoinHandle<()>; 2],
    to: &'a NetNs,
    /// A frame's headers, in bytes.
    headers: u32,
    /// Bytes on the wire for a byte of payload, in frames of full size.
    overhead: f64,
}

impl<'a> Flow<'a> {
    /// Starts to send from one namespace to an address in another; `mtu` is that of the way in bytes.
    ///
    /// # Errors
    /// [`LabError`] when there is no connection.
    pub fn start(from: &NetNs, to: &'a NetNs, addr: IpAddr, mtu: u32) -> Result<Self, LabError> {
        let fail = |error: std::io::Error| LabError::system("a flow", error);
        let inside = LabError::linux("a flow");
        let listener = to.run(|| TcpListener::bind((addr, 0))).map_err(inside)?.map_err(fail)?;
        let far: SocketAddr = listener.local_addr().map_err(fail)?;
        let connect = || TcpStream::connect_timeout(&far, Duration::from_secs(5));
        let outbound = from.run(connect).map_err(LabError::linux("a flow"))?.map_err(fail)?;
        let (inbound, _) = listener.accept().map_err(fail)?;
        for socket in [&outbound, &inbound] {
            socket.set_read_timeout(Some(Duration::from_millis(50))).map_err(fail)?;
            socket.set_write_timeout(Some(Duration::from_millis(50))).map_err(fail)?;
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let receiver = thread::spawn(move || receive(inbound, &over));
        let over = Arc::clone(&is_over);
        let sender = thread::spawn(move || send(outbound, &over));
        let headers = HEADER + TCP + if addr.is_ipv4() { 20 } else { 40 };
        let frame = mtu + HEADER;
        let overhead = f64::from(frame) / f64::from(frame - headers);
        Ok(Self { is_over, threads: [sender, receiver], to, headers, overhead })
    }

    /// The rate over a while from now on, in bits a second of whole frames, as they arrive in the namespace. What the kernel has not
    /// cut into frames yet is counted as if it had.
    ///
    /// # Errors
    /// [`LabError`] when the counters cannot be read.
    pub fn rate(&self, over: Duration) -> Result<f64, LabError> {
        let (begun, before) = (Instant::now(), arrived(self.to)?);
        thread::sleep(over);
        let (elapsed, after) = (begun.elapsed(), arrived(self.to)?);
        let headers = (after.packets - before.packets) * u64::from(self.headers);
        let payload = (after.bytes - before.bytes).saturating_sub(headers);
        Ok(payload as f64 * self.overhead * 8.0 / elapsed.as_secs_f64())
    }

    /// Ends it.
    ///
    /// # Errors
    /// [`LabError`] when a thread of it panicked.
    pub fn stop(self) -> Result<(), LabError> {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(JoinHandle::join).collect::<Result<Vec<()>, _>>();
        ended.map(drop).map_err(|_| LabError::system("a flow", "a thread of it panicked"))
    }
}

/// What has arrived in a namespace.
#[derive(Debug, Clone, Copy, Default)]
struct Arrived {
    bytes: u64,
    packets: u64,
}

/// By the kernel's counters: a program on a busy machine reads late and in heaps.
fn arrived(netns: &NetNs) -> Result<Arrived, LabError> {
    let read = || fs::read_to_string("/proc/thread-self/net/dev");
    let text = netns.run(read).map_err(LabError::linux("counters"))?;
    let text = text.map_err(|error| LabError::system("counters", error))?;
    let mut all = Arrived::default();
    for (name, counts) in text.lines().filter_map(|line| line.split_once(':')) {
        let mut counts = counts.split_whitespace().map(|count| count.parse().unwrap_or(0));
        if name.trim() != "lo" {
            all.bytes += counts.next().unwrap_or(0);
            all.packets += counts.next().unwrap_or(0);
        }
    }
    Ok(all)
}

/// How long echoes between two namespaces take, one behind the other for a while: sorted, in milliseconds. One that is lost counts as
/// the time that was waited for it.
///
/// # Errors
/// [`LabError`] when the namespace cannot be entered.
pub fn echoes(from: &NetNs, to: IpAddr, over: Duration) -> Result<Vec<f64>, LabError> {
    let measure = || {
        let (begun, mut all) = (Instant::now(), Vec::new());
        while begun.elapsed() < over {
            let sent = Instant::now();
            // What is lost is seen by its time.
            let _ = icmp::echo(to, 56);
            all.push(sent.elapsed().as_secs_f64() * 1000.0);
            thread::sleep(Duration::from_millis(5));
        }
        all.sort_by(f64::total_cmp);
        all
    };
    from.run(measure).map_err(LabError::linux("echoes"))
}

fn send(mut socket: TcpStream, is_over: &AtomicBool) {
    let chunk = vec![0; CHUNK];
    while !is_over.load(Ordering::Relaxed) {
        match socket.write(&chunk) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // The other side has ended it.
            Err(_) => return,
        }
    }
}

fn receive(mut socket: TcpStream, is_over: &AtomicBool) {
    let mut chunk = vec![0; CHUNK];
    while !is_over.load(Ordering::Relaxed) {
        match socket.read(&mut chunk) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}
