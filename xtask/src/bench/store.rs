//! A large cluster over etcd: from the agent's start to its kernel, one change to the kernel, many changes at once, what a node costs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_core::model::{Mac, Node, Receive, Record};
use loden_lab::{Lab, LabError, Topology};
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::netns::NetNs;
use loden_linux::rt::neighbour::{self, Entry};
use loden_linux::spawn;
use loden_store::{Change, Expect, Store};
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::Row;
use super::agent::resident;
use crate::shell;

/// How many nodes the cluster has.
const MANY: u32 = 5_000;
/// Changes one at a time.
const SINGLE: u32 = 300;
/// Changes at once, and of how many nodes.
const BURST: u32 = 1_000;
const BURST_NODES: u32 = 100;
/// Objects of a peer.
const OBJECTS: f64 = 4.0;
/// `RTNLGRP_NEIGH`.
const GROUP_NEIGH: u32 = 3;

const TOPOLOGY: &str = "name = \"bench-store\"\nstore = \"etcd:http://192.0.2.2:2379\"\n\
    [[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\n[[host]]\nname = \"host1\"\npods = 0\n[[server]]\nname = \"etcd1\"\n\
    [[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\nbackend = { type = \"vxlan\" }\n";

/// One agent, one member of etcd, and the records of many nodes.
pub fn run() -> Result<Vec<Row>> {
    if !shell::has("etcd") {
        shell::install(&["etcd-server"], "etcd is needed")?;
    }
    let binaries = shell::build(true)?;
    let dir = Path::new(loden_lab::lab::LABS).join("bench-store");
    let mut server = None;
    let mut tell = |step: &str| shell::say(&format!("· {step}"));
    let prepare = |lab: &Lab| server.insert(Server::start(lab)?).wait();
    let lab = Lab::up_with(&Topology::parse(TOPOLOGY)?, &dir, binaries, false, &mut tell, prepare)?;
    let measured = measure(&lab);
    drop(server);
    lab.down()?;
    Ok([measured?, kubernetes()?].concat())
}

/// What a change of a kubelet's Node costs, where there is a Kubernetes to run.
fn kubernetes() -> Result<Vec<Row>> {
    let Some(bytes) = crate::kubernetes::bytes()? else {
        shell::say("· `kubernetes_bytes` is left out: `cargo xtask kubernetes` builds what it needs");
        return Ok(Vec::new());
    };
    Ok(vec![Row {
        name: "kubernetes_bytes",
        ours: bytes.change_of_agent,
        peer: bytes.change,
        unit: "B",
        ratio: bytes.change / bytes.change_of_agent,
        floor: 5.0,
        goal: 5.0,
        runs: bytes.changes,
        against: "a change of a Node read whole, in JSON",
    }])
}

/// etcd on the server; ends when it is dropped.
struct Server(Child, NetNs);

