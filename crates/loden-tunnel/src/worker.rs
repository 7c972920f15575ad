//! The threads: two for each queue of the device, one a direction. They do nothing but system calls, and sleep only when there is nothing
//! to be had.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use loden_core::kernel::tunnel::Wire;
use loden_core::model::{Family, IfName, PerFamily};
use loden_linux::LinuxError;
use loden_linux::datagram::Datagrams;
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::rt::link;
use loden_linux::tun::Tun;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::board::{Board, Direction};
use crate::counters::Counters;
use crate::peers::Peers;

mod inward;
mod outward;
mod send;
mod shared;

use shared::Shared;

/// The protocol number of IPv4 within IP.
const IPIP: u8 = 4;

/// How long to wait before looking again whether something has come to pass.
const PAUSE: Duration = Duration::from_millis(1);
/// How long the kernel is given to see a carrier.
const MOST_FOR_CARRIER: Duration = Duration::from_millis(500);

/// What can go wrong with a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The kernel would not have it.
    #[error("tunnel on {dev}: {cause}")]
    Kernel {
        /// The device.
        dev: IfName,
        /// What it would not have, in its words.
        cause: LinuxError,
    },
    /// There is no address to send from.
    #[error("tunnel on {dev}: this host has no address of the underlay that its wire can use")]
    NoAddress {
        /// The device.
        dev: IfName,
    },
}

/// What a tunnel is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelConfig {
    /// The TUN device, which is there already (`loden_linux::tun::create`).
    pub dev: IfName,
    /// How packets look outside.
    pub wire: Wire,
    /// This host's addresses on the underlay.
    pub local: PerFamily<IpAddr>,
    /// Queues of the device, each with two threads: one at least.
    pub queues: usize,
}

/// What the kernel can do for a tunnel, found out by asking for it. Where it cannot, the tunnel works, but slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Cut apart what is sent by one call (UDP_SEGMENT).
    pub segmentation: bool,
    /// Hand over what was received in one piece (UDP_GRO).
    pub gro: bool,
    /// Hand over datagrams of pods uncut (USO).
    pub uso: bool,
}

/// A tunnel that runs. It stops when it is dropped; the device stays.
#[derive(Debug)]
pub struct Tunnel {
    shared: Arc<Shared>,
    abilities: Abilities,
    queues: Vec<Queue>,
    threads: Vec<JoinHandle<()>>,
}

/// What one queue has.
#[derive(Debug, Clone)]
struct Queue {
    wire: Wire,
    tun: Arc<Tun>,
    /// One a family.
    receive: Vec<Arc<Datagrams>>,
    /// One a family.
    send: Vec<Arc<Datagrams>>,
}

impl Tunnel {
    /// Starts it, in the calling thread's namespace. When it ends by itself, because its device has gone, as a rule, `on_failure` is told by
    /// one of its threads, once; it is to be stopped and started again then.
    ///
    /// # Errors
    /// [`TunnelError`]: no device, a port that is taken, no address.
    pub fn start(
        config: &TunnelConfig,
        peers: &Arc<Peers>,
        on_failure: impl Fn(&TunnelError) + Send + Sync + 'static,
    ) -> Result<Self, TunnelError> {
        let dev = config.dev;
        let failed = |cause| TunnelError::Kernel { dev, cause };
        let queues: Vec<Queue> =
            (0..config.queues.max(1)).map(|n| queue(config, n)).collect::<Result<_, _>>().map_err(failed)?;
        let all = |has: fn(&Queue) -> bool| queues.iter().all(has);
        if all(|queue| queue.send.is_empty()) {
            return Err(TunnelError::NoAddress { dev });
        }
        let abilities = Abilities {
            segmentation: all(|queue| queue.send.iter().all(|socket| socket.has_segmentation())),
            gro: all(|queue| queue.receive.iter().all(|socket| socket.has_gro())),
            uso: all(|queue| queue.tun.has_uso()),
        };
        let directions = queues.iter().flat_map(|_| [Direction::Outward, Direction::Inward]);
        let board = Board::new(directions, peers);
        let shared = Shared::new(dev, board, 2 * queues.len(), Box::new(on_failure)).map_err(failed)?;
        let shared = Arc::new(shared);
        let mut tunnel = Self { shared, abilities, queues: queues.clone(), threads: Vec::new() };
        for (n, queue) in queues.into_iter().enumerate() {
            let other = queue.clone();
            tunnel.spawn(format!("tun-out-{n}"), move |shared| outward::run(shared, &queue, 2 * n)).map_err(failed)?;
            tunnel
                .spawn(format!("tun-in-{n}"), move |shared| inward::run(shared, &other, 2 * n + 1))
                .map_err(failed)?;
        }
        wait_for_carrier(dev).map_err(failed)?;
        Ok(tunnel)
    }

