//! GC: detaches everything of this network that the runtime does not list, and what killed ADDs left.

use loden_core::cni::{CniError, Code};
use loden_linux::{LinuxError, pod};

use crate::{Call, delegate, failed};

/// Answers GC. Goes on after an error and reports all. A runtime that gave no list has not said that nothing is valid.
pub fn run(call: &Call) -> Result<(), CniError> {
    let network = call.network()?;
    let ledger = call.ledger();
    let mut errors = Vec::new();
    if let Some(valid) = &call.conf.valid {
        let keys = call.run_dir().keys(network).map_err(|error| failed("attachments cannot be listed", &error))?;
        for key in keys.iter().filter(|key| !valid.contains(&(key.container.clone(), key.ifname))) {
            let collected = match call.run_dir().attachment(key) {
                // Its ADD is under way, or was killed: the sweep knows.
                Ok(Some(there)) if !there.complete => continue,
                Ok(there) => pod::detach(key, there.as_ref()).and_then(|()| ledger.release(key)),
                // One that cannot be read is as unwanted as one that can.
                Err(LinuxError::File { .. }) => pod::detach(key, None).and_then(|()| ledger.release(key)),
                Err(error) => Err(error),
            };
            errors.extend(collected.err().map(|error| format!("{key}: {error}")));
        }
    }
    errors.extend(delegate::tell_ipam(call, "GC").err().map(|error| error.to_string()));
    errors.extend(ledger.sweep().err().map(|error| error.to_string()));
    if errors.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::Internal, "not everything could be collected").with(errors.join("; ")))
}
