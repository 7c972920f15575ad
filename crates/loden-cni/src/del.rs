//! DEL: works with nothing but the names: no prevResult, no namespace, another configuration, the agent down, twice.

use loden_core::cni::CniError;
use loden_linux::{LinuxError, agent, fault, pod, veth};

use crate::{Call, delegate, failed, lease};

/// Answers DEL. The link goes first: an address is free only when nothing has it any more.
pub fn run(call: &Call) -> Result<(), CniError> {
    let key = call.key()?;
    fault::point("del-begun");
    let there = match call.run_dir().attachment(&key) {
        // What cannot be read must not keep a pod from going.
        Err(LinuxError::File { .. }) => Ok(None),
        read => read,
    };
    let there = there.map_err(|error| failed(format!("the attachment {key} cannot be read"), &error))?;
    lease::release(&call.run_dir(), there.as_ref());
    fault::point("del-leased");
    pod::detach(&key, there.as_ref()).map_err(|error| failed(format!("{key} cannot be detached"), &error))?;
    fault::point("del-parked");
    if there.is_none() {
        delegate::forget_unknown(call)?;
    }
    delegate::forget_former(call, &key)?;
    let freed = call.ledger().release(&key);
    freed.map_err(|error| failed(format!("the addresses of {key} cannot be freed"), &error))?;
    fault::point("del-freed");
    if !agent::listens(&call.run_dir().agent_socket()) {
        // Nobody else would delete what is parked.
        veth::reap().map_err(|error| failed("the parked interface cannot be deleted", &error))?;
    }
    Ok(())
}
