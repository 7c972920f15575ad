//! What can go wrong with the kernel's interfaces, in the kernel's own words.

use loden_core::advice;
use loden_core::kernel::KernelError;

/// An error of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinuxError {
    /// The kernel refused a netlink request.
    #[error("{what}: {cause}")]
    Netlink {
        /// What was asked.
        what: String,
        /// The error number.
        errno: i32,
        /// The extended acknowledgement, or the text of the number.
        cause: String,
    },
    /// Notifications were lost because they came faster than they were read.
    #[error("the kernel dropped notifications (ENOBUFS)")]
    Overrun,
    /// A message that cannot be understood.
    #[error("{what}: the kernel's answer is malformed: {detail}")]
    Malformed {
        /// What was asked.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A system call failed.
    #[error("{what}: {cause}")]
    System {
        /// What was tried, with its object.
        what: String,
        /// The error number.
        errno: i32,
        /// The system's words.
        cause: String,
    },
    /// A file holds what it should not.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: String,
        /// What is wrong, and what to do.
        cause: String,
    },
    /// Another plugin that was called.
    #[error("plugin {plugin}: {cause}")]
    Plugin {
        /// Which program.
        plugin: String,
        /// The code that it gave, 0 when it gave none.
        code: u32,
        /// Its words.
        cause: String,
    },
    /// Several at once, from tearing something down.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<LinuxError>),
}

impl LinuxError {
    /// An error of a system call.
    pub fn system(what: impl Into<String>, errno: impl Into<std::io::Error>) -> Self {
        let error: std::io::Error = errno.into();
        let errno = error.raw_os_error().unwrap_or(0);
        Self::System { what: what.into(), errno, cause: errno_text(errno).unwrap_or_else(|| error.to_string()) }
    }

    /// An error of listening to directories and files.
    pub fn listening(what: impl Into<String>, errno: impl Into<std::io::Error>) -> Self {
        match Self::system(what, errno) {
            Self::System { what, errno, cause } => {
                Self::System { what, errno, cause: advice::on_listening(errno, &cause) }
            }
            other => other,
        }
    }

    /// The error number, 0 when there is none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Netlink { errno, .. } | Self::System { errno, .. } => *errno,
            Self::Overrun => libc::ENOBUFS,
            Self::Several(all) => all.first().map_or(0, Self::errno),
            Self::Malformed { .. } | Self::File { .. } | Self::Plugin { .. } => 0,
        }
    }

    /// The same error, of what was attempted.
    #[must_use]
    pub fn renamed(self, what: &str) -> Self {
        match self {
            Self::Netlink { errno, cause, .. } => Self::Netlink { what: what.to_owned(), errno, cause },
            other => other,
        }
    }

    /// As the seam's error, about `object`.
    #[must_use]
    pub fn about(&self, object: impl Into<String>) -> KernelError {
        let cause = match self {
            Self::Netlink { cause, .. } | Self::System { cause, .. } => cause.clone(),
            other => other.to_string(),
        };
        KernelError { object: object.into(), errno: self.errno(), cause }
    }

    /// `Ok` when there are none, the one, or all of them together.
    ///
    /// # Errors
    /// Whatever was collected.
    pub fn collected(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

/// The text of an error number without Rust's "(os error n)".
#[must_use]
pub fn errno_text(errno: i32) -> Option<String> {
    if errno == 0 {
        return None;
    }
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    Some(text.split(" (os error").next().unwrap_or(&text).to_owned())
}
