//! Addresses of a DHCP server: the agent asks for them, holds and renews them, and gives them back.

use std::time::Duration;

use loden_core::cni::{CniError, Code};
use loden_core::dhcp::{Dns, Lease, LeaseRequest};
use loden_core::model::Attachment;
use loden_linux::clock::boot_ms;
use loden_linux::ledger::Reservation;
use loden_linux::netns::NetNs;
use loden_linux::run_dir::RunDir;
use loden_linux::{agent, fault, pod};
use serde_json::Value;

use crate::{Call, failed};

/// How long the agent may take besides the server.
const AGENT: Duration = Duration::from_secs(5);
/// How long a DEL waits for the agent to give an address back: it is one frame.
const RELEASE: Duration = Duration::from_secs(2);

/// Has an address leased for a pod whose interface is there, and gives it to the pod; with what the server says of names.
pub fn give(
    call: &Call,
    request: &LeaseRequest,
    reservation: &mut Reservation,
    netns: &NetNs,
) -> Result<Option<Value>, CniError> {
    let lease = ask(call, request)?;
    fault::point("add-leased");
    let addr = lease.terms.net.addr();
    if let Some(wish) = request.wish.filter(|wish| *wish != addr) {
        let text = format!("{wish} is asked for, and the DHCP server {} gives {addr}", lease.terms.server);
        return Err(CniError::new(Code::NoAddress, text));
    }
    let there = reservation.attachment.clone();
    let written = call.ledger().rewrite(reservation, request.applied(Some(&lease), &there));
    written.map_err(|error| failed("the attachment cannot be written down", &error))?;
    let given = pod::give_addresses(&there, &reservation.attachment, netns);
    given.map_err(|error| failed("the leased address cannot be given to the pod", &error))?;
    fault::point("add-addressed");
    Ok(Dns::to_result(&lease.terms.dns))
}

fn ask(call: &Call, request: &LeaseRequest) -> Result<Lease, CniError> {
    let cannot = |cause: String| CniError::new(Code::TryAgain, "no address can be had by DHCP").with(cause);
    let patience = Duration::from_secs(request.timeout_s.into()) + AGENT;
    let body = serde_json::to_value(request).map_err(|error| cannot(error.to_string()))?;
    match agent::post(&call.run_dir().agent_socket(), "/v1/dhcp/lease", &body, patience) {
        Ok((200, text)) => serde_json::from_str(&text).map_err(|error| cannot(format!("the agent's answer: {error}"))),
        Ok((_, text)) => Err(cannot(text.trim().to_owned())),
        Err(error) => Err(cannot(format!("{error}; lodend asks the server: it must run"))),
    }
}

/// Has an address given back while the pod's interface is still there to do it by. Without an agent the lease's file stays: the one that
/// starts gives it back.
pub fn release(run_dir: &RunDir, there: Option<&Attachment>) {
    let leased = there.filter(|there| there.is_leased);
    if let Some(body) = leased.and_then(|there| serde_json::to_value(&there.key).ok()) {
        // The agent sees by the attachment's file that the lease is nobody's any more, whatever becomes of this.
        let _ = agent::post(&run_dir.agent_socket(), "/v1/dhcp/release", &body, RELEASE);
    }
}

/// What CHECK finds wrong.
pub fn check(call: &Call, there: &Attachment) -> Vec<String> {
    if !there.is_leased {
        return Vec::new();
    }
    match call.run_dir().lease(&there.key) {
        Ok(Some(held)) => match &held.lease {
            Some(lease) if lease.end_ms().is_some_and(|end_ms| end_ms <= boot_ms()) => {
                vec![format!("the DHCP lease of {} has run out; lodend renews it: it must run", lease.terms.net)]
            }
            Some(_) => Vec::new(),
            None => vec!["the DHCP lease is lost; `loden status` says why".to_owned()],
        },
        Ok(None) => vec!["nobody holds a DHCP lease for it".to_owned()],
        Err(error) => vec![error.to_string()],
    }
}

/// STATUS: whether there is an agent to ask. Never waits.
pub fn status(call: &Call) -> Result<(), CniError> {
    let socket = call.run_dir().agent_socket();
    if agent::listens(&socket) {
        return Ok(());
    }
    let text = format!("lodend, which asks the server, does not answer at {}: start it", socket.display());
    Err(CniError::new(Code::NotAvailable, "no address can be had by DHCP").with(text))
}
