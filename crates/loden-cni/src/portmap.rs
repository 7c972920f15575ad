//! In the place of `portmap`: ports of the host that lead to a pod which is attached already.

use loden_core::cni::{CniError, Code, Success};
use loden_core::model::{Attach, Attachment, IfName, Mac, PodAddress};
use loden_linux::ledger::Part;
use serde_json::Value;

use crate::add::refused;
use crate::{Call, failed};

/// Answers ADD.
pub fn add(call: &Call) -> Result<Value, CniError> {
    let missing =
        || CniError::new(Code::InvalidConfig, "`prevResult` is missing: portmap stands behind another plugin");
    let previous = call.conf.previous.as_ref().ok_or_else(missing)?;
    let passed_on = call.conf.passed_on.clone().ok_or_else(missing)?;
    let make = call.make()?;
    if !make.ports.is_empty() {
        let attachment = Attachment { ports: make.ports.clone(), ..foreign(call, previous)? };
        call.ledger().open_ports(attachment).map_err(refused)?;
    }
    Ok(passed_on)
}

/// What is known of a pod that another plugin attached.
fn foreign(call: &Call, previous: &Success) -> Result<Attachment, CniError> {
    let on_host = previous.interfaces.iter().find(|interface| interface.sandbox.is_none());
    let in_pod = previous.interfaces.iter().find(|interface| interface.sandbox.is_some());
    let address = |ip: &loden_core::cni::IpConfig| PodAddress { net: ip.address, gateway: ip.gateway, supply: None };
    Ok(Attachment {
        key: call.key()?,
        complete: false,
        addresses: previous.ips.iter().map(address).collect(),
        routes: Vec::new(),
        host_side: None,
        attach: Attach::Foreign { host_device: on_host.and_then(|interface| IfName::new(&interface.name).ok()) },
        mac: in_pod.and_then(|interface| interface.mac).unwrap_or(Mac([0; 6])),
        mtu: 0,
        mtu_is_asked: true,
        is_down: false,
        ports: Vec::new(),
        masquerade: false,
        netns: call.environment.netns.clone().unwrap_or_default(),
        pod: call.environment.pod(),
        delegates: Vec::new(),
    })
}

/// Answers CHECK.
pub fn check(call: &Call) -> Result<(), CniError> {
    let key = call.key()?;
    let wrong =
        call.ledger().missing_elements(&key).map_err(|error| failed("the ports cannot be looked at", &error))?;
    if wrong.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::CheckFailed, format!("ports of {key} lead nowhere")).with(wrong.join(", ")))
}

/// Answers DEL.
pub fn del(call: &Call) -> Result<(), CniError> {
    let key = call.key()?;
    let closed = call.ledger().release_part(&key, Part::Ports);
    closed.map_err(|error| failed(format!("the ports of {key} cannot be closed"), &error))
}
