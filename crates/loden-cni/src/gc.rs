//! GC: detaches everything of this network that the runtime does not list, and what killed ADDs left.

use loden_core::cni::{CniError, Code};
use loden_core::model::AttachmentKey;
use loden_linux::ledger::Ledger;
use loden_linux::run_dir::RunDir;
use loden_linux::{LinuxError, fault, pod};

use crate::{Call, delegate, failed, lease};

/// Answers GC. Goes on after an error and reports all. A runtime that gave no list has not said that nothing is valid.
pub fn run(call: &Call) -> Result<(), CniError> {
    let network = call.network()?;
    let ledger = call.ledger();
    let mut errors = Vec::new();
    if let Some(valid) = &call.conf.valid {
        let keys = call.run_dir().keys(network).map_err(|error| failed("attachments cannot be listed", &error))?;
        let is_valid = |container: &str, ifname: Option<&str>| {
            valid.iter().any(|(id, name)| id == container && ifname.is_none_or(|ifname| ifname == name.as_str()))
        };
        let former = call.host_local().and_then(|former| former.collect(network, is_valid).err());
        errors.extend(former.map(|error| error.to_string()));
        for key in keys.iter().filter(|key| !valid.contains(&(key.container.clone(), key.ifname))) {
            let collected = collect(&call.run_dir(), &ledger, key);
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

/// Detaches an attachment and frees what it has, unless its ADD is under way or was killed: of that the sweep knows.
pub fn collect(run_dir: &RunDir, ledger: &Ledger, key: &AttachmentKey) -> Result<(), LinuxError> {
    let there = match run_dir.attachment(key) {
        Ok(Some(there)) if !there.complete => return Ok(()),
        Ok(there) => there,
        // One that cannot be read is as unwanted as one that can.
        Err(LinuxError::File { .. }) => None,
        Err(error) => return Err(error),
    };
    lease::release(run_dir, there.as_ref());
    pod::detach(key, there.as_ref())?;
    fault::point("gc-detached");
    ledger.release(key)
}
