//! A plan becomes one transaction of etcd's.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, ResponseHeader, Txn, TxnOp};

use super::plan::{Bound, Plan};
use crate::etcd::fault::{Fault, Sort};
use crate::etcd::layout::signed;
use crate::etcd::members::Members;
use crate::etcd::tenure;

/// What became of a plan.
pub(super) enum Carried {
    /// It was carried out, by this revision and with this lease (0: none).
    Out { revision: i64, lease: i64 },
    /// What it was made from is no longer so.
    NotOut { was_repeated: bool },
}

/// Carries a plan out in one transaction.
pub(super) async fn carry_out(
    members: &Members,
    prefix: &str,
    plan: &Plan,
    ttl: Option<Duration>,
) -> Result<Carried, Fault> {
    let lease = match (plan.bound, ttl) {
        (Bound::Anew, Some(ttl)) => tenure::grant(members, ttl).await?.0,
        (Bound::To(lease), Some(_)) if !tenure::renew(members, lease).await? => {
            // What hangs on it goes with it.
            return Ok(Carried::NotOut { was_repeated: false });
        }
        (Bound::To(_) | Bound::ForEver | Bound::Anew, _) => 0,
    };
    let transaction = transaction(prefix, plan, lease);
    let answer = members.call(|client| {
        let transaction = transaction.clone();
        async move { Ok(client.kv_client().txn(transaction).await?) }
    });
    match answer.await {
        Ok(answer) if answer.value.succeeded() => {
            let revision = answer.value.header().map_or(0, ResponseHeader::revision);
            Ok(Carried::Out { revision, lease })
        }
        Ok(answer) => {
            // If it was carried out without an answer, the lease is in use.
            if !answer.was_repeated {
                tenure::give_back(members, lease).await;
            }
            Ok(Carried::NotOut { was_repeated: answer.was_repeated })
        }
        Err(fault) if fault.sort == Sort::NoLease => {
            tenure::give_back(members, lease).await;
            Ok(Carried::NotOut { was_repeated: false })
        }
        Err(fault) => Err(fault),
    }
}

fn transaction(prefix: &str, plan: &Plan, lease: i64) -> Txn {
    let full = |key: &String| format!("{prefix}/{key}");
    let is_same =
        |(key, revision): (&String, &u64)| Compare::mod_revision(full(key), CompareOp::Equal, signed(*revision));
    let is_free = |key: &String| Compare::version(full(key), CompareOp::Equal, 0).with_prefix();
    let compares: Vec<Compare> = plan.same.iter().map(is_same).chain(plan.free.iter().map(is_free)).collect();
    let put = |(key, (value, bound)): (&String, &(Vec<u8>, Bound))| {
        let options = PutOptions::new().with_lease(lease_of(*bound, lease));
        TxnOp::put(full(key), value.clone(), Some(options))
    };
    let delete = |key: &String| TxnOp::delete(full(key), None);
    let operations: Vec<TxnOp> = plan.puts.iter().map(put).chain(plan.deletes.iter().map(delete)).collect();
    Txn::new().when(compares).and_then(operations)
}

/// The lease of etcd's that something is bound to (0: none), where `anew` is the one that was granted.
pub(super) fn lease_of(bound: Bound, anew: i64) -> i64 {
    match bound {
        Bound::ForEver => 0,
        Bound::To(lease) => lease,
        Bound::Anew => anew,
    }
}
