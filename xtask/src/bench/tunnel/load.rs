//! What goes from pod to pod: streams, datagrams under a window, and single ones there and back.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_linux::datagram::{Datagrams, Inbox, Message, Outbox};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ground::Ground;

/// Until it is steady.
const WARM_UP: Duration = Duration::from_millis(300);
/// What is measured.
const RUN: Duration = Duration::from_millis(1500);
/// Of a stream, written and read at once, in bytes.
const CHUNK: usize = 128 * 1024;
/// How many datagrams may be on their way.
const WINDOW: u64 = 512;
/// How many are sent in a call.
const BURST: usize = 32;
/// After so long without an acknowledgement what is on its way is given up for lost.
const LOST: Duration = Duration::from_millis(6);

/// What arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    /// In all: Gbit of payload, or thousands of datagrams.
    pub total: f64,
    /// Of that, a second of the steady part.
    pub rate: f64,
    /// How often the window stood still.
    pub stalls: u64,
}

/// Streams of TCP.
pub fn tcp(ground: &Ground, streams: usize) -> Result<Arrived> {
    let [from, to] = &ground.hosts;
    let listener = to.pod.run(|| TcpListener::bind((std::net::IpAddr::from(to.pod_address()), 0)))??;
    let far = listener.local_addr()?;
    let received = Arc::new(AtomicU64::new(0));
    let (mut sockets, mut threads): (_, Vec<JoinHandle<()>>) = (Vec::new(), Vec::new());
    for _ in 0..streams {
        let outbound = from.pod.run(|| TcpStream::connect_timeout(&far, Duration::from_secs(5)))??;
        let (inbound, _) = listener.accept()?;
        sockets.extend([outbound.try_clone()?, inbound.try_clone()?]);
        let received = Arc::clone(&received);
        threads.push(thread::spawn(move || drain(inbound, &received)));
        threads.push(thread::spawn(move || fill(outbound)));
    }
    thread::sleep(WARM_UP);
    let (begun, before) = (Instant::now(), received.load(Ordering::Relaxed));
    thread::sleep(RUN);
    let (elapsed, after) = (begun.elapsed(), received.load(Ordering::Relaxed));
    for socket in sockets {
        // The other end may have been first.
        let _ = socket.shutdown(Shutdown::Both);
    }
    for thread in threads {
        thread.join().ok().context("a thread panicked")?;
    }
    let gbit = |bytes: u64| bytes as f64 * 8.0 / 1e9;
    if after == before {
        bail!("nothing arrived of {streams} streams");
    }
    let rate = gbit(after - before) / elapsed.as_secs_f64();
    Ok(Arrived { total: gbit(received.load(Ordering::Relaxed)), rate, stalls: 0 })
}

fn fill(mut socket: TcpStream) {
    let chunk = vec![0; CHUNK];
    while socket.write(&chunk).is_ok() {}
}

fn drain(mut socket: TcpStream, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(len @ 1..) = socket.read(&mut chunk) {
        received.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Datagrams of so many bytes.
pub fn udp(ground: &Ground, payload: usize) -> Result<Arrived> {
    let [from, to] = &ground.hosts;
    let open = |addr: [u8; 4]| -> Result<Datagrams> { Ok(Datagrams::udp((addr, 0).into())?.without_gro()?) };
    let outbound = from.pod.run(|| open(from.pod_address()))??;
    let inbound = to.pod.run(|| open(to.pod_address()))??;
    let far = inbound.local()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let (over, count) = (Arc::clone(&is_over), Arc::clone(&received));
    let receiver = thread::spawn(move || acknowledge(&inbound, &over, &count));
    let over = Arc::clone(&is_over);
    let sender = thread::spawn(move || send(&outbound, far, payload, &over));
    thread::sleep(WARM_UP);
    let (begun, before) = (Instant::now(), received.load(Ordering::Relaxed));
    thread::sleep(RUN);
    let (elapsed, after) = (begun.elapsed(), received.load(Ordering::Relaxed));
    is_over.store(true, Ordering::Relaxed);
    receiver.join().ok().context("a thread panicked")??;
    let stalls = sender.join().ok().context("a thread panicked")??;
    let rate = (after - before) as f64 / 1e3 / elapsed.as_secs_f64();
    Ok(Arrived { total: received.load(Ordering::Relaxed) as f64 / 1e3, rate, stalls })
}

fn is_readable(socket: &Datagrams, patience: Duration) -> Result<bool> {
    let patience = Timespec::try_from(patience)?;
    Ok(poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&patience))? > 0)
}

