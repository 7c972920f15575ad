//! For how long a record stays: the etcd lease that it is bound to.
//!
//! Each record has a lease of its own. It is kept for as long as the record has the same time to live, so that renewing writes
//! nothing; one that is no longer needed is given back and not left to run out.

use std::time::Duration;

use etcd_client::KeyValue;

use super::fault::{Fault, Sort};
use super::members::Members;

/// What a record is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    /// The lease; 0: none, it stays.
    pub lease: i64,
    /// Whether it was granted for this write alone.
    pub is_new: bool,
}

impl Tenure {
    /// For ever.
    pub const FOR_EVER: Self = Self { lease: 0, is_new: false };

    /// A lease for a record with a time to live (etcd counts seconds and grants no less than its elections take): the one that the
    /// record has, renewed, if it is of the same length; else a new one.
    pub async fn renewed(members: &Members, found: Option<&KeyValue>, ttl: Duration) -> Result<Self, Fault> {
        let former = found.map_or(0, KeyValue::lease);
        let held = match former {
            0 => None,
            lease => length(members, lease).await?,
        };
        if held == Some(seconds(ttl)) && renew(members, former).await? {
            return Ok(Self { lease: former, is_new: false });
        }
        let (lease, granted) = grant(members, ttl).await?;
        if held == Some(granted) && renew(members, former).await? {
            give_back(members, lease).await;
            return Ok(Self { lease: former, is_new: false });
        }
        Ok(Self { lease, is_new: true })
    }
}

/// The time to live in whole seconds, rounded up.
fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1)
}

/// A new lease, and the seconds that etcd granted.
pub async fn grant(members: &Members, ttl: Duration) -> Result<(i64, i64), Fault> {
    let ttl = seconds(ttl);
    let granted = members.call(|client| async move { Ok(client.lease_client().grant(ttl, None).await?) }).await?;
    Ok((granted.value.id(), granted.value.ttl()))
}

/// For how many seconds a lease was granted; `None`: it has run out.
async fn length(members: &Members, lease: i64) -> Result<Option<i64>, Fault> {
    let left = members.call(|client| async move { Ok(client.lease_client().time_to_live(lease, None).await?) }).await;
    match left {
        // Seconds are cut: 0 is less than one, and -1 none.
        Ok(left) => Ok((left.value.ttl() >= 0).then(|| left.value.granted_ttl())),
        Err(fault) if fault.sort == Sort::NoLease => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Lets a lease begin anew. `false`: it has run out.
pub async fn renew(members: &Members, lease: i64) -> Result<bool, Fault> {
    let renewed = members
        .call(|client| async move { client.lease_client().keep_alive(lease).await.map(drop).map_err(Fault::from) });
    match renewed.await {
        Ok(_) => Ok(true),
        Err(fault) if fault.sort == Sort::NoLease => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Gives a lease back (if there is one: not 0) that nothing is bound to any more. If that fails, it runs out by itself.
pub async fn give_back(members: &Members, lease: i64) {
    if lease == 0 {
        return;
    }
    let revoked = members.call(|client| async move { Ok(client.lease_client().revoke(lease).await?) }).await;
    drop(revoked);
}
