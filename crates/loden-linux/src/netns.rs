//! Network namespaces: a namespace is an open descriptor; a thread is in one at a time.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::LinuxError;

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    /// Device and inode: two namespaces are the same when these are.
    identity: (u64, u64),
}

impl NetNs {
    /// Opens the one that a path names.
    ///
    /// # Errors
    /// [`LinuxError::System`] when it is not there, [`LinuxError::File`] when it is no namespace.
    pub fn open(path: &Path) -> Result<Self, LinuxError> {
        let what = || format!("network namespace {}", path.display());
        let file = File::open(path).map_err(|error| LinuxError::system(what(), error))?;
        let stat = rustix::fs::fstat(&file).map_err(|error| LinuxError::system(what(), error))?;
        let magic = rustix::fs::fstatfs(&file).map_err(|error| LinuxError::system(what(), error))?.f_type;
        // NSFS_MAGIC, linux/magic.h
        if magic != 0x6e73_6673 {
            return Err(LinuxError::File { path: path.display().to_string(), cause: "is no namespace".to_owned() });
        }
        Ok(Self { fd: file.into(), identity: (stat.st_dev, stat.st_ino) })
    }

    /// The calling thread's.
    ///
    /// # Errors
    /// [`LinuxError::System`] when `/proc` is not mounted.
    pub fn current() -> Result<Self, LinuxError> {
        Self::open(Path::new(OWN))
    }

    /// Makes a new one and binds it to a path, where it stays until [`remove`].
    ///
    /// # Errors
    /// [`LinuxError::System`]; nothing is left then.
    pub fn create(path: &Path) -> Result<Self, LinuxError> {
        let what = || format!("network namespace {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| LinuxError::system(what(), error))?;
        }
        let options = || File::options().write(true).create_new(true).open(path);
        options().map_err(|error| LinuxError::system(what(), error))?;
        let made = in_thread(|| {
            unshare_net()?;
            mount_bind(OWN, path).map_err(|error| LinuxError::system(what(), error))
        });
        if let Err(error) = made.and_then(|made| made) {
            // The path is ours and holds nothing; the first error is the one that counts.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        Self::open(path)
    }

    /// Runs a closure in a thread of its own inside the namespace.
    ///
    /// # Errors
    /// [`LinuxError::System`] when the thread cannot enter it or the closure panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LinuxError> {
        in_thread(|| self.enter().map(|()| work()))?
    }

    /// Runs a closure in the calling thread inside the namespace and comes back. For a program of one thread that is
    /// in a hurry: a thread of its own costs a tenth of the time of a plugin's whole ADD.
    ///
    /// # Errors
    /// [`LinuxError::System`] when the thread cannot enter it, or cannot come back (it must do nothing more then).
    pub fn visit<T>(&self, work: impl FnOnce() -> T) -> Result<T, LinuxError> {
        let home = Self::current()?;
        self.enter()?;
        let done = work();
        home.enter()?;
        Ok(done)
    }

    /// Moves the calling thread into the namespace.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn enter(&self) -> Result<(), LinuxError> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| LinuxError::system("enter a network namespace", error))
    }

    /// Device and inode.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Moves the calling thread into a fresh namespace of its own.
///
/// # Errors
/// [`LinuxError::System`].
pub fn unshare_net() -> Result<(), LinuxError> {
    unshare(UnshareFlags::NEWNET)
}

fn unshare(flags: UnshareFlags) -> Result<(), LinuxError> {
    // SAFETY: only namespaces are unshared, never the descriptor table, so no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|error| LinuxError::system("unshare", error))
}

/// Unbinds a namespace from its path and removes the path. A missing one is no error.
///
/// # Errors
/// Whatever kept it, all of it.
pub fn remove(path: &Path) -> Result<(), LinuxError> {
    let what = || format!("network namespace {}", path.display());
    let mut errors = Vec::new();
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => errors.push(LinuxError::system(what(), error)),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            errors.push(LinuxError::system(what(), error));
        }
        _ => {}
    }
    LinuxError::collected(errors)
}

/// Makes an ordinary user root in a user namespace of its own, with a mount namespace in which `scratch` (an existing
/// directory) is an empty file system of its own. Must be called while the process has one thread.
///
/// # Errors
/// [`LinuxError::System`], as where the kernel does not let ordinary users do so.
pub fn become_root_in_user_namespace(scratch: &Path) -> Result<(), LinuxError> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
    let put = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| LinuxError::system(file.to_owned(), error))
    };
    put("setgroups", "deny".to_owned())?;
    put("uid_map", format!("0 {uid} 1"))?;
    put("gid_map", format!("0 {gid} 1"))?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).map_err(|error| LinuxError::system("private mounts", error))?;
    mount("tmpfs", scratch, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
        .map_err(|error| LinuxError::system(format!("tmpfs on {}", scratch.display()), error))
}

/// Runs a closure in a thread of its own.
pub(crate) fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, LinuxError> {
    thread::scope(|scope| {
        scope.spawn(work).join().map_err(|panic| {
            let words = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
            LinuxError::System {
                what: "a thread in a network namespace".to_owned(),
                errno: 0,
                cause: format!("panicked: {}", words.unwrap_or_else(|| "no words".to_owned())),
            }
        })
    })
}
