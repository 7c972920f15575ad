//! GC: detaches everything of this network that the runtime does not list, and what killed ADDs left.

use loden_core::attach;
use loden_core::cni::{CniError, Code};
use loden_linux::veth;

use crate::{Call, key_of};

/// Answers GC. Goes on after an error and reports all. A runtime that gave no list has not said that nothing is valid.
pub fn run(call: &Call) -> Result<(), CniError> {
    let network = call.network()?;
    let ledger = call.ledger();
    let mut errors: Vec<String> = ledger.sweep().err().map(|error| error.to_string()).into_iter().collect();
    if let Some(valid) = &call.conf.valid {
        let found = call.run_dir().attachments();
        for attachment in found.good.iter().filter(|a| a.key.network == network && a.complete) {
            let key = &attachment.key;
            if valid.iter().any(|(container, ifname)| *key == key_of(network, container, *ifname)) {
                continue;
            }
            let gone = veth::park(attach::host_side(key)).and_then(|()| ledger.release(key));
            errors.extend(gone.err().map(|error| format!("{key}: {error}")));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::Internal, "not everything could be collected").with(errors.join("; ")))
}
