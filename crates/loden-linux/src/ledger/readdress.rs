//! An attachment whose addresses change while its pod lives: a DHCP server gives others, or none any more.

use loden_core::model::{Attachment, AttachmentKey};
use loden_core::pod_tables::ALL;

use super::Ledger;
use crate::error::LinuxError;
use crate::netns::NetNs;
use crate::pod;

impl Ledger {
    /// Makes an attachment as `change` says: in its pod, whose namespace `open` gives, in its file, and in the tables of what leads to it.
    /// Gives the new one, or nothing when it is right already, or missing, or its ADD is still under way.
    ///
    /// # Errors
    /// [`LinuxError`]; the file is as it was then.
    pub fn readdress(
        &self,
        key: &AttachmentKey,
        open: impl FnOnce() -> Result<NetNs, LinuxError>,
        change: impl FnOnce(&Attachment) -> Attachment,
    ) -> Result<Option<Attachment>, LinuxError> {
        let there = {
            let _lock = self.lock()?;
            self.readable(key)?.filter(|there| there.complete)
        };
        let Some(there) = there else { return Ok(None) };
        let wanted = change(&there);
        if wanted == there {
            return Ok(None);
        }
        // Not under the lock: a pod's namespace that goes at this moment must hold nobody up.
        open()?.run(|| pod::readdress(&there, &wanted))??;
        {
            let _lock = self.lock()?;
            // A DEL that came meanwhile has the last word.
            if self.readable(key)?.as_ref() != Some(&there) {
                return Ok(None);
            }
            self.run_dir.put_attachment(&wanted)?;
        }
        if ALL.iter().any(|table| (table.elements)(&there) != (table.elements)(&wanted)) {
            self.repair_tables()?;
        }
        Ok(Some(wanted))
    }
}
