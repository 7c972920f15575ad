//! The plugin's tables, as the ledger has them: a pod's ports opened, the tables compared with the kernel's, and whose a port is.

use loden_core::kernel::nft::TableName;
use loden_core::model::{Attach, Attachment, AttachmentKey, PortMapping};
use loden_core::pod_tables::{PORTS, PodTable};

use super::{Ledger, ReserveError};
use crate::error::LinuxError;
use crate::{fault, pod, pod_tables};

impl Ledger {
    /// Opens ports for a pod that is attached already, by this plugin or (then it is written down as `usual` says) by another.
    ///
    /// # Errors
    /// [`ReserveError::PortTaken`], and [`LinuxError`]; nothing has changed then.
    pub fn open_ports(&self, usual: Attachment) -> Result<(), ReserveError> {
        self.run_dir.make()?;
        let _lock = self.lock()?;
        if self.is_closed()? {
            return Err(ReserveError::Closed);
        }
        let there = self.readable(&usual.key)?.filter(|there| there.complete);
        if let Some(there) = &there {
            // What a former call opened.
            pod_tables::remove(&[PORTS], there)?;
        }
        let mut attachment = there.clone().unwrap_or_else(|| usual.clone());
        attachment.ports = usual.ports;
        if let Attach::Foreign { host_device } = &mut attachment.attach {
            if attachment.addresses.is_empty() {
                attachment.addresses = usual.addresses;
            }
            if let Attach::Foreign { host_device: known } = usual.attach {
                *host_device = known;
            }
        }
        // Written down first: what a killed one opened is found then, and closed.
        attachment.complete = false;
        self.run_dir.put_attachment(&attachment)?;
        fault::point("add-ports-asked");
        if let Err(error) = self.open(&[PORTS], &attachment).and_then(|()| Ok(pod::set_host_sysctls(&attachment)?)) {
            match &there {
                Some(there) => self.run_dir.put_attachment(there)?,
                None => self.run_dir.remove_attachment(&attachment.key)?,
            }
            return Err(error);
        }
        fault::point("add-ports-open");
        attachment.complete = true;
        Ok(self.run_dir.put_attachment(&attachment)?)
    }

    /// Puts an attachment into tables.
    pub(super) fn open(&self, tables: &[PodTable], attachment: &Attachment) -> Result<(), ReserveError> {
        let opened = pod_tables::add(tables, attachment, || self.run_dir.attachments().good);
        opened.map_err(|error| if error.errno() == libc::EEXIST { self.port_taken(attachment) } else { error.into() })
    }

    /// What the plugin's tables lack of an attachment: one line each.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn missing_elements(&self, key: &AttachmentKey) -> Result<Vec<String>, LinuxError> {
        self.run_dir.attachment(key)?.map_or(Ok(Vec::new()), |there| pod_tables::missing(&there))
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