/// Sends as the window allows; gives how often it stood still.
fn send(socket: &Datagrams, to: SocketAddr, payload: usize, is_over: &AtomicBool) -> Result<u64> {
    let bytes = vec![0; payload];
    let parts = [IoSlice::new(&bytes)];
    let burst = [Message { to, parts: &parts, segment: None, tos: 0 }; BURST];
    let (mut outbox, mut inbox, mut memory) = (Outbox::default(), Inbox::default(), vec![0; 64 * 8]);
    let (mut sent, mut acknowledged, mut lost, mut stalls) = (0_u64, 0_u64, 0_u64, 0_u64);
    while !is_over.load(Ordering::Relaxed) {
        let is_full = sent.saturating_sub(acknowledged + lost) + BURST as u64 > WINDOW;
        if is_full && !is_readable(socket, LOST)? {
            lost = sent - acknowledged;
            stalls += 1;
            continue;
        }
        let count = inbox.receive(socket, &mut memory, 8)?.len();
        for ack in memory.chunks_exact(8).take(count).filter_map(|bytes| bytes.try_into().ok()) {
            acknowledged = acknowledged.max(u64::from_ne_bytes(ack));
        }
        if sent.saturating_sub(acknowledged + lost) + BURST as u64 <= WINDOW {
            let result = outbox.send(socket, burst);
            sent += result.count as u64;
            match result.error {
                Some(error) if error.kind() != ErrorKind::WouldBlock => return Err(error).context("send datagrams"),
                _ => {}
            }
        }
    }
    Ok(stalls)
}

/// Counts what arrives and says so after each batch.
fn acknowledge(socket: &Datagrams, is_over: &AtomicBool, received: &AtomicU64) -> Result<()> {
    const ROOM: usize = 2048;
    let (mut outbox, mut inbox, mut memory) = (Outbox::default(), Inbox::default(), vec![0; 64 * ROOM]);
    while !is_over.load(Ordering::Relaxed) {
        let batch = inbox.receive(socket, &mut memory, ROOM)?;
        let Some(last) = batch.last() else {
            is_readable(socket, Duration::from_millis(50))?;
            continue;
        };
        let count = received.fetch_add(batch.len() as u64, Ordering::Relaxed) + batch.len() as u64;
        let bytes = count.to_ne_bytes();
        let parts = [IoSlice::new(&bytes)];
        // A lost acknowledgement is made good by the next.
        outbox.send(socket, [Message { to: last.from, parts: &parts, segment: None, tos: 0 }]);
    }
    Ok(())
}

/// Of a datagram there and back, in bytes.
const PAYLOAD: usize = 64;
/// How long one ground is asked before it is the next one's turn: how long a processor takes to wake depends on all that the machine does.
const SLICE: Duration = Duration::from_millis(50);

/// A datagram of 64 bytes there and back, one behind the other, on several grounds in turn: the middle of all on each, in microseconds.
pub fn round_trips(grounds: &[&Ground]) -> Result<Vec<f64>> {
    let open = |addr: [u8; 4]| -> Result<UdpSocket> {
        let socket = UdpSocket::bind(SocketAddr::from((addr, 0)))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(socket)
    };
    let mut pairs = Vec::new();
    for ground in grounds {
        let [from, to] = &ground.hosts;
        let near = from.pod.run(|| open(from.pod_address()))??;
        let far = to.pod.run(|| open(to.pod_address()))??;
        near.connect(far.local_addr()?)?;
        pairs.push((near, far));
    }
    let is_over = AtomicBool::new(false);
    let mut times = vec![Vec::new(); pairs.len()];
    thread::scope(|scope| {
        for (_, far) in &pairs {
            scope.spawn(|| answer(far, &is_over));
        }
        let (begun, mut number) = (Instant::now(), 0);
        let mut asked = Ok(());
        while asked.is_ok() && begun.elapsed() < (WARM_UP + RUN) * pairs.len() as u32 {
            for ((near, _), times) in pairs.iter().zip(&mut times) {
                asked = asked.and_then(|()| ask(near, &mut number, times));
            }
        }
        is_over.store(true, Ordering::Relaxed);
        asked
    })?;
    if times.iter().any(|times| times.len() < 100) {
        bail!("too few datagrams came back");
    }
    Ok(times.into_iter().map(super::median).collect())
}

fn ask(socket: &UdpSocket, number: &mut u64, times: &mut Vec<f64>) -> Result<()> {
    let begun = Instant::now();
    let mut bytes = [0; PAYLOAD];
    while begun.elapsed() < SLICE {
        *number += 1;
        bytes[..8].copy_from_slice(&number.to_ne_bytes());
        let sent = Instant::now();
        socket.send(&bytes)?;
        let mut back = [0; PAYLOAD];
        // One that was given up for lost may still come.
        while socket.recv(&mut back).is_ok() && back != bytes {}
        if back == bytes {
            times.push(sent.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(())
}

fn answer(socket: &UdpSocket, is_over: &AtomicBool) {
    let mut bytes = [0; PAYLOAD];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((len, source)) = socket.recv_from(&mut bytes) {
            // A lost answer is seen by the one that waits.
            let _ = socket.send_to(&bytes[..len], source);
        }
    }
}
