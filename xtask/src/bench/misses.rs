//! Answered misses: a storm of packets to addresses that nobody has beside others to addresses that the kernel asks for, each for the
//! first time. How long the kernel waits for the answer, and what the agent costs meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_core::model::Mac;
use loden_lab::{Lab, Topology};
use loden_linux::LinuxError;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::link;
use loden_linux::rt::neighbour::{self, Entry};
use loden_store::Expect;

use super::Row;
use super::agent::resident;
use crate::shell;

/// Packets to unknown addresses, each to another.
const STORM: u32 = 100_000;
/// Addresses that the kernel asks for, in the blocks of so many nodes.
const KNOWN: u32 = 1_000;
const NODES: u32 = 4;
/// From one of them to the next; the storm takes as long.
const STEP: Duration = Duration::from_millis(5);
/// `RTNLGRP_NEIGH`.
const GROUP_NEIGH: u32 = 3;
const PORT: u16 = 4749;
/// The kernel's ticks a second (`sysconf(_SC_CLK_TCK)`, 100 on every Linux).
const TICKS: f64 = 100.0;

const TOPOLOGY: &str = "name = \"bench-misses\"\n[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\n\
    [[host]]\nname = \"host1\"\npods = 1\n\
    [[pool]]\nname = \"many\"\ncidr = \"10.64.0.0/10\"\nbackend = { type = \"vxlan\", control = \"miss\" }\n";

/// One host with a pod, and the records of others.
pub fn run() -> Result<Vec<Row>> {
    let binaries = shell::build(true)?;
    let dir = Path::new(loden_lab::lab::LABS).join("bench-misses");
    let lab =
        Lab::up(&Topology::parse(TOPOLOGY)?, &dir, binaries, false, &mut |step| shell::say(&format!("· {step}")))?;
    let measured = measure(&lab);
    lab.down()?;
    measured
}

fn measure(lab: &Lab) -> Result<Vec<Row>> {
    let agent = lab.agent("host1")?;
    add_nodes(&lab.store_url())?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while agent.status()?.peers.iter().filter(|peer| peer.objects > 0 && peer.missing == 0).count() < NODES as usize {
        if Instant::now() > deadline {
            bail!("the nodes are not known");
        }
        thread::sleep(Duration::from_millis(10));
    }
    let pid = agent.pid().context("the agent does not run")?.as_raw_nonzero();
    let ticks = || -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let behind = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<f64> = behind.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
        Ok(fields.iter().sum())
    };
    let answers = answers(lab)?;
    // The pod knows its gateway from now on.
    send(&in_pod(lab)?, [10, 127, 0, 1].into());
    thread::sleep(Duration::from_millis(200));
    let (ticks_before, memory_before, refused_before) = (ticks()?, resident(pid)?, refused(lab)?);
    shell::say(&format!("· {KNOWN} known addresses, and {STORM} packets to unknown ones beside them"));
    let began = Instant::now();
    let storm = storm(in_pod(lab)?);
    let own = own_times(lab)?;
    let mut times = ask(&in_pod(lab)?, &answers)?;
    storm.join().map_err(|_| anyhow::anyhow!("the storm panicked"))?;
    let took = began.elapsed();
    let mut own = own.join().map_err(|_| anyhow::anyhow!("the comparison panicked"))??;
    let cpu = (ticks()? - ticks_before) / TICKS / took.as_secs_f64() * 100.0;
    let memory = resident(pid)?;
    let status = agent.status()?.misses.context("the kernel is not told to ask")?;
    shell::say(&format!("· {:.1} s; {status:?}; {memory:.1} MB", took.as_secs_f64()));
    let let_through = f64::from(STORM) - (refused(lab)? - refused_before);
    times.sort_by(f64::total_cmp);
    own.sort_by(f64::total_cmp);
    let of = |all: &[f64], share: usize| all.get(all.len() * share / 100).copied().unwrap_or(f64::NAN);
    let at = |share| of(&times, share);
    let row = Row::under;
    Ok(vec![
        row("known_p99", at(99), 5.0, "ms", (1.0, 2.0), "the bound of 5 ms from a packet to the kernel's entry"),
        row("known_p50", at(50), 5.0, "ms", (1.0, 5.0), "the same bound"),
        row(
            "own_p99",
            of(&own, 99),
            5.0,
            "ms",
            (0.0, 0.0),
            "no bound: an entry made by hand meanwhile, for comparison",
        ),
        row("storm_cpu", cpu, 20.0, "%", (1.0, 2.0), "the bound of 20 % of a core for the agent meanwhile"),
        row(
            "storm_memory",
            memory - memory_before,
            8.0,
            "MB",
            (1.0, 2.0),
            "the bound of 8 MB more for a thousand answers",
        ),
        row(
            "storm_reached",
            let_through.max(0.0),
            100.0,
            "packets",
            (1.0, 100.0),
            "the bound of 0.1 % that reaches the device",
        ),
    ])
}

