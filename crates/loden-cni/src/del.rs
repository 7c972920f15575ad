//! DEL: works with nothing but the names: no prevResult, no namespace, another configuration, the agent down, twice.

use loden_core::cni::CniError;
use loden_linux::veth;

use crate::{Call, failed, fault};

/// Answers DEL. The link goes first: an address is free only when nothing has it any more.
pub fn run(call: &Call) -> Result<(), CniError> {
    let key = call.key()?;
    fault::point("del-begun");
    veth::park(&key).map_err(|error| failed(format!("{key} cannot be detached"), &error))?;
    fault::point("del-parked");
    let freed = call.ledger().release(&key);
    freed.map_err(|error| failed(format!("the addresses of {key} cannot be freed"), &error))?;
    fault::point("del-freed");
    Ok(())
}
