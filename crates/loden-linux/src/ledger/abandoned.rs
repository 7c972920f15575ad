//! Attachments whose pods have gone without a DEL: a runtime that failed at both ADD and DEL of a list forgets the pod, and some never
//! call GC.

use std::path::Path;

use loden_core::model::{Attachment, AttachmentKey};

use super::Ledger;
use crate::delegate;
use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket};
use crate::rt::link;

impl Ledger {
    /// Attachments of which neither the pod's namespace nor the host's end of the link is left. A macvlan, and what another plugin
    /// made, leave nothing on the host by which that could be told.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn abandoned(&self) -> Result<Vec<AttachmentKey>, LinuxError> {
        let socket = Socket::open(Protocol::Route)?;
        let mut keys = Vec::new();
        for there in self.run_dir.attachments().good.into_iter().filter(|there| there.complete) {
            if is_abandoned(&socket, &there)? {
                keys.push(there.key);
            }
        }
        Ok(keys)
    }

    /// Forgets an attachment that is abandoned, as its DEL would have; says whether it was.
    ///
    /// # Errors
    /// [`LinuxError`]; it is still there then.
    pub fn release_abandoned(&self, key: &AttachmentKey) -> Result<bool, LinuxError> {
        let socket = Socket::open(Protocol::Route)?;
        let found = || match self.readable(key)? {
            Some(there) if there.complete && is_abandoned(&socket, &there)? => Ok(Some(there)),
            _ => Ok(None),
        };
        let Some(there) = found()? else { return Ok(false) };
        delegate::undo(&there, delegate::PATIENCE_UNDOING)?;
        let _lock = self.lock()?;
        // A DEL, and another ADD, may have come meanwhile.
        let still = found()?;
        still.as_ref().map_or(Ok(()), |there| self.free(there))?;
        Ok(still.is_some())
    }
}

fn is_abandoned(socket: &Socket, attachment: &Attachment) -> Result<bool, LinuxError> {
    match attachment.host_side {
        Some(host_side) if !Path::new(&attachment.netns).exists() => {
            link::number_of(socket, host_side).map(|n| n.is_none())
        }
        _ => Ok(false),
    }
}
