//! A write is one transaction, and what it answers says all that there is to know: no write stands half, and none is made on
//! what was read before.

use etcd_client::{Compare, CompareOp, DeleteOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::fault::{Fault, Sort};
use super::layout::signed;
use crate::Expect;

/// What became of a write.
#[derive(Debug)]
pub enum Outcome {
    /// It was written (or removed).
    Written {
        /// The revision that did it.
        revision: i64,
        /// What was there before.
        former: Option<KeyValue>,
    },
    /// It is there already.
    Unchanged(KeyValue),
    /// What was expected is not so; what is there instead.
    Unexpected(Option<KeyValue>),
}

/// Puts a value, bound to an etcd lease (0: to none), if what was expected is so and it is not there already.
pub fn put(place: &str, value: &[u8], lease: i64, expect: Expect) -> Txn {
    // A key that is not there has no value, not even an empty one.
    let is_there = [Compare::value(place, CompareOp::Equal, value), Compare::lease(place, CompareOp::Equal, lease)];
    let write = TxnOp::put(place, value, Some(PutOptions::new().with_lease(lease).with_prev_key()));
    let unless_there = Txn::new().when(is_there).and_then([TxnOp::get(place, None)]).or_else([write]);
    Txn::new().when(expected(place, expect)).and_then([TxnOp::txn(unless_there)]).or_else([TxnOp::get(place, None)])
}

/// Removes a key if what was expected is so.
pub fn delete(place: &str, expect: Expect) -> Txn {
    let remove = TxnOp::delete(place, Some(DeleteOptions::new().with_prev_key()));
    Txn::new().when(expected(place, expect)).and_then([remove]).or_else([TxnOp::get(place, None)])
}

fn expected(place: &str, expect: Expect) -> Vec<Compare> {
    match expect {
        Expect::Any => Vec::new(),
        Expect::Absent => vec![Compare::version(place, CompareOp::Equal, 0)],
        Expect::Revision(revision) => vec![Compare::mod_revision(place, CompareOp::Equal, signed(revision))],
    }
}

/// What became of a [`put`] or [`delete`].
///
/// # Errors
/// [`Sort::Refused`] when the answer is not that of such a transaction.
pub fn outcome(answer: &TxnResponse) -> Result<Outcome, Fault> {
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    let found = |mut kvs: Vec<KeyValue>| kvs.pop();
    let odd = || Fault::new(Sort::Refused, "the answer is not that of the transaction that was asked for");
    match (answer.succeeded(), answer.op_responses().pop().ok_or_else(odd)?) {
        (false, TxnOpResponse::Get(mut get)) => Ok(Outcome::Unexpected(found(get.take_kvs()))),
        (true, TxnOpResponse::Delete(mut delete)) => {
            Ok(Outcome::Written { revision, former: found(delete.take_prev_kvs()) })
        }
        (true, TxnOpResponse::Txn(inner)) => match inner.op_responses().pop().ok_or_else(odd)? {
            TxnOpResponse::Get(mut get) => found(get.take_kvs()).map(Outcome::Unchanged).ok_or_else(odd),
            TxnOpResponse::Put(mut put) => Ok(Outcome::Written { revision, former: put.take_prev_key() }),
            TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => Err(odd()),
        },
        _ => Err(odd()),
    }
}
