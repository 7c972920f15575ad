//! The part of VXLAN's options that says how a device comes to know where pods are, and whether they are on one segment.

use std::net::IpAddr;

use super::ConfigError;
use super::fields::Fields;
use crate::model::{Control, Family, IfName, PerFamily, PoolName, VxlanConfig};

/// What is said.
#[derive(Debug)]
pub(crate) struct Segment {
    /// How the device comes to know.
    pub control: Control,
    /// Whether the bridge is extended.
    pub bridged: bool,
    /// The multicast groups.
    pub group: PerFamily<IpAddr>,
    /// The bridge.
    pub bridge: Option<IfName>,
}

/// By which keys.
pub(crate) struct Words {
    pub control: &'static str,
    pub bridged: &'static str,
    pub group: &'static str,
    pub bridge: &'static str,
}

/// The keys of a `[[pool]]` table.
pub(crate) const WORDS: Words = Words { control: "control", bridged: "bridged", group: "group", bridge: "bridge" };

impl Segment {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the first fault.
    pub fn parse(fields: &mut Fields, words: &Words) -> Result<Self, ConfigError> {
        let control = match fields.text(words.control)?.as_deref() {
            None | Some("static") => Control::Static,
            Some("learn") => Control::Learn,
            Some("miss") => Control::Miss,
            Some(other) => {
                let meant = "\"static\", \"learn\" or \"miss\" was meant";
                return Err(fields.invalid(words.control, &format!("{other:?}"), meant));
            }
        };
        let mut group = PerFamily::default();
        if let Some(mut groups) = fields.table(words.group)? {
            for (family, key) in [(Family::V4, "v4"), (Family::V6, "v6")] {
                if let Some(addr) = groups.parsed_as(key, group_meant(family))? {
                    group.set(family, addr);
                }
            }
            groups.finish()?;
        }
        let bridged = fields.flag(words.bridged)?.unwrap_or(control == Control::Learn);
        Ok(Self { control, bridged, group, bridge: fields.parsed(words.bridge)? })
    }
}

fn group_meant(family: Family) -> &'static str {
    match family {
        Family::V4 => "a multicast group of IPv4 was meant, such as \"239.1.1.42\"",
        Family::V6 => "a multicast group of IPv6 was meant, such as \"ff05::42\"",
    }
}

/// Checks a pool's options.
///
/// # Errors
/// [`ConfigError::Invalid`] for the first fault.
pub(crate) fn check(pool: &PoolName, vxlan: &VxlanConfig) -> Result<(), ConfigError> {
    let invalid = |key: &str, value: &dyn std::fmt::Display, meant: &str| {
        let key = format!("pool.{pool}.backend.{key}");
        Err(ConfigError::Invalid { key, value: value.to_string(), meant: meant.to_owned() })
    };
    if vxlan.control == Control::Learn && !vxlan.bridged {
        return invalid(
            "bridged",
            &false,
            "what is learned is where the pods of one segment are: leave it out, or true",
        );
    }
    if vxlan.bridged && vxlan.control != Control::Learn {
        let meant = "where the pods of a segment are has to be learned: control = \"learn\" goes with it";
        return invalid("bridged", &true, meant);
    }
    if vxlan.bridged && vxlan.direct_routing {
        let meant = "false was meant: the pods of one segment reach each other without a router";
        return invalid("direct_routing", &true, meant);
    }
    for (family, addr) in vxlan.group.iter() {
        let key = if family == Family::V4 { "group.v4" } else { "group.v6" };
        if vxlan.control != Control::Learn {
            return invalid(key, &addr, "a group is for what is flooded: control = \"learn\" goes with it");
        }
        if !addr.is_multicast() || Family::of(addr) != family {
            return invalid(key, &addr, group_meant(family));
        }
    }
    match vxlan.bridge {
        Some(bridge) if !vxlan.bridged => {
            invalid("bridge", &bridge, "pods that are routed are on the node's own: control = \"learn\" goes with it")
        }
        _ => Ok(()),
    }
}

/// Checks that two pools are one network or two: a network is a VNI and a bridge.
///
/// # Errors
/// Why not, and what to do.
pub(crate) fn check_together(a: &VxlanConfig, b: &VxlanConfig) -> Result<(), String> {
    // One device serves what is routed under either control.
    let shape = |vxlan: &VxlanConfig| (vxlan.bridged, vxlan.group, vxlan.bridge);
    if a.vni == b.vni && shape(a) != shape(b) {
        return Err(format!(
            "both use VNI {}, which is one device, and differ in bridged, group or bridge; give them different VNIs, or set \
             both alike",
            a.vni
        ));
    }
    if a.bridged && b.bridged && a.bridge == b.bridge && a.vni != b.vni {
        let bridge = a.bridge.map_or_else(|| "the node's own bridge".to_owned(), |bridge| format!("bridge {bridge}"));
        return Err(format!(
            "both extend {bridge}, which is one segment, by VNIs {} and {}; give them one VNI, or each a bridge of its own (`bridge`)",
            b.vni, a.vni
        ));
    }
    Ok(())
}
