//! In the place of `loopback`: the pod's `lo` is set up.

use std::path::Path;

use loden_core::cni::{CniError, Code, Success};
use loden_linux::netns::NetNs;
use loden_linux::pod;
use serde_json::Value;

use crate::{Call, failed};

/// Answers ADD.
pub fn add(call: &Call) -> Result<Value, CniError> {
    let path = call.environment.netns.clone().unwrap_or_default();
    let netns = open(&path)?;
    pod::set_up_loopback(&netns).map_err(|error| failed("the loopback interface cannot be set up", &error))?;
    if let Some(passed_on) = &call.conf.passed_on {
        return Ok(passed_on.clone());
    }
    Ok(Success::of_loopback(&path).to_json(call.conf.version))
}

/// Answers CHECK.
pub fn check(call: &Call) -> Result<(), CniError> {
    let netns = open(call.environment.netns.as_deref().unwrap_or_default())?;
    match pod::is_loopback_up(&netns) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CniError::new(Code::CheckFailed, "the pod's loopback interface is down")),
        Err(error) => Err(failed("the pod's loopback interface cannot be looked at", &error)),
    }
}

fn open(path: &str) -> Result<NetNs, CniError> {
    NetNs::open(Path::new(path))
        .map_err(|error| CniError::new(Code::InvalidNetns, format!("CNI_NETNS {path:?}: {error}")))
}
