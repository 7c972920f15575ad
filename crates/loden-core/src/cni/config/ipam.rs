//! Where a pod's addresses come from, as a configuration says it: with the keys of the reference plugins host-local and static.

use std::net::IpAddr;

use ipnet::IpNet;

use super::DhcpConf;
use crate::cni::CniError;
use crate::cni::keys::Keys;
use crate::ipam::Range;
use crate::kernel::default_priority;
use crate::model::{Family, PodAddress, PodRoute, PoolName, Prefix, RouteExtras, is_plain_name};

/// The whole `ipam`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamConf {
    /// Where addresses come from.
    pub source: IpamSource,
    /// `routes`; `None`: not said. A route without a gateway takes that of the address.
    pub routes: Option<Vec<PodRoute>>,
    /// `dns`, in the result's form; the plugin `static` has it there.
    pub dns: Option<serde_json::Value>,
    /// `resolvConf`: the file whose name servers are meant, where nothing else says them; the plugin `host-local` has it there.
    pub resolv_conf: Option<String>,
    /// `reserved`: what is given only to who asks for it.
    pub reserved: Vec<Prefix>,
    /// `pools`: the only ones whose blocks are meant, of those of the node. None: all whose pods are on the node's bridge.
    pub pools: Vec<PoolName>,
}

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpamSource {
    /// The node's blocks.
    Node,
    /// Nowhere: the pod gets an interface alone.
    Nowhere,
    /// Ranges of the network's own: an address of each list, of whichever range has room.
    Ranges(Vec<Vec<(Range, IpAddr)>>),
    /// They are given as they are.
    Static(Vec<PodAddress>),
    /// A DHCP server gives them, whom the agent asks.
    Dhcp(DhcpConf),
    /// Another plugin gives them: its name.
    Plugin(String),
}

impl IpamConf {
    /// Without any key of its own.
    pub(super) fn of(source: IpamSource) -> Self {
        Self { source, routes: None, dns: None, resolv_conf: None, reserved: Vec::new(), pools: Vec::new() }
    }

    /// Reads `ipam`; without one, or without a type, addresses come from `usual`.
    pub(super) fn parse(keys: &Keys<'_>, usual: IpamSource) -> Result<Self, CniError> {
        let Some(ipam) = keys.object("ipam")? else {
            return Ok(Self::of(usual));
        };
        let source = match ipam.text("type")? {
            None => usual,
            Some("loden") => IpamSource::Node,
            Some("host-local") => ranges(keys, &ipam)?,
            Some("static") => fixed(&ipam)?,
            Some("dhcp") => IpamSource::Dhcp(DhcpConf::parse(&ipam)?),
            Some(_) if let Some(name) = plugin(&ipam) => IpamSource::Plugin(name.to_owned()),
            Some(_) => {
                return Err(
                    ipam.wrong("type", "\"loden\", \"host-local\", \"static\", \"dhcp\" or another plugin's name")
                );
            }
        };
        let pools = ipam.all_parsed("pools", "names of pools")?;
        if !pools.is_empty() && source != IpamSource::Node {
            return Err(ipam.wrong("pools", "nothing, unless the type is \"loden\","));
        }
        let routes = ipam.get("routes").map(|_| ipam.objects("routes")?.iter().map(route).collect()).transpose()?;
        Ok(Self {
            source,
            routes,
            dns: ipam.get("dns").cloned(),
            resolv_conf: ipam.text("resolvConf")?.map(str::to_owned),
            reserved: prefixes(&ipam, "reserved")?,
            pools,
        })
    }
}

/// The name of the plugin that gives addresses, where it is another than this one.
pub(super) fn plugin<'a>(ipam: &Keys<'a>) -> Option<&'a str> {
    let name = ipam.text("type").ok().flatten()?;
    (!["loden", "host-local", "static", "dhcp"].contains(&name) && is_plain_name(name)).then_some(name)
}

/// `dataDir`.
pub(super) fn data_dir<'a>(ipam: &Keys<'a>) -> Option<&'a str> {
    ipam.text("dataDir").ok().flatten().filter(|dir| !dir.is_empty())
}