impl Server {
    fn start(lab: &Lab) -> Result<Self, LabError> {
        let what = || "etcd".to_owned();
        let ns = lab.netns("etcd1")?;
        let url = "http://192.0.2.2:2379";
        let mut command = Command::new("etcd");
        command.args(["--listen-client-urls", url, "--advertise-client-urls", url, "--logger", "zap"]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--quota-backend-bytes", "4000000000"]);
        command.arg("--data-dir").arg(lab.dir().join("etcd"));
        command.arg("--log-outputs").arg(lab.dir().join("etcd.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        spawn::in_netns(&mut command, &ns, true).map_err(LabError::linux(what()))?;
        let child = command.spawn().map_err(|error| LabError::system(what(), error))?;
        Ok(Self(child, ns))
    }

    fn wait(&self) -> Result<(), LabError> {
        let until = Instant::now() + Duration::from_secs(20);
        let connect = || std::net::TcpStream::connect("192.0.2.2:2379").is_ok();
        while !self.1.run(connect).map_err(LabError::linux("etcd"))? {
            if Instant::now() > until {
                return Err(LabError::system("etcd", "it does not listen"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has gone by itself is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(lab: &Lab) -> Result<Vec<Row>> {
    let agent = lab.agent("host1")?;
    agent.end(Signal::KILL)?;
    shell::say(&format!("· {MANY} nodes"));
    load(lab)?;
    let received = bytes_received(lab)?;
    let began = Instant::now();
    agent.start(&lab.binaries().lodend, false)?;
    let start = settle(lab, began)?;
    let bytes = (bytes_received(lab)? - received) / f64::from(MANY);
    let pid = agent.pid().context("the agent does not run")?.as_raw_nonzero();
    let memory = resident(pid)?;
    shell::say(&format!("· {SINGLE} changes one by one"));
    let (above, own) = single(lab)?;
    shell::say(&format!("· {BURST} changes at once"));
    let before = gauges(lab)?;
    burst(lab)?;
    settle(lab, Instant::now())?;
    let after = gauges(lab)?;
    let writes = sum(&after, "kernel_writes_total") - sum(&before, "kernel_writes_total");
    let row = Row::under;
    Ok(vec![
        row("start_5k", start.as_secs_f64(), 3.0, "s", (1.0, 2.0), "the bound of 3 s"),
        row("change_p99", above, 100.0, "ms", (1.0, 5.0), "the bound of 100 ms above the datastore's own latency"),
        row("change_own_p99", own, 100.0, "ms", (0.0, 0.0), "no bound: the datastore's own latency, for comparison"),
        row(
            "burst_writes",
            writes,
            f64::from(BURST) * OBJECTS,
            "writes",
            (1.0, 3.0),
            "each of 1,000 changes by itself",
        ),
        row("rss_5k", memory, 60.0, "MB", (1.0, 1.0), "the bound of 60 MB"),
        row(
            "bytes_a_node",
            bytes,
            4096.0,
            "B",
            (1.0, 2.0),
            "the bound of 4 KiB read from etcd for a node and its block",
        ),
    ])
}

/// Works with the lab's datastore where it is reached.
fn with_store<T: Send, F: Future<Output = Result<T>>>(
    lab: &Lab,
    work: impl FnOnce(Arc<dyn Store>) -> F + Send,
) -> Result<T> {
    let url = lab.store_url();
    let done = lab.netns("etcd1")?.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { work(loden_store::open(&url).await?).await })
    });
    done.map_err(|error| anyhow::anyhow!("{error}"))?
}

/// Writes records, several at a time.
async fn put_all(store: &Arc<dyn Store>, records: impl IntoIterator<Item = Record>) -> Result<()> {
    let mut under_way = JoinSet::new();
    for record in records {
        if under_way.len() >= 32 {
            under_way.join_next().await.context("a task")???;
        }
        let store = Arc::clone(store);
        under_way.spawn(async move { anyhow::Ok(store.put(record, Expect::Any, None).await.map(drop)?) });
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(())
}

fn load(lab: &Lab) -> Result<()> {
    with_store(lab, |store| async move { put_all(&store, super::peers::records(MANY)).await })
}

/// The agent's metrics, with all their labels.
fn gauges(lab: &Lab) -> Result<BTreeMap<String, f64>> {
    let (_, text) = loden_lab::http::get(&lab.agent("host1")?.socket(), "/metrics")?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parse =
        |line: &str| line.rsplit_once(' ').and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
    Ok(lines.filter_map(parse).collect())
}

fn sum(gauges: &BTreeMap<String, f64>, of: &str) -> f64 {
    gauges
        .iter()
        .filter(|(name, _)| name.split('{').next().is_some_and(|name| name.ends_with(of)))
        .map(|(_, n)| n)
        .sum()
}

/// Waits until the kernel holds what is wanted, and says when that was.
fn settle(lab: &Lab, began: Instant) -> Result<Duration> {
    loop {
        // Before it listens it has no metrics.
        if let Ok(gauges) = gauges(lab)
            && sum(&gauges, "objects_wanted") > OBJECTS * f64::from(MANY)
            && sum(&gauges, "objects_pending") == 0.0
        {
            return Ok(began.elapsed());
        }
        if began.elapsed() > Duration::from_secs(120) {
            bail!("the agent has not caught up in two minutes");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// What has come to the host over the wire, in bytes.
fn bytes_received(lab: &Lab) -> Result<f64> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
    let text = lab.netns("host1")?.run(read).map_err(|error| anyhow::anyhow!("{error}"))??;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
    line.split_whitespace().next().context("no figure")?.parse().context("no figure")
}

/// A node with a VTEP of another Ethernet address.
fn moved(n: u32, round: u32) -> Result<(Record, Mac)> {
    let Record::Node(node) = super::peers::node(n)[0].record.clone() else { bail!("no node") };
    let mac = Mac::derived(&["bench", node.name.as_str(), &round.to_string()]);
    let receives = node.receives.iter().map(|receive| match receive {
        Receive::Vxlan { vni, underlay, port, .. } => {
            Receive::Vxlan { vni: *vni, underlay: *underlay, mac, port: *port, bridged: false }
        }
        other => other.clone(),
    });
    Ok((Record::Node(Node { receives: receives.collect(), ..node.clone() }), mac))
}

/// The worst of a hundred, in milliseconds: how much later than a watcher of the datastore the kernel hears of a change, and how
/// long that takes.
fn single(lab: &Lab) -> Result<(f64, f64)> {
    let entries = entries(lab)?;
    let mut seen: BTreeMap<Mac, Instant> = BTreeMap::new();
    let times = with_store(lab, |store| async move {
        let mut watch = store.watch(store.list().await?.revision).await?;
        let (mut above, mut own) = (Vec::new(), Vec::new());
        for n in 1..=SINGLE {
            let (record, mac) = moved(n, 1)?;
            let key = record.key();
            let began = Instant::now();
            store.put(record, Expect::Any, None).await?;
            let told = loop {
                if let Change::Put(entry) = watch.next().await?
                    && entry.record.key() == key
                {
                    break Instant::now();
                }
            };
            let in_kernel = loop {
                if let Some(at) = seen.get(&mac) {
                    break *at;
                }
                let (mac, at) =
                    entries.recv_timeout(Duration::from_secs(20)).context("the kernel has not been told")?;
                seen.entry(mac).or_insert(at);
            };
            above.push(in_kernel.saturating_duration_since(told).as_secs_f64() * 1000.0);
            own.push(told.duration_since(began).as_secs_f64() * 1000.0);
            // What follows at once would be gathered with it.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Ok((above, own))
    })?;
    Ok((worst_of_hundred(times.0), worst_of_hundred(times.1)))
}

fn worst_of_hundred(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}

/// The Ethernet addresses of neighbours as the host's kernel reports them.
fn entries(lab: &Lab) -> Result<Receiver<(Mac, Instant)>> {
    let (sender, receiver) = channel();
    let ns = lab.netns("host1")?;
    let open = || -> Result<Socket, loden_linux::LinuxError> {
        let socket = Socket::open(Protocol::Route)?;
        socket.join(GROUP_NEIGH)?;
        Ok(socket)
    };
    let mut socket = ns.run(open).and_then(|socket| socket).map_err(|error| anyhow::anyhow!("{error}"))?;
    thread::spawn(move || {
        let mut is_wanted = true;
        while is_wanted {
            // A socket whose namespace goes with the lab ends the thread with the program.
            let received = socket.receive(|message| {
                if let Some(Entry::Neighbour(_, Some(mac))) = neighbour::parse(message.payload).map(|seen| seen.entry) {
                    is_wanted = sender.send((mac, Instant::now())).is_ok();
                }
            });
            is_wanted &= received.is_ok();
        }
    });
    Ok(receiver)
}

fn burst(lab: &Lab) -> Result<()> {
    let changes: Vec<Record> = (0..BURST)
        .map(|n| moved(1 + n % BURST_NODES, 2 + n / BURST_NODES).map(|(record, _)| record))
        .collect::<Result<_>>()?;
    with_store(lab, |store| async move { put_all(&store, changes).await })
}
