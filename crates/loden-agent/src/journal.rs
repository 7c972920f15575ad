//! The view on disk: what the datastore said last, for an agent that starts while the datastore is away.
//!
//! `STATE_DIR/view` is a line that says of which store and revision it is, a line a record, and then a line a change. A change is
//! appended before the kernel hears of it, so an agent that is started again on it finds the kernel as it wants it. Nothing is
//! synced: what was written outlives the process, and a reboot takes the kernel's state, too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use loden_core::model::{Entry, Key};
use loden_linux::LinuxError;
use loden_linux::run_dir::{remove_file, write_atomically};
use loden_store::{Change, Listing};
use serde::{Deserialize, Serialize};

/// The form of the file.
const VERSION: u32 = 1;
/// Below this length, in bytes, what is appended is not folded in.
const SMALL: u64 = 64 * 1024;

/// The file, as it is written to.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Open while the file is whole.
    file: Option<File>,
    /// How much of it is the listing, and how much was appended, in bytes.
    listed: u64,
    appended: u64,
}

/// What it held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Of which store.
    pub store: String,
    /// Whether that store lends blocks for a term.
    pub lends: bool,
    /// Its revision.
    pub revision: u64,
    /// The records, by key.
    pub entries: Vec<Entry>,
    /// When it was last written to, before now by the wall clock.
    pub age: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    store: String,
    revision: u64,
    #[serde(default)]
    lends: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and nearly all are the large one")]
enum Line {
    Put(Entry),
    Delete { key: Key, revision: u64 },
}

impl Journal {
    /// The one in a state directory. What a killed writer left is removed.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        let left = fs::read_dir(state_dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_left = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("view.") && name.ends_with(".tmp")
        };
        // One that stays takes room and does no other harm.
        left.filter(is_left).for_each(|path| drop(fs::remove_file(path)));
        Self { path: state_dir.join("view"), file: None, listed: 0, appended: 0 }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is there. A last line that was cut short is left out: the kernel has not heard of it either.
    ///
    /// # Errors
    /// [`LinuxError::File`] when it is damaged, [`LinuxError::System`] when it cannot be read.
    pub fn read(&self) -> Result<Option<Remembered>, LinuxError> {
        let fail = |error| LinuxError::system(format!("file {}", self.path.display()), error);
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let written = fs::metadata(&self.path).and_then(|metadata| metadata.modified()).map_err(fail)?;
        let damaged = |number: usize, cause: &dyn std::fmt::Display| LinuxError::File {
            path: self.path.display().to_string(),
            cause: format!("line {} is not what was expected ({cause})", number + 1),
        };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        let mut lines = bytes[..whole].split(|byte| *byte == b'\n').enumerate();
        let (_, first) = lines.next().unwrap_or_default();
        let header: Header = serde_json::from_slice(first).map_err(|error| damaged(0, &error))?;
        if header.version != VERSION {
            return Err(damaged(0, &format!("version {}, {VERSION} was meant", header.version)));
        }
        let (mut entries, mut revision) = (BTreeMap::new(), header.revision);
        for (number, line) in lines {
            match serde_json::from_slice(line).map_err(|error| damaged(number, &error))? {
                Line::Put(entry) => {
                    revision = revision.max(entry.revision);
                    entries.insert(entry.record.key(), entry);
                }
                Line::Delete { key, revision: at } => {
                    revision = revision.max(at);
                    entries.remove(&key);
                }
            }
        }
        let entries = entries.into_values().collect();
        let age = written.elapsed().unwrap_or_default();
        Ok(Some(Remembered { store: header.store, lends: header.lends, revision, entries, age }))
    }

    /// Puts a damaged file aside, to be looked at; says where it is.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn set_aside(&self) -> Result<PathBuf, LinuxError> {
        let aside = self.path.with_file_name("view.damaged");
        fs::rename(&self.path, &aside)
            .map_err(|error| LinuxError::system(format!("file {}", self.path.display()), error))?;
        Ok(aside)
    }

    /// Writes the whole anew from a listing.
    ///
    /// # Errors
    /// [`LinuxError`]; there is no view on disk then: an old one would have the kernel put back.
    pub fn begin(&mut self, listing: &Listing, lends: bool) -> Result<(), LinuxError> {
        let header = Header { version: VERSION, store: listing.id.clone(), revision: listing.revision, lends };
        let written = self.write(&header, listing.entries.iter());
        written.map_err(|error| self.give_up(error))
    }

    /// Adds a change. Nothing is done while there is no whole file.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn append(&mut self, change: &Change) -> Result<(), LinuxError> {
        let line = match change {
            Change::Put(entry) => Line::Put(entry.clone()),
            Change::Delete { key, revision } => Line::Delete { key: key.clone(), revision: *revision },
            Change::Flaw { .. } => return Ok(()),
        };
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut bytes = Vec::new();
        let written = put_line(&mut bytes, &line)
            .map_err(|error| LinuxError::File { path: self.path.display().to_string(), cause: error.to_string() });
        let written = written.and_then(|()| {
            file.write_all(&bytes).map_err(|error| LinuxError::system(format!("file {}", self.path.display()), error))
        });
        self.appended += bytes.len() as u64;
        let done = match written {
            Ok(()) if self.appended > self.listed.max(SMALL) => self.fold(),
            written => written,
        };
        done.map_err(|error| self.give_up(error))
    }

    /// Whether the file is there and whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.file.is_some()
    }

    /// Writes the whole anew from what it holds.
    fn fold(&mut self) -> Result<(), LinuxError> {
        let Some(held) = self.read()? else {
            let cause = "was removed by somebody".to_owned();
            return Err(LinuxError::File { path: self.path.display().to_string(), cause });
        };
        let header = Header { version: VERSION, store: held.store, revision: held.revision, lends: held.lends };
        self.write(&header, held.entries.iter())
    }

    fn write<'a>(&mut self, header: &Header, entries: impl Iterator<Item = &'a Entry>) -> Result<(), LinuxError> {
        let fail = |cause: String| LinuxError::File { path: self.path.display().to_string(), cause };
        let mut bytes = Vec::new();
        put_line(&mut bytes, header).map_err(|error| fail(error.to_string()))?;
        for entry in entries {
            put_line(&mut bytes, &Line::Put(entry.clone())).map_err(|error| fail(error.to_string()))?;
        }
        write_atomically(&self.path, &bytes)?;
        let file = File::options().append(true).open(&self.path);
        let file = file.map_err(|error| LinuxError::system(format!("file {}", self.path.display()), error))?;
        self.file = Some(file);
        (self.listed, self.appended) = (bytes.len() as u64, 0);
        Ok(())
    }

    /// A file that lacks a change would have the next agent put the kernel back: it goes, for which a full disk has room.
    fn give_up(&mut self, error: LinuxError) -> LinuxError {
        self.file = None;
        match remove_file(&self.path) {
            Ok(()) => error,
            Err(second) => LinuxError::Several(vec![error, second]),
        }
    }
}

fn put_line(bytes: &mut Vec<u8>, line: &impl Serialize) -> Result<(), serde_json::Error> {
    serde_json::to_writer(&mut *bytes, line)?;
    bytes.push(b'\n');
    Ok(())
}
