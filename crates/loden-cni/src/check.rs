//! CHECK: everything that ADD made is looked at; each fault is named.

use std::path::Path;

use loden_core::attach;
use loden_core::cni::{CniError, Code};
use loden_linux::netns::NetNs;
use loden_linux::veth;

use crate::{Call, failed};

/// Answers CHECK.
pub fn run(call: &Call) -> Result<(), CniError> {
    let key = call.key()?;
    let Some(previous) = &call.conf.previous else {
        return Err(CniError::new(Code::InvalidConfig, "CHECK needs the prevResult of the ADD"));
    };
    let attachment = call
        .run_dir()
        .attachment(&key)
        .map_err(|error| failed(format!("the attachment {key} cannot be read"), &error))?
        .ok_or_else(|| CniError::new(Code::CheckFailed, format!("there is no attachment {key}")))?;
    let mut faults = Vec::new();
    if !attachment.complete {
        faults.push("its ADD never came to its end".to_owned());
    }
    for net in attach::pod_nets(&attachment) {
        if !previous.ips.iter().any(|ip| ip.address == net) {
            faults.push(format!("address {net} is reserved for it but is not in prevResult"));
        }
    }
    let looked = veth::check_host(&attachment);
    faults.extend(looked.map_err(|error| failed("the host's side cannot be looked at", &error))?);
    let path = call.environment.netns.clone().unwrap_or_default();
    match NetNs::open(Path::new(&path)) {
        Ok(netns) => {
            let looked = veth::check_pod(&attachment, &attach::routes(&attachment), &netns);
            faults.extend(looked.map_err(|error| failed("the pod's side cannot be looked at", &error))?);
        }
        Err(error) => faults.push(format!("the pod has gone: {error}")),
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::CheckFailed, format!("attachment {key} is not as ADD made it")).with(faults.join("; ")))
}
