//! One attachment's lease: its client, its sockets, and who waits for it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use loden_core::dhcp::client::{Action, Client, Message, Way};
use loden_core::dhcp::{Held, Lease, LeaseRequest};
use loden_core::view::Problem;
use loden_linux::LinuxError;
use loden_linux::netns::NetNs;
use loden_linux::packet::{self, Frame, PacketSocket};
use loden_linux::sockopt;
use tokio::sync::oneshot;

use super::wire;

/// The longest message that is read, in bytes: more than a client says that it takes.
const LARGEST: usize = 2048;
/// Frames that are read at a time: one that is flooded must not keep the others waiting.
const AT_ONCE: usize = 64;

/// Who waits for the first answer, and until when.
pub struct Asker {
    pub answer: oneshot::Sender<Result<Lease, String>>,
    pub until_ms: u64,
}

/// A lease, or the search for one.
pub struct Holding {
    pub held: Held,
    pub client: Client,
    pub asker: Option<Asker>,
    /// What is not as it should be, in its own words.
    pub trouble: Option<String>,
    sockets: Sockets,
}

/// Open only while an answer is waited for.
#[derive(Default)]
struct Sockets {
    /// While the pod has no address.
    raw: Option<PacketSocket>,
    /// While the owner of an address is looked for.
    arp: Option<PacketSocket>,
    /// While a lease is renewed.
    udp: Option<UdpSocket>,
}

impl Holding {
    pub fn new(held: Held, client: Client, asker: Option<Asker>) -> Self {
        Self { held, client, asker, trouble: None, sockets: Sockets::default() }
    }

    fn request(&self) -> &LeaseRequest {
        &self.held.request
    }

    /// When something is to be done.
    pub fn due_ms(&self) -> u64 {
        self.asker.as_ref().map_or(u64::MAX, |asker| asker.until_ms).min(self.client.due_ms())
    }

