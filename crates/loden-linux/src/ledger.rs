//! Addresses and attachments on this node: reserved before the kernel is touched, released when it has been cleared.
//!
//! The attachment's file is the truth about who has an address; the blocks' states only make the choice quick. They are made
//! anew from the files when they cannot be read, and compared with them by the sweep and whenever a block seems full: a process
//! that is killed between the two leaves an address that nobody has. While an ADD is under way its process holds a lock of its own, so that what a
//! killed one left is told from what is still being made.

mod abandoned;
mod allocate;
mod closed;
mod macvlan;
mod open;
mod part;
mod readdress;
mod retire;
mod sweep;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use loden_core::attach::{self, Draft};
use loden_core::ipam::{Exhausted, RangeState, Supply};
use loden_core::model::{Attach, Attachment, AttachmentKey, PodAddress};
use loden_core::pod_tables::ALL;

use crate::clock::boot_s;
use crate::error::LinuxError;
use crate::host_local::{Holder, HostLocal};
use crate::lock::FileLock;
use crate::run_dir::{RunDir, remove_file, write_atomically};
use crate::{delegate, fault, pod, pod_tables};

use allocate::in_use;

pub use closed::Closed;
pub use macvlan::SourcesError;

/// How long the lock is waited for: five thousand ADDs at once on two processors need ten seconds, and a runtime gives two minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What names of files of states end with.
const STATE: &str = ".range";

/// Whether what seems to be taken is compared with who has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Quick,
    Thorough,
}

/// The ledger of one node.
#[derive(Debug, Clone)]
pub struct Ledger {
    run_dir: RunDir,
    /// Where addresses may stand that another plugin gave.
    elsewhere: Option<HostLocal>,
}

/// Why nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// It is there already.
    #[error("container {container} has an attachment {ifname} to this network already, with {addresses}; DEL it first", container = .0.key.container, ifname = .0.key.ifname, addresses = list(&.0.addresses))]
    Attached(Box<Attachment>),
    /// Another process is making it.
    #[error("another ADD of {0} is under way")]
    UnderWay(AttachmentKey),
    /// No address.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Exhausted(Vec<Exhausted>),
    /// The blocks are not the node's to give any more.
    #[error(
        "the blocks of this node that it was to come from are not served any more: they were given back, or their term has ended"
    )]
    Withdrawn,
    /// An address that is asked for is another's.
    #[error("{addr} is asked for and taken{}", holder.as_ref().map_or_else(String::new, |holder| format!(" by {}", who(holder))))]
    Taken {
        /// Which.
        addr: IpAddr,
        /// Who has it.
        holder: Option<Box<Attachment>>,
    },
    /// An address that is asked for is a pod's whom another plugin attached.
    #[error("{addr} is asked for and taken by {holder}")]
    Elsewhere {
        /// Which.
        addr: IpAddr,
        /// Who has it.
        holder: Holder,
    },
    /// An address that is asked for cannot be given from any range.
    #[error("{addr} is asked for and lies in none of {ranges}, or a second one is asked of one range")]
    Outside {
        /// Which.
        addr: IpAddr,
        /// The ranges.
        ranges: String,
    },
    /// A port of the host that is asked for leads to another pod.
    #[error("port {port} of the host is asked for and leads to {}", holder.as_ref().map_or_else(|| "another pod".to_owned(), |holder| who(holder)))]
    PortTaken {
        /// Which.
        port: String,
        /// Whose it is.
        holder: Option<Box<Attachment>>,
    },
    /// The plugin is on its way out.
    #[error("loden-cni is being uninstalled from this host")]
    Closed,
    /// A bound on what goes to a pod whose link has no end on the host.
    #[error(
        "`ingressRate` is not supported for {0}: its interface is no veth with its other end on this host; `egressRate` is"
    )]
    NoHostSide(AttachmentKey),
    /// Files.
    #[error(transparent)]
    Files(#[from] LinuxError),
}

/// A reservation: the attachment is written down as incomplete, and its lock is held until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    /// The attachment.
    pub attachment: Attachment,
    _under_way: UnderWay,
}

/// Held by a process while it works on an attachment; the file goes with it, whatever came of the work.
#[derive(Debug)]
struct UnderWay {
    _lock: FileLock,
    file: PathBuf,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // A lock file that stays does no harm: it is not locked any more.
        let _ = fs::remove_file(&self.file);
    }
}

impl Ledger {
    /// The ledger in a run directory.
    #[must_use]
    pub fn new(run_dir: RunDir) -> Self {
        Self { run_dir, elsewhere: None }
    }

