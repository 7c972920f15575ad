//! A ledger that takes in nothing more: while the plugin is uninstalled, no ADD may slip between the look at what is attached and the
//! removal of the plugin, without which no pod could go.

use super::{Ledger, UnderWay};
use crate::error::LinuxError;
use crate::lock::FileLock;

/// The ledger takes in nothing for as long as this, or the process that has it, lives.
#[derive(Debug)]
pub struct Closed(#[allow(dead_code, reason = "held for its lock")] UnderWay);

impl Ledger {
    /// Closes it; `None` when another process has. Every ADD that came before is written down.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn close(&self) -> Result<Option<Closed>, LinuxError> {
        self.run_dir.make()?;
        let file = self.run_dir.closing_file();
        let Ok(lock) = FileLock::try_acquire(&file)? else { return Ok(None) };
        let closed = Closed(UnderWay { _lock: lock, file });
        // Who holds this lock may have looked before.
        drop(self.lock()?);
        Ok(Some(closed))
    }

    /// Whether it is closed. What a killed process left of closing it does not count, and is removed.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn is_closed(&self) -> Result<bool, LinuxError> {
        self.remove_mark(&self.run_dir.closing_file())
    }
}
