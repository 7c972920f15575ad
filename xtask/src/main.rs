//! `cargo xtask`: the workspace's chores, in Rust, so that they need nothing but the toolchain.

mod bench;
mod demo;
mod docs;
mod fuzz;
mod kernel;
mod kubernetes;
mod peers;
mod shell;
mod soak;
mod storm;
mod suite;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The workspace's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    /// The chore.
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// A cluster of three hosts on this machine, with real packets; ends in a minute and leaves nothing.
    Demo(demo::Options),
    /// All the tests; installs by itself what they need.
    Test {
        /// Only the steps whose name holds this.
        #[arg(long)]
        only: Option<String>,
    },
    /// The labs that are not in every run: against a containerd of today, which is built from its Go module, once.
    Peers,
    /// The house rules that can be checked by a program.
    Tidy,
    /// Takes what the golden tests now give for right.
    Bless,
    /// `loden lab …` with the programs built from this tree.
    Lab {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measures, as a ratio to a named peer.
    Bench(bench::Options),
    /// Tests of what this machine's kernel may lack, under another one that runs as a program.
    Kernel(kernel::Options),
    /// The suite of the store in Kubernetes against a real API server, or a cluster with real kubelets; Kubernetes is built from its Go
    /// module, once.
    Kubernetes(kubernetes::Options),
    /// What that one begins with.
    #[command(hide = true)]
    KernelInit,
    /// What the benchmark of tunnels starts on each host.
    #[command(hide = true)]
    TunnelEngine(bench::tunnel::engine::Options),
    /// Random input to all that reads what comes from outside.
    Fuzz(fuzz::Options),
    /// Ten thousand pods that come and go, in a lab of their own: nothing of them may stay.
    Soak(soak::Options),
    /// Thousands of ADDs at once behind one lock, in a lab of its own.
    Storm(storm::Options),
    /// Man pages, completions, and the book where mdbook is installed.
    Docs,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    match args.chore {
        Chore::Demo(options) => demo::run(&options),
        Chore::Test { only } => suite::run(only.as_deref()),
        Chore::Peers => peers::run(),
        Chore::Tidy => tidy::run(),
        Chore::Bless => suite::bless(),
        Chore::Lab { args } => {
            let binaries = shell::build(false)?;
            shell::pass_through(&binaries.loden, std::iter::once("lab".to_owned()).chain(args))
        }
        Chore::Bench(options) => bench::run(&options),
        Chore::Kernel(options) => kernel::run(&options),
        Chore::Kubernetes(options) => kubernetes::run(&options),
        Chore::KernelInit => kernel::init(),
        Chore::TunnelEngine(options) => bench::tunnel::engine::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Soak(options) => soak::run(&options),
        Chore::Storm(options) => storm::run(&options),
        Chore::Docs => docs::run(),
    }
}
