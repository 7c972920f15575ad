//! Addresses and attachments on this node: reserved before the kernel is touched, released when it has been cleared.
//!
//! The attachment's file is the truth about who has an address; the blocks' states only make the choice quick. They are made
//! anew from the files when they cannot be read, and compared with them by the sweep and whenever a block seems full: a process
//! that is killed between the two leaves an address that nobody has. While an ADD is under way its process holds a lock of its own, so that what a
//! killed one left is told from what is still being made.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use loden_core::attach;
use loden_core::cni::{AttachKind, NodeFile};
use loden_core::ipam::{BlockState, Exhausted};
use loden_core::model::{Attachment, AttachmentKey, Family, Prefix};
use rustix::time::{ClockId, clock_gettime};

use crate::error::LinuxError;
use crate::lock::FileLock;
use crate::run_dir::{Attachments, RunDir, remove_file, write_atomically};
use crate::veth;

/// How long the lock is waited for: with thousands of ADDs at once each holds it for well under a millisecond.
const PATIENCE: Duration = Duration::from_secs(20);

/// The ledger of one node.
#[derive(Debug, Clone)]
pub struct Ledger {
    run_dir: RunDir,
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
    /// The node has no block of any family.
    #[error("this node has no block to give addresses from")]
    NoBlock,
    /// Files.
    #[error(transparent)]
    Files(#[from] LinuxError),
}

/// A reservation: the attachment is written down as incomplete, and its lock is held until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    /// The attachment.
    pub attachment: Attachment,
    /// Held by this process while it works on it.
    _under_way: FileLock,
    lock_file: PathBuf,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // A lock file that stays does no harm: it is not locked any more.
        let _ = fs::remove_file(&self.lock_file);
    }
}

impl Ledger {
    /// The ledger in a run directory.
    #[must_use]
    pub fn new(run_dir: RunDir) -> Self {
        Self { run_dir }
    }

    /// Takes an address of each family that the node has blocks of, all or none, and writes the attachment down.
    ///
    /// # Errors
    /// [`ReserveError`]; nothing is reserved then.
    pub fn reserve(
        &self,
        key: &AttachmentKey,
        kind: AttachKind,
        node: &NodeFile,
        quarantine: u32,
        netns: &str,
        pod: Option<String>,
    ) -> Result<Reservation, ReserveError> {
        self.run_dir.make()?;
        let lock_file = self.under_way_file(key)?;
        let under_way = FileLock::try_acquire(&lock_file)?.map_err(|_| ReserveError::UnderWay(key.clone()))?;
        let _lock = self.lock()?;
        match self.run_dir.attachment(key) {
            Ok(Some(there)) if there.complete => return Err(ReserveError::Attached(Box::new(there))),
            // A killed ADD of the same attachment: its lock is ours now.
            Ok(Some(there)) => self.undo(&there)?,
            Ok(None) => {}
            // What cannot be read is not lost by being replaced: its address comes back when the block is compared.
            Err(LinuxError::File { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let addresses = self.allocate(node, quarantine)?;
        let attachment = attach::attachment(key.clone(), kind, node, addresses, netns.to_owned(), pod);
        self.run_dir.put_attachment(&attachment)?;
        Ok(Reservation { attachment, _under_way: under_way, lock_file })
    }

    /// Writes down that the attachment is made.
    ///
    /// # Errors
    /// [`LinuxError`]; also when a DEL came meanwhile: its addresses may be another's now.
    pub fn complete(&self, reservation: &mut Reservation) -> Result<(), LinuxError> {
        let key = &reservation.attachment.key;
        let _lock = self.lock()?;
        if self.run_dir.attachment(key)?.as_ref() != Some(&reservation.attachment) {
            return Err(LinuxError::File {
                path: self.run_dir.attachment_file(key)?.display().to_string(),
                cause: "was removed by a DEL while its ADD was under way".to_owned(),
            });
        }
        reservation.attachment.complete = true;
        self.run_dir.put_attachment(&reservation.attachment)
    }

    /// Forgets an attachment and frees its addresses; a missing one is no error.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn release(&self, key: &AttachmentKey) -> Result<(), LinuxError> {
        let file = self.run_dir.attachment_file(key)?;
        if file.exists() {
            let _lock = self.lock()?;
            match self.run_dir.attachment(key) {
                Ok(Some(there)) => self.free(&there)?,
                Ok(None) => {}
                // What cannot be read must not keep a pod from going; its addresses are found by the sweep.
                Err(LinuxError::File { .. }) => remove_file(&file)?,
                Err(error) => return Err(error),
            }
        }
        self.remove_mark(&self.under_way_file(key)?)
    }

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

    fn sweep_one(&self, key: &AttachmentKey) -> Result<bool, LinuxError> {
        let lock_file = self.under_way_file(key)?;
        let Ok(_under_way) = FileLock::try_acquire(&lock_file)? else { return Ok(false) };
        let _lock = self.lock()?;
        let left = self.run_dir.attachment(key)?.filter(|there| !there.complete);
        let undone = left.as_ref().map_or(Ok(()), |left| self.undo(left));
        remove_file(&lock_file)?;
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
            } else if let Some(block) = name.strip_suffix(".block").and_then(|name| name.replace('_', "/").parse().ok())
            {
                errors.extend(self.compare(block, &found).err());
            }
        }
        LinuxError::collected(errors)
    }

    /// Removes the mark of an ADD under way, unless it is.
    fn remove_mark(&self, mark: &Path) -> Result<(), LinuxError> {
        if !mark.exists() {
            return Ok(());
        }
        match FileLock::try_acquire(mark)? {
            Ok(_held) => remove_file(mark),
            Err(_) => Ok(()),
        }
    }

