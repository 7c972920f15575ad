//! `cargo xtask storm`: thousands of ADDs at once behind one lock. All of them are started and wait before the first may go on; none
//! may wait past its deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use loden_lab::pod::Call;
use loden_lab::{Lab, Topology};
use loden_linux::lock::FileLock;
use loden_linux::netns::NetNs;
use loden_linux::run_dir::RunDir;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::{Value, json};

use crate::shell;

/// Interfaces in a namespace: a namespace for each would measure how they are made.
const IN_ONE: usize = 100;
/// Ports of a bridge: the kernel allows 1,024 (`BR_MAX_PORTS`, net/bridge/br_private.h).
const ON_BRIDGE: usize = 500;
/// How long all of them may take to come to the lock, and then to come to their ends.
const PATIENCE: Duration = Duration::from_secs(300);

/// What may be asked for.
#[derive(Debug, Args)]
pub struct Options {
    /// How many ADDs; a block of the lab has room for 8,189.
    #[arg(long, default_value_t = 5000)]
    adds: usize,
    /// Prints what came of it as JSON.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    adds: usize,
    failed: BTreeMap<String, usize>,
    distinct_addresses: usize,
    seconds_to_gather: f64,
    seconds: f64,
    left: Vec<String>,
}

/// Runs it in a lab of its own.
pub fn run(options: &Options) -> Result<()> {
    let binaries = shell::build(true)?;
    let text = "name = \"storm\"\n[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\n[[host]]\nname = \"host1\"\npods = 0\n\
                [[pool]]\nname = \"default\"\ncidr = \"10.244.0.0/16\"\nblock_len = 19\n";
    let dir = Path::new(loden_lab::lab::LABS).join("storm");
    let lab = Lab::up(&Topology::parse(text)?, &dir, binaries, false, &mut |step| shell::say(&format!("· {step}")))?;
    let stormed =
        lab.netns("host1").map_err(Into::into).and_then(|host| host.run(|| Storm::new(&lab, options.adds)?.run())?);
    lab.down()?;
    let report = stormed?;
    if options.json {
        shell::print(&serde_json::to_string(&report)?)?;
    } else {
        shell::print(&format!(
            "{} ADDs behind one lock: all waited after {:.1} s, all had ended {:.1} s after it was let go; \
             {} distinct addresses; failed: {:?}; left: {:?}",
            report.adds,
            report.seconds_to_gather,
            report.seconds,
            report.distinct_addresses,
            report.failed,
            report.left
        ))?;
    }
    ensure!(report.failed.is_empty(), "ADDs failed");
    ensure!(report.distinct_addresses == report.adds, "addresses were given twice");
    ensure!(report.left.is_empty(), "something was left");
    Ok(())
}

struct Storm<'a> {
    lab: &'a Lab,
    run_dir: RunDir,
    pods: Vec<Pod>,
}

/// An interface to be.
struct Pod {
    netns: PathBuf,
    ifname: String,
    conf: String,
}

impl<'a> Storm<'a> {
    fn new(lab: &'a Lab, adds: usize) -> Result<Self> {
        let spaces: Vec<PathBuf> = (0..adds.div_ceil(IN_ONE)).map(|n| lab.netns_path(&format!("storm{n}"))).collect();
        for path in &spaces {
            NetNs::create(path)?;
        }
        let run_dir = RunDir::new(lab.dir().join("host1/run"));
        let conf = |bridge: usize| {
            json!({
                "cniVersion": "1.0.0", "name": format!("storm{bridge}"), "type": "loden-cni", "runDir": run_dir.path(),
                "bridge": format!("storm{bridge}"), "isGateway": false, "isDefaultGateway": false,
            })
        };
        let pod = |n: usize| Pod {
            netns: spaces[n / IN_ONE].clone(),
            ifname: format!("e{}", n % IN_ONE),
            conf: conf(n / ON_BRIDGE).to_string(),
        };
        Ok(Self { lab, pods: (0..adds).map(pod).collect(), run_dir })
    }

    fn run(&self) -> Result<Report> {
        // Two pipes of each process are open in this one.
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).context("limit of open files")?;
        let lock = FileLock::acquire(&self.run_dir.ipam_dir().join("lock"), Instant::now() + PATIENCE)?;
        let began = Instant::now();
        let children: Vec<Child> = self.pods.iter().map(|pod| self.begin("ADD", pod)).collect::<Result<_>>()?;
        self.all_wait(began + PATIENCE)?;
        let seconds_to_gather = began.elapsed().as_secs_f64();
        shell::say(&format!("· {} processes wait after {seconds_to_gather:.1} s", children.len()));
        let began = Instant::now();
        drop(lock);
        let (mut failed, mut addresses) = (BTreeMap::new(), BTreeSet::new());
        for child in children {
            let answer = child.wait_with_output()?;
            let value: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
            match value["ips"][0]["address"].as_str().filter(|_| answer.status.success()) {
                Some(address) => drop(addresses.insert(address.to_owned())),
                None => *failed.entry(format!("{}: {}", value["msg"], value["details"])).or_default() += 1,
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        shell::say(&format!("· all have ended after {seconds:.1} s; DEL"));
        self.end()?;
        Ok(Report {
            adds: self.pods.len(),
            failed,
            distinct_addresses: addresses.len(),
            seconds_to_gather,
            seconds,
            left: self.left(),
        })
    }

    fn begin(&self, verb: &str, pod: &Pod) -> Result<Child> {
        let plugin = &self.lab.binaries().loden_cni;
        let name = pod.netns.file_name().unwrap_or_default().to_string_lossy();
        let Pod { netns, ifname, conf } = pod;
        let call = Call { plugin, verb, pod: &name, ifname, netns, path: plugin, conf };
        call.begin(None).with_context(|| plugin.display().to_string())
    }

    /// Waits until each has left its mark, which it does just before it comes to the lock.
    fn all_wait(&self, deadline: Instant) -> Result<()> {
        loop {
            let waiting = self.marks()?;
            if waiting == self.pods.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("only {waiting} of {} processes came to the lock", self.pods.len());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn marks(&self) -> Result<usize> {
        let entries = std::fs::read_dir(self.run_dir.ipam_dir())?;
        Ok(entries.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "add")).count())
    }

    /// DEL of all, a hundred at a time.
    fn end(&self) -> Result<()> {
        for pods in self.pods.chunks(100) {
            let children: Vec<Child> = pods.iter().map(|pod| self.begin("DEL", pod)).collect::<Result<_>>()?;
            for child in children {
                let answer = child.wait_with_output()?;
                ensure!(answer.status.success(), "DEL: {}", String::from_utf8_lossy(&answer.stdout));
            }
        }
        Ok(())
    }

    fn left(&self) -> Vec<String> {
        let found = self.run_dir.attachments();
        let good = found.good.iter().map(|there| there.key.to_string());
        good.chain(found.unreadable.iter().map(|(_, error)| error.to_string())).collect()
    }
}
