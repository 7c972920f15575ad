//! Parts of the work that the configuration gives to another plugin.

use std::path::{Path, PathBuf};

use loden_core::cni::{CniError, Code, IpamSource, MakeConf, Success};
use loden_core::model::{Attachment, AttachmentKey, Delegate};
use loden_linux::delegate::{self, PATIENCE, PATIENCE_STATUS, Subject};
use loden_linux::ledger::Reservation;
use loden_linux::netns::NetNs;
use loden_linux::{LinuxError, fault, veth};
use serde_json::Value;

use crate::{Call, failed};

/// The plugin that gives the addresses, where it is another than this one.
pub fn of_ipam(call: &Call, make: &MakeConf) -> Result<Option<Delegate>, CniError> {
    match &make.ipam.source {
        IpamSource::Plugin(name) => {
            let found = find(call, name, call.conf_given()?);
            // Mostly it is a slip.
            let own = "`ipam.type` of loden's own are \"loden\", \"host-local\", \"static\" and \"dhcp\"";
            found.map(Some).map_err(|error| CniError { details: format!("{}; {own}", error.details), ..error })
        }
        _ => Ok(None),
    }
}

/// A plugin that is to be called with a configuration.
pub fn find(call: &Call, name: &str, conf: Value) -> Result<Delegate, CniError> {
    let program: PathBuf = delegate::find(name, &call.environment.search_path).map_err(|error| {
        CniError::new(Code::InvalidConfig, format!("the plugin {name:?} cannot be called")).with(error.to_string())
    })?;
    Ok(Delegate {
        program,
        conf,
        args: call.environment.args_given.clone(),
        search_path: call.environment.search_path.clone(),
    })
}

/// Calls ADD of a plugin and gives what it came to.
pub fn add(call: &Call, delegate: &Delegate, reservation: &Reservation) -> Result<(Value, Success), CniError> {
    let there = &reservation.attachment;
    let subject = Subject { key: Some(&there.key), netns: &there.netns };
    let answer = delegate::call(delegate, "ADD", subject, &delegate.conf, PATIENCE)
        .map_err(|error| failed("the plugin that was called failed", &error))?;
    fault::point("add-delegated");
    let result = Success::parse(&answer, call.conf.version)?;
    Ok((answer, result))
}

/// Calls CHECK of every plugin that had a part in an attachment.
pub fn check(call: &Call, attachment: &Attachment) -> Result<(), CniError> {
    let netns = call.environment.netns.as_deref().unwrap_or_default();
    for delegate in &attachment.delegates {
        let mut conf = delegate.conf.clone();
        if let (Value::Object(conf), Some(previous)) = (&mut conf, &call.conf.passed_on) {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        delegate::call(delegate, "CHECK", Subject { key: Some(&attachment.key), netns }, &conf, PATIENCE)
            .map_err(|error| failed("the plugin that had a part in it is not content", &error))?;
    }
    Ok(())
}

/// Calls GC or STATUS, which are about no attachment, of the plugin that gives the addresses.
pub fn tell_ipam(call: &Call, verb: &str) -> Result<(), CniError> {
    call_ipam(call, verb, Subject { key: None, netns: "" })
}

/// DEL of an attachment that is not written down, as when another plugin made it before this one took its place: who gave the
/// addresses may know of it.
pub fn forget_unknown(call: &Call) -> Result<(), CniError> {
    let netns = call.environment.netns.as_deref().unwrap_or_default();
    call_ipam(call, "DEL", Subject { key: Some(&call.key()?), netns })
}

/// DEL of a pod that the plugin host-local gave an address, as before this one took its place, together with the plugin that made
/// the interface: that goes first, since an address is free only when nothing has it any more.
pub fn forget_former(call: &Call, key: &AttachmentKey) -> Result<(), CniError> {
    let fail = |error: LinuxError| failed(format!("what host-local gave {key} cannot be freed"), &error);
    let Some(former) = call.host_local() else { return Ok(()) };
    if !former.knows(key).map_err(fail)? {
        return Ok(());
    }
    // A namespace that has gone took its interface with it; the host's own has no pod's.
    let netns = NetNs::open(Path::new(call.environment.netns.as_deref().unwrap_or_default())).ok();
    let own = NetNs::current().map_err(fail)?;
    if let Some(netns) = netns.filter(|netns| netns.identity() != own.identity()) {
        netns.visit(|| veth::delete(key.ifname)).and_then(|deleted| deleted).map_err(fail)?;
    }
    former.release(key).map_err(fail)
}

fn call_ipam(call: &Call, verb: &str, subject: Subject<'_>) -> Result<(), CniError> {
    let Some(name) = &call.conf.ipam_plugin else { return Ok(()) };
    let delegate = find(call, name, call.conf_given()?)?;
    let patience = if verb == "STATUS" { PATIENCE_STATUS } else { PATIENCE };
    delegate::call(&delegate, verb, subject, &delegate.conf, patience)
        .map(drop)
        .map_err(|error| failed(format!("the plugin {name:?}, which gives the addresses"), &error))
}
