//! `loden generate`: man pages and completions, from the definition of the arguments itself.

use clap::CommandFactory;

use crate::args::{Args, Generate};
use crate::error::CliError;

/// Writes them.
pub fn run(command: &Generate) -> Result<u8, CliError> {
    let mut args = Args::command();
    match command {
        Generate::Man { out } => {
            let fail =
                |error: std::io::Error| CliError::File { path: out.display().to_string(), cause: error.to_string() };
            std::fs::create_dir_all(out).map_err(fail)?;
            clap_mangen::generate_to(args, out).map_err(fail)?;
        }
        Generate::Completions { shell } => {
            clap_complete::generate(*shell, &mut args, "loden", &mut anstream::stdout());
        }
    }
    Ok(0)
}
