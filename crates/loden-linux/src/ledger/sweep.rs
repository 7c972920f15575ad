//! Undoing what killed processes left.

use std::fs;
use std::path::Path;

use loden_core::ipam::Supply;
use loden_core::model::AttachmentKey;

use super::allocate::reclaim;
use super::{Ledger, STATE, UnderWay, clear};
use crate::error::LinuxError;
use crate::lock::FileLock;
use crate::run_dir::{Attachments, remove_file};

impl Ledger {
    /// Undoes what killed processes left: attachments that are incomplete and that no process works on (says which), their
    /// marks, unfinished files, and addresses that no attachment has.
    ///
    /// # Errors
    /// Whatever could not be undone, all of it.
    pub fn sweep(&self) -> Result<Vec<AttachmentKey>, LinuxError> {
        let (mut swept, mut errors) = (Vec::new(), Vec::new());
        for left in self.run_dir.attachments().good.into_iter().filter(|a| !a.complete) {
            match self.sweep_one(&left.key) {
                Ok(true) => swept.push(left.key),
                Ok(false) => {}
                Err(error) => errors.push(error),
            }
        }
        errors.extend(self.sweep_files().err());
        LinuxError::collected(errors).map(|()| swept)
    }

    /// Its mark is held without the lock only while there is something to undo.
    fn sweep_one(&self, key: &AttachmentKey) -> Result<bool, LinuxError> {
        let file = self.under_way_file(key)?;
        let unfinished = || Ok(self.run_dir.attachment(key)?.filter(|there| !there.complete));
        let lock = self.lock()?;
        let Ok(mark) = FileLock::try_acquire(&file)? else { return Ok(false) };
        let under_way = UnderWay { _lock: mark, file };
        let Some(left) = unfinished()? else { return Ok(false) };
        drop(lock);
        let cleared = clear(&left);
        let _lock = self.lock()?;
        let left = unfinished()?;
        let undone = cleared.and_then(|()| left.as_ref().map_or(Ok(()), |left| self.free(left)));
        drop(under_way);
        undone.map(|()| left.is_some())
    }

    fn sweep_files(&self) -> Result<(), LinuxError> {
        let mut errors = Vec::new();
        let _lock = self.lock()?;
        errors.extend(self.run_dir.remove_unfinished().err());
        let found = self.run_dir.attachments();
        let dir = self.run_dir.ipam_dir();
        let fail = |error| LinuxError::system(format!("directory {}", dir.display()), error);
        for entry in fs::read_dir(&dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".add") {
                errors.extend(self.remove_mark(&path).err());
            } else if let Some(supply) = name.strip_suffix(STATE).and_then(Supply::from_file_stem) {
                errors.extend(self.compare(&supply, &found).err());
            }
        }
        errors.extend(self.drop_host_links(&found).err());
        LinuxError::collected(errors)
    }

    /// Removes the mark of a process that works on something, unless it does; says whether it does.
    pub(super) fn remove_mark(&self, mark: &Path) -> Result<bool, LinuxError> {
        if !mark.exists() {
            return Ok(false);
        }
        match FileLock::try_acquire(mark)? {
            Ok(_held) => remove_file(mark).map(|()| false),
            Err(_) => Ok(true),
        }
    }

    /// Frees what a state counts as in use and no attachment has.
    fn compare(&self, supply: &Supply, found: &Attachments) -> Result<(), LinuxError> {
        let mut state = self.state(supply)?;
        if reclaim(&mut state, supply, found) { self.put_state(supply, &state) } else { Ok(()) }
    }
}
