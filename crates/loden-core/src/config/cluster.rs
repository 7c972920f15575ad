//! The cluster's configuration: its pools.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ConfigError;
use super::fields::{Fields, nearest};
use super::segment::{self, Segment};
use crate::model::{
    BackendConfig, Family, HostGwConfig, IpipConfig, Pool, PoolName, Prefix, UdpConfig, Vni, VxlanConfig,
};

/// Parses a file of `[[pool]]` tables and checks each and all together.
///
/// # Errors
/// [`ConfigError`] for the first fault.
pub fn parse_pools(file: Value) -> Result<Vec<Pool>, ConfigError> {
    let mut fields = Fields::new("", file)?;
    let mut pools: Vec<Pool> = Vec::new();
    for table in fields.tables("pool")? {
        let pool = parse_pool(table)?;
        check_pool(&pool)?;
        check_together(pools.iter(), &pool)?;
        if pools.iter().any(|other| other.name == pool.name) {
            return Err(ConfigError::Clash {
                pool: pool.name.to_string(),
                with: pool.name.to_string(),
                why: "the name is there twice".to_owned(),
            });
        }
        pools.push(pool);
    }
    fields.finish()?;
    Ok(pools)
}

fn parse_pool(mut fields: Fields) -> Result<Pool, ConfigError> {
    let name: PoolName =
        fields.parsed("name")?.ok_or_else(|| fields.missing("name", "a name for the pool, such as \"default\""))?;
    let cidr: Prefix = fields
        .parsed("cidr")?
        .ok_or_else(|| fields.missing("cidr", "the pool's addresses, such as \"10.244.0.0/16\""))?;
    let block_len = match fields.number("block_len", 0, 128)? {
        Some(len) => u8::try_from(len).unwrap_or(u8::MAX),
        None => default_block_len(cidr),
    };
    let (first_block, last_block) = (fields.parsed("first_block")?, fields.parsed("last_block")?);
    let nat_outgoing = fields.flag("nat_outgoing")?.unwrap_or(true);
    let node_selector = fields.labels("node_selector")?;
    let backend = match fields.table("backend")? {
        Some(table) => parse_backend(table)?,
        None => BackendConfig::Vxlan(VxlanConfig::default()),
    };
    fields.finish()?;
    let unknown = BTreeMap::new();
    Ok(Pool { name, cidr, block_len, first_block, last_block, backend, nat_outgoing, node_selector, unknown })
}

/// How long a block's prefix is where nobody says: as large as flannel's default: /24 or /64; a quarter of the pool when the pool is no larger than that.
#[must_use]
pub fn default_block_len(cidr: Prefix) -> u8 {
    let usual = if cidr.family() == Family::V4 { 24 } else { 64 };
    if cidr.len() + 2 <= usual { usual } else { (cidr.len() + 2).min(cidr.family().bits()) }
}

/// The backends by name.
pub(crate) const KINDS: [&str; 4] = ["vxlan", "host-gw", "udp", "ipip"];

/// The backends, for people.
pub(crate) fn kinds() -> String {
    let quoted: Vec<String> = KINDS.iter().map(|kind| format!("{kind:?}")).collect();
    let (last, first) = quoted.split_last().unwrap_or((&quoted[0], &[]));
    format!("{} or {last}", first.join(", "))
}

fn parse_backend(mut fields: Fields) -> Result<BackendConfig, ConfigError> {
    let kind = fields.text("type")?.ok_or_else(|| fields.missing("type", &kinds()))?;
    let backend = match kind.as_str() {
        "vxlan" => {
            let usual = VxlanConfig::default();
            let vni = fields.number("vni", 1, (1 << 24) - 1)?.map_or(Ok(usual.vni), Vni::new);
            let Segment { control, bridged, group, bridge } = Segment::parse(&mut fields, &segment::WORDS)?;
            BackendConfig::Vxlan(VxlanConfig {
                vni: vni.map_err(|error| fields.invalid("vni", &"given", &error.to_string()))?,
                port: fields.number("port", 1, 65535)?.map_or(usual.port, |port| port as u16),
                mtu: fields.number("mtu", 68, 65535)?,
                gbp: fields.flag("gbp")?.unwrap_or(usual.gbp),
                direct_routing: fields.flag("direct_routing")?.unwrap_or(usual.direct_routing),
                control,
                bridged,
                group,
                bridge,
            })
        }
        "host-gw" => BackendConfig::HostGw(HostGwConfig {}),
        "udp" => {
            let port = fields.number("port", 1, 65535)?.and_then(|port| u16::try_from(port).ok());
            BackendConfig::Udp(UdpConfig { port: port.unwrap_or(UdpConfig::default().port) })
        }
        "ipip" => BackendConfig::Ipip(IpipConfig { direct_routing: fields.flag("direct_routing")?.unwrap_or(false) }),
        other => {
            let meant = match nearest(other, KINDS.into_iter()) {
                Some(known) => format!("did you mean \"{known}\"?"),
                None => format!("{} was meant", kinds()),
            };
            return Err(fields.invalid("type", &format!("{other:?}"), &meant));
        }
    };
    fields.finish()?;
    Ok(backend)
}