fn add_nodes(url: &str) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let store = loden_store::open(url).await?;
        for entry in (1..=NODES).flat_map(super::peers::node) {
            store.put(entry.record, Expect::Absent, None).await?;
        }
        Ok(())
    })
}

/// How long it takes to make an entry by hand, as often as the kernel asks, in milliseconds: all namespaces of a machine share one lock.
fn own_times(lab: &Lab) -> Result<thread::JoinHandle<Result<Vec<f64>>>> {
    let open = || -> Result<(Socket, Option<u32>), LinuxError> {
        let socket = Socket::open(Protocol::Route)?;
        let eth0 = loden_core::model::IfName::new("eth0").ok();
        let number = eth0.map(|eth0| link::number_of(&socket, eth0)).transpose()?.flatten();
        Ok((socket, number))
    };
    let opened = lab.netns("host1")?.run(open).and_then(|opened| opened);
    let (mut socket, number) = opened.map_err(|error| anyhow::anyhow!("{error}"))?;
    let number = number.context("no eth0")?;
    Ok(thread::spawn(move || {
        let mut times = Vec::new();
        for n in 0..KNOWN {
            let mut w = Writer::default();
            neighbour::put(&mut w, number, [192, 0, 2, 200].into(), Mac([2, 0, 0, 0, 0, u8::try_from(n % 100)?]));
            let began = Instant::now();
            for done in socket.batch(&mut w)? {
                done?;
            }
            times.push(began.elapsed().as_secs_f64() * 1000.0);
            thread::sleep(STEP.saturating_sub(began.elapsed()));
        }
        Ok(times)
    }))
}

/// Packets that were refused since no node has a block with their address.
fn refused(lab: &Lab) -> Result<f64> {
    let misses = lab.agent("host1")?.status()?.misses.context("the kernel is not told to ask")?;
    Ok(misses.refused as f64)
}

fn in_pod(lab: &Lab) -> Result<UdpSocket> {
    let bind = || UdpSocket::bind("0.0.0.0:0");
    Ok(lab.netns("host1-pod1")?.run(bind).map_err(|error| anyhow::anyhow!("{error}"))??)
}

/// What a router answers to one shows at the next.
fn send(socket: &UdpSocket, to: IpAddr) {
    let _ = socket.send_to(b"miss", (to, PORT));
}

/// The storm in a thread, at an even rate.
fn storm(socket: UdpSocket) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (begun, each) = (Instant::now(), STEP * KNOWN / STORM);
        for n in 0..STORM {
            let [_, a, b, c] = n.to_be_bytes();
            send(&socket, [10, 100 + a, b, c].into());
            thread::sleep((begun + each * n).saturating_duration_since(Instant::now()));
        }
    })
}

/// The neighbours that the host's kernel has had, each with when that was heard.
fn answers(lab: &Lab) -> Result<Receiver<(IpAddr, Instant)>> {
    let (sender, receiver) = channel();
    let open = || -> Result<Socket, LinuxError> {
        let socket = Socket::open(Protocol::Route)?;
        socket.join(GROUP_NEIGH)?;
        Ok(socket)
    };
    let opened = lab.netns("host1")?.run(open).and_then(|socket| socket);
    let mut socket = opened.map_err(|error| anyhow::anyhow!("{error}"))?;
    thread::spawn(move || {
        let mut is_wanted = true;
        while is_wanted {
            // A quiet spell is none of its end; a socket whose namespace goes with the lab ends the thread with the program.
            let received = socket.receive(|message| {
                let seen = neighbour::parse(message.payload).filter(|_| message.kind == neighbour::NEW);
                if let Some(Entry::Neighbour(addr, Some(_))) =
                    seen.filter(|seen| seen.is_permanent).map(|seen| seen.entry)
                {
                    is_wanted = sender.send((addr, Instant::now())).is_ok();
                }
            });
            is_wanted &= received.is_ok();
        }
    });
    Ok(receiver)
}

/// Sends to each known address once, and says how long each took from there to the kernel's entry, in milliseconds.
fn ask(socket: &UdpSocket, answers: &Receiver<(IpAddr, Instant)>) -> Result<Vec<f64>> {
    let begun = Instant::now();
    let mut sent: BTreeMap<IpAddr, Instant> = BTreeMap::new();
    for n in 0..KNOWN {
        let each = KNOWN / NODES;
        let addr = IpAddr::from([10, 64, u8::try_from(1 + n / each)?, u8::try_from(1 + n % each)?]);
        sent.insert(addr, Instant::now());
        send(socket, addr);
        thread::sleep((begun + STEP * (n + 1)).saturating_duration_since(Instant::now()));
    }
    let mut times = Vec::new();
    while !sent.is_empty() {
        let (addr, at) = answers.recv_timeout(Duration::from_secs(10)).context("an address was never answered")?;
        if let Some(since) = sent.remove(&addr) {
            times.push(at.saturating_duration_since(since).as_secs_f64() * 1000.0);
        }
    }
    Ok(times)
}
