//! `loden store …`: what a datastore holds, carried elsewhere, compared, looked through, and rid of nodes that are gone.

use std::path::Path;

use loden_core::audit::{self, Difference};
use loden_core::model::{Entry, Key, NodeName, Record};
use loden_core::view::Problem;
use loden_store::{Expect, Listing, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::args::{Output, StoreCommand as Command};
use crate::error::CliError;
use crate::render;

/// A datastore's records in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Export {
    /// The file's form.
    version: u32,
    /// The records, pools first, then nodes, then blocks.
    records: Vec<Record>,
}

const VERSION: u32 = 1;

/// Runs the command on a runtime of its own.
pub fn run(command: &Command, output: Output) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| CliError::Output(error.to_string()))?.block_on(async {
        match command {
            Command::Export { store } => export(&store.store).await,
            Command::Import { store, from, overwrite, dry_run } => {
                let how = How { overwrite: *overwrite, dry_run: *dry_run };
                import(&store.store, from, how, output).await
            }
            Command::Diff { left, right } => diff(left, right, output).await,
            Command::Check { store } => check(&store.store, output).await,
            Command::Forget { store, node, force } => forget(&store.store, node, *force, output).await,
        }
    })
}

async fn export(url: &str) -> Result<u8, CliError> {
    let listing = loden_store::open(url).await?.list().await?;
    refuse_flaws(url, &listing)?;
    let mut records: Vec<Record> = listing.entries.into_iter().map(|entry| entry.record).collect();
    records.retain(|record| audit::is_lasting(&record.key()));
    // A block's pool and owner come before it.
    records.sort_by_key(Record::key);
    render::json(&Export { version: VERSION, records })?;
    Ok(0)
}

/// What cannot be read would be missing elsewhere, and nobody would know.
fn refuse_flaws(url: &str, listing: &Listing) -> Result<(), CliError> {
    let Some((place, cause)) = listing.flaws.first_key_value() else { return Ok(()) };
    let count = listing.flaws.len();
    let cause =
        format!("{place} is no record ({cause}), {count} in all: mend or remove it first, or it would be left behind");
    Err(CliError::File { path: url.to_owned(), cause })
}

/// The records of a datastore or of an exported file.
async fn read(from: &str) -> Result<Vec<Entry>, CliError> {
    if let Some(export) = read_export(Path::new(from))? {
        let entry = |(n, record)| Entry { record, created: n, revision: n };
        return Ok((1..).zip(export.records).map(entry).collect());
    }
    let listing = loden_store::open(from).await?.list().await?;
    refuse_flaws(from, &listing)?;
    Ok(listing.entries)
}

/// An exported file; `None` when it is something else: a database, or an address.
fn read_export(path: &Path) -> Result<Option<Export>, CliError> {
    let fail = |cause: String| CliError::File { path: path.display().to_string(), cause };
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| fail(error.to_string()))?,
    };
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Ok(None);
    }
    let export: Export = serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))?;
    if export.version != VERSION {
        return Err(fail(format!("it has form {}, this version knows {VERSION}: upgrade loden here", export.version)));
    }
    Ok(Some(export))
}

#[derive(Clone, Copy)]
struct How {
    overwrite: bool,
    dry_run: bool,
}

/// What became of a record.
#[derive(Debug, Serialize)]
struct Imported {
    key: String,
    outcome: &'static str,
}

async fn import(url: &str, from: &str, how: How, output: Output) -> Result<u8, CliError> {
    let mut records: Vec<Record> = read(from).await?.into_iter().map(|entry| entry.record).collect();
    records.retain(|record| audit::is_lasting(&record.key()));
    records.sort_by_key(Record::key);
    let store = loden_store::open(url).await?;
    let (mut done, mut refused) = (Vec::new(), 0);
    for record in records {
        let key = record.key();
        let outcome = bring(&*store, record, how).await?;
        refused += usize::from(outcome == REFUSED);
        done.push(Imported { key: key.to_string(), outcome });
    }
    match output {
        Output::Json => render::json(&done)?,
        Output::Text => {
            let changed = done.iter().filter(|one| one.outcome != UNCHANGED);
            let lines: String = changed.map(|one| format!("{} {}\n", one.key, one.outcome)).collect();
            let unchanged = done.iter().filter(|one| one.outcome == UNCHANGED).count();
            let hint = if refused > 0 { "`--overwrite` takes what is imported for right\n" } else { "" };
            let dry = if how.dry_run { "nothing was written (--dry-run)\n" } else { "" };
            render::text(&format!("{lines}{} records, {unchanged} of them there already\n{hint}{dry}", done.len()))?;
        }
    }
    Ok(if refused > 0 { 2 } else { 0 })
}

