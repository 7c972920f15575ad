//! STATUS: whether an ADD could be served now. Runtimes ask every few seconds, so it reads two small files.

use loden_core::cni::{self, CniError, Code};
use loden_linux::ledger::ReserveError;

use crate::{Call, delegate, failed};

/// Answers STATUS.
pub fn run(call: &Call) -> Result<(), CniError> {
    delegate::tell_ipam(call, "STATUS")?;
    let make = call.make()?;
    let node = if make.needs_node() { Some(call.node(Code::NotAvailable)?) } else { None };
    let demand = cni::demand(call.network()?, make, node.as_ref())
        .map_err(|error| CniError { code: Code::NotAvailable, ..error })?;
    match call.ledger().has_room(&demand, call.conf.quarantine) {
        Ok(()) => Ok(()),
        Err(ReserveError::Files(error)) => Err(failed("the addresses cannot be looked at", &error)),
        Err(error) => Err(CniError::new(Code::NotAvailable, "no address is free").with(error.to_string())),
    }
}
