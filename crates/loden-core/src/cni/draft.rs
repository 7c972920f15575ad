//! From a call to what it is to make: the configuration, the environment and what is known of the host, put together.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::config::{AskedIp, BridgeConf, MacvlanConf};
use super::{AttachConf, CniError, Code, Environment, IpamSource, MakeConf, NodeFile, Success};
use crate::attach::Draft;
use crate::ipam::{Demand, Offer, Range, Supply};
use crate::kernel::default_priority;
use crate::model::{
    Attach, AttachmentKey, Bandwidth, BridgePort, Family, IfName, Mac, Macvlan, MacvlanMode, OwnBridge, PodAddress,
    PodRoute, PoolName, PortMapping, Prefix,
};

/// What is known of the host, as far as the configuration asks for it.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// What the agent has told of the node.
    pub node: Option<NodeFile>,
    /// The interface that a macvlan is to be beside of.
    pub master: Option<Master>,
    /// The text of the file that restricts sysctls.
    pub allow_list: Option<String>,
}

/// A macvlan's master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Master {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
}

/// The MTU of a network that says none and belongs to no node: Ethernet's, as the kernel gives it.
const MTU_ETHERNET: u32 = 1500;

/// Puts a draft together.
///
/// # Errors
/// Code 4 for variables, 7 for a configuration that does not fit the host.
pub fn draft(
    key: AttachmentKey,
    make: &MakeConf,
    environment: &Environment,
    facts: &HostFacts,
) -> Result<Draft, CniError> {
    let node = facts.node.as_ref();
    let mut demand = demand(&key.network, make, node)?;
    let asked = asked_ips(make, environment)?;
    match make.ipam.source {
        IpamSource::Static(_) if !asked.is_empty() => override_fixed(&mut demand, &asked, gateway_of(environment)?)?,
        // They hear by themselves what is asked for.
        IpamSource::Static(_) | IpamSource::Plugin(_) | IpamSource::Dhcp(_) => {}
        _ => demand.wanted = asked.iter().map(|asked| asked.addr).collect(),
    }
    let (attach, mtu_usual, is_down) = match &make.attach {
        AttachConf::Bridge(conf) => (bridge(conf, make, node)?, None, conf.is_down),
        AttachConf::Routed => {
            must_be_routed(make, node)?;
            (Attach::Routed, None, false)
        }
        AttachConf::Ptp => (Attach::Ptp, None, false),
        AttachConf::Foreign => (Attach::Foreign { host_device: None }, None, false),
        AttachConf::Macvlan(conf) => {
            let master = facts.master.ok_or_else(|| invalid("the macvlan's master is not known"))?;
            if let Some(mtu) = make.mtu.filter(|mtu| *mtu > master.mtu) {
                return Err(invalid(&format!("`mtu` is {mtu}: more than the {} of {}", master.mtu, master.name)));
            }
            (macvlan(conf, master.name), Some(master.mtu), false)
        }
    };
    if is_down {
        demand = Demand::default();
    }
    let is_leased = matches!(make.ipam.source, IpamSource::Dhcp(_));
    let is_default = is_default(make, make.ipam.routes.is_some());
    let given = make.mac.or(environment.mac()?);
    let passed_through = facts
        .master
        .and_then(|master| master.mac)
        .filter(|_| matches!(&attach, Attach::Macvlan(Macvlan { mode: MacvlanMode::Passthru, .. })));
    let derived = Mac::derived(&["pod", &key.network, &key.container, key.ifname.as_str()]);
    let ifname = key.ifname;
    Ok(Draft {
        mac: given.or(passed_through).unwrap_or(derived),
        mtu: make.mtu.or(mtu_usual).or(node.map(|node| node.mtu_pod)).unwrap_or(MTU_ETHERNET),
        mtu_is_asked: make.mtu.is_some() || node.is_none(),
        key,
        attach,
        demand,
        // Those of a leased pod come when its address does.
        routes: make.ipam.routes.clone().filter(|_| !is_down && !is_leased).unwrap_or_default(),
        is_default,
        is_down,
        ports: ports(make)?,
        masquerade: make.masquerade,
        bandwidth: bandwidth(make)?,
        tuning: make.tuning.resolve(ifname, facts.allow_list.as_deref())?,
        pod: environment.pod(),
        netns: environment.netns.clone().unwrap_or_default(),
        delegates: Vec::new(),
        is_leased,
    })
}