    /// What there is to listen to.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let Sockets { raw, arp, udp } = &self.sockets;
        let packets = raw.iter().chain(arp).map(AsFd::as_fd);
        packets.chain(udp.iter().map(AsFd::as_fd))
    }

    /// Puts a message or a probe on the wire. What fails is the trouble; the client's own time tries again.
    pub fn send(&mut self, action: &Action) {
        let sent = match action {
            Action::Send(message) => self.send_message(message),
            Action::Probe(addr) => self.send_probe(*addr),
            _ => Ok(()),
        };
        if let Err(error) = sent {
            self.trouble = Some(error.to_string());
            // A socket of an interface that has gone is not of one that has come again.
            self.sockets = Sockets::default();
        }
    }

    fn send_message(&mut self, message: &Message) -> Result<(), LinuxError> {
        let request = self.held.request.clone();
        let ifname = request.key.ifname;
        if message.way == Way::Broadcast {
            let socket = kept(&mut self.sockets.raw, &self.held, || PacketSocket::open_on(ifname, packet::IPV4))?;
            return socket.send(&wire::frame(message, &request, None));
        }
        let to = match message.way {
            Way::Server(server) => server,
            Way::Broadcast | Way::Rebind => Ipv4Addr::BROADCAST,
        };
        let socket = kept(&mut self.sockets.udp, &self.held, || sockopt::udp_on(ifname, wire::CLIENT_PORT))?;
        let to = SocketAddr::from((to, wire::SERVER_PORT));
        let sent = socket.send_to(&wire::payload(message, &request), to);
        sent.map(drop).map_err(|error| LinuxError::system(format!("ask the DHCP server {}", to.ip()), error))
    }

    fn send_probe(&mut self, addr: Ipv4Addr) -> Result<(), LinuxError> {
        let request = self.held.request.clone();
        let ifname = request.key.ifname;
        let socket = kept(&mut self.sockets.arp, &self.held, || PacketSocket::open_on(ifname, packet::ARP))?;
        socket.send(&wire::probe(addr, request.mac))
    }

    /// Takes in what has come, and gives what is to be done about it.
    pub fn hear(&mut self, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut buffer = [0; LARGEST];
        let mac = self.request().mac;
        let mut passed_over = None;
        for _ in 0..AT_ONCE {
            let Some(frame) = self.sockets.raw.as_ref().and_then(taken) else { break };
            let read = match wire::read_frame(&frame.bytes, frame.is_checksum_missing) {
                None => continue,
                Some(Err(fault)) => Err(fault),
                Some(Ok((payload, from))) => match wire::read_payload(payload, mac) {
                    None => continue,
                    Some(read) => read.map(|(xid, reply)| (xid, reply, from)),
                },
            };
            match read {
                Ok((xid, reply, from)) => actions.extend(self.client.hear(now_ms, xid, &reply, Some(from))),
                Err(fault) => passed_over = Some(fault),
            }
        }
        for _ in 0..AT_ONCE {
            let Some(frame) = self.sockets.arp.as_ref().and_then(taken) else { break };
            let Some(addr) = self.client.probed() else { continue };
            if let Some(by) = wire::owner(&frame.bytes, addr, mac) {
                actions.extend(self.client.in_use(now_ms, addr, by));
            }
        }
        for _ in 0..AT_ONCE {
            let Some(Ok((len, from))) = self.sockets.udp.as_ref().map(|udp| udp.recv_from(&mut buffer)) else { break };
            if from.port() != wire::SERVER_PORT {
                continue;
            }
            match wire::read_payload(&buffer[..len], mac) {
                None => {}
                Some(Ok((xid, reply))) => actions.extend(self.client.hear(now_ms, xid, &reply, None)),
                Some(Err(fault)) => passed_over = Some(fault),
            }
        }
        if let Some(fault) = passed_over {
            self.trouble = Some(format!("a reply was passed over: it {fault}"));
        }
        actions
    }

    /// Closes what nothing is waited for by.
    pub fn tidy(&mut self) {
        if !self.client.is_unconfigured() {
            self.sockets.raw = None;
        }
        if self.client.probed().is_none() {
            self.sockets.arp = None;
        }
        if !self.client.is_renewing() {
            self.sockets.udp = None;
        }
    }

    /// Gives the lease back, in one frame that is on its way when this returns: by the pod's interface, or, where that has gone, by the host's
    /// on the same wire.
    ///
    /// # Errors
    /// [`LinuxError`] when it could be sent by neither.
    pub fn release(&self, xid: u32) -> Result<(), LinuxError> {
        let Some(lease) = self.client.lease() else { return Ok(()) };
        let request = self.request();
        let frame = wire::frame(&Client::release(lease, xid), request, lease.server_mac);
        let send = |ifname| PacketSocket::open_on(ifname, packet::IPV4)?.send(&frame);
        match (in_pod(&self.held, || send(request.key.ifname)), request.host_device) {
            (Err(_), Some(device)) => send(device),
            (sent, _) => sent,
        }
    }

    /// What a person has to know of it.
    pub fn problems(&self) -> Vec<Problem> {
        let subject = || format!("address of {}", self.request().who());
        let mut problems = Vec::new();
        let Some(lease) = &self.held.lease else {
            if self.asker.is_none() {
                let cause = self.trouble.as_deref().unwrap_or("it was lost");
                problems.push(Problem::new(
                    subject(),
                    format!("it has none: {cause}; DHCP servers are asked again and again"),
                ));
            }
            return problems;
        };
        if let Some(trouble) = &self.trouble {
            problems.push(Problem::new(subject(), trouble.clone()));
        }
        if lease.terms.dns != self.held.dns_told {
            let cause = "the DHCP server names other name servers or domains than the pod was given at its start; \
                         only a new pod gets them";
            problems.push(Problem::new(subject(), cause));
        }
        problems
    }

    /// Why no address has come.
    pub fn nobody(&self) -> String {
        let LeaseRequest { key, timeout_s, .. } = self.request();
        let more = self.trouble.as_ref().map_or_else(String::new, |trouble| format!("; {trouble}"));
        format!("no DHCP server has given an address to {} of the pod within {timeout_s} s{more}", key.ifname)
    }
}

/// What has come in already; a socket that fails is heard of when something is sent.
fn taken(socket: &PacketSocket) -> Option<Frame> {
    socket.receive(Duration::ZERO).ok().flatten()
}

/// The socket that there is, else a new one out of the pod's namespace.
fn kept<'a, T: Send>(
    slot: &'a mut Option<T>,
    held: &Held,
    open: impl FnOnce() -> Result<T, LinuxError> + Send,
) -> Result<&'a T, LinuxError> {
    let socket = match slot.take() {
        Some(socket) => socket,
        None => in_pod(held, open)?,
    };
    Ok(slot.insert(socket))
}

fn in_pod<T: Send>(held: &Held, work: impl FnOnce() -> Result<T, LinuxError> + Send) -> Result<T, LinuxError> {
    netns(held)?.run(work)?
}

/// The pod's namespace, as long as its path leads there.
///
/// # Errors
/// [`LinuxError`].
pub fn netns(held: &Held) -> Result<NetNs, LinuxError> {
    let path = &held.request.netns;
    let netns = NetNs::open(Path::new(path))?;
    if netns.identity() == held.netns_id {
        return Ok(netns);
    }
    Err(LinuxError::File { path: path.clone(), cause: "leads to the network namespace of another by now".to_owned() })
}
