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

/// Puts a value, bound to an etcd lease (0: to none), if what was expected is so and it is not there already. A value that is there
/// at the expected revision is [`Outcome::Unexpected`], whatever it is bound to: [`bind`] binds it.
///
/// No transaction holds another one: etcd does not count what an inner one writes, so that it would be written beyond the quota.
pub fn put(place: &str, value: &[u8], lease: i64, expect: Expect) -> Txn {
    let (put, get) = (write(place, value, lease), TxnOp::get(place, None));
    let mut compares = expected(place, expect);
    match expect {
        Expect::Any => {
            // A key that is not there has no value, not even an empty one.
            compares.push(Compare::value(place, CompareOp::Equal, value));
            compares.push(Compare::lease(place, CompareOp::Equal, lease));
            Txn::new().when(compares).and_then([get]).or_else([put])
        }
        Expect::Absent => Txn::new().when(compares).and_then([put]).or_else([get]),
        Expect::Revision(_) => {
            compares.push(Compare::value(place, CompareOp::NotEqual, value));
            Txn::new().when(compares).and_then([put]).or_else([get])
        }
    }
}

/// Binds the value that is there at a revision to another lease.
pub fn bind(place: &str, value: &[u8], lease: i64, revision: u64) -> Txn {
    let compares = expected(place, Expect::Revision(revision));
    Txn::new().when(compares).and_then([write(place, value, lease)]).or_else([TxnOp::get(place, None)])
}

/// Removes a key if what was expected is so.
pub fn delete(place: &str, expect: Expect) -> Txn {
    let remove = TxnOp::delete(place, Some(DeleteOptions::new().with_prev_key()));
    Txn::new().when(expected(place, expect)).and_then([remove]).or_else([TxnOp::get(place, None)])
}

fn write(place: &str, value: &[u8], lease: i64) -> TxnOp {
    TxnOp::put(place, value, Some(PutOptions::new().with_lease(lease).with_prev_key()))
}

fn expected(place: &str, expect: Expect) -> Vec<Compare> {
    match expect {
        Expect::Any => Vec::new(),
        Expect::Absent => vec![Compare::version(place, CompareOp::Equal, 0)],
        Expect::Revision(revision) => vec![Compare::mod_revision(place, CompareOp::Equal, signed(revision))],
    }
}

/// What became of such a transaction.
///
/// # Errors
/// [`Sort::Refused`] when the answer is not that of one.
pub fn outcome(answer: &TxnResponse) -> Result<Outcome, Fault> {
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    let odd = || Fault::new(Sort::Refused, "the answer is not that of the transaction that was asked for");
    match (answer.succeeded(), answer.op_responses().pop()) {
        (_, Some(TxnOpResponse::Put(mut put))) => Ok(Outcome::Written { revision, former: put.take_prev_key() }),
        (_, Some(TxnOpResponse::Delete(mut delete))) => {
            Ok(Outcome::Written { revision, former: delete.take_prev_kvs().pop() })
        }
        (true, Some(TxnOpResponse::Get(mut get))) => get.take_kvs().pop().map(Outcome::Unchanged).ok_or_else(odd),
        (false, Some(TxnOpResponse::Get(mut get))) => Ok(Outcome::Unexpected(get.take_kvs().pop())),
        (_, Some(TxnOpResponse::Txn(_)) | None) => Err(odd()),
    }
}
