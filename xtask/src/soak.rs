//! `cargo xtask soak`: ten thousand pods come and go on a host with a living agent, and nothing of them stays.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use loden_lab::soak::{Holdings, Process, Soak};
use loden_lab::{Lab, Topology};
use serde::Serialize;

use crate::shell;

/// How much an agent's memory may grow, in KiB: what the allocator keeps differs from moment to moment. A leak of a hundred bytes a pod
/// would be as much in ten thousand.
const GROWTH: u64 = 1024;

/// What may be asked for.
#[derive(Debug, Args)]
pub struct Options {
    /// How many pods come and go.
    #[arg(long, default_value_t = 10_000)]
    cycles: usize,
    /// How many do so before the first look, so that everything that is kept for use again is there.
    #[arg(long, default_value_t = 2_000)]
    warm_up: usize,
    /// Prints what came of it as JSON.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    cycles: usize,
    seconds: f64,
    before: Process,
    after: Process,
    holdings: Holdings,
    faults: Vec<String>,
}

/// Runs it in a lab of its own.
pub fn run(options: &Options) -> Result<()> {
    let binaries = shell::build(true)?;
    let text = "name = \"soak\"\n[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\nv6 = \"2001:db8:0:2::/64\"\n\
                [[host]]\nname = \"host1\"\npods = 1\n[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\n\
                [[pool]]\nname = \"p6\"\ncidr = \"fd00:10:244::/56\"\n";
    let dir = Path::new(loden_lab::lab::LABS).join("soak");
    let lab = Lab::up(&Topology::parse(text)?, &dir, binaries, false, &mut |step| shell::say(&format!("· {step}")))?;
    let soaked = soak(&lab, options);
    lab.down()?;
    let report = soaked?;
    if options.json {
        shell::print(&serde_json::to_string(&report)?)?;
    } else {
        shell::print(&format!(
            "{} pods came and went in {:.0} s; the agent: {:?}, before {:?}; faults: {:#?}",
            report.cycles, report.seconds, report.after, report.before, report.faults
        ))?;
    }
    ensure!(report.faults.is_empty(), "something was left, or is gone");
    Ok(())
}

fn soak(lab: &Lab, options: &Options) -> Result<Report> {
    let soak = Soak { lab, host: "host1" };
    shell::say(&format!("· {} pods to warm up", options.warm_up));
    let fresh = soak.holdings()?;
    soak.cycle(0..options.warm_up)?;
    // What the first pod makes and no pod takes away is the table of ports and the files of the address state.
    let wanted = soak.settled(|held| held.links == fresh.links)?;
    let before = soak.process()?;
    let began = Instant::now();
    let mut done = 0;
    while done < options.cycles {
        let some = (options.cycles - done).min(1000);
        soak.cycle(options.warm_up + done..options.warm_up + done + some)?;
        done += some;
        shell::say(&format!("· {done} pods after {:.0} s: {:?}", began.elapsed().as_secs_f64(), soak.process()?));
    }
    let seconds = began.elapsed().as_secs_f64();
    let holdings = soak.settled(|held| *held == wanted)?;
    let after = soak.process()?;
    let mut faults = holdings.differences(&wanted);
    if after.resident > before.resident + GROWTH {
        faults.push(format!("the agent has grown from {} to {} KiB", before.resident, after.resident));
    }
    if after.descriptors > before.descriptors {
        faults.push(format!("the agent has {} descriptors, {} before", after.descriptors, before.descriptors));
    }
    Ok(Report { cycles: options.cycles, seconds, before, after, holdings, faults })
}
