//! net-conf.json: flannel's configuration of a network, as one pool for each family.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use super::{FlannelError, json};
use crate::config::ConfigError;
use crate::config::cluster::{self, check_pool};
use crate::config::fields::{Fields, nearest};
use crate::config::segment::{Segment, Words as SegmentWords};
use crate::model::{
    BackendConfig, Control, Family, HostGwConfig, IfName, IpipConfig, PerFamily, Pool, PoolName, Prefix, UdpConfig,
    Vni, VxlanConfig,
};

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// Its pools, IPv4 first: [`pool_name`] says their names. All have the same backend.
    pub pools: Vec<Pool>,
    /// Whether flanneld writes its rules by nftables. loden always does; it is kept for the nodes that are flannel's.
    pub enable_nftables: bool,
}

/// The name of the family's pool.
#[must_use]
pub fn pool_name(family: Family) -> PoolName {
    let name = if family == Family::V4 { "flannel" } else { "flannel-v6" };
    PoolName::new(name).unwrap_or_else(|_| unreachable!("{name} is a name"))
}

/// The keys of a family, and what is usual there.
struct Words {
    enabled: &'static str,
    is_usual: bool,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    usual_len: u8,
}

fn words(family: Family) -> Words {
    match family {
        Family::V4 => Words {
            enabled: "EnableIPv4",
            is_usual: true,
            network: "Network",
            len: "SubnetLen",
            min: "SubnetMin",
            max: "SubnetMax",
            usual_len: 24,
        },
        Family::V6 => Words {
            enabled: "EnableIPv6",
            is_usual: false,
            network: "IPv6Network",
            len: "IPv6SubnetLen",
            min: "IPv6SubnetMin",
            max: "IPv6SubnetMax",
            usual_len: 64,
        },
    }
}

impl NetConf {
    /// Reads it. flannel says by a flag (`--ip-masq`) whether packets to the outside take the host's address, and so it is
    /// given here.
    ///
    /// flannel checks it only where it assigns subnets itself; here it is always checked.
    ///
    /// # Errors
    /// [`FlannelError`] for the first fault, or a backend that loden does not carry.
    pub fn parse(text: &[u8], nat_outgoing: bool) -> Result<Self, FlannelError> {
        let mut fields = Fields::new("", Value::Object(json::object(text)?))?;
        let enable_nftables = fields.flag("EnableNFTables")?.unwrap_or(false);
        let backend = parse_backend(fields.table("Backend")?)?;
        let mut pools = Vec::new();
        for family in Family::ALL {
            let words = words(family);
            if fields.flag(words.enabled)?.unwrap_or(words.is_usual) {
                let pool = parse_pool(&mut fields, family, &words, &backend, nat_outgoing)?;
                check_pool(&pool)?;
                pools.push(pool);
            }
        }
        if pools.is_empty() {
            return Err(fields.invalid("EnableIPv4", &false, "a network needs IPv4 or IPv6: set one to true").into());
        }
        Ok(Self { pools, enable_nftables })
    }

    /// Writes it so that it reads as it is, except for [`Pool::nat_outgoing`], which flannel says by a flag.
    ///
    /// # Errors
    /// [`FlannelError::Unsayable`] when flannel has no words for the pools, with what to do.
    pub fn render(&self) -> Result<String, FlannelError> {
        let mut out = Written { enable_nftables: self.enable_nftables, ..Written::default() };
        let Some(first) = self.pools.first() else {
            return Err(FlannelError::Unsayable { pool: "none".to_owned(), why: "there has to be one".to_owned() });
        };
        out.enable_ipv4 = (!self.pools.iter().any(|pool| pool.cidr.family() == Family::V4)).then_some(false);
        for pool in &self.pools {
            let family = pool.cidr.family();
            check_sayable(pool, first)?;
            let (size, min, max) = match family {
                Family::V4 => (&mut out.network, &mut out.subnet_min, &mut out.subnet_max),
                Family::V6 => (&mut out.ipv6_network, &mut out.ipv6_subnet_min, &mut out.ipv6_subnet_max),
            };
            if size.replace(pool.cidr).is_some() {
                let why = format!("there is another {family} pool, and flannel has one; leave out one of them");
                return Err(FlannelError::Unsayable { pool: pool.name.to_string(), why });
            }
            let (lowest, highest) = pool.block_bounds().ok_or_else(|| FlannelError::Unsayable {
                pool: pool.name.to_string(),
                why: "its blocks do not fit into it".to_owned(),
            })?;
            *min = (Some(lowest) != pool.cidr.nth_subnet(pool.block_len, 1)).then_some(lowest.network());
            *max = (highest != last_block(pool.cidr, pool.block_len)).then_some(highest.network());
            match family {
                Family::V4 => out.subnet_len = Some(pool.block_len),
                Family::V6 => (out.enable_ipv6, out.ipv6_subnet_len) = (Some(true), Some(pool.block_len)),
            }
        }
        out.backend = Some(WrittenBackend::of(&first.backend));
        serde_json::to_string(&out).map_err(|error| FlannelError::Json(error.to_string()))
    }
}