const UNCHANGED: &str = "unchanged";
const REFUSED: &str = "is otherwise there, and was left";

async fn bring(store: &dyn Store, record: Record, how: How) -> Result<&'static str, CliError> {
    let there = store.get(&record.key()).await?;
    let (expect, outcome) = match &there {
        Some(there) if there.record == record => return Ok(UNCHANGED),
        Some(_) if !how.overwrite => return Ok(REFUSED),
        Some(there) => (Expect::Revision(there.revision), "changed"),
        None => (Expect::Absent, "made"),
    };
    if !how.dry_run {
        let ttl = matches!(record, Record::Block(_)).then(|| store.term().map(|term| term.ttl)).flatten();
        store.put(record, expect, ttl).await?;
    }
    Ok(outcome)
}

async fn diff(left: &str, right: &str, output: Output) -> Result<u8, CliError> {
    let differences = audit::differences(&read(left).await?, &read(right).await?);
    match output {
        Output::Json => render::json(&differences)?,
        Output::Text => render::text(&differences.iter().map(describe).collect::<String>())?,
    }
    Ok(if differences.is_empty() { 0 } else { 2 })
}

/// As `diff` shows it: `-` is in the first alone, `+` in the second alone.
fn describe(difference: &Difference) -> String {
    let side = |sign: char, record: &Option<Record>| match record {
        Some(record) => format!("{sign} {} {}\n", difference.key, serde_json::to_string(record).unwrap_or_default()),
        None => String::new(),
    };
    side('-', &difference.left) + &side('+', &difference.right)
}

async fn check(url: &str, output: Output) -> Result<u8, CliError> {
    let listing = loden_store::open(url).await?.list().await?;
    let mut problems: Vec<Problem> =
        listing.flaws.iter().map(|(place, cause)| Problem::new(place, format!("is no record: {cause}"))).collect();
    problems.extend(audit::problems(&listing.entries));
    match output {
        Output::Json => render::json(&problems)?,
        Output::Text if problems.is_empty() => {
            render::text(&format!("{} records, all is well\n", listing.entries.len()))?;
        }
        Output::Text => render::text(&problems.iter().map(|problem| format!("{problem}\n")).collect::<String>())?,
    }
    Ok(if problems.is_empty() { 0 } else { 2 })
}

/// Takes a node's records away, its blocks last: while they are there, nobody else gets them.
async fn forget(url: &str, node: &NodeName, force: bool, output: Output) -> Result<u8, CliError> {
    let store = loden_store::open(url).await?;
    let listing = store.list().await?;
    let of_node = |entry: &&Entry| match &entry.record {
        Record::Node(other) => other.name == *node,
        Record::Block(block) => block.owner == *node,
        Record::Lease(lease) => lease.node == *node,
        Record::Pool(_) => false,
    };
    let mut entries: Vec<&Entry> = listing.entries.iter().filter(of_node).collect();
    let wrong = |cause: &str| CliError::File { path: format!("node {node}"), cause: cause.to_owned() };
    if entries.is_empty() {
        return Err(wrong("the datastore knows of no such node, and of no block of it"));
    }
    if !force && entries.iter().any(|entry| matches!(entry.record, Record::Lease(_))) {
        let cause = "its agent shows signs of life, and would claim everything anew: stop it first and wait half a minute, or say \
                     `--force`";
        return Err(wrong(cause));
    }
    entries.sort_by_key(|entry| matches!(entry.record, Record::Block(_)));
    let mut done = Vec::new();
    for entry in entries {
        let key = entry.record.key();
        match store.delete(&key, Expect::Revision(entry.revision)).await {
            Ok(()) => done.push(format!("{key} removed")),
            Err(StoreError::Conflict { found: None, .. }) if matches!(key, Key::Lease(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match output {
        Output::Json => render::json(&done)?,
        Output::Text => render::text(&(done.join("\n") + "\n"))?,
    }
    Ok(0)
}
