//! From a draft to what DHCP servers are asked for it.

use std::net::IpAddr;

use super::draft::asked_ips;
use super::{CniError, Code, Environment, IpamSource, MakeConf};
use crate::attach::Draft;
use crate::dhcp::LeaseRequest;
use crate::model::Attach;

/// What is asked of servers; `None` when addresses come from elsewhere.
///
/// # Errors
/// Code 4 for an argument that is no value, 7 for addresses that a server cannot be asked for.
pub fn lease_request(
    draft: &Draft,
    make: &MakeConf,
    environment: &Environment,
) -> Result<Option<LeaseRequest>, CniError> {
    let IpamSource::Dhcp(conf) = &make.ipam.source else { return Ok(None) };
    let asked = asked_ips(make, environment)?;
    let wish = match asked.iter().map(|asked| asked.addr).collect::<Vec<_>>().as_slice() {
        [] => None,
        [IpAddr::V4(addr)] => Some(*addr),
        _ => {
            return Err(CniError::new(
                Code::InvalidConfig,
                "of a DHCP server one IPv4 address can be asked, and no other",
            ));
        }
    };
    let mut provide = Vec::new();
    for option in &conf.provide {
        let given = option.from_arg.as_ref().and_then(|name| environment.arg(name));
        // As in the reference plugin an argument that is not there sends nothing.
        let Some(value) = option.value.as_deref().or(given).filter(|value| !value.is_empty()) else { continue };
        if value.len() > 255 {
            let name = option.from_arg.as_deref().unwrap_or_default();
            return Err(CniError::new(
                Code::InvalidEnvironment,
                format!("CNI_ARGS: {name} has {} bytes: a DHCP option has at most 255", value.len()),
            ));
        }
        provide.push((option.code, value.to_owned()));
    }
    Ok(Some(LeaseRequest {
        key: draft.key.clone(),
        netns: draft.netns.clone(),
        mac: draft.mac,
        host_device: match &draft.attach {
            Attach::Bridge(port) => Some(port.bridge),
            Attach::Macvlan(macvlan) if !macvlan.in_container => Some(macvlan.master),
            _ => None,
        },
        pod: draft.pod.clone(),
        wish,
        provide,
        request: conf.request.clone(),
        priority: conf.priority,
        routes: make.ipam.routes.clone().unwrap_or_default(),
        mtu_is_open: make.mtu.is_none(),
        timeout_s: conf.timeout_s,
    }))
}
