//! Files in directories that are others' too: programs among those of other plugins, a configuration among those of a runtime. Each is
//! put in its place whole, by a rename within its directory, so that whoever looks sees the old one or the new one: a program that
//! runs goes on (no ETXTBSY), and a runtime that does not heed the making of files (containerd) hears of it. What stood there before
//! can be kept beside it and put back.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::LinuxError;
use crate::fault;
use crate::run_dir::remove_file;

/// What the name of an original ends with that is kept.
const KEPT: &str = ".loden-saved";

/// Makes a directory that everybody may read, and those above it.
///
/// # Errors
/// [`LinuxError::System`].
pub fn make_open_dir(dir: &Path) -> Result<(), LinuxError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(|error| LinuxError::system(format!("directory {}", dir.display()), error))
}

/// Puts a file in its place; says whether it was another before. `mode` is all of its permissions.
///
/// # Errors
/// [`LinuxError::System`]; the old one is there then.
pub fn file(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, LinuxError> {
    let unfinished = unfinished(path);
    remove_left(&unfinished)?;
    if is_file_with(path, bytes, mode) {
        return Ok(false);
    }
    let written = write_whole(&unfinished, bytes, mode).and_then(|()| {
        fault::point("file-written");
        rename(&unfinished, path)
    });
    written.map_err(|error| given_up(&unfinished, path, error))?;
    fault::point("file-placed");
    Ok(true)
}

/// Puts a symbolic link in its place; says whether it was something else before.
///
/// # Errors
/// [`LinuxError::System`]; what was there is there then.
pub fn link(path: &Path, target: &Path) -> Result<bool, LinuxError> {
    let unfinished = unfinished(path);
    remove_left(&unfinished)?;
    if leads_to(path, target) {
        return Ok(false);
    }
    let made = symlink(target, &unfinished).and_then(|()| {
        fault::point("link-written");
        rename(&unfinished, path)
    });
    made.map_err(|error| given_up(&unfinished, path, error))?;
    fault::point("link-placed");
    Ok(true)
}

/// Whether a path is a symbolic link with this target.
#[must_use]
pub fn leads_to(path: &Path, target: &Path) -> bool {
    fs::read_link(path).is_ok_and(|found| found == target)
}

/// Keeps what stands there under another name beside it; it stays where it is until something takes its place.
///
/// # Errors
/// [`LinuxError::System`].
pub fn keep_original(path: &Path) -> Result<(), LinuxError> {
    let kept = kept(path);
    let unfinished = unfinished(&kept);
    remove_left(&unfinished)?;
    // Of one that was kept before, and one that somebody put in its place since, the later one counts.
    let linked = fs::hard_link(path, &unfinished).and_then(|()| rename(&unfinished, &kept));
    linked.map_err(|error| given_up(&unfinished, &kept, error))?;
    // Where it is kept already both are one file, and the renaming has done nothing (rename(2)).
    remove_left(&unfinished)?;
    fault::point("original-linked");
    Ok(())
}

/// Takes a file or link away; an original that was kept takes its place. A missing one is no error.
///
/// # Errors
/// [`LinuxError::System`].
pub fn remove(path: &Path) -> Result<(), LinuxError> {
    let kept = kept(path);
    remove_left(&unfinished(path))?;
    remove_left(&unfinished(&kept))?;
    match rename(&kept, path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => remove_file(path),
        Err(error) => Err(LinuxError::system(format!("file {}", path.display()), error)),
    }
}

/// Forgets an original that was kept of a place that another has taken since, and what a killed process left there.
///
/// # Errors
/// [`LinuxError::System`].
pub fn forget_original(path: &Path) -> Result<(), LinuxError> {
    let kept = kept(path);
    [unfinished(path), unfinished(&kept), kept].iter().try_for_each(|file| remove_left(file))
}

/// The same for all places in a directory, each of which another has taken since; and the unfinished links to `target`.
///
/// # Errors
/// Whatever could not be removed, all of it.
pub fn forget_originals(dir: &Path, target: &Path) -> Result<(), LinuxError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(LinuxError::system(format!("directory {}", dir.display()), error)),
    };
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let of = |name: &String| {
        let unfinished = || name.strip_prefix('.')?.strip_suffix(".tmp");
        let place = name.strip_suffix(KEPT).or_else(|| unfinished()?.strip_suffix(KEPT));
        place.or_else(|| unfinished().filter(|_| leads_to(&dir.join(name), target))).map(|place| dir.join(place))
    };
    LinuxError::collected(names.iter().filter_map(of).filter_map(|place| forget_original(&place).err()).collect())
}

/// Removes what a killed process left. A file system that is read-only refuses even to remove what is not there.
fn remove_left(path: &Path) -> Result<(), LinuxError> {
    if fs::symlink_metadata(path).is_ok() { remove_file(path) } else { Ok(()) }
}

/// `.NAME.tmp`: hidden, and with an ending that no runtime reads.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

fn kept(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(KEPT);
    path.with_file_name(name)
}

fn is_file_with(path: &Path, bytes: &[u8], mode: u32) -> bool {
    let is_like = |there: fs::Metadata| {
        there.is_file() && there.permissions().mode() & 0o7777 == mode && there.len() == bytes.len() as u64
    };
    fs::symlink_metadata(path).is_ok_and(is_like) && fs::read(path).is_ok_and(|there| there == bytes)
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    // Whatever the mask of this process is.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Renames within a directory, and sees to it that a crash of the machine does not undo it.
fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::rename(from, to)?;
    File::open(to.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn given_up(unfinished: &Path, path: &Path, error: std::io::Error) -> LinuxError {
    // The first error is the one that counts.
    let _ = fs::remove_file(unfinished);
    LinuxError::system(format!("file {}", path.display()), error)
}
