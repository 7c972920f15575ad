//! The file: its layout and the statements. Every write is one transaction; the revision counts them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use loden_core::model::{Entry, Key, Record};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use super::clock;
use crate::{Change, Expect, HISTORY, Listing, StoreError, compare};

/// The layout's version, in `PRAGMA user_version`.
const LAYOUT: i64 = 1;
/// How long a lock of another process is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

const SCHEMA: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE records (
        key TEXT PRIMARY KEY, value TEXT NOT NULL, created INTEGER NOT NULL, revision INTEGER NOT NULL,
        expires_ms INTEGER, boot TEXT
    ) STRICT;
    CREATE INDEX records_expiry ON records (expires_ms) WHERE expires_ms IS NOT NULL;
    CREATE TABLE changes (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT, created INTEGER) STRICT;
    INSERT INTO meta VALUES ('id', lower(hex(randomblob(16)))), ('revision', '0');
";

/// An open file.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    connection: Connection,
    /// Device and inode of the file when it was opened: another file in its place is another store.
    identity: (u64, u64),
    boot: String,
}

impl Database {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| io_error(path, &error))?;
        }
        let is_new = !path.exists();
        let mut database = Self::connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        if is_new {
            let private = fs::Permissions::from_mode(0o600);
            fs::set_permissions(path, private).map_err(|error| io_error(path, &error))?;
        }
        database.lay_out()?;
        touch(path)?;
        Ok(database)
    }

    /// Opens the file only if it is there.
    pub fn open_existing(path: &Path) -> Result<Self, StoreError> {
        Self::connect(path, OpenFlags::empty())
    }

    fn connect(path: &Path, extra: OpenFlags) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | extra;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| sql_error(path, error))?;
        connection.busy_timeout(PATIENCE).map_err(|error| sql_error(path, error))?;
        let meta = fs::metadata(path).map_err(|error| io_error(path, &error))?;
        let identity = (meta.dev(), meta.ino());
        Ok(Self { path: path.to_owned(), connection, identity, boot: clock::boot() })
    }

    fn lay_out(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let fail = |error| sql_error(&path, error);
        let mode: String =
            self.connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(fail)?;
        if mode != "wal" {
            return Err(StoreError::Unavailable {
                place: path.display().to_string(),
                cause: format!("its file system cannot share memory between processes (journal mode {mode})"),
            });
        }
        self.connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA cache_size = -512").map_err(fail)?;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
        match found {
            0 => {
                transaction.execute_batch(SCHEMA).map_err(fail)?;
                transaction.pragma_update(None, "user_version", LAYOUT).map_err(fail)?;
            }
            LAYOUT => {}
            found => {
                return Err(StoreError::TooNew { place: path.display().to_string(), found, known: LAYOUT });
            }
        }
        transaction.commit().map_err(fail)
    }

    /// The file may have been removed or replaced under the open descriptor: then it is opened anew, and never made.
    fn still_there(&mut self) -> Result<(), StoreError> {
        let meta = fs::metadata(&self.path).map_err(|error| io_error(&self.path, &error))?;
        if (meta.dev(), meta.ino()) != self.identity {
            *self = Self::open_existing(&self.path)?;
            self.lay_out()?;
        }
        Ok(())
    }

    pub fn list(&mut self) -> Result<Listing, StoreError> {
        self.still_there()?;
        let path = self.path.clone();
        let fail = |error| sql_error(&path, error);
        let transaction = self.connection.transaction().map_err(fail)?;
        let mut listing = Listing { revision: revision(&transaction).map_err(fail)?, ..Listing::default() };
        listing.id =
            transaction.query_row("SELECT value FROM meta WHERE name = 'id'", [], |row| row.get(0)).map_err(fail)?;
        let mut statement = transaction
            .prepare_cached("SELECT key, value, created, revision, expires_ms, boot FROM records ORDER BY key")
            .map_err(fail)?;
        let mut rows = statement.query([]).map_err(fail)?;
        while let Some(row) = rows.next().map_err(fail)? {
            let row = Row::read(row).map_err(fail)?;
            if row.is_over(&self.boot) {
                continue;
            }
            match row.entry() {
                Ok(entry) => listing.entries.push(entry),
                Err(StoreError::Unreadable { key, cause }) => drop(listing.flaws.insert(key, cause)),
                Err(error) => return Err(error),
            }
        }
        Ok(listing)
    }

    pub fn get(&mut self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.still_there()?;
        let path = self.path.clone();
        let transaction = self.connection.transaction().map_err(|error| sql_error(&path, error))?;
        find(&transaction, &path, &self.boot, key)
    }

    pub fn put(&mut self, record: Record, expect: Expect, ttl: Option<Duration>) -> Result<Entry, StoreError> {
        let expires = ttl.map(clock::after);
        self.write(|transaction, path, boot| {
            let key = record.key();
            let fail = |error| sql_error(path, error);
            let found = find(transaction, path, boot, &key)?;
            compare::check(&key, expect, found.as_ref())?;
            let boot = expires.map(|_| boot);
            if let Some(found) = found.as_ref().filter(|found| found.record == record) {
                let sql = "UPDATE records SET expires_ms = ?2, boot = ?3 WHERE key = ?1";
                transaction.execute(sql, params![key.to_string(), expires, boot]).map_err(fail)?;
                return Ok(found.clone());
            }
            let revision = next_revision(transaction).map_err(fail)?;
            let entry = Entry { record, created: found.map_or(revision, |found| found.created), revision };
            let value = serde_json::to_string(&entry.record)
                .map_err(|error| StoreError::Unreadable { key: key.to_string(), cause: error.to_string() })?;
            let (created, revision) = (signed(entry.created), signed(revision));
            let sql = "INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (key) DO UPDATE SET \
                       value = ?2, created = ?3, revision = ?4, expires_ms = ?5, boot = ?6";
            transaction
                .execute(sql, params![key.to_string(), value, created, revision, expires, boot])
                .map_err(fail)?;
            note(transaction, revision, &key, Some((&value, created))).map_err(fail)?;
            Ok(entry)
        })
    }

    pub fn delete(&mut self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        self.write(|transaction, path, boot| {
            let found = find(transaction, path, boot, key);
            match (found, expect) {
                (Ok(found), _) => compare::check(key, expect, found.as_ref())?,
                // What cannot be read can still be removed.
                (Err(StoreError::Unreadable { .. }), Expect::Any) => {}
                (Err(error), _) => return Err(error),
            }
            remove(transaction, &key.to_string()).map_err(|error| sql_error(path, error))
        })
    }

    pub fn renew(&mut self, key: &Key, revision: u64, ttl: Duration) -> Result<(), StoreError> {
        let expires = clock::after(ttl);
        self.write(|transaction, path, boot| {
            let found = find(transaction, path, boot, key)?;
            compare::check(key, Expect::Revision(revision), found.as_ref())?;
            let sql = "UPDATE records SET expires_ms = ?2, boot = ?3 WHERE key = ?1";
            let done = transaction.execute(sql, params![key.to_string(), expires, boot]);
            done.map(drop).map_err(|error| sql_error(path, error))
        })
    }

    /// Removes the records whose time is over, and says when (in milliseconds since boot) the next one's will be.
    pub fn expire(&mut self) -> Result<Option<i64>, StoreError> {
        self.still_there()?;
        let (path, boot) = (self.path.clone(), self.boot.clone());
        let fail = |error| sql_error(&path, error);
        let next =
            "SELECT min(CASE WHEN boot = ?1 THEN expires_ms ELSE 0 END) FROM records WHERE expires_ms IS NOT NULL";
        let due: Option<i64> = self.connection.query_row(next, [&boot], |row| row.get(0)).map_err(fail)?;
        if due.is_none_or(|due| due > clock::now_ms()) {
            return Ok(due);
        }
        self.write(|transaction, _, _| {
            let over: Vec<String> = transaction
                .prepare_cached(
                    "SELECT key FROM records WHERE expires_ms IS NOT NULL AND (boot <> ?1 OR expires_ms <= ?2)",
                )
                .and_then(|mut statement| {
                    statement.query_map(params![boot, clock::now_ms()], |row| row.get(0))?.collect()
                })
                .map_err(fail)?;
            over.iter().try_for_each(|key| remove(transaction, key)).map_err(fail)
        })?;
        self.connection.query_row(next, [&boot], |row| row.get(0)).map_err(fail)
    }

    /// The changes behind a revision, in order.
    pub fn changes(&mut self, after: u64) -> Result<Vec<Change>, StoreError> {
        self.still_there()?;
        let path = self.path.clone();
        let fail = |error| sql_error(&path, error);
        let transaction = self.connection.transaction().map_err(fail)?;
        let latest = revision(&transaction).map_err(fail)?;
        let oldest: Option<i64> =
            transaction.query_row("SELECT min(revision) FROM changes", [], |row| row.get(0)).map_err(fail)?;
        let oldest = oldest.map_or(latest + 1, unsigned);
        if after + 1 < oldest || after > latest {
            return Err(StoreError::Compacted { oldest });
        }
        let mut statement = transaction
            .prepare_cached("SELECT revision, key, value, created FROM changes WHERE revision > ?1 ORDER BY revision")
            .map_err(fail)?;
        let rows = statement.query_map([signed(after)], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?, row.get(3)?))
        });
        let mut changes = Vec::new();
        for row in rows.map_err(fail)? {
            let (revision, key, value, created): (i64, String, Option<String>, Option<i64>) = row.map_err(fail)?;
            let change = match value {
                Some(value) => serde_json::from_str(&value).map(|record| {
                    let created = unsigned(created.unwrap_or(revision));
                    Change::Put(Entry { record, created, revision: unsigned(revision) })
                }),
                None => parse_key(&key).map(|key| Change::Delete { key, revision: unsigned(revision) }),
            };
            let revision = unsigned(revision);
            let flaw = |error: serde_json::Error| Change::Flaw { place: key, cause: Some(error.to_string()), revision };
            changes.push(change.unwrap_or_else(flaw));
        }
        Ok(changes)
    }

    /// One write transaction; watchers in all processes are woken behind it.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>, &Path, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.still_there()?;
        let path = self.path.clone();
        let before;
        let result = {
            let transaction = self
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(|error| sql_error(&path, error))?;
            before = revision(&transaction).map_err(|error| sql_error(&path, error))?;
            let result = work(&transaction, &path, &self.boot)?;
            transaction.commit().map_err(|error| sql_error(&path, error))?;
            result
        };
        if revision(&self.connection).map_err(|error| sql_error(&path, error))? != before {
            touch(&path)?;
        }
        Ok(result)
    }
}

