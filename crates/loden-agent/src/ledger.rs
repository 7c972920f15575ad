//! The agent's side of `/run/loden`: follows the attachments that the plugin leaves, tells the plugin what it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use loden_core::cni::NodeFile;
use loden_core::model::{Attachment, AttachmentKey};
use loden_linux::LinuxError;
use loden_linux::run_dir::{RunDir, make_dir, read_json, write_json};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// A burst of ADDs is read once.
const GATHER: Duration = Duration::from_millis(5);

/// All attachments, and the files that cannot be read.
pub type Attached = (BTreeMap<AttachmentKey, Arc<Attachment>>, Vec<LinuxError>);

/// What is known of the attachments' files. Only what changed is read again: a node has hundreds of pods.
struct Follower {
    run_dir: RunDir,
    inotify: OwnedFd,
    /// The network's directory of each watch.
    networks: BTreeMap<i32, PathBuf>,
    good: BTreeMap<PathBuf, Arc<Attachment>>,
    unreadable: BTreeMap<PathBuf, LinuxError>,
}

/// Follows the attachments in a thread of its own for as long as the process lives.
///
/// # Errors
/// [`LinuxError`] when they cannot be listened to.
pub fn follow(run_dir: &RunDir, deliver: impl Fn(Attached) + Send + 'static) -> Result<(), LinuxError> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
    make_dir(&run_dir.attachments_dir())?;
    let mut follower = Follower {
        run_dir: run_dir.clone(),
        inotify,
        networks: BTreeMap::new(),
        good: BTreeMap::new(),
        unreadable: BTreeMap::new(),
    };
    follower.read_all()?;
    deliver(follower.attached());
    let work = move || {
        loop {
            let read = wait(&follower.inotify).and_then(|()| {
                thread::sleep(GATHER);
                follower.read_changed()
            });
            match read {
                Ok(true) => deliver(follower.attached()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "the attachments cannot be followed; all are read again");
                    thread::sleep(Duration::from_secs(1));
                    if let Err(error) = follower.read_all() {
                        tracing::warn!(%error, "an attachments directory cannot be followed");
                    }
                    deliver(follower.attached());
                }
            }
        }
    };
    thread::Builder::new()
        .name("attachments".to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|error| LinuxError::system("thread for the attachments", error))
}

fn wait(inotify: &OwnedFd) -> Result<(), LinuxError> {
    match rustix::event::poll(&mut [PollFd::new(inotify, PollFlags::IN)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

impl Follower {
    fn attached(&self) -> Attached {
        let good = self.good.values().map(|attachment| (attachment.key.clone(), Arc::clone(attachment)));
        (good.collect(), self.unreadable.values().cloned().collect())
    }

    /// Listens to every network's directory first and reads it then, so that nothing falls between.
    fn read_all(&mut self) -> Result<(), LinuxError> {
        let listened = self.listen();
        self.good.clear();
        self.unreadable.clear();
        let found = self.run_dir.attachments();
        for attachment in found.good {
            self.good.insert(self.run_dir.attachment_file(&attachment.key)?, Arc::new(attachment));
        }
        self.unreadable.extend(found.unreadable);
        listened
    }

    fn listen(&mut self) -> Result<(), LinuxError> {
        let top = self.run_dir.attachments_dir();
        let what = || format!("inotify on {}", top.display());
        let changes = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::MOVED_FROM;
        inotify::add_watch(&self.inotify, &top, changes | WatchFlags::ONLYDIR)
            .map_err(|error| LinuxError::system(what(), error))?;
        self.networks.clear();
        let networks = std::fs::read_dir(&top).map_err(|error| LinuxError::system(what(), error))?;
        for network in networks {
            let path = network.map_err(|error| LinuxError::system(what(), error))?.path();
            let changes = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE | WatchFlags::ONLYDIR;
            match inotify::add_watch(&self.inotify, &path, changes) {
                Ok(watch) => drop(self.networks.insert(watch, path)),
                // It was removed meanwhile, or is no directory.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
                Err(error) => return Err(LinuxError::system(what(), error)),
            }
        }
        Ok(())
    }

    /// Takes all that has been reported and reads those files again. Says whether there was any.
    fn read_changed(&mut self) -> Result<bool, LinuxError> {
        let (mut files, mut is_all) = (BTreeSet::new(), false);
        let mut buf = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buf);
        loop {
            match reader.next() {
                Ok(event) => match (self.networks.get(&event.wd()), event.file_name()) {
                    // Written under another name and renamed: only the final name counts.
                    (Some(network), Some(name)) if name.to_bytes().ends_with(b".json") => {
                        files.insert(network.join(OsStr::from_bytes(name.to_bytes())));
                    }
                    (Some(_), Some(_)) => {}
                    // A network came or went, or reports were lost (IN_Q_OVERFLOW).
                    _ => is_all = true,
                },
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if is_all {
            self.read_all()?;
            return Ok(true);
        }
        for file in &files {
            self.good.remove(file);
            self.unreadable.remove(file);
            match self.run_dir.attachment_in(file) {
                Ok(Some(attachment)) => drop(self.good.insert(file.clone(), Arc::new(attachment))),
                Ok(None) => {}
                Err(error) => drop(self.unreadable.insert(file.clone(), error)),
            }
        }
        Ok(!files.is_empty())
    }
}

fn failed(error: rustix::io::Errno) -> LinuxError {
    LinuxError::listening("inotify on the attachments", error)
}

/// Writes what the plugin needs to know, if it is not what is there.
///
/// # Errors
/// [`LinuxError`].
pub fn tell_plugin(run_dir: &RunDir, node: &NodeFile) -> Result<(), LinuxError> {
    // A file that cannot be understood is replaced.
    if matches!(read_json::<NodeFile>(&run_dir.node_file()), Ok(Some(there)) if there == *node) {
        return Ok(());
    }
    write_json(&run_dir.node_file(), node)
}
