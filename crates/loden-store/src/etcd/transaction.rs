//! A write is one transaction that says which revision it replaces: no write stands half, and one that a member was sent and does
//! late, when it has been repeated elsewhere long since, does nothing.

use etcd_client::{Compare, CompareOp, DeleteOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::fault::{Fault, Sort};
use super::layout::signed;

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
    /// The key was not of the revision that was to be replaced; what is there instead.
    Unexpected(Option<KeyValue>),
}

/// Puts a value in the place of what a revision wrote (0: of nothing), bound to an etcd lease (0: to none).
pub fn put(place: &str, value: &[u8], lease: i64, revision: u64) -> Txn {
    let put = TxnOp::put(place, value, Some(PutOptions::new().with_lease(lease).with_prev_key()));
    Txn::new().when([is_of(place, revision)]).and_then([put]).or_else([TxnOp::get(place, None)])
}

/// Removes what a revision wrote.
pub fn delete(place: &str, revision: u64) -> Txn {
    let remove = TxnOp::delete(place, Some(DeleteOptions::new().with_prev_key()));
    Txn::new().when([is_of(place, revision)]).and_then([remove]).or_else([TxnOp::get(place, None)])
}

fn is_of(place: &str, revision: u64) -> Compare {
    // What is not there is of revision 0.
    Compare::mod_revision(place, CompareOp::Equal, signed(revision))
}

/// What became of such a transaction.
///
/// # Errors
/// [`Sort::Refused`] when the answer is not that of one.
pub fn outcome(answer: &TxnResponse) -> Result<Outcome, Fault> {
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    match answer.op_responses().pop() {
        Some(TxnOpResponse::Put(mut put)) => Ok(Outcome::Written { revision, former: put.take_prev_key() }),
        Some(TxnOpResponse::Delete(mut delete)) => {
            Ok(Outcome::Written { revision, former: delete.take_prev_kvs().pop() })
        }
        Some(TxnOpResponse::Get(mut get)) => Ok(Outcome::Unexpected(get.take_kvs().pop())),
        Some(TxnOpResponse::Txn(_)) | None => {
            Err(Fault::new(Sort::Refused, "the answer is not that of the transaction that was asked for"))
        }
    }
}
