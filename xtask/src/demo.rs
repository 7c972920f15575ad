//! `cargo xtask demo`: three hosts on one machine, pods by the real plugin, real packets, and what happens when things break.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use loden_core::api::Event;
use loden_core::kernel::{Kernel, Key, Object, Scope, Sort};
use loden_core::model::{IfName, Mac};
use loden_lab::agent::Agent;
use loden_lab::probe::reach;
use loden_lab::probe::stream::{Report, Stream};
use loden_lab::{Lab, LabError, Topology};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::neighbour;
use loden_linux::{LinuxError, LinuxKernel, netns};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use serde::Serialize;

use crate::shell;

const TOPOLOGY: &str = include_str!("../../labs/topologies/flat3.toml");
/// Datagrams a second of each stream.
const RATE: u32 = 1000;

/// What the demo may be told.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// Leaves the lab up, and says what to try.
    #[arg(long)]
    keep: bool,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// The figures.
#[derive(Debug, Default, Serialize)]
struct Figures {
    pairs: usize,
    reachable: usize,
    reachable_after_switch: usize,
    lost_on_agent_kill: u64,
    longest_gap_on_agent_kill_ms: u64,
    writes_on_restart: u64,
    restart_ms: u64,
    fdb_repair_ms: f64,
    fdb_repair_event: String,
    lost_on_repair: u64,
    lost_on_backend_switch: u64,
    switch_ms: u64,
    leftovers: usize,
    seconds: f64,
}

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    shell::say("· building lodend, loden-cni and loden (the first time takes a few minutes)");
    let binaries = shell::build(false)?;
    if options.keep && !rustix::process::geteuid().is_root() {
        bail!("--keep needs root: an ordinary user's lab is in namespaces that end with this program");
    }
    let (labs, scratch) = place()?;
    let topology = Topology::parse(&TOPOLOGY.replace("\"flat3\"", "\"demo\""))?;
    let began = Instant::now();
    let dir = labs.join("demo");
    let mut tell = |step: &str| shell::say(&format!("· {step}"));
    let lab = Lab::up(&topology, &dir, binaries, options.keep, &mut tell)?;
    let shown = show(&lab);
    let mut figures = match shown {
        Ok(figures) => figures,
        Err(error) => {
            if let Err(second) = lab.down() {
                shell::say(&format!("taking the lab down: {second}"));
            }
            return Err(error);
        }
    };
    if options.keep {
        what_to_try(&lab);
    } else {
        lab.down()?;
        let left = lab.leftovers();
        if let Some(scratch) = scratch {
            unmount(&scratch, UnmountFlags::DETACH)?;
            std::fs::remove_dir(&scratch)?;
        }
        figures.leftovers = left.len();
        left.iter().for_each(|what| shell::say(&format!("left over: {what}")));
        shell::say("✓ everything is taken down, nothing is left");
    }
    figures.seconds = began.elapsed().as_secs_f64();
    shell::say(&format!("done in {:.1} s", figures.seconds));
    if options.json {
        shell::print(&serde_json::to_string_pretty(&figures)?)?;
    }
    judge(&figures)
}

