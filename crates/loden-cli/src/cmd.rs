//! The commands, a file each.

mod generate;
mod ipam;
mod lab;
mod macvlan;
mod plan;
mod pool;
mod status;
mod store;

use crate::args::{Args, Command};
use crate::error::CliError;

/// Runs a command; gives the exit code.
pub fn run(args: Args) -> Result<u8, CliError> {
    let Args { output, run_dir, command } = args;
    match command {
        Command::Status => status::run(&run_dir, output),
        Command::Plan => plan::run(&run_dir, output),
        Command::Ipam(_) => ipam::run(&run_dir, output),
        Command::Macvlan(command) => macvlan::run(&command, &run_dir, output),
        Command::Pool(command) => pool::run(&command, output),
        Command::Store(command) => store::run(&command, output),
        Command::Lab(command) => lab::run(&command, output),
        Command::Generate(command) => generate::run(&command),
    }
}
