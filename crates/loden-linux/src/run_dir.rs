//! `/run/loden`: what lives as long as the pods. The agent and the plugin meet here.
//!
//! `agent.sock`, `agent.lock`, `node.json` (what the plugin needs to know of the node), `ipam/` (address state and its lock), `dhcp/`
//! (leases that the agent holds for pods),
//! `attachments/NETWORK/CONTAINER:IFNAME.json` (a colon is in neither name, so that no two attachments share a file). Nothing is synced to disk: it is a tmpfs, gone with a reboot as the pods are.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use loden_core::attach;
use loden_core::dhcp::Held;
use loden_core::model::{Attachment, AttachmentKey, is_plain_name};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::LinuxError;

/// The directory.
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

/// What was found of attachments.
#[derive(Debug, Default)]
pub struct Attachments {
    /// Those that could be read.
    pub good: Vec<Attachment>,
    /// Files that could not, with the cause.
    pub unreadable: Vec<(PathBuf, LinuxError)>,
}

/// What was found of leases.
#[derive(Debug, Default)]
pub struct Leases {
    /// Those that could be read.
    pub good: Vec<Held>,
    /// Files that could not, with the cause.
    pub unreadable: Vec<(PathBuf, LinuxError)>,
}

impl RunDir {
    /// The directory at a path; it need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes it and its parts, for root's eyes only.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn make(&self) -> Result<(), LinuxError> {
        for dir in [self.0.clone(), self.attachments_dir(), self.ipam_dir()] {
            make_dir(&dir)?;
        }
        Ok(())
    }

    /// The path of the whole.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The agent's local API.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// Held by the one agent that serves the host.
    #[must_use]
    pub fn agent_lock(&self) -> PathBuf {
        self.0.join("agent.lock")
    }

    /// Held by a process that uninstalls the plugin.
    #[must_use]
    pub fn closing_file(&self) -> PathBuf {
        self.0.join("uninstall.lock")
    }

    /// What the plugin needs to know of the node.
    #[must_use]
    pub fn node_file(&self) -> PathBuf {
        self.0.join("node.json")
    }

    /// The state of address assignment.
    #[must_use]
    pub fn ipam_dir(&self) -> PathBuf {
        self.0.join("ipam")
    }

    /// The attachments, a directory a network.
    #[must_use]
    pub fn attachments_dir(&self) -> PathBuf {
        self.0.join("attachments")
    }

    /// The file of one attachment.
    ///
    /// # Errors
    /// [`LinuxError::File`] when a name in the key would lead out of the directory.
    pub fn attachment_file(&self, key: &AttachmentKey) -> Result<PathBuf, LinuxError> {
        for name in [&key.network, &key.container] {
            if !is_plain_name(name) {
                return Err(LinuxError::File {
                    path: self.attachments_dir().display().to_string(),
                    cause: format!(
                        "{name:?} is no name for a network or container: letters, digits, '_', '.' and '-', \
                                    the first one a letter or digit"
                    ),
                });
            }
        }
        Ok(self.attachments_dir().join(&key.network).join(format!("{}:{}.json", key.container, key.ifname)))
    }

    /// The leases of DHCP servers, a file an attachment.
    #[must_use]
    pub fn leases_dir(&self) -> PathBuf {
        self.0.join("dhcp")
    }

    /// The file of one lease.
    #[must_use]
    pub fn lease_file(&self, key: &AttachmentKey) -> PathBuf {
        self.leases_dir().join(format!("{}.json", attach::mark(key)))
    }

    /// Reads what is held for an attachment.
    ///
    /// # Errors
    /// [`LinuxError`] when its file cannot be read or understood.
    pub fn lease(&self, key: &AttachmentKey) -> Result<Option<Held>, LinuxError> {
        read_json(&self.lease_file(key))
    }

    /// Writes down what is held.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn put_lease(&self, held: &Held) -> Result<(), LinuxError> {
        make_dir(&self.leases_dir())?;
        write_json(&self.lease_file(&held.request.key), held)
    }

    /// Removes what is held; a missing one is no error.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn remove_lease(&self, key: &AttachmentKey) -> Result<(), LinuxError> {
        remove_file(&self.lease_file(key))
    }

    /// All that is held, and the files that cannot be read. What a killed writer left unfinished is removed.
    ///
    /// # Errors
    /// [`LinuxError`] when the directory cannot be read.
    pub fn leases(&self) -> Result<Leases, LinuxError> {
        let mut errors = Vec::new();
        let files = entries(&self.leases_dir(), &mut errors);
        LinuxError::collected(errors)?;
        let mut found = Leases::default();
        for file in files {
            if file.extension().is_none_or(|extension| extension != "json") {
                remove_file(&file)?;
                continue;
            }
            match read_json(&file) {
                Ok(held) => found.good.extend(held),
                Err(error) => found.unreadable.push((file, error)),
            }
        }
        Ok(found)
    }

    /// Reads one attachment.
    ///
    /// # Errors
    /// [`LinuxError`] when its file cannot be read or understood.
    pub fn attachment(&self, key: &AttachmentKey) -> Result<Option<Attachment>, LinuxError> {
        read_json(&self.attachment_file(key)?)
    }

    /// Writes one attachment.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn put_attachment(&self, attachment: &Attachment) -> Result<(), LinuxError> {
        let file = self.attachment_file(&attachment.key)?;
        make_dir(&self.attachments_dir().join(&attachment.key.network))?;
        write_json(&file, attachment)
    }

    /// Removes one attachment; a missing one is no error.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn remove_attachment(&self, key: &AttachmentKey) -> Result<(), LinuxError> {
        remove_file(&self.attachment_file(key)?)
    }

    /// The attachments of a network that have a file, whether it can be read or not.
    ///
    /// # Errors
    /// [`LinuxError`] when the directory cannot be read.
    pub fn keys(&self, network: &str) -> Result<Vec<AttachmentKey>, LinuxError> {
        let mut errors = Vec::new();
        let files = entries(&self.attachments_dir().join(network), &mut errors);
        LinuxError::collected(errors)?;
        let key = |file: &PathBuf| {
            let (container, ifname) = file.file_name()?.to_str()?.strip_suffix(".json")?.split_once(':')?;
            let ifname = ifname.parse().ok()?;
            Some(AttachmentKey { network: network.to_owned(), container: container.to_owned(), ifname })
        };
        Ok(files.iter().filter_map(key).collect())
    }

    /// The keys of all attachments that have a file, whether it can be read or not.
    ///
    /// # Errors
    /// [`LinuxError`] when a directory cannot be read.
    pub fn all_keys(&self) -> Result<Vec<AttachmentKey>, LinuxError> {
        let mut errors = Vec::new();
        let networks = entries(&self.attachments_dir(), &mut errors);
        LinuxError::collected(errors)?;
        let mut keys = Vec::new();
        for network in networks.iter().filter_map(|dir| dir.file_name()?.to_str()) {
            keys.extend(self.keys(network)?);
        }
        Ok(keys)
    }

    /// Removes everything that plugin and agent have in it, and itself if nothing else is there.
    ///
    /// # Errors
    /// Whatever could not be removed, all of it.
    pub fn remove(&self) -> Result<(), LinuxError> {
        let mut errors = Vec::new();
        for dir in [self.attachments_dir(), self.ipam_dir()] {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    errors.push(LinuxError::system(format!("directory {}", dir.display()), error));
                }
                _ => {}
            }
        }
        for file in [self.node_file(), self.agent_socket(), self.agent_lock(), self.closing_file()] {
            errors.extend(remove_file(&file).err());
        }
        match fs::remove_dir(&self.0) {
            // Another's file, or a file system of its own.
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy
                ) =>
            {
                errors.push(LinuxError::system(format!("directory {}", self.0.display()), error));
            }
            _ => {}
        }
        LinuxError::collected(errors)
    }

    /// Removes what writers left that were killed before they gave a file its name. To be called under the lock that all
    /// writers of attachments and address states hold.
    ///
    /// # Errors
    /// Whatever could not be removed, all of it.
    pub fn remove_unfinished(&self) -> Result<(), LinuxError> {
        let mut errors = Vec::new();
        let mut files = entries(&self.ipam_dir(), &mut errors);
        for network in entries(&self.attachments_dir(), &mut errors) {
            files.extend(entries(&network, &mut errors));
        }
        for file in files.iter().filter(|file| file.extension().is_some_and(|ext| ext == "tmp")) {
            errors.extend(remove_file(file).err());
        }
        LinuxError::collected(errors)
    }

    /// All attachments. What cannot be read is listed and hides nothing else.
    #[must_use]
    pub fn attachments(&self) -> Attachments {
        let mut found = Attachments::default();
        let mut files = Vec::new();
        let mut list = |dir: &Path| {
            let mut errors = Vec::new();
            let listed = entries(dir, &mut errors);
            found.unreadable.extend(errors.into_iter().map(|error| (dir.to_owned(), error)));
            listed
        };
        for network in list(&self.attachments_dir()) {
            files.extend(list(&network));
        }
        for file in files.into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "json")) {
            match self.attachment_in(&file) {
                Ok(Some(attachment)) => found.good.push(attachment),
                // It was removed while the directory was read.
                Ok(None) => {}
                Err(error) => found.unreadable.push((file, error)),
            }
        }
        found
    }

    /// The attachment in a file, which must be the one that its key names.
    ///
    /// # Errors
    /// [`LinuxError`] when it cannot be read or understood.
    pub fn attachment_in(&self, file: &Path) -> Result<Option<Attachment>, LinuxError> {
        let found = read_json::<Attachment>(file)?;
        if let Some(attachment) = &found
            && self.attachment_file(&attachment.key)? != file
        {
            return Err(LinuxError::File {
                path: file.display().to_string(),
                cause: format!("describes {}, which belongs into another file", attachment.key),
            });
        }
        Ok(found)
    }
}