/// The file that watchers listen to.
pub fn bell(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("-bell");
    path.with_file_name(name)
}

/// Wakes the watchers. A writer that is killed before this has still written to the log, which they listen to as well.
fn touch(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let bell = bell(path);
    let ring = || -> std::io::Result<()> {
        let file = fs::File::options().write(true).create(true).truncate(false).mode(0o600).open(&bell)?;
        rustix::io::pwrite(&file, b".", 0)?;
        Ok(())
    };
    match ring() {
        // A full disk keeps the byte that is there; the write of the log has woken them already.
        Err(error) if error.raw_os_error() == Some(28) => Ok(()),
        other => other.map_err(|error| io_error(&bell, &error)),
    }
}

/// A row of `records`.
struct Row {
    key: String,
    value: String,
    created: i64,
    revision: i64,
    expires_ms: Option<i64>,
    boot: Option<String>,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            key: row.get(0)?,
            value: row.get(1)?,
            created: row.get(2)?,
            revision: row.get(3)?,
            expires_ms: row.get(4)?,
            boot: row.get(5)?,
        })
    }

    fn is_over(&self, boot: &str) -> bool {
        self.expires_ms.is_some_and(|at| self.boot.as_deref() != Some(boot) || at <= clock::now_ms())
    }

    fn entry(self) -> Result<Entry, StoreError> {
        match serde_json::from_str::<Record>(&self.value) {
            Ok(record) if record.key().to_string() == self.key => {
                Ok(Entry { record, created: unsigned(self.created), revision: unsigned(self.revision) })
            }
            Ok(record) => Err(StoreError::Unreadable {
                key: self.key,
                cause: format!("its value is the record {}", record.key()),
            }),
            Err(error) => Err(StoreError::Unreadable { key: self.key, cause: error.to_string() }),
        }
    }
}

