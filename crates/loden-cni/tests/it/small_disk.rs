//! A small file system of its own: full, or read-only.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// A tmpfs of so many pages of 4 KiB.
pub struct Disk(PathBuf);

impl Disk {
    pub fn new(path: &Path, pages: u32) -> Self {
        fs::create_dir_all(path).expect("a directory");
        let options = std::ffi::CString::new(format!("size={}k,mode=0755", pages * 4)).expect("options");
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).expect("these tests need root");
        Self(path.to_owned())
    }

    pub fn set_read_only(&self, yes: bool) {
        let flags = if yes { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_remount(&self.0, flags, c"").expect("remounted");
    }

    /// Fills it up to so many pages.
    pub fn fill(&self, pages_left: u32) {
        let page = [0_u8; 4096];
        let mut n = 0;
        while fs::write(self.filler(n), page).is_ok() {
            n += 1;
        }
        // The last one is empty: there was no page for it.
        for n in n.saturating_sub(pages_left)..=n {
            fs::remove_file(self.filler(n)).expect("removed");
        }
    }

    pub fn empty(&self) {
        for n in 0.. {
            if fs::remove_file(self.filler(n)).is_err() {
                return;
            }
        }
    }

    fn filler(&self, n: u32) -> PathBuf {
        self.0.join(format!("filler{n}"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