/// Takes up what another plugin gave: its addresses as they are, and its routes.
#[must_use]
pub fn given(draft: Draft, make: &MakeConf, result: &Success) -> Draft {
    let address = |ip: &super::IpConfig| PodAddress { net: ip.address, gateway: ip.gateway, supply: None };
    let route = |route: &super::Route| {
        let prefix = Prefix::holding(route.dst.addr(), route.dst.prefix_len());
        let priority = route.priority.unwrap_or(default_priority(prefix.family()));
        PodRoute { prefix, gateway: route.gw, priority, extras: route.extras }
    };
    let routes: Vec<PodRoute> = result.routes.iter().map(route).collect();
    Draft {
        is_default: is_default(make, make.ipam.routes.is_some() || !routes.is_empty()),
        demand: Demand { fixed: result.ips.iter().map(address).collect(), ..draft.demand },
        routes,
        ..draft
    }
}

/// Whether a pod's gateway is its way to everywhere: as the configuration says, else unless there are routes of its own.
fn is_default(make: &MakeConf, has_routes: bool) -> bool {
    match &make.attach {
        AttachConf::Bridge(conf) => conf.is_default_gateway.unwrap_or(!has_routes),
        AttachConf::Routed => true,
        AttachConf::Macvlan(_) | AttachConf::Ptp => !has_routes,
        AttachConf::Foreign => false,
    }
}

/// What an attachment needs of addresses.
///
/// # Errors
/// Code 11 when the node has no block.
pub fn demand(network: &str, make: &MakeConf, node: Option<&NodeFile>) -> Result<Demand, CniError> {
    let mut demand = Demand { reserved: make.ipam.reserved.clone(), ..Demand::default() };
    match &make.ipam.source {
        IpamSource::Nowhere | IpamSource::Plugin(_) | IpamSource::Dhcp(_) => {}
        IpamSource::Static(addresses) => demand.fixed.clone_from(addresses),
        IpamSource::Ranges(sets) => {
            let offer = |(range, gateway): &(Range, IpAddr)| Offer {
                supply: Supply { network: Some(network.to_owned()), range: *range },
                gateway: Some(*gateway),
                segment: None,
            };
            demand.choices = sets.iter().map(|set| set.iter().map(offer).collect()).collect();
        }
        IpamSource::Node => {
            let pools = &make.ipam.pools;
            let blocks: Vec<_> = node.into_iter().flat_map(|node| node.blocks_of(pools)).collect();
            for family in Family::ALL {
                let of_family = blocks.iter().filter(|block| block.cidr.family() == family);
                let offers = of_family.filter_map(|block| {
                    let supply = Supply { network: None, range: Range::of_block(block.cidr).ok()? };
                    Some(Offer { supply, gateway: Some(block.gateway), segment: block.segment })
                });
                let offers: Vec<Offer> = offers.collect();
                if !offers.is_empty() {
                    demand.choices.push(offers);
                }
            }
            if demand.choices.is_empty() {
                let of = pools.iter().map(PoolName::as_str).collect::<Vec<_>>().join(", ");
                let of = if of.is_empty() { of } else { format!(" of pool {of}") };
                return Err(CniError::new(
                    Code::TryAgain,
                    format!("this node has no block{of} to give addresses from"),
                ));
            }
        }
    }
    Ok(demand)
}

/// Addresses that are asked for, by the configuration's parts and by `CNI_ARGS`.
pub(super) fn asked_ips(make: &MakeConf, environment: &Environment) -> Result<Vec<AskedIp>, CniError> {
    let mut all = make.ips.clone();
    for text in environment.arg("IP").into_iter().flat_map(|ips| ips.split(',')).filter(|text| !text.is_empty()) {
        let asked = AskedIp::parse(text).ok_or_else(|| no_address("IP", text))?;
        if all.iter().all(|other| other.addr != asked.addr) {
            all.push(asked);
        }
    }
    Ok(all)
}

fn gateway_of(environment: &Environment) -> Result<Option<IpAddr>, CniError> {
    let parse = |text: &str| text.parse().map_err(|_| no_address("GATEWAY", text));
    environment.arg("GATEWAY").filter(|text| !text.is_empty()).map(parse).transpose()
}

fn no_address(key: &str, text: &str) -> CniError {
    CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS: {key}={text:?} is no address"))
}

/// What is asked for replaces what the configuration gives as fixed: with the length and the gateway of the network there that it
/// lies in, else with its own length and the gateway that is asked for.
fn override_fixed(demand: &mut Demand, asked: &[AskedIp], gateway: Option<IpAddr>) -> Result<(), CniError> {
    let mut fixed = Vec::new();
    for AskedIp { addr, len } in asked {
        let like = demand.fixed.iter().find(|fixed| fixed.net.contains(addr));
        let len = like.map(|like| like.net.prefix_len()).or(*len).ok_or_else(|| {
            let text = format!("{addr} is asked for without a length and lies in no network of `ipam.addresses`");
            CniError::new(Code::NoAddress, text)
        })?;
        let net = ipnet::IpNet::new(*addr, len).map_err(|error| invalid(&error.to_string()))?;
        let gateway = like.and_then(|like| like.gateway).or(gateway.filter(|gateway| net.contains(gateway)));
        fixed.push(PodAddress { net, gateway, supply: None });
    }
    demand.fixed = fixed;
    Ok(())
}