fn parse_pool(
    fields: &mut Fields,
    family: Family,
    words: &Words,
    backend: &BackendConfig,
    nat_outgoing: bool,
) -> Result<Pool, FlannelError> {
    let meant = format!("an {family} network was meant, such as {}", example(family));
    let network: IpNet =
        fields.parsed_as(words.network, &meant)?.ok_or_else(|| fields.missing(words.network, &meant))?;
    if Family::of(network.addr()) != family {
        return Err(fields.invalid(words.network, &network, &meant).into());
    }
    let cidr = Prefix::holding(network.addr(), network.prefix_len());
    let block_len = block_len(fields, words, cidr)?;
    let mut bound = |key, usual: Prefix| -> Result<Prefix, ConfigError> {
        let meant = format!("the first address of a subnet of /{block_len} inside {cidr} was meant");
        let Some(addr) = fields.parsed_as::<IpAddr>(key, &meant)? else { return Ok(usual) };
        if addr.is_unspecified() && Family::of(addr) == family {
            return Ok(usual);
        }
        let block = Prefix::holding(addr, block_len);
        if !cidr.contains(addr) || block.network() != addr {
            return Err(fields.invalid(key, &addr, &meant));
        }
        Ok(block)
    };
    // flannel never gives the first one: its first address is the network's own.
    let first = bound(words.min, cidr.nth_subnet(block_len, 1).unwrap_or(cidr))?;
    let last = bound(words.max, last_block(cidr, block_len))?;
    if last < first {
        let meant = format!("one not below `{}`, {}, was meant", words.min, first.network());
        return Err(fields.invalid(words.max, &last.network(), &meant).into());
    }
    Ok(Pool {
        name: pool_name(family),
        cidr,
        block_len,
        first_block: (Some(first) != cidr.nth_subnet(block_len, 0)).then_some(first),
        last_block: (last != last_block(cidr, block_len)).then_some(last),
        backend: backend.clone(),
        nat_outgoing,
        node_selector: BTreeMap::new(),
        unknown: BTreeMap::new(),
    })
}

/// A subnet needs four addresses, and a network four subnets: the first is not used, and one alone is no network.
fn block_len(fields: &mut Fields, words: &Words, cidr: Prefix) -> Result<u8, ConfigError> {
    let most = cidr.family().bits() - 2;
    let given = fields.number(words.len, 0, 128)?.filter(|len| *len > 0).and_then(|len| u8::try_from(len).ok());
    if cidr.len() + 2 > most {
        let meant = format!("one of at least four subnets with four addresses was meant: /{} or larger", most - 2);
        return Err(fields.invalid(words.network, &cidr, &meant));
    }
    match given {
        Some(len) if len > most || len < cidr.len() + 2 => {
            let meant = format!(
                "{} to {most} was meant, so that {cidr} has at least four subnets with four addresses each",
                cidr.len() + 2
            );
            Err(fields.invalid(words.len, &len, &meant))
        }
        Some(len) => Ok(len),
        None => Ok(words.usual_len.max(cidr.len() + 2)),
    }
}