    /// Frees what the block's state counts as in use and no attachment has.
    fn compare(&self, block: Prefix, found: &Attachments) -> Result<(), LinuxError> {
        let mut state = self.state(block)?;
        if reclaim(&mut state, found) { self.put_state(block, &state) } else { Ok(()) }
    }

    /// Whether an address of each family could be taken now; else why not. Takes no lock: the answer may be old as soon as it is
    /// given, and states are replaced whole.
    ///
    /// # Errors
    /// [`ReserveError`].
    pub fn has_room(&self, node: &NodeFile, quarantine: u32) -> Result<(), ReserveError> {
        let mut full = Vec::new();
        for blocks in by_family(node)? {
            let mut why = Vec::new();
            for block in &blocks {
                match self.take(&mut self.state(*block)?, quarantine) {
                    Ok(_) => why.clear(),
                    Err(error) => {
                        why.push(error);
                        continue;
                    }
                }
                break;
            }
            full.extend(why);
        }
        if full.is_empty() { Ok(()) } else { Err(ReserveError::Exhausted(full)) }
    }

    fn allocate(&self, node: &NodeFile, quarantine: u32) -> Result<Vec<IpNet>, ReserveError> {
        let (mut taken, mut changed) = (Vec::new(), Vec::new());
        for blocks in by_family(node)? {
            let mut full = Vec::new();
            let mut found = None;
            for block in blocks {
                let mut state = self.state(block)?;
                match self.take(&mut state, quarantine) {
                    Ok(addr) => {
                        found = IpNet::new(addr, block.len()).ok();
                        changed.push((block, state));
                        break;
                    }
                    Err(error) => full.push(error),
                }
            }
            taken.push(found.ok_or(ReserveError::Exhausted(full))?);
        }
        // All families have one: only now anything is written.
        for (block, state) in changed {
            self.put_state(block, &state)?;
        }
        Ok(taken)
    }

    /// Takes an address of a block; of one that seems full only after a look at who has its addresses.
    fn take(&self, state: &mut BlockState, quarantine: u32) -> Result<IpAddr, Exhausted> {
        match state.allocate(now(), quarantine) {
            Err(_) if reclaim(state, &self.run_dir.attachments()) => state.allocate(now(), quarantine),
            taken => taken,
        }
    }

    /// Clears the kernel of an attachment, and then frees it.
    fn undo(&self, attachment: &Attachment) -> Result<(), LinuxError> {
        veth::delete(attachment.host_side)?;
        self.free(attachment)
    }

    /// The file goes first: if this process is killed between, the states count addresses as in use that nobody has, and the
    /// sweep finds them. The other way round they could be given twice.
    fn free(&self, attachment: &Attachment) -> Result<(), LinuxError> {
        let states: Vec<(Prefix, BlockState)> = attachment
            .addresses
            .iter()
            .filter_map(|net| {
                let block = Prefix::holding(net.addr(), net.prefix_len());
                match self.state(block) {
                    Ok(mut state) => {
                        state.release(net.addr(), now());
                        Some(Ok((block, state)))
                    }
                    // There is no state to change: the one that is made some day does not count this address.
                    Err(LinuxError::File { .. }) => None,
                    Err(error) => Some(Err(error)),
                }
            })
            .collect::<Result<_, LinuxError>>()?;
        self.run_dir.remove_attachment(&attachment.key)?;
        for (block, state) in states {
            self.put_state(block, &state)?;
        }
        Ok(())
    }

    fn lock(&self) -> Result<FileLock, LinuxError> {
        FileLock::acquire(&self.run_dir.ipam_dir().join("lock"), Instant::now() + PATIENCE)
    }

    /// A block's state: as stored, or made from the attachments.
    fn state(&self, block: Prefix) -> Result<BlockState, LinuxError> {
        let path = self.state_file(block);
        match fs::read(&path) {
            Ok(bytes) => {
                if let Some(state) = BlockState::decode(block, &bytes) {
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
        Ok(BlockState::rebuilt(block, found.good.iter().flat_map(Attachment::ips), now()))
    }

    fn put_state(&self, block: Prefix, state: &BlockState) -> Result<(), LinuxError> {
        write_atomically(&self.state_file(block), &state.encode())
    }

    fn state_file(&self, block: Prefix) -> PathBuf {
        self.run_dir.ipam_dir().join(format!("{}.block", block.to_string().replace('/', "_")))
    }

    fn under_way_file(&self, key: &AttachmentKey) -> Result<PathBuf, LinuxError> {
        // The key is checked as a file name there.
        self.run_dir.attachment_file(key)?;
        Ok(self.run_dir.ipam_dir().join(format!("{}.add", attach::mark(key))))
    }
}

/// Says whether something was found. While an attachment cannot be read, nobody knows which addresses are not in use.
fn reclaim(state: &mut BlockState, found: &Attachments) -> bool {
    found.unreadable.is_empty() && state.reclaim(found.good.iter().flat_map(Attachment::ips))
}

/// The node's blocks, a list a family.
fn by_family(node: &NodeFile) -> Result<Vec<Vec<Prefix>>, ReserveError> {
    let of = |family| node.blocks.iter().map(|block| block.cidr).filter(move |cidr| cidr.family() == family);
    let families: Vec<Vec<Prefix>> = Family::ALL
        .into_iter()
        .map(|family| of(family).collect())
        .filter(|blocks: &Vec<_>| !blocks.is_empty())
        .collect();
    if families.is_empty() { Err(ReserveError::NoBlock) } else { Ok(families) }
}

fn list(addresses: &[IpNet]) -> String {
    let set: BTreeSet<String> = addresses.iter().map(|net| net.addr().to_string()).collect();
    set.into_iter().collect::<Vec<_>>().join(" and ")
}

/// Seconds since boot.
fn now() -> u32 {
    u32::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(u32::MAX)
}