    /// The same; what stands there is given to nobody.
    #[must_use]
    pub fn heeding(self, elsewhere: Option<HostLocal>) -> Self {
        Self { elsewhere, ..self }
    }

    /// Takes the addresses that a draft demands, all or none, and writes the attachment down. A freed address rests for
    /// `quarantine` seconds.
    ///
    /// # Errors
    /// [`ReserveError`]; nothing is reserved then.
    pub fn reserve(&self, draft: &Draft, quarantine: u32) -> Result<Reservation, ReserveError> {
        self.reserve_by(draft, quarantine, Look::Thorough)
    }

    /// The same for one of many that come at once: where all seems to be taken it is not looked whose it is, which takes as long as there
    /// are attachments.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn reserve_soon(&self, draft: &Draft, quarantine: u32) -> Result<Reservation, ReserveError> {
        self.reserve_by(draft, quarantine, Look::Quick)
    }

    fn reserve_by(&self, draft: &Draft, quarantine: u32, look: Look) -> Result<Reservation, ReserveError> {
        let key = &draft.key;
        let (under_way, _lock, there) = self.begin(key)?;
        if let Some(there) = there {
            return Err(ReserveError::Attached(Box::new(there)));
        }
        let addresses = self.allocate(&draft.demand, &key.network, quarantine, look)?;
        fault::point("add-counted");
        let attachment = draft.attachment(addresses);
        self.run_dir.put_attachment(&attachment)?;
        Ok(Reservation { attachment, _under_way: under_way })
    }

    /// Marks an attachment as worked on. Who holds the mark may be one that only looks whether somebody does: it does so under the
    /// lock.
    fn under_way(&self, key: &AttachmentKey) -> Result<UnderWay, ReserveError> {
        let file = self.under_way_file(key)?;
        let lock = match FileLock::try_acquire(&file)? {
            Ok(lock) => lock,
            Err(_) => {
                let _lock = self.lock()?;
                FileLock::try_acquire(&file)?.map_err(|_| ReserveError::UnderWay(key.clone()))?
            }
        };
        Ok(UnderWay { _lock: lock, file })
    }

    /// Takes an attachment's own lock, and then that of all; what a killed ADD left of it is undone. Gives what there is of it.
    fn begin(&self, key: &AttachmentKey) -> Result<(UnderWay, FileLock, Option<Attachment>), ReserveError> {
        self.run_dir.make()?;
        let under_way = self.under_way(key)?;
        fault::point("add-marked");
        // Its lock is ours now.
        let left = self.readable(key)?.filter(|there| !there.complete);
        left.as_ref().map_or(Ok(()), clear)?;
        let lock = self.lock()?;
        if self.is_closed()? {
            return Err(ReserveError::Closed);
        }
        // What cannot be read is not lost by being replaced: its address comes back when the block is compared.
        let there = match self.readable(key)? {
            Some(there) if !there.complete => self.free(&there).map(|()| None)?,
            there => there,
        };
        Ok((under_way, lock, there))
    }

    /// Writes a reservation down anew: another plugin has said more of it.
    ///
    /// # Errors
    /// As [`Self::complete`]; nothing has changed then.
    pub fn rewrite(&self, reservation: &mut Reservation, attachment: Attachment) -> Result<(), LinuxError> {
        let _lock = self.lock()?;
        self.must_be_there(reservation)?;
        self.run_dir.put_attachment(&attachment)?;
        reservation.attachment = attachment;
        Ok(())
    }

    fn must_be_there(&self, reservation: &Reservation) -> Result<(), LinuxError> {
        let key = &reservation.attachment.key;
        if self.run_dir.attachment(key)?.as_ref() == Some(&reservation.attachment) {
            return Ok(());
        }
        Err(LinuxError::File {
            path: self.run_dir.attachment_file(key)?.display().to_string(),
            cause: "was removed by a DEL while its ADD was under way".to_owned(),
        })
    }

    /// The attachment, where there is one that can be read.
    fn readable(&self, key: &AttachmentKey) -> Result<Option<Attachment>, LinuxError> {
        match self.run_dir.attachment(key) {
            Err(LinuxError::File { .. }) => Ok(None),
            read => read,
        }
    }

    /// Puts the attachment into the plugin's tables and writes down that it is made.
    ///
    /// # Errors
    /// [`ReserveError::PortTaken`], and [`LinuxError`]; also when a DEL came meanwhile: its addresses may be another's now.
    pub fn complete(&self, reservation: &mut Reservation) -> Result<(), ReserveError> {
        let _lock = self.lock()?;
        self.must_be_there(reservation)?;
        self.open(&ALL, &reservation.attachment)?;
        fault::point("add-ports-open");
        reservation.attachment.complete = true;
        Ok(self.run_dir.put_attachment(&reservation.attachment)?)
    }

    /// Forgets an attachment and frees its addresses, those too that another plugin gave; a missing one is no error.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn release(&self, key: &AttachmentKey) -> Result<(), LinuxError> {
        let (file, mark) = (self.run_dir.attachment_file(key)?, self.under_way_file(key)?);
        if !file.exists() && !mark.exists() {
            return Ok(());
        }
        if let Some(there) = self.readable(key)? {
            delegate::undo(&there, delegate::PATIENCE)?;
        }
        let _lock = self.lock()?;
        match self.readable(key)? {
            Some(there) => self.free(&there)?,
            // What cannot be read must not keep a pod from going; its addresses are found by the sweep.
            None => remove_file(&file)?,
        }
        self.remove_mark(&mark).map(drop)
    }

    /// The ports go first: the address that they lead to is going to be another's. Of the rest
    /// the file goes first: if this process is killed between, the states count addresses as in use that nobody has, and the
    /// sweep finds them. The other way round they could be given twice.
    fn free(&self, attachment: &Attachment) -> Result<(), LinuxError> {
        pod_tables::remove(&ALL, attachment)?;
        fault::point("del-ports-closed");
        let mut states: Vec<(&Supply, RangeState)> = Vec::new();
        for address in &attachment.addresses {
            let Some(supply) = &address.supply else { continue };
            match self.state(supply) {
                Ok(mut state) => {
                    state.release(address.net.addr(), boot_s());
                    states.push((supply, state));
                }
                // There is no state to change: the one that is made some day does not count this address.
                Err(LinuxError::File { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.run_dir.remove_attachment(&attachment.key)?;
        fault::point("del-forgotten");
        for (supply, state) in states {
            self.put_state(supply, &state)?;
        }
        match &attachment.attach {
            Attach::Macvlan(macvlan) if macvlan.host_link.is_some() => {
                self.drop_host_links(&self.run_dir.attachments())
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> Result<FileLock, LinuxError> {
        FileLock::acquire(&self.run_dir.ipam_dir().join("lock"), Instant::now() + PATIENCE)
    }

    /// A range's state: as stored, or made from the attachments.
    fn state(&self, supply: &Supply) -> Result<RangeState, LinuxError> {
        let path = self.state_file(supply);
        match fs::read(&path) {
            Ok(bytes) => {
                if let Some(state) = RangeState::decode(supply.range, &bytes) {
                    return Ok(state);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(LinuxError::system(format!("file {}", path.display()), error)),
        }
        let found = self.run_dir.attachments();
        if let Some((_, unreadable)) = found.unreadable.first() {
            return Err(LinuxError::File {
                path: path.display().to_string(),
                cause: format!(
                    "is missing or cut short and cannot be made anew, since nobody knows whose addresses are in \
                     {unreadable}. DEL that attachment, or remove the file when its pod is gone"
                ),
            });
        }
        Ok(RangeState::rebuilt(supply.range, in_use(supply, &found), boot_s()))
    }

    fn put_state(&self, supply: &Supply, state: &RangeState) -> Result<(), LinuxError> {
        write_atomically(&self.state_file(supply), &state.encode())
    }

    fn state_file(&self, supply: &Supply) -> PathBuf {
        self.run_dir.ipam_dir().join(format!("{}{STATE}", supply.file_stem()))
    }

    fn under_way_file(&self, key: &AttachmentKey) -> Result<PathBuf, LinuxError> {
        // The key is checked as a file name there.
        self.run_dir.attachment_file(key)?;
        Ok(self.run_dir.ipam_dir().join(format!("{}.add", attach::mark(key))))
    }
}

/// Takes away what a killed ADD made, all but what is written down. To be called with the attachment's own lock held, and without that
/// of all: other plugins may take their time.
fn clear(attachment: &Attachment) -> Result<(), LinuxError> {
    pod::remove(attachment)?;
    delegate::undo(attachment, delegate::PATIENCE_UNDOING)
}

fn list(addresses: &[PodAddress]) -> String {
    let set: BTreeSet<String> = addresses.iter().map(|address| address.net.addr().to_string()).collect();
    set.into_iter().collect::<Vec<_>>().join(" and ")
}

fn who(holder: &Attachment) -> String {
    match &holder.pod {
        Some(pod) => format!("pod {pod} (attachment {})", holder.key),
        None => format!("attachment {}", holder.key),
    }
}