fn example(family: Family) -> &'static str {
    if family == Family::V4 { "10.244.0.0/16" } else { "fd00:10:244::/56" }
}

fn last_block(cidr: Prefix, len: u8) -> Prefix {
    cidr.nth_subnet(len, cidr.count_subnets(len) - 1).unwrap_or(cidr)
}

fn parse_backend(fields: Option<Fields>) -> Result<BackendConfig, FlannelError> {
    // flannel's code takes an absent backend for this one, whatever its documentation says.
    let Some(mut fields) = fields else { return Ok(BackendConfig::Udp(UdpConfig::default())) };
    let meant = format!("{} was meant", cluster::kinds());
    let name = fields.text("Type")?.ok_or_else(|| fields.missing("Type", &meant))?.to_lowercase();
    match name.as_str() {
        "vxlan" => {
            let usual = VxlanConfig::default();
            let Segment { control, bridged, group, bridge } = parse_segment(&mut fields)?;
            let vni = fields.number("VNI", 1, (1 << 24) - 1)?.map_or(Ok(usual.vni), Vni::new);
            let port = fields.number("Port", 0, 65_535)?.and_then(|port| u16::try_from(port).ok());
            Ok(BackendConfig::Vxlan(VxlanConfig {
                vni: vni.map_err(|error| fields.invalid("VNI", &"given", &error.to_string()))?,
                // 0 is the kernel's own default.
                port: port.filter(|port| *port != 0).unwrap_or(usual.port),
                mtu: match fields.number("MTU", 0, 65_535)? {
                    Some(mtu) if (1..68).contains(&mtu) => {
                        return Err(fields.invalid("MTU", &mtu, "at least 68 bytes were meant").into());
                    }
                    mtu => mtu.filter(|mtu| *mtu != 0),
                },
                gbp: fields.flag("GBP")?.unwrap_or(usual.gbp),
                direct_routing: fields.flag("DirectRouting")?.unwrap_or(usual.direct_routing),
                control,
                bridged,
                group,
                bridge,
            }))
        }
        "host-gw" => Ok(BackendConfig::HostGw(HostGwConfig {})),
        "udp" => {
            let port = fields.number("Port", 0, 65_535)?.and_then(|port| u16::try_from(port).ok());
            Ok(BackendConfig::Udp(UdpConfig {
                port: port.filter(|port| *port != 0).unwrap_or(UdpConfig::default().port),
            }))
        }
        "ipip" => {
            Ok(BackendConfig::Ipip(IpipConfig { direct_routing: fields.flag("DirectRouting")?.unwrap_or(false) }))
        }
        "wireguard" | "ipsec" | "extension" | "alloc" | "tencent-vpc" => Err(FlannelError::Backend { name }),
        other => {
            let meant = match nearest(other, cluster::KINDS.into_iter()) {
                Some(known) => format!("did you mean \"{known}\"?"),
                None => meant,
            };
            Err(fields.invalid("Type", &format!("{other:?}"), &meant).into())
        }
    }
}

/// What flannel's own `Learning` says, and loden's keys beside it.
fn parse_segment(fields: &mut Fields) -> Result<Segment, ConfigError> {
    const WORDS: SegmentWords =
        SegmentWords { control: "Control", bridged: "Bridged", group: "Group", bridge: "Bridge" };
    let learning = fields.flag("Learning")?;
    let mut segment = Segment::parse(fields, &WORDS)?;
    match (learning, segment.control) {
        (Some(true), Control::Static) => (segment.control, segment.bridged) = (Control::Learn, true),
        (Some(true), Control::Miss) => {
            return Err(fields.invalid(
                "Learning",
                &true,
                "it and `Control` \"miss\" exclude each other; leave one out",
            ));
        }
        (Some(false), Control::Learn) => {
            return Err(fields.invalid("Learning", &false, "true was meant, since `Control` is \"learn\""));
        }
        _ => {}
    }
    Ok(segment)
}

