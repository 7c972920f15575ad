//! `loden macvlan sources`: whose frames a pod's macvlan in mode `source` lets in, shown and changed while traffic flows.

use std::path::Path;

use loden_core::model::SourceChange;
use loden_linux::ledger::Ledger;
use loden_linux::run_dir::RunDir;
use serde_json::json;

use crate::args::{Macvlan, Output};
use crate::error::CliError;
use crate::render;

/// Changes the list, if that is asked for, and shows it. Needs no agent: the files of the attachments are enough.
pub fn run(command: &Macvlan, run_dir: &Path, output: Output) -> Result<u8, CliError> {
    let Macvlan::Sources { attachment, set, add, remove } = command;
    let change = match (set, add, remove) {
        (Some(these), ..) => SourceChange::Set(these.clone()),
        (_, Some(these), _) => SourceChange::Add(these.clone()),
        (.., Some(these)) => SourceChange::Remove(these.clone()),
        (None, None, None) => SourceChange::None,
    };
    let sources = Ledger::new(RunDir::new(run_dir)).change_sources(attachment, &change)?;
    match output {
        Output::Json => render::json(&json!({ "attachment": attachment.to_string(), "sources": sources }))?,
        Output::Text if sources.is_empty() => render::text("nobody's frames are let in\n")?,
        Output::Text => render::text(&sources.iter().map(|mac| format!("{mac}\n")).collect::<String>())?,
    }
    Ok(0)
}
