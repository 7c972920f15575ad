//! The agent's side of `/run/loden`: follows the attachments that the plugin leaves, tells the plugin what it needs.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use loden_core::cni::NodeFile;
use loden_core::model::{Attachment, AttachmentKey};
use loden_linux::LinuxError;
use loden_linux::run_dir::{RunDir, make_dir, read_json, write_json};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// A burst of ADDs is read once.
const GATHER: Duration = Duration::from_millis(5);

/// All attachments, and the files that cannot be read.
pub type Attached = (BTreeMap<AttachmentKey, Arc<Attachment>>, Vec<LinuxError>);

/// Reads the attachments.
#[must_use]
pub fn read(run_dir: &RunDir) -> Attached {
    let found = run_dir.attachments();
    let good = found.good.into_iter().map(|attachment| (attachment.key.clone(), Arc::new(attachment)));
    (good.collect(), found.unreadable)
}

/// Follows the attachments in a thread of its own for as long as the process lives.
///
/// # Errors
/// [`LinuxError`] when they cannot be listened to.
pub fn follow(run_dir: &RunDir, deliver: impl Fn(Attached) + Send + 'static) -> Result<(), LinuxError> {
    let fail = |error: rustix::io::Errno| LinuxError::system("inotify on the attachments", error);
    let inotify = inotify::init(CreateFlags::CLOEXEC).map_err(fail)?;
    make_dir(&run_dir.attachments_dir())?;
    listen(&inotify, run_dir)?;
    deliver(read(run_dir));
    let run_dir = run_dir.clone();
    let work = move || {
        let mut buf = [MaybeUninit::uninit(); 8192];
        loop {
            match inotify::Reader::new(&inotify, &mut buf).next() {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "attachments are no longer followed");
                    return;
                }
            }
            thread::sleep(GATHER);
            // A network's directory may have been made just now; listening to one twice is listening once.
            if let Err(error) = listen(&inotify, &run_dir) {
                tracing::warn!(%error, "an attachments directory cannot be followed");
            }
            deliver(read(&run_dir));
        }
    };
    thread::Builder::new()
        .name("attachments".to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|error| LinuxError::system("thread for the attachments", error))
}

fn listen(inotify: &OwnedFd, run_dir: &RunDir) -> Result<(), LinuxError> {
    let top = run_dir.attachments_dir();
    let what = || format!("inotify on {}", top.display());
    let changes = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::MOVED_FROM;
    inotify::add_watch(inotify, &top, changes | WatchFlags::ONLYDIR)
        .map_err(|error| LinuxError::system(what(), error))?;
    let networks = std::fs::read_dir(&top).map_err(|error| LinuxError::system(what(), error))?;
    for network in networks {
        let path = network.map_err(|error| LinuxError::system(what(), error))?.path();
        let watched =
            inotify::add_watch(inotify, &path, WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::ONLYDIR);
        match watched {
            // It was removed meanwhile, or is no directory.
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Err(error) => return Err(LinuxError::system(what(), error)),
        }
    }
    Ok(())
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
