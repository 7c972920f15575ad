//! STATUS: whether an ADD could be served now. Runtimes ask every few seconds and some hold up every pod until the answer comes: it reads
//! two small files, asks for one link's flags, and waits for nobody (no lock, no agent).

use loden_core::attach;
use loden_core::cni::{self, AttachConf, CniError, Code, IpamSource, MakeConf, NodeFile};
use loden_core::model::IfName;
use loden_linux::ledger::ReserveError;
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::rt::link;
use loden_linux::{agent, macvlan};

use crate::{Call, delegate, failed, lease};

/// Answers STATUS.
pub fn run(call: &Call) -> Result<(), CniError> {
    delegate::tell_ipam(call, "STATUS")?;
    let make = call.make()?;
    if let IpamSource::Dhcp(_) = make.ipam.source {
        lease::status(call)?;
    }
    let node = if make.needs_node() { Some(call.node(Code::NotAvailable)?) } else { None };
    let ledger = call.ledger();
    if ledger.is_closed().map_err(|error| failed("the attachments cannot be looked at", &error))? {
        return Err(CniError::new(Code::NotAvailable, ReserveError::Closed.to_string()));
    }
    if let Some((shared, fault)) = broken(make, node.as_ref())? {
        return Err(unavailable(call, shared, fault));
    }
    let demand = cni::demand(call.network()?, make, node.as_ref())
        .map_err(|error| CniError { code: Code::NotAvailable, ..error })?;
    match ledger.has_room(&demand, call.conf.quarantine) {
        Ok(()) => Ok(()),
        Err(ReserveError::Files(error)) => Err(failed("the addresses cannot be looked at", &error)),
        Err(error) => Err(CniError::new(Code::NotAvailable, "no address is free").with(error.to_string())),
    }
}

/// What pods share and is not as it should be, and how.
fn broken(make: &MakeConf, node: Option<&NodeFile>) -> Result<Option<(IfName, String)>, CniError> {
    match &make.attach {
        // One that the plugin makes is made by the next ADD.
        AttachConf::Bridge(conf) => {
            let Some(bridge) = node.map(|node| cni::bridge_of(make, node)).transpose()? else { return Ok(None) };
            if conf.bridge.is_some_and(|own| own != bridge || make.ipam.source != IpamSource::Node) {
                return Ok(None);
            }
            let is_up = Socket::open(Protocol::Route)
                .and_then(|socket| link::is_up(&socket, bridge))
                .map_err(|error| failed("the bridge cannot be looked at", &error))?;
            let fault = match is_up {
                Some(true) => return Ok(None),
                Some(false) => "is down",
                None => "is not there",
            };
            Ok(Some((bridge, format!("bridge {bridge} {fault}"))))
        }
        AttachConf::Macvlan(conf) if !conf.in_container => {
            let Some(master) = conf.master else { return Ok(None) };
            let missing = macvlan::master(Some(master), None).err();
            Ok(missing.map(|error| (master, error.to_string())))
        }
        _ => Ok(None),
    }
}

/// Pods that are there and share what is broken are limited.
fn unavailable(call: &Call, shared: IfName, fault: String) -> CniError {
    let all = call.run_dir().attachments().good;
    let limited = all.iter().filter(|there| attach::shares(there, shared)).count();
    let code = if limited == 0 { Code::NotAvailable } else { Code::Limited };
    let socket = call.run_dir().agent_socket();
    let hint = if !call.make().is_ok_and(MakeConf::needs_node) {
        String::new()
    } else if agent::listens(&socket) {
        "; lodend makes it right: see `loden status`".to_owned()
    } else {
        format!("; lodend would make it right and does not answer at {}: start it", socket.display())
    };
    CniError::new(code, "pods cannot be served").with(format!("{fault}{hint}; {limited} pods are limited by it"))
}