/// Makes a directory for root's eyes only, and those above it.
///
/// # Errors
/// [`LinuxError::System`].
pub fn make_dir(path: &Path) -> Result<(), LinuxError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| LinuxError::system(format!("directory {}", path.display()), error))
}

/// Writes a file whole or not at all: under another name in its directory, then renamed.
///
/// # Errors
/// [`LinuxError::System`]; the file is as it was then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), LinuxError> {
    write_with(path, bytes, 0o600)
}

/// The same for a file that others read.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_for_all(path: &Path, bytes: &[u8]) -> Result<(), LinuxError> {
    write_with(path, bytes, 0o644)
}

fn write_with(path: &Path, bytes: &[u8], mode: u32) -> Result<(), LinuxError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Two processes may write one file at a time: each has a name of its own for the unfinished one.
    name.push(format!(".{}.tmp", std::process::id()));
    let unfinished = path.with_file_name(name);
    let written = write_whole(&unfinished, bytes, mode).and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|error| {
        // The first error is the one that counts.
        let _ = fs::remove_file(&unfinished);
        LinuxError::system(format!("file {}", path.display()), error)
    })
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // Whatever the process's mask says.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)
}

/// Writes a value as JSON.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), LinuxError> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| LinuxError::File { path: path.display().to_string(), cause: error.to_string() })?;
    write_atomically(path, &bytes)
}

/// Reads a value from JSON; `None` when there is no such file.
///
/// # Errors
/// [`LinuxError::System`] when it cannot be read, [`LinuxError::File`] when it cannot be understood.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LinuxError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| LinuxError::File {
            path: path.display().to_string(),
            cause: format!("is not what was expected ({error}); it may have been cut short: remove it"),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LinuxError::system(format!("file {}", path.display()), error)),
    }
}

/// Removes a file; a missing one is no error.
///
/// # Errors
/// [`LinuxError::System`].
pub fn remove_file(path: &Path) -> Result<(), LinuxError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(LinuxError::system(format!("file {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

fn entries(dir: &Path, errors: &mut Vec<LinuxError>) -> Vec<PathBuf> {
    let what = || format!("directory {}", dir.display());
    match fs::read_dir(dir) {
        Ok(entries) => {
            let mut paths = Vec::new();
            for entry in entries {
                match entry {
                    Ok(entry) => paths.push(entry.path()),
                    Err(error) => errors.push(LinuxError::system(what(), error)),
                }
            }
            paths.sort();
            paths
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Vec::new(),
        Err(error) => {
            errors.push(LinuxError::system(what(), error));
            Vec::new()
        }
    }
}
