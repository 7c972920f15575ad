//! What the reference plugin host-local gave before this one took its place: files `DIRECTORY/NETWORK/ADDRESS` that hold the
//! container's ID and, on a second line, the interface's name.
//!
//! Pods keep such addresses for as long as they live, so nobody else is given one. Nothing is ever written there but removals.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use loden_core::model::{AttachmentKey, is_plain_name};

use crate::error::LinuxError;
use crate::run_dir::remove_file;

/// The directory of host-local's files.
#[derive(Debug, Clone)]
pub struct HostLocal {
    dir: PathBuf,
}

/// Who was given an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The network.
    pub network: String,
    /// The container's ID.
    pub container: String,
    /// The interface's name; old versions did not write it down.
    pub ifname: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}", self.container)?;
        if let Some(ifname) = &self.ifname {
            write!(f, ", interface {ifname}")?;
        }
        write!(f, ", to which host-local gave it in network {}", self.network)
    }
}

/// One file.
struct Given {
    addr: IpAddr,
    path: PathBuf,
}

impl HostLocal {
    /// What stands in this directory; it need not be there.
    #[must_use]
    pub fn new(dir: &str) -> Self {
        Self { dir: dir.into() }
    }

    /// The addresses that were given in a network, or (`None`) in any.
    ///
    /// # Errors
    /// [`LinuxError::System`] when a directory that is there cannot be read: nobody knows then which addresses are in use.
    pub fn addresses(&self, network: Option<&str>) -> Result<BTreeSet<IpAddr>, LinuxError> {
        let networks = match network {
            Some(network) => vec![network.to_owned()],
            None => names(&self.dir)?,
        };
        let mut addresses = BTreeSet::new();
        for network in networks {
            addresses.extend(self.files(&network)?.into_iter().map(|given| given.addr));
        }
        Ok(addresses)
    }

    /// Who was given an address in a network, or (`None`) in any.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn holder(&self, addr: IpAddr, network: Option<&str>) -> Result<Option<Holder>, LinuxError> {
        let networks = match network {
            Some(network) => vec![network.to_owned()],
            None => names(&self.dir)?,
        };
        for network in networks {
            let path = self.dir.join(&network).join(addr.to_string());
            if let Some((container, ifname)) = read(&path)? {
                return Ok(Some(Holder { network, container, ifname }));
            }
        }
        Ok(None)
    }

    /// Whether an attachment was given an address.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn knows(&self, key: &AttachmentKey) -> Result<bool, LinuxError> {
        for given in self.files(&key.network)? {
            if read(&given.path)?.is_some_and(|found| is_of(&found, key)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Frees what an attachment was given.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn release(&self, key: &AttachmentKey) -> Result<(), LinuxError> {
        self.release_unless(&key.network, |found| !is_of(found, key))
    }

    /// Frees what was given in a network to others than these attachments: container's ID and interface's name.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn collect(&self, network: &str, is_valid: impl Fn(&str, Option<&str>) -> bool) -> Result<(), LinuxError> {
        self.release_unless(network, |(container, ifname)| is_valid(container, ifname.as_deref()))
    }

    fn release_unless(
        &self,
        network: &str,
        stays: impl Fn(&(String, Option<String>)) -> bool,
    ) -> Result<(), LinuxError> {
        let mut errors = Vec::new();
        for given in self.files(network)? {
            match read(&given.path) {
                Ok(Some(found)) if !stays(&found) => errors.extend(remove_file(&given.path).err()),
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        LinuxError::collected(errors)
    }

    fn files(&self, network: &str) -> Result<Vec<Given>, LinuxError> {
        if !is_plain_name(network) {
            return Ok(Vec::new());
        }
        let dir = self.dir.join(network);
        // Beside the addresses stand a lock and what was given last of each range.
        let given = |name: String| Some(Given { addr: name.parse().ok()?, path: dir.join(&name) });
        Ok(names(&dir)?.into_iter().filter_map(given).collect())
    }
}

fn is_of((container, ifname): &(String, Option<String>), key: &AttachmentKey) -> bool {
    *container == key.container && ifname.as_ref().is_none_or(|ifname| ifname == key.ifname.as_str())
}

/// The container's ID and the interface's name; `None` when there is no such file.
fn read(path: &Path) -> Result<Option<(String, Option<String>)>, LinuxError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
            Ok(Some((lines.next().unwrap_or_default(), lines.next())))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LinuxError::system(format!("file {}", path.display()), error)),
    }
}

/// The names in a directory; none when it is not there.
fn names(dir: &Path) -> Result<Vec<String>, LinuxError> {
    let fail = |error: std::io::Error| LinuxError::system(format!("directory {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    entries.map(|entry| Ok(entry.map_err(fail)?.file_name().to_string_lossy().into_owned())).collect()
}