/// Whether flannel has words for a pool, beside the first one.
fn check_sayable(pool: &Pool, first: &Pool) -> Result<(), FlannelError> {
    let usual = pool_name(pool.cidr.family());
    let bits = pool.cidr.family().bits();
    let why = if pool.name != usual {
        format!("its only {} pool is called {usual}; rename it", pool.cidr.family())
    } else if !pool.node_selector.is_empty() {
        "it serves all nodes alike; take `node_selector` away".to_owned()
    } else if !pool.unknown.is_empty() {
        let keys: Vec<_> = pool.unknown.keys().map(String::as_str).collect();
        format!("it has no such key as {}", keys.join(", "))
    } else if pool.backend != first.backend {
        format!("all its pools have one backend; give it that of {}", first.name)
    } else if pool.nat_outgoing != first.nat_outgoing {
        format!("flanneld masquerades all pools or none; set `nat_outgoing` as in {}", first.name)
    } else if pool.block_len > bits - 2 || pool.block_len < pool.cidr.len() + 2 {
        "it has at least four blocks in a pool, and four addresses in a block; choose another block length".to_owned()
    } else {
        return Ok(());
    };
    Err(FlannelError::Unsayable { pool: pool.name.to_string(), why })
}

/// The file, in the order of flannel's documentation.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Written {
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
    enable_ipv6: Option<bool>,
    #[serde(rename = "EnableNFTables")]
    enable_nftables: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Prefix>,
    #[serde(rename = "IPv6Network", skip_serializing_if = "Option::is_none")]
    ipv6_network: Option<Prefix>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet_len: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet_min: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet_max: Option<IpAddr>,
    #[serde(rename = "IPv6SubnetLen", skip_serializing_if = "Option::is_none")]
    ipv6_subnet_len: Option<u8>,
    #[serde(rename = "IPv6SubnetMin", skip_serializing_if = "Option::is_none")]
    ipv6_subnet_min: Option<IpAddr>,
    #[serde(rename = "IPv6SubnetMax", skip_serializing_if = "Option::is_none")]
    ipv6_subnet_max: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<WrittenBackend>,
}

#[derive(Debug, Default, Serialize)]
struct WrittenBackend {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "VNI", skip_serializing_if = "Option::is_none")]
    vni: Option<Vni>,
    #[serde(rename = "Port", skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(rename = "MTU", skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(rename = "GBP", skip_serializing_if = "std::ops::Not::not")]
    gbp: bool,
    #[serde(rename = "DirectRouting", skip_serializing_if = "std::ops::Not::not")]
    direct_routing: bool,
    #[serde(rename = "Learning", skip_serializing_if = "std::ops::Not::not")]
    learning: bool,
    #[serde(rename = "Control", skip_serializing_if = "Option::is_none")]
    control: Option<Control>,
    #[serde(rename = "Bridged", skip_serializing_if = "std::ops::Not::not")]
    bridged: bool,
    #[serde(rename = "Group", skip_serializing_if = "PerFamily::is_empty")]
    group: PerFamily<IpAddr>,
    #[serde(rename = "Bridge", skip_serializing_if = "Option::is_none")]
    bridge: Option<IfName>,
}

impl WrittenBackend {
    fn of(backend: &BackendConfig) -> Self {
        let kind = backend.kind();
        match backend {
            BackendConfig::HostGw(HostGwConfig {}) => Self { kind, ..Self::default() },
            BackendConfig::Udp(UdpConfig { port }) => Self { kind, port: Some(*port), ..Self::default() },
            BackendConfig::Ipip(IpipConfig { direct_routing }) => {
                Self { kind, direct_routing: *direct_routing, ..Self::default() }
            }
            BackendConfig::Vxlan(vxlan) => Self {
                kind,
                vni: Some(vxlan.vni),
                port: Some(vxlan.port),
                mtu: vxlan.mtu,
                gbp: vxlan.gbp,
                direct_routing: vxlan.direct_routing,
                // flannel's own word says it all.
                learning: vxlan.control == Control::Learn,
                control: Some(vxlan.control).filter(|control| *control == Control::Miss),
                bridged: vxlan.bridged && vxlan.control == Control::Miss,
                group: vxlan.group,
                bridge: vxlan.bridge,
            },
        }
    }
}