/// Checks a pool by itself.
///
/// # Errors
/// [`ConfigError::Invalid`] for the first fault.
pub fn check_pool(pool: &Pool) -> Result<(), ConfigError> {
    let invalid = |key: &str, value: String, meant: String| {
        Err(ConfigError::Invalid { key: format!("pool.{}.{key}", pool.name), value, meant })
    };
    let bits = pool.cidr.family().bits();
    // A block needs room for the network's own address, the gateway, a pod and (IPv4) the broadcast address.
    if pool.block_len > bits - 2 {
        return invalid(
            "block_len",
            pool.block_len.to_string(),
            format!("a block needs at least four addresses: at most {} for {}", bits - 2, pool.cidr.family()),
        );
    }
    if pool.block_len < pool.cidr.len() {
        return invalid(
            "block_len",
            pool.block_len.to_string(),
            format!(
                "a block of /{} is larger than the pool {}: at least {} was meant",
                pool.block_len,
                pool.cidr,
                pool.cidr.len()
            ),
        );
    }
    for (key, block) in [("first_block", pool.first_block), ("last_block", pool.last_block)] {
        if let Some(block) = block
            && (block.len() != pool.block_len || !pool.cidr.covers(block))
        {
            let meant = format!("a block of /{} inside {} was meant", pool.block_len, pool.cidr);
            return invalid(key, block.to_string(), meant);
        }
    }
    if let (Some(first), Some(last)) = (pool.first_block, pool.last_block)
        && last < first
    {
        return invalid("last_block", last.to_string(), format!("one not below `first_block`, {first}, was meant"));
    }
    if let Some((prefix, what)) = unfit_for_pods().into_iter().find(|(prefix, _)| prefix.overlaps(pool.cidr)) {
        return invalid(
            "cidr",
            pool.cidr.to_string(),
            format!("it holds {what} addresses ({prefix}), which no pod can have"),
        );
    }
    match &pool.backend {
        BackendConfig::Vxlan(vxlan) if vxlan.port == 0 => {
            invalid("backend.port", "0".to_owned(), "a UDP port from 1 to 65535 was meant".to_owned())
        }
        BackendConfig::Vxlan(vxlan) => segment::check(&pool.name, vxlan),
        BackendConfig::Udp(udp) if udp.port == 0 => {
            invalid("backend.port", "0".to_owned(), "a UDP port from 1 to 65535 was meant".to_owned())
        }
        BackendConfig::Ipip(_) if pool.cidr.family() == Family::V6 => invalid(
            "backend.type",
            "ipip".to_owned(),
            "it carries IPv4 alone; \"vxlan\" or \"udp\" was meant, which carry IPv6 too".to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Addresses that cannot be routed to a pod: RFC 6890 section 2.2.
fn unfit_for_pods() -> [(Prefix, &'static str); 8] {
    let (v4, v6) = (
        |octets: [u8; 4], len| Prefix::holding(octets.into(), len),
        |first: u16, last: u16, len| Prefix::holding([first, 0, 0, 0, 0, 0, 0, last].into(), len),
    );
    [
        (v4([0, 0, 0, 0], 8), "unspecified"),
        (v4([127, 0, 0, 0], 8), "loopback"),
        (v4([169, 254, 0, 0], 16), "link-local"),
        (v4([224, 0, 0, 0], 4), "multicast"),
        (v6(0, 0, 128), "unspecified"),
        (v6(0, 1, 128), "loopback"),
        (v6(0xfe80, 0, 10), "link-local"),
        (v6(0xff00, 0, 8), "multicast"),
    ]
}

/// Checks a pool against those that are in force.
///
/// # Errors
/// [`ConfigError::Clash`] for the first one that it cannot live with.
pub fn check_together<'a>(others: impl Iterator<Item = &'a Pool>, pool: &Pool) -> Result<(), ConfigError> {
    for other in others.filter(|other| other.name != pool.name) {
        let clash =
            |why: String| Err(ConfigError::Clash { pool: pool.name.to_string(), with: other.name.to_string(), why });
        if other.cidr.overlaps(pool.cidr) {
            return clash(format!("{} overlaps {}; choose addresses that are in no other pool", pool.cidr, other.cidr));
        }
        if let (BackendConfig::Vxlan(VxlanConfig { port, .. }), BackendConfig::Udp(udp))
        | (BackendConfig::Udp(udp), BackendConfig::Vxlan(VxlanConfig { port, .. })) = (&other.backend, &pool.backend)
            && *port == udp.port
        {
            return clash(format!(
                "one sends VXLAN to UDP port {port} and the other bare packets; give them different ports"
            ));
        }
        if let (BackendConfig::Vxlan(a), BackendConfig::Vxlan(b)) = (&other.backend, &pool.backend) {
            if a.vni == b.vni && (a.port, a.gbp) != (b.port, b.gbp) {
                return clash(format!(
                    "both use VNI {}, which is one device, but {}; give them different VNIs, or set both alike",
                    a.vni,
                    if a.port == b.port {
                        "only one with the group policy extension (gbp)".to_owned()
                    } else {
                        format!("with UDP ports {} and {}", b.port, a.port)
                    },
                ));
            }
            segment::check_together(a, b).or_else(clash)?;
        }
    }
    Ok(())
}
