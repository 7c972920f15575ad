//! CHECK: everything that ADD made is looked at; each fault is named.

use loden_core::attach;
use loden_core::cni::{CniError, Code};
use loden_linux::{pod, pod_tables};

use crate::{Call, delegate, failed, lease};

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
    let path = call.environment.netns.clone().unwrap_or_default();
    // A node that is not ready says nothing of its MTU.
    let mtu_node = call.node(Code::CheckFailed).ok().map(|node| node.mtu_pod);
    let looked = pod::check(&attachment, &path, mtu_node);
    faults.extend(looked.map_err(|error| failed(format!("the attachment {key} cannot be looked at"), &error))?);
    let elements = pod_tables::missing(&attachment);
    faults.extend(elements.map_err(|error| failed(format!("the tables cannot be looked at for {key}"), &error))?);
    faults.extend(lease::check(call, &attachment));
    if faults.is_empty() {
        return delegate::check(call, &attachment);
    }
    Err(CniError::new(Code::CheckFailed, format!("attachment {key} is not as ADD made it")).with(faults.join("; ")))
}
