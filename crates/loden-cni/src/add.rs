//! ADD: reserve, make, write down. What fails is undone wholly, since a runtime may never call DEL for it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use loden_core::attach::Draft;
use loden_core::cni::{self, AttachConf, CniError, Code, HostFacts, MakeConf, Master, NodeFile, Success};
use loden_linux::ledger::{Reservation, ReserveError};
use loden_linux::netns::NetNs;
use loden_linux::{fault, macvlan, pod};
use serde_json::Value;

use crate::{Call, delegate, failed, lease, patience};

/// Where the reference plugin `tuning` has it.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";
/// `EEXIST`.
const EEXIST: i32 = 17;

/// Answers ADD.
pub fn run(call: &Call) -> Result<Value, CniError> {
    let key = call.key()?;
    call.environment.check_args()?;
    let path = call.environment.netns.clone().unwrap_or_default();
    let netns = open_netns(call, &path)?;
    let make = call.make()?;
    let node = if make.needs_node() { Some(call.node(Code::TryAgain)?) } else { None };
    let (master, allow_list) = (master(make, &netns)?, allow_list(make)?);
    let dns = call.dns()?;
    let draft_with = |node: Option<&NodeFile>| {
        let facts = HostFacts { node: node.cloned(), master, allow_list: allow_list.clone() };
        let mut draft = cni::draft(key.clone(), make, &call.environment, &facts)?;
        draft.delegates.extend(delegate::of_ipam(call, make)?);
        Ok(draft)
    };
    let draft = draft_with(node.as_ref())?;
    let request = cni::lease_request(&draft, make, &call.environment)?;
    fault::point("add-begun");
    let (draft, mut reservation) = patience::reserve(call, node, draft, draft_with)?;
    fault::point("add-reserved");
    let finished = make_link(call, &draft, &mut reservation, &netns).and_then(|dns| {
        let leased =
            request.as_ref().map(|request| lease::give(call, request, &mut reservation, &netns)).transpose()?;
        call.ledger().complete(&mut reservation).map_err(refused)?;
        Ok(leased.flatten().or(dns))
    });
    match finished {
        Ok(dns_given) => {
            fault::point("add-completed");
            let result = Success::of(&reservation.attachment, dns.or(dns_given));
            Ok(result.behind(call.conf.passed_on.as_ref(), call.conf.version))
        }
        Err(mut error) => {
            lease::release(&call.run_dir(), Some(&reservation.attachment));
            let undone = pod::remove(&reservation.attachment).and_then(|()| call.ledger().release(&draft.key));
            if let Err(second) = undone {
                error.details = format!("{}; and undoing it: {second}", error.details);
            }
            Err(error)
        }
    }
}

/// Makes the pod's interface; gives the `dns` that came with addresses of another plugin.
fn make_link(
    call: &Call,
    draft: &Draft,
    reservation: &mut Reservation,
    netns: &NetNs,
) -> Result<Option<Value>, CniError> {
    let ifname = reservation.attachment.key.ifname;
    let mut dns = None;
    if let Some(delegate) = draft.delegates.first() {
        let (_, result) = delegate::add(call, delegate, reservation)?;
        let draft = cni::given(draft.clone(), call.make()?, &result);
        let attachment = draft.attachment(draft.demand.fixed.clone());
        let written = call.ledger().rewrite(reservation, attachment);
        written.map_err(|error| failed("the attachment cannot be written down", &error))?;
        dns = result.dns;
    }
    // A macvlan that is made again takes the name; a veth says so itself.
    pod::make(&reservation.attachment, netns).map_err(|error| {
        // Looked at only now: an ADD that succeeds need not ask.
        match (error.errno(), pod::exists_in(netns, ifname)) {
            (EEXIST, Ok(true)) => CniError::new(
                Code::InvalidEnvironment,
                format!("CNI_IFNAME: the pod has an interface {ifname} already"),
            ),
            _ => failed("the pod's interface cannot be made", &error),
        }
    })?;
    fault::point("add-made");
    Ok(dns)
}

/// The text of the host's file of sysctls that may be set, where there is one and it matters.
pub fn allow_list(make: &MakeConf) -> Result<Option<String>, CniError> {
    if make.tuning.sysctls.is_empty() {
        return Ok(None);
    }
    match fs::read_to_string(ALLOW_LIST) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        // Nobody knows what it would have refused.
        Err(error) => Err(CniError::new(Code::Io, format!("{ALLOW_LIST}: {error}"))),
    }
}

/// The macvlan's master, on the host or in the pod.
fn master(make: &MakeConf, netns: &NetNs) -> Result<Option<Master>, CniError> {
    let AttachConf::Macvlan(conf) = &make.attach else { return Ok(None) };
    let found = macvlan::master(conf.master, conf.in_container.then_some(netns));
    found.map(Some).map_err(|error| {
        CniError::new(Code::InvalidConfig, "the macvlan's master cannot be used").with(error.to_string())
    })
}

/// Opens the pod's namespace, which must not be the host's own.
pub fn open_netns(call: &Call, path: &str) -> Result<NetNs, CniError> {
    let bad = |cause: String| CniError::new(Code::InvalidNetns, format!("CNI_NETNS {path:?}: {cause}"));
    let netns = NetNs::open(Path::new(path)).map_err(|error| bad(error.to_string()))?;
    let own = NetNs::current().map_err(|error| bad(error.to_string()))?;
    if netns.identity() == own.identity() && !call.environment.netns_override {
        return Err(bad("it is the namespace of the plugin itself; the pod must have one of its own".to_owned()));
    }
    Ok(netns)
}

pub fn refused(error: ReserveError) -> CniError {
    match error {
        ReserveError::Attached(_) => CniError::new(Code::InvalidEnvironment, error.to_string()),
        ReserveError::UnderWay(_) | ReserveError::Closed => CniError::new(Code::TryAgain, error.to_string()),
        ReserveError::Withdrawn => CniError::new(Code::TryAgain, error.to_string()),
        ReserveError::Exhausted(_) => CniError::new(Code::NoAddress, "no address is free").with(error.to_string()),
        ReserveError::Taken { .. } | ReserveError::Elsewhere { .. } | ReserveError::Outside { .. } => {
            CniError::new(Code::NoAddress, "the address that is asked for cannot be given").with(error.to_string())
        }
        ReserveError::PortTaken { .. } => {
            CniError::new(Code::PortTaken, "a port of the host cannot be given").with(error.to_string())
        }
        ReserveError::NoHostSide(_) => CniError::new(Code::UnsupportedField, error.to_string()),
        ReserveError::Files(error) => failed("the attachment cannot be completed", &error),
    }
}
