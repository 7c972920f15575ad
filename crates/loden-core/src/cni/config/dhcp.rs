//! Addresses by DHCP, as a configuration says it: with the keys of the reference plugin dhcp.

use super::{AttachConf, BridgeConf};
use crate::cni::keys::Keys;
use crate::cni::{CniError, Code};

/// Options by the names that the reference plugin knows them by.
const NAMES: [(&str, u8); 6] = [
    ("dhcp-client-identifier", 61),
    ("subnet-mask", 1),
    ("routers", 3),
    ("host-name", 12),
    ("user-class", 77),
    ("vendor-class-identifier", 60),
];

/// What is asked of every server: classless routes before routers (RFC 3442), mask, name servers, domain, MTU, the times of the
/// lease, where short names are looked for.
const REQUESTED: [u8; 10] = [121, 1, 3, 6, 15, 26, 51, 58, 59, 119];

/// How long an answer is waited for, in seconds: kubelet waits two minutes for a whole pod, and may have it tried again.
const TIMEOUT_S: u32 = 10;
const TIMEOUT_MOST_S: u32 = 100;

/// The keys of `ipam`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpConf {
    /// `provide`: options that are sent.
    pub provide: Vec<Provided>,
    /// `request`: options that are asked for, with those that always are, without those that are not to be.
    pub request: Vec<u8>,
    /// `priority`: the metric of the routes.
    pub priority: u32,
    /// `timeoutSeconds`: how long an answer is waited for.
    pub timeout_s: u32,
}

/// An option that is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provided {
    /// Its number.
    pub code: u8,
    /// `value`; else it is that of an argument in `CNI_ARGS`.
    pub value: Option<String>,
    /// `fromArg`: that argument.
    pub from_arg: Option<String>,
}

impl DhcpConf {
    /// Reads the keys.
    pub(super) fn parse(ipam: &Keys<'_>) -> Result<Self, CniError> {
        let mut request = REQUESTED.to_vec();
        for item in ipam.objects("request")? {
            let code = option(&item)?;
            request.retain(|other| *other != code);
            if !item.is_set("skipDefault")? {
                request.push(code);
            }
        }
        let provide = |item: &Keys<'_>| {
            let text = |key| Ok(item.text(key)?.map(str::to_owned));
            let provided = Provided { code: option(item)?, value: text("value")?, from_arg: text("fromArg")? };
            match &provided {
                // The protocol's own, which a client does not leave to anybody (RFC 2132 section 9).
                Provided { code: 0 | 50..=59 | 255, .. } => {
                    Err(item.wrong("option", "an option that is not the protocol's own"))
                }
                Provided { value: None, from_arg: None, .. } => Err(item.wrong("value", "`value` or `fromArg`")),
                Provided { value: Some(value), .. } if value.len() > 255 => {
                    Err(item.wrong("value", "at most 255 bytes"))
                }
                _ => Ok(provided),
            }
        };
        let timeout_s = ipam.number("timeoutSeconds")?.unwrap_or(TIMEOUT_S);
        if !(1..=TIMEOUT_MOST_S).contains(&timeout_s) {
            return Err(ipam.wrong("timeoutSeconds", "1 to 100 seconds"));
        }
        Ok(Self {
            provide: ipam.objects("provide")?.iter().map(provide).collect::<Result<_, _>>()?,
            request,
            priority: ipam.number("priority")?.unwrap_or(0),
            timeout_s,
        })
    }
}

/// Whether pods that are attached so are on a segment where a server may be.
pub(super) fn check_attach(attach: &AttachConf) -> Result<(), CniError> {
    let refused = |why: &str| Err(CniError::new(Code::InvalidConfig, format!("`ipam.type` \"dhcp\": {why}")));
    match attach {
        AttachConf::Macvlan(_) => Ok(()),
        AttachConf::Bridge(BridgeConf { bridge: None, .. }) => {
            refused("the node's own bridge has no server: `bridge` names one that a server is behind")
        }
        AttachConf::Bridge(
            BridgeConf { is_gateway: Some(true), .. } | BridgeConf { is_default_gateway: Some(true), .. },
        ) => refused(
            "the router is the server's choice: `isGateway` and `isDefaultGateway` would have the bridge take its address",
        ),
        AttachConf::Bridge(BridgeConf { is_down: true, .. }) => {
            refused("`disableContainerInterface` leaves no interface to ask by")
        }
        AttachConf::Bridge(_) => Ok(()),
        AttachConf::Routed | AttachConf::Ptp | AttachConf::Foreign => {
            refused("such a pod shares no segment with a server; `bridge` and `macvlan` do")
        }
    }
}

/// `option`: a name or a number.
fn option(item: &Keys<'_>) -> Result<u8, CniError> {
    let wrong = || item.wrong("option", "an option's name or number, as a text");
    let text = item.text("option")?.ok_or_else(wrong)?;
    let named = NAMES.iter().find(|(name, _)| *name == text).map(|(_, code)| *code);
    named.map_or_else(|| text.parse().map_err(|_| wrong()), Ok)
}