/// `ranges`, or the older form with one range in the object itself; those of the runtime go first.
fn ranges(keys: &Keys<'_>, ipam: &Keys<'_>) -> Result<IpamSource, CniError> {
    let mut sets = Vec::new();
    if let Some(runtime) = keys.object("runtimeConfig")? {
        sets.extend(runtime.object_lists("ipRanges")?);
    }
    if ipam.get("subnet").is_some() {
        sets.push(vec![ipam.clone()]);
    }
    sets.extend(ipam.object_lists("ranges")?);
    let sets: Vec<Vec<(Range, IpAddr)>> =
        sets.iter().map(|set| set.iter().map(range).collect()).collect::<Result<_, _>>()?;
    if sets.iter().all(Vec::is_empty) {
        return Err(ipam.wrong("ranges", "at least one range (`ranges` or `subnet`)"));
    }
    let all: Vec<Range> = sets.iter().flatten().map(|(range, _)| *range).collect();
    for (place, range) in all.iter().enumerate() {
        if let Some(other) = all[..place].iter().find(|other| other.overlaps(*range)) {
            return Err(ipam.wrong("ranges", "each address once").with(format!("{range} and {other} overlap")));
        }
    }
    for set in &sets {
        let family = |(range, _): &(Range, IpAddr)| range.subnet().family();
        if set.iter().any(|other| set.first().map(family) != Some(family(other))) {
            return Err(ipam.wrong("ranges", "one family in each inner list"));
        }
    }
    Ok(IpamSource::Ranges(sets.into_iter().filter(|set| !set.is_empty()).collect()))
}

fn range(keys: &Keys<'_>) -> Result<(Range, IpAddr), CniError> {
    let subnet: Prefix =
        keys.parsed("subnet", "a network such as 10.1.0.0/24")?.ok_or_else(|| keys.wrong("subnet", "a network"))?;
    let first = keys.parsed("rangeStart", "an address")?;
    let last = keys.parsed("rangeEnd", "an address")?;
    let range = Range::new(subnet, first, last)
        .map_err(|error| keys.wrong("subnet", "a network with room for pods").with(error.to_string()))?;
    let gateway = match keys.parsed("gateway", "an address")? {
        Some(gateway) => gateway,
        None => subnet.nth(1).unwrap_or(subnet.network()),
    };
    if Family::of(gateway) != subnet.family() {
        return Err(keys.wrong("gateway", &format!("an {} address", subnet.family())));
    }
    Ok((range, gateway))
}

/// `addresses` of the plugin static.
fn fixed(ipam: &Keys<'_>) -> Result<IpamSource, CniError> {
    let address = |keys: &Keys<'_>| {
        let net: IpNet = keys
            .parsed("address", "an address with its length, such as 10.1.0.9/24")?
            .ok_or_else(|| keys.wrong("address", "an address"))?;
        Ok(PodAddress { net, gateway: keys.parsed("gateway", "an address")?, supply: None })
    };
    Ok(IpamSource::Static(ipam.objects("addresses")?.iter().map(address).collect::<Result<_, _>>()?))
}

fn route(keys: &Keys<'_>) -> Result<PodRoute, CniError> {
    let dst: IpNet = keys
        .parsed("dst", "a destination such as 0.0.0.0/0")?
        .ok_or_else(|| keys.wrong("dst", "a destination such as 0.0.0.0/0"))?;
    let prefix = Prefix::holding(dst.addr(), dst.prefix_len());
    let gateway = keys.parsed("gw", "an address")?;
    let priority = keys.number("priority")?.unwrap_or(default_priority(prefix.family()));
    let extras = RouteExtras {
        table: keys.number("table")?,
        scope: keys.number("scope")?,
        mtu: keys.number("mtu")?,
        advmss: keys.number("advmss")?,
    };
    Ok(PodRoute { prefix, gateway, priority, extras })
}

/// Prefixes, or single addresses.
fn prefixes(keys: &Keys<'_>, key: &str) -> Result<Vec<Prefix>, CniError> {
    let texts: Vec<String> = keys.all_parsed(key, "addresses or networks")?;
    let wrong = |text: &str| keys.wrong(key, "a list of addresses or networks").with(format!("{text:?} is neither"));
    let one = |text: &String| match text.parse::<IpAddr>() {
        Ok(addr) => Ok(Prefix::host(addr)),
        Err(_) => text.parse().map_err(|_| wrong(text)),
    };
    texts.iter().map(one).collect()
}
