//! In the place of an IPAM plugin: addresses for an interface that another plugin makes.

use loden_core::cni::{self, CniError, Code, HostFacts, Success};
use loden_core::model::Part;
use loden_linux::fault;
use serde_json::Value;

use crate::add::refused;
use crate::{Call, failed};

/// Answers ADD.
pub fn add(call: &Call) -> Result<Value, CniError> {
    call.environment.check_args()?;
    let (make, dns) = (call.make()?, call.dns()?);
    let draft = cni::draft(call.key()?, make, &call.environment, &HostFacts::default())?;
    let ledger = call.ledger();
    let mut reservation = ledger.reserve(&draft, call.conf.quarantine).map_err(refused)?;
    fault::point("add-reserved");
    ledger.complete(&mut reservation).map_err(refused)?;
    Ok(Success::of_addresses(&reservation.attachment, dns).to_json(call.conf.version))
}

/// Answers CHECK.
pub fn check(call: &Call) -> Result<(), CniError> {
    let key = call.key()?;
    let there = call.run_dir().attachment(&key);
    let there = there.map_err(|error| failed(format!("the reservation of {key} cannot be read"), &error))?;
    match there.filter(|there| !there.addresses.is_empty()) {
        Some(_) => Ok(()),
        None => Err(CniError::new(Code::CheckFailed, format!("no address is reserved for {key}"))),
    }
}

/// Answers DEL.
pub fn del(call: &Call) -> Result<(), CniError> {
    let key = call.key()?;
    let former = call.host_local().map_or(Ok(()), |former| former.release(&key));
    former.map_err(|error| failed(format!("what host-local gave {key} cannot be freed"), &error))?;
    let freed = call.ledger().release_part(&key, Part::Addresses);
    freed.map_err(|error| failed(format!("the addresses of {key} cannot be freed"), &error))
}
