//! STATUS: whether an ADD could be served now. Runtimes ask every few seconds, so it reads two small files.

use loden_core::cni::{CniError, Code};
use loden_linux::ledger::ReserveError;

use crate::{Call, failed};

/// Answers STATUS.
pub fn run(call: &Call) -> Result<(), CniError> {
    let node = call.node(Code::NotAvailable)?;
    match call.ledger().has_room(&node, call.conf.quarantine) {
        Ok(()) => Ok(()),
        Err(ReserveError::Files(error)) => Err(failed("the addresses cannot be looked at", &error)),
        Err(error) => Err(CniError::new(Code::NotAvailable, "no address is free").with(error.to_string())),
    }
}
