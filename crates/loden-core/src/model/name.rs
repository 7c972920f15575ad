//! Names: of nodes, pools and network interfaces. Parsed once at the edge, trusted afterwards.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {given:?} is not valid: {rule}")]
pub struct NameError {
    kind: &'static str,
    given: String,
    rule: &'static str,
}

/// A network interface's name: 1 to 15 bytes, neither `.` nor `..`, without `/`, `:` or white space
/// (`dev_valid_name`, net/core/dev.c).
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName([u8; 16]);

impl IfName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] when the kernel would refuse it.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control() || !c.is_ascii();
        if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
            return Err(NameError {
                kind: "interface name",
                given: name.to_owned(),
                rule: "1 to 15 ASCII characters without blank, '/' and ':'",
            });
        }
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self(bytes))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

impl IfName {
    /// A number in the order of the names: a name is part of nearly every key, and a number is compared at one go.
    fn number(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl Ord for IfName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for IfName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for IfName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.number());
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl FromStr for IfName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        Self::new(s)
    }
}

impl TryFrom<String> for IfName {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        Self::new(&s)
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.as_str().to_owned()
    }
}

/// The rule of [`is_plain_name`], in words.
pub const PLAIN_NAME: &str = "letters, digits, '_', '.' and '-', the first one a letter or digit";

/// Whether a text can be a container's ID or a network's name (CNI specification, sections 1 and 2), and a file's name that
/// does not lead out of its directory.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 200
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// The rule for names of nodes and pools: that of a DNS subdomain (RFC 1123), so that they can be Kubernetes objects.
fn check_dns(kind: &'static str, given: &str) -> Result<Arc<str>, NameError> {
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if given.is_empty() || given.len() > 253 || !given.split('.').all(label_ok) {
        return Err(NameError {
            kind,
            given: given.to_owned(),
            rule: "lower-case letters, digits, '-' and '.', at most 253 characters, each label at most 63 and begun \
                   and ended by a letter or digit (RFC 1123)",
        });
    }
    Ok(given.into())
}

/// Defines a name type over a shared string: the types differ so that one cannot be passed for another.
macro_rules! shared_name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a name.
            ///
            /// # Errors
            /// [`NameError`] with the rule that it breaks.
            pub fn new(name: &str) -> Result<Self, NameError> {
                let check: fn(&'static str, &str) -> Result<Arc<str>, NameError> = $check;
                check($kind, name).map(Self)
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                Self::new(&s)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }
    };
}

shared_name!(
    /// A node's name in the cluster (Kubernetes: the Node object's name).
    NodeName, "node name", check_dns
);
shared_name!(
    /// A pool's name.
    PoolName, "pool name", check_dns
);
shared_name!(
    /// A node's identity, made once per installation. Blocks are fenced by it: a host that took over a name or an
    /// address is still another owner.
    NodeUid, "node identity", |kind, given| {
        if given.is_empty() || given.len() > 64 || !given.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(NameError { kind, given: given.to_owned(), rule: "1 to 64 letters, digits and '-'" });
        }
        Ok(given.into())
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "flannel.1", "flannel-v6.1", "a", "123456789012345"] {
            assert_eq!(IfName::new(good).expect("valid").as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "1234567890123456", "n\u{e4}", "a\nb"] {
            assert!(IfName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interface_names_are_in_the_order_of_their_text() {
        let name = |text: &str| IfName::new(text).expect("valid");
        let sorted = ["cni0", "eth0", "eth00", "eth1", "flannel-v6.1", "flannel.1", "fz"];
        assert!(sorted.windows(2).all(|pair| name(pair[0]) < name(pair[1])));
    }

    #[test]
    fn node_names_are_dns_subdomains() {
        for good in ["node-1", "a.b.c", "0"] {
            assert!(NodeName::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "-a", "a-", "A", "a..b", "a/b", "../x", "n\u{7}"] {
            assert!(NodeName::new(bad).is_err(), "{bad:?}");
        }
    }
}
