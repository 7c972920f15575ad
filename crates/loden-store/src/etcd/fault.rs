//! What went wrong with etcd, from its own words: whom it concerns, and what to do about it.

use std::error::Error as _;

use tonic::Code;

use crate::StoreError;

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it means.
    pub sort: Sort,
    /// etcd's own words, or those of the connection.
    pub cause: String,
}

/// What a fault means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// This member does not answer, or not as it should: another may.
    Away,
    /// This member finds no majority: another may.
    NoQuorum,
    /// This member's certificate is not trusted here.
    Untrusted,
    /// This member does not take the client's certificate, or misses one.
    NoCertificate,
    /// The token is no longer valid: signing in again mends it.
    SignedOut,
    /// etcd knows neither user nor password.
    UnknownUser,
    /// The user may not do that.
    NoPermission,
    /// etcd has no room.
    Full,
    /// The revision is no longer kept, or is not there yet.
    Compacted,
    /// The lease has run out.
    NoLease,
    /// etcd refuses the request itself.
    Refused,
}

impl Fault {
    /// One that is known here.
    pub fn new(sort: Sort, cause: impl Into<String>) -> Self {
        Self { sort, cause: cause.into() }
    }

    /// One of which etcd gives nothing but a sentence, as it does when it ends a watch.
    pub fn said(cause: &str) -> Self {
        Self::new(sort(Code::Unknown, cause), plain(cause))
    }

    /// Whether another member, or the same over a new connection, may do better.
    pub fn is_of_member(&self) -> bool {
        matches!(self.sort, Sort::Away | Sort::NoQuorum | Sort::Untrusted | Sort::NoCertificate | Sort::SignedOut)
    }

    /// The fault as everybody's error.
    pub fn into_error(self, place: &str) -> StoreError {
        let (place, cause) = (place.to_owned(), self.cause);
        match self.sort {
            Sort::NoQuorum => StoreError::NoQuorum { place, cause },
            Sort::Untrusted => StoreError::Untrusted { place, cause },
            Sort::NoCertificate => StoreError::Denied {
                place,
                cause,
                advice: "it asks for a client's certificate that its authority has signed and that has not run out: \
                         `cert` and `key` in the store's address"
                    .to_owned(),
            },
            Sort::UnknownUser | Sort::SignedOut => StoreError::Denied {
                place,
                cause,
                advice: "`user` and `password_file` in the store's address say who signs in".to_owned(),
            },
            Sort::NoPermission => StoreError::Denied {
                place,
                cause,
                advice: "the user needs a role that may read and write everything under the store's prefix \
                         (`etcdctl role grant-permission ROLE readwrite PREFIX/ --prefix`)"
                    .to_owned(),
            },
            Sort::Full => StoreError::Full { place, cause },
            Sort::Compacted => StoreError::Compacted { oldest: 0 },
            Sort::Away | Sort::NoLease | Sort::Refused => StoreError::Unavailable { place, cause },
        }
    }
}

impl From<etcd_client::Error> for Fault {
    fn from(error: etcd_client::Error) -> Self {
        match &error {
            etcd_client::Error::GRpcStatus(status) => {
                let mut words = status.message().to_owned();
                let mut source = status.source();
                while let Some(inner) = source {
                    let text = inner.to_string();
                    // Many layers repeat what the one below says, or say nothing.
                    if !words.contains(&text) && text != "transport error" {
                        words.push_str(": ");
                        words.push_str(&text);
                    }
                    source = inner.source();
                }
                Self::new(sort(status.code(), &words), plain(&words))
            }
            etcd_client::Error::LeaseKeepAliveError(cause) => Self::new(Sort::NoLease, cause),
            etcd_client::Error::InvalidArgs(cause) => Self::new(Sort::Refused, cause),
            other => Self::new(Sort::Away, other.to_string()),
        }
    }
}

/// What etcd says, by the words of its `rpctypes/error.go` (3.4 to 3.7) and of rustls; the code alone does not tell: 3.4 answers
/// a wrong password by `InvalidArgument`, and a refused certificate is `Unavailable` like any broken connection.
fn sort(code: Code, words: &str) -> Sort {
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if says(&["invalid peer certificate", "InvalidCertificate", "certificate not valid for name"]) {
        Sort::Untrusted
    } else if says(&["received fatal alert"]) {
        Sort::NoCertificate
    } else if says(&["invalid auth token", "revision of auth store is old", "revision in header is old"]) {
        Sort::SignedOut
    } else if says(&["authentication failed", "user name is empty", "user name not found"]) {
        Sort::UnknownUser
    } else if says(&["permission denied"]) {
        Sort::NoPermission
    } else if says(&["database space exceeded", "no space left on device"]) {
        Sort::Full
    } else if says(&["has been compacted", "is a future revision"]) {
        Sort::Compacted
    } else if says(&["requested lease not found"]) {
        Sort::NoLease
    } else if says(&["no leader", "request timed out", "leader changed"]) {
        Sort::NoQuorum
    } else {
        match code {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented => Sort::Refused,
            Code::PermissionDenied => Sort::NoPermission,
            Code::Unauthenticated => Sort::SignedOut,
            _ => Sort::Away,
        }
    }
}

/// The words without the frame that gRPC puts around them.
fn plain(words: &str) -> String {
    let words = words.rsplit_once("desc = ").map_or(words, |(_, inner)| inner);
    words.replace("etcdserver: ", "").replace("transport error: ", "").replace("connection error: ", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_words_are_sorted() {
        for (code, words, expected) in [
            (Code::Unavailable, "etcdserver: no leader", Sort::NoQuorum),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost", Sort::NoQuorum),
            (Code::Unavailable, "error trying to connect: tcp connect error: Connection refused", Sort::Away),
            (Code::Unavailable, "etcdserver: server stopped", Sort::Away),
            (Code::DeadlineExceeded, "context deadline exceeded", Sort::Away),
            (Code::Unknown, "transport error: invalid peer certificate: UnknownIssuer", Sort::Untrusted),
            (Code::Unknown, "transport error: invalid peer certificate: Expired", Sort::Untrusted),
            (Code::Unavailable, "received fatal alert: CertificateRequired", Sort::NoCertificate),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Sort::SignedOut),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", Sort::SignedOut),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Sort::UnknownUser,
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", Sort::UnknownUser),
            (Code::PermissionDenied, "etcdserver: permission denied", Sort::NoPermission),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Sort::Full),
            (Code::ResourceExhausted, "etcdserver: too many requests", Sort::Away),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Sort::Compacted),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", Sort::Compacted),
            (Code::NotFound, "etcdserver: requested lease not found", Sort::NoLease),
            (Code::InvalidArgument, "etcdserver: request is too large", Sort::Refused),
        ] {
            assert_eq!(sort(code, words), expected, "{code:?} {words}");
        }
    }

    #[test]
    fn a_fault_is_told_in_etcds_words_without_their_frame() {
        let fault = Fault::said("rpc error: code = PermissionDenied desc = etcdserver: permission denied");
        assert_eq!(fault, Fault::new(Sort::NoPermission, "permission denied"));
        let text = fault.into_error("etcd:http://a:1").to_string();
        assert!(text.starts_with("etcd:http://a:1 lets this client not do that (permission denied): "), "{text}");
    }
}
