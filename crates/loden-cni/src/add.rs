//! ADD: reserve, make, write down. What fails is undone wholly, since a runtime may never call DEL for it.

use std::path::Path;

use loden_core::attach;
use loden_core::cni::{CniError, Code, Success};
use loden_linux::ledger::{Reservation, ReserveError};
use loden_linux::netns::NetNs;
use loden_linux::veth;
use serde_json::Value;

use crate::fault;
use crate::{Call, failed};

/// Answers ADD.
pub fn run(call: &Call) -> Result<Value, CniError> {
    let key = call.key()?;
    let path = call.environment.netns.clone().unwrap_or_default();
    let netns = open_netns(call, &path)?;
    let node = call.node(Code::TryAgain)?;
    fault::point("add-begun");
    let ledger = call.ledger();
    let mut reservation = ledger
        .reserve(&key, call.conf.attach, &node, call.conf.quarantine, &path, call.environment.pod())
        .map_err(refused)?;
    fault::point("add-reserved");
    let routes = attach::routes(&reservation.attachment);
    match make(call, &mut reservation, &routes, &netns) {
        Ok(()) => {
            fault::point("add-completed");
            Ok(Success::of(&reservation.attachment, &routes).to_json(call.conf.version))
        }
        Err(mut error) => {
            let undone = veth::delete(reservation.attachment.host_side).and_then(|()| ledger.release(&key));
            if let Err(second) = undone {
                error.details = format!("{}; and undoing it: {second}", error.details);
            }
            Err(error)
        }
    }
}

fn make(
    call: &Call,
    reservation: &mut Reservation,
    routes: &[attach::PodRoute],
    netns: &NetNs,
) -> Result<(), CniError> {
    veth::create(&reservation.attachment, routes, netns).map_err(|error| {
        // Looked at only now: an ADD that succeeds need not ask.
        match veth::exists_in(netns, reservation.attachment.key.ifname) {
            Ok(true) => CniError::new(
                Code::InvalidEnvironment,
                format!("CNI_IFNAME: the pod has an interface {} already", reservation.attachment.key.ifname),
            ),
            _ => failed("the pod's interface cannot be made", &error),
        }
    })?;
    fault::point("add-made");
    call.ledger().complete(reservation).map_err(|error| failed("the attachment cannot be written down", &error))
}

/// Opens the pod's namespace, which must not be the host's own.
fn open_netns(call: &Call, path: &str) -> Result<NetNs, CniError> {
    let bad = |cause: String| CniError::new(Code::InvalidNetns, format!("CNI_NETNS {path:?}: {cause}"));
    let netns = NetNs::open(Path::new(path)).map_err(|error| bad(error.to_string()))?;
    let own = NetNs::current().map_err(|error| bad(error.to_string()))?;
    if netns.identity() == own.identity() && !call.environment.netns_override {
        return Err(bad("it is the namespace of the plugin itself; the pod must have one of its own".to_owned()));
    }
    Ok(netns)
}

fn refused(error: ReserveError) -> CniError {
    match error {
        ReserveError::Attached(_) => CniError::new(Code::InvalidEnvironment, error.to_string()),
        ReserveError::UnderWay(_) => CniError::new(Code::TryAgain, error.to_string()),
        ReserveError::Exhausted(_) => CniError::new(Code::NoAddress, "no address is free").with(error.to_string()),
        ReserveError::NoBlock => CniError::new(Code::TryAgain, error.to_string()),
        ReserveError::Files(error) => failed("no address can be reserved", &error),
    }
}