    /// Goes by another picture of the peers, from the next batch on.
    pub fn set_peers(&self, peers: &Arc<Peers>) {
        self.shared.board.set(peers);
    }

    /// What was carried and dropped until now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { last_refusal: self.shared.last_refusal(), ..self.shared.board.counters() }
    }

    /// What the kernel does for it.
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Waits until all that has come to the device and to the sockets is carried, `at_most` so long; says whether it is. For a tunnel that
    /// nothing more is led to, before it is stopped: what waits in its queues would be lost with it.
    #[must_use]
    pub fn drain(&self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        loop {
            // In this order: what was there before is in the hand of a thread that is awake, or carried.
            if self.is_idle() && self.shared.all_rest() {
                return true;
            }
            if Instant::now() >= deadline || self.shared.is_over() {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether nothing waits to be read or received.
    fn is_idle(&self) -> bool {
        let devices = self.queues.iter().map(|queue| queue.tun.as_fd());
        let sockets = self.queues.iter().flat_map(|queue| queue.receive.iter().map(|socket| socket.as_fd()));
        let mut list: Vec<PollFd<'_>> =
            devices.chain(sockets).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        poll(&mut list, Some(&Timespec::default())) == Ok(0)
    }

    /// Stops it and waits for its threads.
    pub fn stop(self) {
        drop(self);
    }

    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce(&Shared) -> Result<(), LinuxError> + Send + 'static,
    ) -> Result<(), LinuxError> {
        let shared = Arc::clone(&self.shared);
        let work = move || shared.work(run);
        let thread = std::thread::Builder::new().name(name.clone()).spawn(work);
        self.threads.push(thread.map_err(|error| LinuxError::system(format!("thread {name}"), error))?);
        Ok(())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        _ = self.shared.end();
        for thread in self.threads.drain(..) {
            // One that has panicked has said so.
            _ = thread.join();
        }
    }
}

/// A device has a carrier by those who read from it, but the kernel is late to see that, and drops what is sent until then
/// (net/core/link_watch.c): nothing should be led there before. A device that is down waits for somebody to set it up.
fn wait_for_carrier(dev: IfName) -> Result<(), LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let deadline = Instant::now() + MOST_FOR_CARRIER;
    while link::read(&mut socket, dev)?.is_some_and(|seen| seen.link.up && !seen.is_running)
        && Instant::now() < deadline
    {
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn queue(config: &TunnelConfig, n: usize) -> Result<Queue, LinuxError> {
    let tun = Arc::new(Tun::attach(config.dev)?);
    let (mut receive, mut send) = (Vec::new(), Vec::new());
    for (family, addr) in config.local.iter().filter(|(family, _)| config.wire.has_outer(*family)) {
        debug_assert_eq!(family, Family::of(addr));
        match config.wire {
            Wire::Udp { port } => {
                let socket = Arc::new(Datagrams::udp(SocketAddr::new(addr, port))?);
                // Each queue sends from a port of its own, so that the network and the other host can tell their flows apart.
                send.push(if n == 0 {
                    Arc::clone(&socket)
                } else {
                    Arc::new(Datagrams::udp(SocketAddr::new(addr, 0))?)
                });
                receive.push(socket);
            }
            Wire::Ipip => {
                let socket = Arc::new(Datagrams::raw(addr, IPIP)?);
                send.push(Arc::clone(&socket));
                // Each raw socket gets every packet: one queue takes them in.
                if n == 0 {
                    receive.push(socket);
                }
            }
        }
    }
    Ok(Queue { wire: config.wire, tun, receive, send })
}
