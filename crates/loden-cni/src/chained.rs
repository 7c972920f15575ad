//! In the place of `portmap`, `bandwidth` and `tuning`: each gives a pod that is attached already, by this plugin or by another, a part
//! of its own, and takes it away.

use loden_core::cni::{self, CniError, Code, Success};
use loden_core::model::{Attachment, Part};
use loden_linux::ledger::ReserveError;
use loden_linux::shape;
use serde_json::Value;

use crate::add::{allow_list, open_netns, refused};
use crate::{Call, failed};

/// Answers ADD.
pub fn add(call: &Call, part: Part) -> Result<Value, CniError> {
    let missing =
        || CniError::new(Code::InvalidConfig, "`prevResult` is missing: this plugin stands behind another one");
    let previous = call.conf.previous.as_ref().ok_or_else(missing)?;
    let passed_on = call.conf.passed_on.clone().ok_or_else(missing)?;
    let mut wanted = wanted(call, part, previous)?;
    if !wanted.has(part) {
        return Ok(passed_on);
    }
    if part != Part::Ports {
        let netns = open_netns(call, &wanted.netns)?;
        let wire = shape::wire(&netns, wanted.key.ifname, &cni::host_links(previous));
        let wire = wire.map_err(|error| failed(format!("the {part} of {} cannot be set", wanted.key), &error))?;
        (wanted.host_side, wanted.mtu) = (wire.host_side, wire.mtu);
    }
    call.ledger().amend(&wanted, part).map_err(|error| refused_part(error, part))?;
    Ok(cni::passed_on(passed_on, wanted.key.ifname, &wanted.tuning))
}

fn refused_part(error: ReserveError, part: Part) -> CniError {
    match error {
        ReserveError::Files(error) => failed(format!("the pod's {part} cannot be set"), &error),
        other => refused(other),
    }
}

/// What the call asks for, on what is known of the pod.
fn wanted(call: &Call, part: Part, previous: &Success) -> Result<Attachment, CniError> {
    let make = call.make()?;
    let mut wanted = cni::foreign(call.key()?, previous, &call.environment);
    match part {
        Part::Addresses => {}
        Part::Ports => wanted.ports.clone_from(&make.ports),
        Part::Bandwidth => wanted.bandwidth = make.bandwidth,
        Part::Tuning => {
            let allowed = allow_list(make)?;
            wanted.tuning = cni::tuning(make, &call.environment, wanted.key.ifname, allowed.as_deref())?;
        }
    }
    Ok(wanted)
}

/// Answers CHECK.
pub fn check(call: &Call, part: Part) -> Result<(), CniError> {
    let key = call.key()?;
    let fail = |error| failed(format!("the {part} of {key} cannot be looked at"), &error);
    let there = call.run_dir().attachment(&key).map_err(fail)?;
    let is_asked = wanted(call, part, &call.conf.previous.clone().unwrap_or_default())?.has(part);
    let wrong = if is_asked && !there.is_some_and(|there| there.has(part)) {
        vec!["nothing of it is written down: its ADD never came to its end, or it was taken away".to_owned()]
    } else {
        call.ledger().missing(&key, part).map_err(fail)?
    };
    if wrong.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::CheckFailed, format!("{part} of {key}: not as ADD made it")).with(wrong.join("; ")))
}

/// Answers DEL.
pub fn del(call: &Call, part: Part) -> Result<(), CniError> {
    let key = call.key()?;
    let given_back = call.ledger().release_part(&key, part);
    given_back.map_err(|error| failed(format!("the {part} of {key} cannot be taken away"), &error))
}