/// Where the lab is made: for root where labs are, for others in namespaces of their own (and what is to be removed then).
fn place() -> Result<(PathBuf, Option<PathBuf>)> {
    if rustix::process::geteuid().is_root() {
        return Ok((Path::new(loden_lab::lab::LABS).to_owned(), None));
    }
    let scratch = std::env::temp_dir().join(format!("loden-demo-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    netns::become_root_in_user_namespace(&scratch).context(
        "as an ordinary user the demo needs user namespaces, which this kernel does not let you make: run it as root",
    )?;
    Ok((scratch.clone(), Some(scratch)))
}

fn show(lab: &Lab) -> Result<Figures> {
    let mut figures = Figures::default();
    let probes = reach::all(lab)?;
    (figures.pairs, figures.reachable) = reach::count_pairs(&probes);
    shell::say(&reach::table(&probes));
    shell::say(&format!(
        "✓ {} of {} pairs reach: IPv4 (4) and IPv6 (6), ICMP, UDP and TCP, payloads up to the MTU that must not be \
         fragmented; to the outside with the host's address",
        figures.reachable, figures.pairs
    ));
    for probe in probes.iter().filter(|probe| probe.fault.is_some()) {
        shell::say(&format!("  {probe:?}"));
    }
    let (dev, mac) = three_entries(lab)?;
    kill_the_agent(lab, &mut figures)?;
    break_the_fdb(lab, dev, mac, &mut figures)?;
    switch_the_backend(lab, &mut figures)?;
    Ok(figures)
}

/// One route, one ARP entry, one FDB entry: prints those of host2 on host1.
fn three_entries(lab: &Lab) -> Result<(IfName, Mac)> {
    let peer = lab.agent("host1")?.status()?;
    let peer = peer.peers.iter().find(|peer| peer.node.as_str() == "host2").context("host1 does not know host2")?;
    let block = *peer.blocks.iter().find(|block| block.network().is_ipv4()).context("host2 has no block")?;
    let seen = lab.netns("host1")?.run(|| {
        let sorts = [Sort::Link, Sort::Neighbour, Sort::Fdb, Sort::Nexthop, Sort::Route].into();
        LinuxKernel::open()?
            .observe(&Scope { sorts, ..Scope::default() })
            .map_err(|error| LinuxError::File { path: error.object.clone(), cause: error.cause })
    })??;
    let mut found = (None, None, None);
    for (key, object) in &seen {
        match (key, object) {
            (Key::Route(prefix, _), Object::Route(via)) if *prefix == block => {
                found.0 = Some(format!("{prefix} {via} onlink"));
            }
            (Key::Neighbour(dev, addr), Object::Neighbour(mac)) if *addr == block.network() => {
                found.1 = Some((*dev, *mac, format!("{addr} dev {dev} {object}")));
            }
            _ => {}
        }
    }
    let (dev, mac, arp) = found.1.context("host1 has no ARP entry for host2's VTEP")?;
    if let Some(object) = seen.get(&Key::Fdb(dev, mac)) {
        found.2 = Some(format!("{mac} dev {dev} {object}"));
    }
    shell::say("host2 in the kernel of host1:");
    shell::say(&format!("  One Route  {}", found.0.context("no route to host2's block")?));
    shell::say(&format!("  One ARP    {arp}"));
    shell::say(&format!("  One FDB    {}", found.2.context("no FDB entry for host2's VTEP")?));
    Ok((dev, mac))
}

/// Streams between a pod on host1 and one on host2, both ways, both families.
fn under_traffic(lab: &Lab, work: impl FnOnce() -> Result<()>) -> Result<Report> {
    let pod = |host: &str| lab.pods().iter().find(|pod| pod.host == host).context("no pod");
    let (a, b) = (pod("host1")?, pod("host2")?);
    let mut streams = Vec::new();
    for (from, to) in [(a, b), (b, a)] {
        for (_, addr) in to.addresses.iter() {
            streams.push(Stream::start(&lab.netns(&from.name)?, &lab.netns(&to.name)?, addr, RATE)?);
        }
    }
    thread::sleep(Duration::from_millis(300));
    let done = work();
    thread::sleep(Duration::from_millis(300));
    let mut sum = Report::default();
    for stream in streams {
        let report = stream.stop()?;
        sum.sent += report.sent;
        sum.received += report.received;
        sum.lost += report.lost;
        sum.longest_gap_ms = sum.longest_gap_ms.max(report.longest_gap_ms);
    }
    done.map(|()| sum)
}

fn kill_the_agent(lab: &Lab, figures: &mut Figures) -> Result<()> {
    shell::say("· four streams at 1 kHz; lodend on host1 is killed (SIGKILL) and started again");
    let agent = lab.agent("host1")?;
    let mut restart = Duration::ZERO;
    let report = under_traffic(lab, || {
        agent.end(Signal::KILL)?;
        thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        agent.start(&lab.binaries().lodend, true)?;
        agent.wait_ready()?;
        restart = began.elapsed();
        Ok(())
    })?;
    figures.lost_on_agent_kill = report.lost;
    figures.longest_gap_on_agent_kill_ms = report.longest_gap_ms;
    figures.restart_ms = u64::try_from(restart.as_millis())?;
    figures.writes_on_restart = agent.status()?.kernel.writes.values().sum();
    shell::say(&format!(
        "✓ {} of {} packets lost, longest silence {} ms; ready after {} ms with {} kernel writes",
        report.lost, report.sent, report.longest_gap_ms, figures.restart_ms, figures.writes_on_restart
    ));
    Ok(())
}

fn break_the_fdb(lab: &Lab, dev: IfName, mac: Mac, figures: &mut Figures) -> Result<()> {
    shell::say(&format!("· the FDB entry {mac} on host1's {dev} is deleted by hand"));
    let agent = lab.agent("host1")?;
    let before = last_event(&agent)?;
    let ns = lab.netns("host1")?;
    let mut took = Duration::ZERO;
    let report = under_traffic(lab, || {
        took = ns.run(|| delete_and_wait(dev, mac))??;
        Ok(())
    })?;
    figures.fdb_repair_ms = took.as_secs_f64() * 1000.0;
    figures.lost_on_repair = report.lost;
    let events = wait_for(|| {
        let repairs: Vec<Event> = agent.events(before)?.into_iter().filter(|event| event.sort == "repair").collect();
        Ok((!repairs.is_empty()).then_some(repairs))
    })?;
    figures.fdb_repair_event =
        events.iter().map(|e| format!("{}: {}", e.object, e.text)).collect::<Vec<_>>().join("; ");
    shell::say(&format!("✓ there again after {:.1} ms, {} packets lost", figures.fdb_repair_ms, report.lost));
    shell::say(&format!("  event: {}", figures.fdb_repair_event));
    Ok(())
}

/// Deletes the entry and waits until it is back; runs inside the host's namespace.
fn delete_and_wait(dev: IfName, mac: Mac) -> Result<Duration, LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let gone = || LinuxError::File { path: dev.to_string(), cause: "there is no such link".to_owned() };
    let number = loden_linux::rt::link::number_of(&socket, dev)?.ok_or_else(gone)?;
    let mut w = Writer::default();
    neighbour::delete_fdb(&mut w, number, mac);
    let began = Instant::now();
    socket.batch(&mut w)?.into_iter().collect::<Result<(), _>>()?;
    loop {
        w.clear();
        neighbour::list_fdb(&mut w, number);
        let is_back = socket.dump(
            "list forwarding entries",
            &mut w,
            || false,
            |is_back, message| {
                let entry = neighbour::parse(message.payload).map(|seen| seen.entry);
                *is_back |= matches!(entry, Some(neighbour::Entry::Fdb(m, dst)) if m == mac && !dst.is_unspecified());
            },
        )?;
        if is_back || began.elapsed() > Duration::from_secs(10) {
            return Ok(began.elapsed());
        }
        thread::sleep(Duration::from_micros(200));
    }
}

