//! What an operator changes of a macvlan while its pod lives, and what pods share of it.

use loden_core::model::{Attach, AttachmentKey, Mac, MacvlanMode, SourceChange};

use super::Ledger;
use crate::error::LinuxError;
use crate::macvlan;
use crate::netns::NetNs;
use crate::run_dir::Attachments;

/// Why a list of senders was not changed, or not shown.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// No such attachment.
    #[error("there is no attachment {0}; its name is NETWORK/CONTAINER/INTERFACE, as `loden ipam show` has it")]
    Unknown(AttachmentKey),
    /// It takes in frames from everybody.
    #[error("attachment {0} is no macvlan in mode \"source\": it has no list of senders")]
    NoList(AttachmentKey),
    /// The pod's namespace or the interface is not there any more.
    #[error("the pod of attachment {key} has gone, or its interface has: {cause}; nothing is changed")]
    Gone {
        /// Which.
        key: AttachmentKey,
        /// The system's words.
        cause: LinuxError,
    },
    /// Files, or the kernel.
    #[error(transparent)]
    Kernel(#[from] LinuxError),
}

impl Ledger {
    /// Changes whose frames a macvlan in mode `source` lets in, in the kernel and in what is written down, and gives the list.
    /// What is written down comes last: until then CHECK names the difference, and the same change made again ends it.
    ///
    /// # Errors
    /// [`SourcesError`]; nothing has changed then, unless the file could not be written.
    pub fn change_sources(&self, key: &AttachmentKey, change: &SourceChange) -> Result<Vec<Mac>, SourcesError> {
        if !self.run_dir.attachment_file(key)?.exists() {
            return Err(SourcesError::Unknown(key.clone()));
        }
        let _lock = self.lock()?;
        let there = self.run_dir.attachment(key)?.filter(|there| there.complete);
        let mut there = there.ok_or_else(|| SourcesError::Unknown(key.clone()))?;
        let list = match &mut there.attach {
            Attach::Macvlan(macvlan) if macvlan.mode == MacvlanMode::Source => &mut macvlan.sources,
            _ => return Err(SourcesError::NoList(key.clone())),
        };
        if *change == SourceChange::None {
            return Ok(list.clone());
        }
        let gone = |cause| SourcesError::Gone { key: key.clone(), cause };
        let netns = NetNs::open(there.netns.as_ref()).map_err(gone)?;
        let wanted = change.of(list);
        macvlan::set_sources(&netns, key.ifname, &wanted)
            .map_err(|error| if error.errno() == libc::ENODEV { gone(error) } else { error.into() })?;
        list.clone_from(&wanted);
        self.run_dir.put_attachment(&there)?;
        Ok(wanted)
    }

    /// Takes the host's own macvlans away that no attachment uses. While one cannot be read, nobody knows.
    pub(super) fn drop_host_links(&self, found: &Attachments) -> Result<(), LinuxError> {
        if found.unreadable.is_empty() { macvlan::remove_unused(&found.good) } else { Ok(()) }
    }
}
