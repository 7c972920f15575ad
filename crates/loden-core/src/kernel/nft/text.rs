//! Tables as `nft` shows them, for people and golden files.

use std::fmt;

use super::{
    ChainKind, Element, Expr, Field, Hook, HookPoint, Rule, SetData, SetKey, Table, TableFamily, TableName, Value,
    Verdict,
};
use crate::model::Family;

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            TableFamily::Inet => "inet",
            TableFamily::Ipv4 => "ip",
            TableFamily::Bridge => "bridge",
            TableFamily::Ipv6 => "ip6",
        };
        write!(f, "{family} {}", self.name)
    }
}

impl fmt::Display for Table {
    /// The text that `nft list table` shows, less handles and counters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.name)?;
        for (name, set) in &self.sets {
            let sort = if set.data == SetData::None { "set" } else { "map" };
            writeln!(f, "\t{sort} {name} {{")?;
            writeln!(f, "\t\ttype {}{}", set.key, set.data)?;
            if matches!(set.key, SetKey::Prefix(_)) {
                writeln!(f, "\t\tflags interval")?;
            }
            if !set.elements.is_empty() {
                let elements: Vec<_> = set
                    .elements
                    .iter()
                    .map(|(element, value)| match value {
                        Some(value) => format!("{element} : {value}"),
                        None => element.to_string(),
                    })
                    .collect();
                writeln!(f, "\t\telements = {{ {} }}", elements.join(", "))?;
            }
            writeln!(f, "\t}}\n")?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "\tchain {name} {{")?;
            if let Some(hook) = chain.hook {
                writeln!(f, "\t\t{hook}")?;
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}\n")?;
        }
        writeln!(f, "}}")
    }
}

fn address_type(family: Family) -> &'static str {
    if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" }
}

impl fmt::Display for SetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(family) | Self::Address(family) => f.write_str(address_type(*family)),
            Self::Port => f.write_str("inet_proto . inet_service"),
            Self::AddressPort(family) => write!(f, "{} . inet_proto . inet_service", address_type(*family)),
            Self::InputAddress(family) => write!(f, "ifname . {}", address_type(*family)),
            Self::AddressPair(family) => write!(f, "{0} . {0}", address_type(*family)),
            Self::Input => f.write_str("ifname"),
            Self::InputMac => f.write_str("ifname . ether_addr"),
        }
    }
}

impl fmt::Display for SetData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Verdict => f.write_str(" : verdict"),
            Self::Target(family) => write!(f, " : {} . inet_service", address_type(*family)),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Target(target) => write!(f, "{} . {}", target.ip(), target.port()),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == ChainKind::Nat { "nat" } else { "filter" };
        let point = match self.point {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Forward => "forward",
            HookPoint::Output => "output",
            HookPoint::Postrouting => "postrouting",
        };
        write!(f, "type {kind} hook {point} priority {}; policy accept;", self.priority)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for expr in &self.exprs {
            write!(f, "{expr} ")?;
        }
        write!(f, "comment {:?}", self.comment)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |family: &Family| if *family == Family::V4 { "ip" } else { "ip6" };
        let not = |negate: &bool| if *negate { "!= " } else { "" };
        match self {
            Self::Family(family) => {
                write!(f, "meta nfproto {}", if *family == Family::V4 { "ipv4" } else { "ipv6" })
            }
            Self::Lookup { field, family, set, negate } => {
                write!(f, "{} {field} {}@{set}", ip(family), not(negate))
            }
            Self::VerdictMap { field, family, map } => write!(f, "{} {field} vmap @{map}", ip(family)),
            Self::Within { field, prefix, negate } => {
                write!(f, "{} {field} {}{prefix}", ip(&prefix.family()), not(negate))
            }
            Self::Mark { mask, value, negate } => {
                write!(f, "meta mark & {mask:#010x} {} {value:#010x}", if *negate { "!=" } else { "==" })
            }
            Self::ToHost => write!(f, "fib daddr type local"),
            Self::ToPort(transport, port) => write!(f, "{transport} dport {port}"),
            Self::Protocol(number) => write!(f, "meta l4proto {number}"),
            Self::Input { name, negate } => write!(f, "iifname {}\"{name}\"", not(negate)),
            Self::Output { name, negate } => write!(f, "oifname {}\"{name}\"", not(negate)),
            Self::Icmp(family, kind) => {
                write!(f, "{} type {kind}", if *family == Family::V4 { "icmp" } else { "icmpv6" })
            }
            Self::Redirected { negate } => {
                write!(f, "ct status & dnat {} 0", if *negate { "==" } else { "!=" })
            }
            Self::LookupInput { family, set } => write!(f, "iifname . {} daddr @{set}", ip(family)),
            Self::LookupLink { set } => write!(f, "iifname @{set}"),
            Self::LookupSender { set, negate } => write!(f, "iifname . ether saddr {}@{set}", not(negate)),
            Self::LookupPair { family, set } => write!(f, "{0} saddr . {0} daddr @{set}", ip(family)),
            Self::Redirect { family, map, by_address } => {
                let address = if *by_address { format!("{} daddr . ", ip(family)) } else { String::new() };
                write!(f, "dnat {} to {address}meta l4proto . th dport map @{map}", ip(family))
            }
            Self::Counter => write!(f, "counter"),
            Self::Reject => write!(f, "reject with icmpx host-unreachable"),
            Self::Masquerade => write!(f, "masquerade fully-random"),
            Self::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Source { "saddr" } else { "daddr" })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
            Self::Return => write!(f, "return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => prefix.fmt(f),
            Self::Address(addr) => addr.fmt(f),
            Self::Port(transport, port) => write!(f, "{transport} . {port}"),
            Self::AddressPort(addr, transport, port) => write!(f, "{addr} . {transport} . {port}"),
            Self::InputAddress(name, addr) => write!(f, "\"{name}\" . {addr}"),
            Self::AddressPair(from, to) => write!(f, "{from} . {to}"),
            Self::Input(name) => write!(f, "\"{name}\""),
            Self::InputMac(name, mac) => write!(f, "\"{name}\" . {mac}"),
        }
    }
}