fn find(transaction: &Transaction<'_>, path: &Path, boot: &str, key: &Key) -> Result<Option<Entry>, StoreError> {
    let sql = "SELECT key, value, created, revision, expires_ms, boot FROM records WHERE key = ?1";
    let row = transaction
        .prepare_cached(sql)
        .and_then(|mut statement| statement.query_row([key.to_string()], Row::read).optional())
        .map_err(|error| sql_error(path, error))?;
    row.filter(|row| !row.is_over(boot)).map(Row::entry).transpose()
}

fn remove(transaction: &Transaction<'_>, key: &str) -> rusqlite::Result<()> {
    if transaction.execute("DELETE FROM records WHERE key = ?1", [key])? > 0 {
        let revision = signed(next_revision(transaction)?);
        let sql = "INSERT INTO changes VALUES (?1, ?2, NULL, NULL)";
        transaction.execute(sql, params![revision, key])?;
        forget_old(transaction, revision)?;
    }
    Ok(())
}

fn note(transaction: &Transaction<'_>, revision: i64, key: &Key, value: Option<(&str, i64)>) -> rusqlite::Result<()> {
    let sql = "INSERT INTO changes VALUES (?1, ?2, ?3, ?4)";
    let (value, created) = value.unzip();
    transaction.execute(sql, params![revision, key.to_string(), value, created])?;
    forget_old(transaction, revision)
}

fn forget_old(transaction: &Transaction<'_>, revision: i64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM changes WHERE revision <= ?1", [revision - signed(HISTORY)]).map(drop)
}

fn revision(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'revision'";
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).map(unsigned)
}

fn next_revision(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    let sql =
        "UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'revision' RETURNING CAST(value AS INTEGER)";
    transaction.prepare_cached(sql)?.query_row([], |row| row.get(0)).map(unsigned)
}

/// A key from its text form.
fn parse_key(text: &str) -> Result<Key, serde_json::Error> {
    let (kind, name) = text.split_once('/').unwrap_or((text, ""));
    serde_json::from_value(serde_json::json!({ kind: name }))
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

pub fn io_error(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable { place: path.display().to_string(), cause: error.to_string() }
}

/// SQLite's error as one that says what to do.
fn sql_error(path: &Path, error: rusqlite::Error) -> StoreError {
    let (place, cause) = (path.display().to_string(), error.to_string());
    // Without room SQLite reports all sorts of failures of its log and its shared memory.
    let has_room = rustix::fs::statvfs(path.parent().unwrap_or(path)).is_ok_and(|fs| fs.f_bavail > 0);
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { place, cause },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked { place, cause },
        Some(ErrorCode::DiskFull) => StoreError::Full { place, cause },
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) if !has_room => StoreError::Full { place, cause },
        _ => StoreError::Unavailable { place, cause },
    }
}
