//! A DHCP server that does as a test says, for leases of seconds and for faults that a real one does not have.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use loden_linux::netns::NetNs;
use loden_linux::sockopt;
use smoltcp::wire::{DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket};

/// What it does.
#[derive(Clone)]
pub struct Script {
    /// Messages that it answers.
    pub answers: Vec<DhcpMessageType>,
    /// Refuses that many requests.
    pub naks: u32,
    /// How long it thinks.
    pub delay: Duration,
    /// The addresses that it gives, one a client; the first is taken out when it is declined.
    pub pool: Vec<Ipv4Addr>,
    /// Options that it sends besides its name and the type.
    pub options: Vec<(u8, Vec<u8>)>,
    /// What it sends before each answer: a message that it would have sent, bent.
    pub bend: Option<fn(&mut Vec<u8>)>,
}

/// A message that it heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub kind: DhcpMessageType,
    pub client: [u8; 6],
    pub ciaddr: Ipv4Addr,
    pub from: Ipv4Addr,
    pub options: BTreeMap<u8, Vec<u8>>,
}

struct Shared {
    script: Script,
    heard: Vec<Heard>,
    leases: BTreeMap<[u8; 6], Ipv4Addr>,
    stops: bool,
}

pub struct Server {
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

impl Script {
    /// Gives 203.0.113.11 and those behind it for so many seconds.
    pub fn new(lease_s: u32) -> Self {
        use DhcpMessageType::{Discover, Request};
        Self {
            answers: vec![Discover, Request],
            naks: 0,
            delay: Duration::ZERO,
            pool: (11..60).map(|last| Ipv4Addr::new(203, 0, 113, last)).collect(),
            options: vec![
                (51, lease_s.to_be_bytes().to_vec()),
                (1, vec![255, 255, 255, 0]),
                (3, vec![203, 0, 113, 1]),
                (6, vec![203, 0, 113, 53]),
            ],
            bend: None,
        }
    }

    /// With an option in the place of a former one.
    pub fn with(mut self, code: u8, data: &[u8]) -> Self {
        self.options.retain(|(other, _)| *other != code);
        self.options.push((code, data.to_vec()));
        self
    }
}

impl Server {
    /// Serves on an interface of a namespace that bears `id`.
    pub fn start(ns: &NetNs, ifname: &str, id: Ipv4Addr, script: Script) -> Self {
        let ifname = ifname.parse().expect("a name");
        let socket = ns.run(|| sockopt::udp_on(ifname, 67).expect("port 67")).expect("a thread");
        socket.set_nonblocking(false).expect("blocking");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let shared = Shared { script, heard: Vec::new(), leases: BTreeMap::new(), stops: false };
        let shared = Arc::new(Mutex::new(shared));
        let ours = Arc::clone(&shared);
        let work = move || {
            let mut buffer = [0; 2048];
            while !ours.lock().expect("shared").stops {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    take(&ours, &socket, id, &buffer[..len], from);
                }
            }
        };
        Self { shared, thread: Some(std::thread::spawn(work)) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("shared")
    }

    /// Changes what it does.
    pub fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared().script);
    }

    /// Everything that it has heard of one sort.
    pub fn heard(&self, kind: DhcpMessageType) -> Vec<Heard> {
        self.shared().heard.iter().filter(|heard| heard.kind == kind).cloned().collect()
    }

    /// The addresses that are leased.
    pub fn leased(&self) -> Vec<Ipv4Addr> {
        self.shared().leases.values().copied().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(mut shared) = self.shared.lock() {
            shared.stops = true;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn take(shared: &Mutex<Shared>, socket: &UdpSocket, id: Ipv4Addr, bytes: &[u8], from: SocketAddr) {
    let Ok(packet) = DhcpPacket::new_checked(bytes) else { return };
    let options: BTreeMap<u8, Vec<u8>> = packet.options().map(|o| (o.kind, o.data.to_vec())).collect();
    let kind = DhcpMessageType::from(options[&53][0]);
    let SocketAddr::V4(from) = from else { return };
    let client = packet.client_hardware_address().0;
    let (ciaddr, from) = (packet.client_ip(), *from.ip());
    let (answer, bent, delay, to_all) = {
        let mut shared = shared.lock().expect("shared");
        shared.heard.push(Heard { kind, client, ciaddr, from, options: options.clone() });
        let named = options.get(&54).map(|data| Ipv4Addr::from(<[u8; 4]>::try_from(&data[..]).expect("an address")));
        if named.is_some_and(|named| named != id) {
            // Another server was chosen.
            shared.leases.remove(&client);
            return;
        }
        match kind {
            DhcpMessageType::Release => drop(shared.leases.remove(&client)),
            DhcpMessageType::Decline => {
                let declined = shared.leases.remove(&client);
                shared.script.pool.retain(|addr| Some(*addr) != declined);
            }
            _ => {}
        }
        if !shared.script.answers.contains(&kind) {
            return;
        }
        let is_refused = kind == DhcpMessageType::Request && shared.script.naks > 0;
        let script = shared.script.clone();
        let taken: Vec<Ipv4Addr> = shared.leases.values().copied().collect();
        let free = || script.pool.iter().find(|addr| !taken.contains(addr)).copied().expect("room");
        let addr = *shared.leases.entry(client).or_insert_with(free);
        let kind = match kind {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            _ if is_refused => {
                shared.script.naks -= 1;
                shared.leases.remove(&client);
                DhcpMessageType::Nak
            }
            _ => DhcpMessageType::Ack,
        };
        let mut options = vec![(53, vec![u8::from(kind)]), (54, id.octets().to_vec())];
        if kind != DhcpMessageType::Nak {
            options.extend(script.options.clone());
        }
        let to_all = packet.flags().contains(DhcpFlags::BROADCAST) || kind == DhcpMessageType::Nak;
        let answer = message(&packet, addr, &options);
        let bent = script.bend.map(|bend| {
            let mut bent = answer.clone();
            bend(&mut bent);
            bent
        });
        (answer, bent, script.delay, to_all)
    };
    std::thread::sleep(delay);
    let to = if to_all { Ipv4Addr::BROADCAST } else { ciaddr };
    for payload in bent.iter().chain([&answer]) {
        let _ = socket.send_to(payload, (to, 68));
    }
}

fn message(asked: &DhcpPacket<&[u8]>, addr: Ipv4Addr, options: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; 548];
    let mut packet = DhcpPacket::new_unchecked(bytes.as_mut_slice());
    packet.set_opcode(DhcpOpCode::Reply);
    packet.set_hardware_type(smoltcp::wire::ArpHardware::Ethernet);
    packet.set_hardware_len(6);
    packet.set_transaction_id(asked.transaction_id());
    packet.set_client_hardware_address(asked.client_hardware_address());
    packet.set_magic_number(0x6382_5363);
    packet.set_your_ip(addr);
    let mut writer = packet.options_mut();
    for (kind, data) in options {
        writer.emit(DhcpOption { kind: *kind, data }).expect("room");
    }
    writer.end().expect("room");
    bytes
}