fn switch_the_backend(lab: &Lab, figures: &mut Figures) -> Result<()> {
    shell::say("· the pools' backend is switched from vxlan to host-gw while the streams run");
    let pools = TOPOLOGY.split_once("[[pool]]").map(|(_, rest)| format!("[[pool]]{rest}"));
    let pools = pools.context("the topology has no pools")?.replace("vxlan", "host-gw");
    let mut took = Duration::ZERO;
    let report = under_traffic(lab, || {
        let began = Instant::now();
        lab.apply_pools(&pools)?;
        for host in lab.hosts() {
            let agent = lab.agent(&host.name)?;
            wait_for(|| {
                let status = agent.status()?;
                let is_over = status.kernel.pending == 0
                    && status.pools.iter().all(|pool| pool.backend == "host-gw" && pool.lingering.is_empty());
                Ok(is_over.then_some(()))
            })?;
        }
        took = began.elapsed();
        Ok(())
    })?;
    figures.lost_on_backend_switch = report.lost;
    figures.switch_ms = u64::try_from(took.as_millis())?;
    let (pairs, whole) = reach::count_pairs(&reach::all(lab)?);
    figures.reachable_after_switch = whole;
    shell::say(&format!(
        "✓ switched on all hosts in {} ms, {} of {} packets lost; {whole} of {pairs} pairs reach",
        figures.switch_ms, report.lost, report.sent
    ));
    Ok(())
}

fn last_event(agent: &Agent) -> Result<u64, LabError> {
    Ok(agent.events(0)?.last().map_or(0, |event| event.seq))
}

/// Asks until there is an answer, for ten seconds.
fn wait_for<T>(mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("it did not come to pass in 10 s");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn what_to_try(lab: &Lab) {
    let loden = lab.binaries().loden.display();
    let run = lab.dir().join("host1/run");
    shell::say("the lab is up; five things to try:");
    for line in [
        format!("{loden} --run-dir {} status", run.display()),
        format!("{loden} --run-dir {} ipam show", run.display()),
        format!("{loden} lab ping demo"),
        format!("{loden} lab exec demo host1 sh        # then: ip route, bridge fdb, …"),
        format!("{loden} lab down demo"),
    ] {
        shell::say(&format!("  {line}"));
    }
}

/// The demo promises; what it does not keep is an error.
fn judge(figures: &Figures) -> Result<()> {
    let broken: Vec<&str> = [
        (figures.reachable < figures.pairs, "not every pair reaches"),
        (figures.reachable_after_switch < figures.pairs, "not every pair reaches after the switch"),
        (figures.lost_on_agent_kill > 0, "packets were lost when the agent was killed"),
        (figures.writes_on_restart > 0, "the restarted agent wrote to the kernel"),
        (figures.fdb_repair_event.is_empty(), "no event names the repair"),
        (figures.leftovers > 0, "something was left over"),
    ]
    .into_iter()
    .filter_map(|(is_broken, what)| is_broken.then_some(what))
    .collect();
    if broken.is_empty() { Ok(()) } else { bail!("{}", broken.join("; ")) }
}
