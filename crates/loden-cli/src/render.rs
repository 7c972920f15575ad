//! Output: tables for people, JSON for programs.

use std::io::Write;
use std::path::Path;

use comfy_table::{Table, presets};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::CliError;

/// Asks the agent.
pub fn ask<T: DeserializeOwned>(run_dir: &Path, path: &str) -> Result<T, CliError> {
    let socket = run_dir.join("agent.sock");
    loden_lab::http::get_json(&socket, path)
        .map_err(|error| CliError::NoAgent { socket: socket.display().to_string(), cause: error.to_string() })
}

/// Writes a text.
pub fn text(text: &str) -> Result<(), CliError> {
    let mut out = anstream::stdout();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match done {
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| CliError::Output(error.to_string())),
    }
}

/// Writes a value as JSON.
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    let json = serde_json::to_string_pretty(value).map_err(|error| CliError::Output(error.to_string()))?;
    text(&(json + "\n"))
}

/// A table without lines.
pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.to_vec());
    rows.for_each(|row| {
        table.add_row(row);
    });
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// `ok` in green or a word in red.
pub fn health(is_well: bool, ill: &str) -> String {
    let (style, word) = if is_well {
        (anstyle::AnsiColor::Green.on_default(), "ok")
    } else {
        (anstyle::AnsiColor::Red.on_default(), ill)
    };
    format!("{style}{word}{style:#}")
}