/// The bridge that the agent has made for a network's pods.
///
/// # Errors
/// Code 7 when its pools are on several.
pub fn bridge_of(make: &MakeConf, node: &NodeFile) -> Result<IfName, CniError> {
    if make.ipam.source != IpamSource::Node {
        return Ok(node.bridge);
    }
    let bridges = node.blocks_of(&make.ipam.pools).map(|block| block.bridge.unwrap_or(node.bridge));
    let bridges: BTreeSet<IfName> = bridges.collect();
    let mut all = bridges.iter();
    match (all.next(), all.next()) {
        (Some(one), Some(other)) => Err(invalid(&format!(
            "`ipam.pools` are on the bridges {one} and {other}: a pod's interface is on one; give the other a network of its own"
        ))),
        (one, _) => Ok(one.copied().unwrap_or(node.bridge)),
    }
}

/// Who is on a segment asks for a pod there, and a routed one has no port of its bridge to answer by.
fn must_be_routed(make: &MakeConf, node: Option<&NodeFile>) -> Result<(), CniError> {
    let mut blocks = node.into_iter().flat_map(|node| node.blocks_of(&make.ipam.pools));
    match blocks.find(|block| block.segment.is_some() || block.bridge.is_some()) {
        Some(block) if make.ipam.source == IpamSource::Node => Err(invalid(&format!(
            "`attach` is \"routed\", and the pods of pool {} are on one segment: \"bridge\" was meant",
            block.pool
        ))),
        _ => Ok(()),
    }
}

fn bridge(conf: &BridgeConf, make: &MakeConf, node: Option<&NodeFile>) -> Result<Attach, CniError> {
    let of_node = node.map(|node| bridge_of(make, node)).transpose()?;
    let bridge = conf.bridge.or(of_node).ok_or_else(|| invalid("`bridge` is missing: the bridge's name"))?;
    let is_node = of_node == Some(bridge) && make.ipam.source == IpamSource::Node;
    // With a DHCP server the router is that one's choice.
    let is_leased = matches!(make.ipam.source, IpamSource::Dhcp(_));
    let own = OwnBridge {
        is_gateway: !is_leased
            && (conf.is_gateway.unwrap_or(false) || conf.is_default_gateway.unwrap_or(conf.is_gateway.is_none())),
        force_address: conf.force_address,
        promiscuous: conf.promiscuous,
    };
    let port = BridgePort {
        bridge,
        // A pod that calls itself by a port of the host: where the bridge has its packets looked at (br_netfilter) they never
        // leave it.
        hairpin: conf.hairpin || (!make.ports.is_empty() && !conf.promiscuous),
        isolated: conf.isolated,
        own: (!is_node).then_some(own),
        vlans: conf.vlans.clone(),
        check_mac: conf.check_mac,
        detect_duplicates: conf.detect_duplicates,
    };
    if port.has_gateway_port() && port.gateway_device().is_none() {
        return Err(invalid(&format!("`bridge` is {bridge}: too long for the gateway of a VLAN to be called by it")));
    }
    Ok(Attach::Bridge(port))
}

fn macvlan(conf: &MacvlanConf, master: IfName) -> Attach {
    Attach::Macvlan(Macvlan {
        master,
        in_container: conf.in_container,
        mode: conf.mode,
        sources: conf.sources.clone(),
        broadcast_queue: conf.broadcast_queue,
        host_link: conf.host_link,
    })
}

/// Ports need a way from the host to the pod.
fn ports(make: &MakeConf) -> Result<Vec<PortMapping>, CniError> {
    match &make.attach {
        AttachConf::Macvlan(conf) if conf.host_link.is_none() && !make.ports.is_empty() => {
            Err(invalid("`portMappings` needs `hostLink` with a macvlan: without it the host does not reach its pods"))
        }
        _ => Ok(make.ports.clone()),
    }
}

/// What goes to a macvlan comes straight from the wire, or from its neighbours: nothing of the host's can hold it up.
fn bandwidth(make: &MakeConf) -> Result<Bandwidth, CniError> {
    match &make.attach {
        AttachConf::Macvlan(_) if make.bandwidth.ingress.is_some() => Err(CniError::new(
            Code::UnsupportedField,
            "`ingressRate` is not supported with a macvlan, which has no end on the host; `egressRate` is",
        )),
        _ => Ok(make.bandwidth),
    }
}

fn invalid(message: &str) -> CniError {
    CniError::new(Code::InvalidConfig, message)
}
