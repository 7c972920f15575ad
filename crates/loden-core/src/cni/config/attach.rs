//! How pods are attached, as a configuration says it.

use crate::cni::keys::Keys;
use crate::cni::{CniError, Code, Role};
use crate::model::{IfName, Mac, MacvlanMode, PortVlans};

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
    /// `vlan`, `vlanTrunk` and `preserveDefaultVlan`.
    pub vlans: Option<PortVlans>,
    /// `macspoofchk`: frames from another Ethernet address than the pod's are dropped.
    pub check_mac: bool,
    /// `enabledad`: the kernel makes sure that nobody else has the pod's IPv6 addresses.
    pub detect_duplicates: bool,
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
            Role::HostLocal
            | Role::Static
            | Role::Loopback
            | Role::Flannel
            | Role::Portmap
            | Role::Bandwidth
            | Role::Tuning => Ok(Self::Foreign),
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
            vlans: vlans(keys)?,
            check_mac: keys.is_set("macspoofchk")?,
            detect_duplicates: keys.is_set("enabledad")?,
        };
        if conf.hairpin && conf.promiscuous {
            return Err(CniError::new(
                Code::InvalidConfig,
                "`hairpinMode` and `promiscMode` exclude each other: a bridge with both delivers frames twice",
            ));
        }
        Ok(conf)
    }
}

/// The highest number of a VLAN (IEEE 802.1Q; 4095 is reserved).
const LAST_VLAN: u16 = 4094;

/// The VLANs of the pod's port; 0 is none.
fn vlans(keys: &Keys<'_>) -> Result<Option<PortVlans>, CniError> {
    let read = |keys: &Keys<'_>, key: &str, first: u16| -> Result<Option<u16>, CniError> {
        let number = keys.number::<u16>(key)?;
        match number.filter(|number| !(first..=LAST_VLAN).contains(number)) {
            Some(_) => Err(keys.wrong(key, &format!("a VLAN from {first} to {LAST_VLAN}"))),
            None => Ok(number),
        }
    };
    let access = read(keys, "vlan", 0)?.filter(|vlan| *vlan != 0);
    let mut trunk = Vec::new();
    for item in keys.objects("vlanTrunk")? {
        match (read(&item, "id", 1)?, read(&item, "minID", 1)?, read(&item, "maxID", 1)?) {
            (Some(id), None, None) => trunk.push((id, id)),
            (None, Some(first), Some(last)) if first <= last => trunk.push((first, last)),
            _ => return Err(keys.wrong("vlanTrunk", "a list of {id} or {minID, maxID}, the lower one first,")),
        }
    }
    if let Some(vlan) = access.filter(|vlan| trunk.iter().any(|(first, last)| (first..=last).contains(&vlan))) {
        return Err(keys.wrong("vlanTrunk", &format!("a list without {vlan}, whose frames are untagged by `vlan`,")));
    }
    let keeps_default = keys.flag("preserveDefaultVlan")?.unwrap_or(true);
    let has_any = access.is_some() || !trunk.is_empty();
    Ok(has_any.then_some(PortVlans { access, trunk, keeps_default }))
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
