//! `loden`: the command line. A file a command; `-o json` is the stable form for programs.

mod args;
mod cmd;
mod error;
mod render;

use std::process::ExitCode;

use clap::Parser;

use args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    match cmd::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let style = anstyle::AnsiColor::Red.on_default().bold();
            let text = format!("{style}error{style:#}: {error}\n");
            // Nobody is left to tell when standard error is closed.
            let _ = std::io::Write::write_all(&mut anstream::stderr(), text.as_bytes());
            ExitCode::from(1)
        }
    }
}
