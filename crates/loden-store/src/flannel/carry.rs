//! A plan becomes one transaction of etcd's.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse};
use loden_core::dialect::flannel::layout::RawChange;

use super::pair;
use super::plan::{Bound, Plan};
use crate::etcd::fault::{Fault, Sort};
use crate::etcd::layout::{signed, unsigned};
use crate::etcd::members::Members;
use crate::etcd::tenure;

/// What became of a plan.
pub(super) enum Carried {
    /// It was carried out, by this revision and with this lease (0: none).
    Out { revision: i64, lease: i64 },
    /// What it was made from is no longer so.
    NotOut {
        /// Whether it may have been carried out before, without an answer.
        was_repeated: bool,
        /// What is so instead; `None`: it has to be read.
        found: Option<Vec<RawChange>>,
    },
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
            return Ok(Carried::NotOut { was_repeated: false, found: None });
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
            let found = found(prefix, plan, &answer.value);
            Ok(Carried::NotOut { was_repeated: answer.was_repeated, found: Some(found) })
        }
        Err(fault) if fault.sort == Sort::NoLease => {
            tenure::give_back(members, lease).await;
            Ok(Carried::NotOut { was_repeated: false, found: None })
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
    let look = |key: &String| TxnOp::get(full(key), None);
    let look_below = |key: &String| TxnOp::get(full(key), Some(GetOptions::new().with_prefix()));
    let looks: Vec<TxnOp> = plan.same.keys().map(look).chain(plan.free.iter().map(look_below)).collect();
    Txn::new().when(compares).and_then(operations).or_else(looks)
}

/// What is so in the place of what a plan was made from.
fn found(prefix: &str, plan: &Plan, answer: &TxnResponse) -> Vec<RawChange> {
    let revision = unsigned(answer.header().map_or(0, ResponseHeader::revision));
    let root = format!("{prefix}/");
    let mut found = Vec::new();
    for (response, key) in answer.op_responses().iter().zip(plan.same.keys().map(Some).chain([None])) {
        let TxnOpResponse::Get(get) = response else { continue };
        found.extend(get.kvs().iter().map(|kv| RawChange::Put(pair(&root, kv))));
        if let (Some(key), true) = (key, get.kvs().is_empty()) {
            found.push(RawChange::Delete { key: key.clone(), revision });
        }
    }
    found
}

/// The lease of etcd's that something is bound to (0: none), where `anew` is the one that was granted.
pub(super) fn lease_of(bound: Bound, anew: i64) -> i64 {
    match bound {
        Bound::ForEver => 0,
        Bound::To(lease) => lease,
        Bound::Anew => anew,
    }
}
