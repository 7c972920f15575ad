//! `subnet.env`: what flanneld leaves for the CNI plugin, and finds again itself after a restart.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use crate::model::{Family, Prefix};

/// What flanneld tells of a node. Its text form is the file's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The networks of the cluster.
    pub networks: Vec<Prefix>,
    /// The node's subnets: one of each family at most.
    pub subnets: Vec<Prefix>,
    /// MTU for pods, in bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades itself.
    pub masquerades: bool,
}

impl FromStr for SubnetEnv {
    type Err = String;

    /// Says all that is missing or wrong.
    fn from_str(text: &str) -> Result<Self, String> {
        let pairs: Vec<(&str, &str)> = text.lines().filter_map(|line| line.trim().split_once('=')).collect();
        let get = |key: &str| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| value.trim());
        let mut faults = Vec::new();
        let mut list = |key: &str, family: Family| -> Vec<Prefix> {
            let texts = get(key).unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty());
            let prefix = |text: &str| {
                let net = text.parse::<IpNet>().ok().filter(|net| Family::of(net.addr()) == family);
                let found = net.map(|net| Prefix::holding(net.addr(), net.prefix_len()));
                if found.is_none() {
                    faults.push(format!("{key}={text} is no {family} network"));
                }
                found
            };
            texts.filter_map(prefix).collect()
        };
        let networks = [list("FLANNEL_NETWORK", Family::V4), list("FLANNEL_IPV6_NETWORK", Family::V6)].concat();
        let subnets = [list("FLANNEL_SUBNET", Family::V4), list("FLANNEL_IPV6_SUBNET", Family::V6)].concat();
        let mtu = get("FLANNEL_MTU").and_then(|mtu| mtu.parse().ok());
        let masquerades = get("FLANNEL_IPMASQ").and_then(|flag| flag.parse().ok());
        if networks.is_empty() {
            faults.push("FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK is missing".to_owned());
        }
        if subnets.is_empty() {
            faults.push("FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET is missing".to_owned());
        }
        for (key, is_there) in [("FLANNEL_MTU", mtu.is_some()), ("FLANNEL_IPMASQ", masquerades.is_some())] {
            if !is_there {
                faults.push(format!("{key} is missing or not understood"));
            }
        }
        match (mtu, masquerades) {
            (Some(mtu), Some(masquerades)) if faults.is_empty() => Ok(Self { networks, subnets, mtu, masquerades }),
            _ => Err(faults.join(", ")),
        }
    }
}

impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, name) in [(Family::V4, ""), (Family::V6, "IPV6_")] {
            let of_family = |prefix: &&Prefix| prefix.family() == family;
            let networks: Vec<String> = self.networks.iter().filter(of_family).map(ToString::to_string).collect();
            let Some(subnet) = self.subnets.iter().find(of_family) else { continue };
            if networks.is_empty() {
                continue;
            }
            // The address is the gateway's: the first behind the subnet's own.
            let gateway = subnet.nth(1).unwrap_or_else(|| subnet.network());
            writeln!(f, "FLANNEL_{name}NETWORK={}", networks.join(","))?;
            writeln!(f, "FLANNEL_{name}SUBNET={gateway}/{}", subnet.len())?;
        }
        writeln!(f, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}", self.mtu, self.masquerades)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\n\
                       FLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn what_is_missing_is_named() {
        assert!(ENV.parse::<SubnetEnv>().is_ok());
        for (text, expected) in [
            ("", "FLANNEL_MTU is missing"),
            ("FLANNEL_SUBNET=10.1.0.0/33\n", "FLANNEL_SUBNET=10.1.0.0/33 is no IPv4 network"),
            ("FLANNEL_SUBNET=fd00::/64\n", "FLANNEL_SUBNET=fd00::/64 is no IPv4 network"),
            (&ENV.replace("FLANNEL_MTU=1450", ""), "FLANNEL_MTU is missing"),
            (&ENV.replace("=true", "=perhaps"), "FLANNEL_IPMASQ is missing or not understood"),
        ] {
            let error = text.parse::<SubnetEnv>().expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(ENV.parse::<SubnetEnv>().expect("readable").to_string(), ENV);
        let both = ENV.replace("FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16");
        assert_eq!(both.parse::<SubnetEnv>().expect("readable").networks.len(), 3);
    }
}
