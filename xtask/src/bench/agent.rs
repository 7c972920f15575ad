//! What an agent costs at rest: resident memory with 3 nodes and with 10,000, and processor time while nothing happens.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_lab::{Lab, Topology};
use loden_store::Expect;

use super::Row;
use crate::shell;

/// How long the agent is watched while nothing happens.
const REST: Duration = Duration::from_secs(20);
/// How many nodes a large cluster has.
const MANY: u32 = 10_000;
/// The kernel's ticks a second (`sysconf(_SC_CLK_TCK)`, 100 on every Linux).
const TICKS: f64 = 100.0;

/// A lab of three hosts, at rest.
pub fn run() -> Result<Vec<Row>> {
    let binaries = shell::build(true)?;
    let topology =
        Topology::parse(&include_str!("../../../labs/topologies/flat3.toml").replace("\"flat3\"", "\"bench-agent\""))?;
    let dir = Path::new(loden_lab::lab::LABS).join("bench-agent");
    let lab = Lab::up(&topology, &dir, binaries, false, &mut |step| shell::say(&format!("· {step}")))?;
    let measured = measure(&lab);
    lab.down()?;
    let (memory, idle, many) = measured?;
    let row = |name, ours, bound, unit, against| Row::under(name, ours, bound, unit, (1.0, 1.0), against);
    Ok(vec![
        row("rss_3_nodes", memory, 20.0, "MB", "the bound of 20 MB"),
        row("rss_10k_nodes", many, 60.0, "MB", "the bound of 60 MB"),
        row("idle_cpu", idle, 0.1, "%", "the bound of 0.1 % of a core"),
    ])
}

fn measure(lab: &Lab) -> Result<(f64, f64, f64)> {
    let pid = lab.agent("host1")?.pid().context("the agent of host1 does not run")?.as_raw_nonzero();
    let ticks = || -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let behind = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<f64> = behind.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
        Ok(fields.iter().sum())
    };
    thread::sleep(Duration::from_secs(2));
    let before = ticks()?;
    shell::say(&format!("· at rest for {} s", REST.as_secs()));
    thread::sleep(REST);
    let idle = (ticks()? - before) / TICKS / REST.as_secs_f64() * 100.0;
    let memory = resident(pid)?;
    shell::say("· ten thousand nodes more");
    add_nodes(&lab.store_url())?;
    let agent = lab.agent("host1")?;
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let kernel = agent.status()?.kernel;
        if kernel.wanted > 4 * MANY as usize && kernel.pending == 0 {
            break;
        }
        if Instant::now() > deadline {
            bail!("{} of {} objects are still pending", kernel.pending, kernel.wanted);
        }
        thread::sleep(Duration::from_millis(500));
    }
    Ok((memory, idle, resident(pid)?))
}

/// Resident memory in megabytes.
pub fn resident(pid: std::num::NonZeroI32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).context("no VmRSS")?.parse()?;
    Ok(kilobytes / 1000.0)
}

/// Writes the records of many nodes, as their agents would. The pool of the lab is too small for them, so they have one of
/// their own.
fn add_nodes(url: &str) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let store = loden_store::open(url).await?;
        for record in super::peers::records(MANY) {
            store.put(record, Expect::Absent, None).await?;
        }
        Ok(())
    })
}
