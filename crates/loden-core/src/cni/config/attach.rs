//! How pods are attached, as a configuration says it.

use crate::cni::keys::Keys;
use crate::cni::{CniError, Code, Role};
use crate::model::{IfName, Mac, MacvlanMode};

/// The ways in which pods are attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachConf {
    /// By a port of a bridge.
    Bridge(BridgeConf),
    /// Without a bridge: the host routes each packet.
    Routed,
    /// By a wire to the host, which bears the gateway.
    Ptp,
    /// By an interface beside the host's own.
    Macvlan(MacvlanConf),
    /// By another plugin.
    Foreign,
}

/// A bridge, with the keys of the reference plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BridgeConf {
    /// `bridge`: its name; default: the node's, which the agent makes.
    pub bridge: Option<IfName>,
    /// `isGateway`: it bears the pods' gateways.
    pub is_gateway: Option<bool>,
    /// `isDefaultGateway`: and pods have their default route by it.
    pub is_default_gateway: Option<bool>,
    /// `forceAddress`: another address of the family gives way.
    pub force_address: bool,
    /// `hairpinMode`: frames may leave by the port that they came by.
    pub hairpin: bool,
    /// `promiscMode`: the bridge takes in all frames.
    pub promiscuous: bool,
    /// `portIsolation`: pods of the bridge do not reach each other.
    pub isolated: bool,
    /// `disableContainerInterface`: the pod's interface is made and left down, without addresses.
    pub is_down: bool,
}

/// A macvlan interface, with the keys of the reference plugin and those that it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MacvlanConf {
    /// `master`: the interface that it is beside of; default: that of the default route.
    pub master: Option<IfName>,
    /// `mode`; default `bridge`.
    pub mode: MacvlanMode,
    /// `sources`: in mode `source`, whose frames are let in.
    pub sources: Vec<Mac>,
    /// `bcqueuelen`: how many broadcast frames may wait.
    pub broadcast_queue: Option<u32>,
    /// `linkInContainer`: the master is in the pod.
    pub in_container: bool,
    /// `hostLink`: the name of the host's own interface among those of the pods.
    pub host_link: Option<IfName>,
}

impl AttachConf {
    /// Reads how pods are attached: loden's own plugin has `attach`, the others are what they are named.
    pub(super) fn parse(keys: &Keys<'_>, role: Role) -> Result<Self, CniError> {
        match role {
            Role::Loden => match keys.text("attach")?.unwrap_or("bridge") {
                "bridge" => BridgeConf::parse(keys).map(Self::Bridge),
                "routed" => Ok(Self::Routed),
                "macvlan" => MacvlanConf::parse(keys).map(Self::Macvlan),
                _ => Err(keys.wrong("attach", "\"bridge\", \"routed\" or \"macvlan\"")),
            },
            Role::Bridge => {
                let conf = BridgeConf::parse(keys)?;
                let usual = IfName::new("cni0").map_err(|_| keys.wrong("bridge", "an interface's name"))?;
                Ok(Self::Bridge(BridgeConf {
                    bridge: conf.bridge.or(Some(usual)),
                    is_gateway: conf.is_gateway.or(Some(false)),
                    is_default_gateway: conf.is_default_gateway.or(Some(false)),
                    ..conf
                }))
            }
            Role::Ptp => Ok(Self::Ptp),
            Role::Macvlan => MacvlanConf::parse(keys).map(Self::Macvlan),
            Role::HostLocal | Role::Static | Role::Portmap | Role::Loopback | Role::Flannel => Ok(Self::Foreign),
        }
    }
}

impl BridgeConf {
    fn parse(keys: &Keys<'_>) -> Result<Self, CniError> {
        let conf = Self {
            bridge: keys.parsed("bridge", "an interface's name")?,
            is_gateway: keys.flag("isGateway")?,
            is_default_gateway: keys.flag("isDefaultGateway")?,
            force_address: keys.is_set("forceAddress")?,
            hairpin: keys.is_set("hairpinMode")?,
            promiscuous: keys.is_set("promiscMode")?,
            isolated: keys.is_set("portIsolation")?,
            is_down: keys.is_set("disableContainerInterface")?,
        };
        if conf.hairpin && conf.promiscuous {
            return Err(CniError::new(
                Code::InvalidConfig,
                "`hairpinMode` and `promiscMode` exclude each other: a bridge with both delivers frames twice",
            ));
        }
        if keys.number::<u32>("vlan")?.is_some_and(|vlan| vlan != 0) || keys.get("vlanTrunk").is_some() {
            return Err(unsupported("vlan", "bridges are not yet cut into VLANs"));
        }
        if keys.is_set("macspoofchk")? {
            return Err(unsupported("macspoofchk", "a pod's Ethernet address is not yet checked"));
        }
        Ok(conf)
    }
}

fn unsupported(key: &str, why: &str) -> CniError {
    CniError::new(Code::UnsupportedField, format!("`{key}` is not supported: {why}"))
}

impl MacvlanConf {
    fn parse(keys: &Keys<'_>) -> Result<Self, CniError> {
        let mode = match keys.text("mode")?.unwrap_or("bridge") {
            "bridge" => MacvlanMode::Bridge,
            "private" => MacvlanMode::Private,
            "vepa" => MacvlanMode::Vepa,
            "passthru" => MacvlanMode::Passthru,
            "source" => MacvlanMode::Source,
            _ => return Err(keys.wrong("mode", "\"bridge\", \"private\", \"vepa\", \"passthru\" or \"source\"")),
        };
        let conf = Self {
            master: keys.parsed("master", "an interface's name")?,
            mode,
            sources: keys.all_parsed("sources", "Ethernet addresses")?,
            broadcast_queue: keys.number("bcqueuelen")?.filter(|length| *length > 0),
            in_container: keys.is_set("linkInContainer")?,
            host_link: keys.parsed("hostLink", "an interface's name")?,
        };
        let invalid = |message: &str| Err(CniError::new(Code::InvalidConfig, message));
        if !conf.sources.is_empty() && mode != MacvlanMode::Source {
            return invalid("`sources` belongs to the mode \"source\"");
        }
        if conf.host_link.is_some() && (mode != MacvlanMode::Bridge || conf.in_container) {
            return invalid(
                "`hostLink` needs the mode \"bridge\" and a master on the host: in others it reaches no pod",
            );
        }
        if conf.in_container && conf.master.is_none() {
            return invalid("`linkInContainer` needs `master`: the name of the interface in the pod");
        }
        Ok(conf)
    }
}
