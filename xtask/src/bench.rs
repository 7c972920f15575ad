//! `cargo xtask bench NAME`: measures against a named peer in one interleaved run. One JSON object a row; see benches/README.md.

mod agent;
mod bandwidth;
mod cni;
mod misses;
mod peers;
mod store;
pub mod tunnel;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::shell;

/// What may be asked for.
#[derive(Debug, Args)]
pub struct Options {
    /// Which: peers, cni, bandwidth, agent, store, tunnel, misses.
    name: String,
    /// Prints each row as JSON.
    #[arg(long)]
    json: bool,
    /// Interleaved runs.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Of the tunnel's: only the cases whose name holds this.
    #[arg(long)]
    only: Option<String>,
}

/// A row: the ratio says how many times better than the peer.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What is measured.
    pub name: &'static str,
    /// Our figure: the median of the runs.
    pub ours: f64,
    /// The peer's, or the bound that is to be kept.
    pub peer: f64,
    /// Of both.
    pub unit: &'static str,
    /// How many times better; greater is better.
    pub ratio: f64,
    /// Below this it is a failure.
    pub floor: f64,
    /// What is aimed at.
    pub goal: f64,
    /// How many runs of each.
    pub runs: usize,
    /// What the peer is.
    pub against: &'static str,
}

impl Row {
    /// A figure against a bound that it is to stay under, measured once.
    fn under(
        name: &'static str,
        ours: f64,
        bound: f64,
        unit: &'static str,
        (floor, goal): (f64, f64),
        against: &'static str,
    ) -> Self {
        Self { name, ours, peer: bound, unit, ratio: bound / ours.max(0.001), floor, goal, runs: 1, against }
    }
}

/// Runs a benchmark.
pub fn run(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        return in_release(options);
    }
    let rows = match options.name.as_str() {
        "peers" => peers::run(options.runs)?,
        "cni" => cni::run(options.runs)?,
        "bandwidth" => bandwidth::run(options.runs)?,
        "agent" => agent::run()?,
        "store" => store::run()?,
        "tunnel" => tunnel::run(options.runs, options.only.as_deref().unwrap_or_default())?,
        "misses" => misses::run()?,
        other => {
            bail!("there is no benchmark {other:?}: peers, cni, bandwidth, agent, store, tunnel and misses are there")
        }
    };
    let mut fallen = Vec::new();
    for row in &rows {
        if options.json {
            shell::print(&serde_json::to_string(row)?)?;
        } else {
            shell::print(&format!(
                "{:22} {:10.3} {} against {:10.3} ({}): {:.2} times better, floor {}, goal {}",
                row.name, row.ours, row.unit, row.peer, row.against, row.ratio, row.floor, row.goal
            ))?;
        }
        if row.ratio < row.floor {
            fallen.push(row.name);
        }
    }
    if fallen.is_empty() { Ok(()) } else { bail!("below the floor: {}", fallen.join(", ")) }
}

/// What is measured must be compiled as it is shipped: the same again, by an optimised build of this program.
fn in_release(options: &Options) -> Result<()> {
    let runs = options.runs.to_string();
    let mut args = vec!["run", "--quiet", "--release", "-p", "xtask", "--", "bench", &options.name, "--runs", &runs];
    if options.json {
        args.push("--json");
    }
    args.extend(options.only.iter().flat_map(|only| ["--only", only]));
    let status = shell::cargo(&args).status()?;
    if status.success() { Ok(()) } else { bail!("the benchmark ended with {status}") }
}

/// The middle one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
