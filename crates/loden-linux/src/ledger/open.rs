//! The plugin's tables, as the ledger has them: a pod's ports opened, the tables compared with the kernel's, and whose a port is.

use loden_core::kernel::nft::TableName;
use loden_core::model::{Attachment, PortMapping};
use loden_core::pod_tables::PodTable;

use super::{Ledger, ReserveError};
use crate::error::LinuxError;
use crate::pod_tables;

impl Ledger {
    /// Puts an attachment into tables.
    pub(super) fn open(&self, tables: &[PodTable], attachment: &Attachment) -> Result<(), ReserveError> {
        let opened = pod_tables::add(tables, attachment, || self.run_dir.attachments().good);
        opened.map_err(|error| if error.errno() == libc::EEXIST { self.port_taken(attachment) } else { error.into() })
    }

    /// Whose port it is that the attachment wants too.
    fn port_taken(&self, attachment: &Attachment) -> ReserveError {
        let others = self.run_dir.attachments().good;
        let mut others = others.into_iter().filter(|there| there.complete);
        let place = |port: &PortMapping| (port.protocol, port.host_port, port.host_ip);
        let shared = |there: &Attachment| {
            attachment.ports.iter().find(|port| there.ports.iter().any(|other| place(other) == place(port))).copied()
        };
        match others.find_map(|there| shared(&there).map(|port| (port, there))) {
            Some((port, holder)) => ReserveError::PortTaken { port: port.to_string(), holder: Some(Box::new(holder)) },
            None => {
                let all: Vec<String> = attachment.ports.iter().map(ToString::to_string).collect();
                ReserveError::PortTaken { port: all.join(" or "), holder: None }
            }
        }
    }

    /// Makes the plugin's tables in the kernel what the attachments say. Says which were otherwise.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn repair_tables(&self) -> Result<Vec<TableName>, LinuxError> {
        self.run_dir.make()?;
        let _lock = self.lock()?;
        let found = self.run_dir.attachments();
        match found.unreadable.into_iter().next() {
            // Nobody knows what it needs of them.
            Some((_, error)) => Err(error),
            None => pod_tables::repair(&found.good),
        }
    }
}
