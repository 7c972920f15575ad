//! The agent's side of `/run/loden`: follows the attachments that the plugin leaves, tells the plugin what it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use loden_core::advice::LOOK_EVERY;
use loden_core::cni::NodeFile;
use loden_core::model::{Attachment, AttachmentKey};
use loden_linux::LinuxError;
use loden_linux::run_dir::{RunDir, make_dir, read_json, write_json};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// A burst of ADDs is read once.
const GATHER: Duration = Duration::from_millis(5);

/// All attachments, and the files that cannot be read.
pub type Attached = (BTreeMap<AttachmentKey, Arc<Attachment>>, Vec<LinuxError>);

/// What is known of the attachments' files. Only what changed is read again: a node has hundreds of pods.
struct Follower {
    run_dir: RunDir,
    /// What is listened by, or why by nothing: then all is looked at every second, and listening is tried again.
    ears: Result<Ears, LinuxError>,
    good: BTreeMap<PathBuf, Arc<Attachment>>,
    unreadable: BTreeMap<PathBuf, LinuxError>,
}

/// Follows the attachments in a thread of its own for as long as the process lives. Why they cannot be listened to, if that is so, is
/// among what is delivered.
///
/// # Errors
/// [`LinuxError`] when their directory or the thread cannot be made.
pub fn follow(run_dir: &RunDir, deliver: impl Fn(Attached) + Send + 'static) -> Result<(), LinuxError> {
    let top = run_dir.attachments_dir();
    make_dir(&top)?;
    let mut follower = Follower {
        run_dir: run_dir.clone(),
        ears: Ears::open(&top),
        good: BTreeMap::new(),
        unreadable: BTreeMap::new(),
    };
    if let Err(error) = &follower.ears {
        tracing::warn!(%error, "the attachments cannot be listened to");
    }
    follower.look();
    deliver(follower.attached());
    let work = move || {
        loop {
            if follower.step() {
                deliver(follower.attached());
            }
        }
    };
    thread::Builder::new()
        .name("attachments".to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|error| LinuxError::system("thread for the attachments", error))
}

impl Follower {
    fn attached(&self) -> Attached {
        let good = self.good.values().map(|attachment| (attachment.key.clone(), Arc::clone(attachment)));
        (good.collect(), self.unreadable.values().chain(self.ears.as_ref().err()).cloned().collect())
    }

    /// Waits, and takes in what has changed. Says whether something has.
    fn step(&mut self) -> bool {
        let top = self.run_dir.attachments_dir();
        let heard = match &mut self.ears {
            Ok(ears) => ears.hear(&top),
            Err(_) => {
                thread::sleep(LOOK_EVERY);
                self.ears = Ears::open(&top);
                return self.look() || self.ears.is_ok();
            }
        };
        match heard {
            Ok(Heard::Files(files)) => {
                files.iter().for_each(|file| self.read(file));
                !files.is_empty()
            }
            Ok(Heard::Anything) => self.look(),
            Err(error) => {
                tracing::warn!(%error, "the attachments cannot be listened to");
                self.ears = Err(error);
                true
            }
        }
    }

    fn read(&mut self, file: &Path) {
        self.good.remove(file);
        self.unreadable.remove(file);
        match self.run_dir.attachment_in(file) {
            Ok(Some(attachment)) => drop(self.good.insert(file.to_owned(), Arc::new(attachment))),
            Ok(None) => {}
            Err(error) => drop(self.unreadable.insert(file.to_owned(), error)),
        }
    }

    /// Reads all. Says whether it is something else than was known.
    fn look(&mut self) -> bool {
        let found = self.run_dir.attachments();
        let file = |attachment: &Attachment| self.run_dir.attachment_file(&attachment.key).ok();
        let good = found.good.into_iter().filter_map(|one| Some((file(&one)?, Arc::new(one)))).collect();
        let unreadable = found.unreadable.into_iter().collect();
        let is_new = (&self.good, &self.unreadable) != (&good, &unreadable);
        (self.good, self.unreadable) = (good, unreadable);
        is_new
    }
}

/// What the directories are listened by.
struct Ears {
    inotify: OwnedFd,
    /// The network's directory of each watch.
    networks: BTreeMap<i32, PathBuf>,
}

/// What has been reported.
enum Heard {
    Files(BTreeSet<PathBuf>),
    /// A network came or went, or reports were lost.
    Anything,
}

impl Ears {
    /// Listens to every network's directory; to be done before what is there is read, so that nothing falls between.
    fn open(top: &Path) -> Result<Self, LinuxError> {
        let inotify =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| failed(top, error))?;
        let mut ears = Self { inotify, networks: BTreeMap::new() };
        ears.listen(top)?;
        Ok(ears)
    }

    fn listen(&mut self, top: &Path) -> Result<(), LinuxError> {
        let changes = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::MOVED_FROM;
        inotify::add_watch(&self.inotify, top, changes | WatchFlags::ONLYDIR).map_err(|error| failed(top, error))?;
        self.networks.clear();
        let entries = std::fs::read_dir(top).map_err(|error| failed(top, error))?;
        for network in entries {
            let path = network.map_err(|error| failed(top, error))?.path();
            let changes = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE | WatchFlags::ONLYDIR;
            match inotify::add_watch(&self.inotify, &path, changes) {
                Ok(watch) => drop(self.networks.insert(watch, path)),
                // It was removed meanwhile, or is no directory.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(failed(&path, error)),
            }
        }
        Ok(())
    }

    /// Waits for reports and takes all of them.
    fn hear(&mut self, top: &Path) -> Result<Heard, LinuxError> {
        match poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(top, error)),
        }
        thread::sleep(GATHER);
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
                Err(Errno::WOULDBLOCK) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(top, error)),
            }
        }
        if is_all {
            self.listen(top)?;
            return Ok(Heard::Anything);
        }
        Ok(Heard::Files(files))
    }
}

fn failed(dir: &Path, error: impl Into<std::io::Error>) -> LinuxError {
    LinuxError::listening(format!("inotify on {}, which is looked at every second instead", dir.display()), error)
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
