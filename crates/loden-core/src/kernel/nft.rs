//! The model of loden's one nftables table: sets, maps, chains and rules, as data.
//!
//! Rules are built from [`Expr`]; `loden-linux` encodes them for netlink and [`Table`]'s Display renders `nft` text for
//! people and golden files. A rule is known again by its [`Rule::digest`], which travels in the rule's comment: a rule read
//! from the kernel has the digest and no expressions. Anything that changes is an element of a set or map, not a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::model::{Family, Fnv, IfName, Prefix, Transport};

/// The agent's table, in family `inet`.
pub const TABLE: &str = "loden";
/// The plugin's table, in family `inet`: the agent's own is closed to other processes, and pods come and go without it.
pub const TABLE_PORTS: &str = "loden_ports";

/// All that loden wants of nftables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Sets by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A named set, map or verdict map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Set {
    /// What its keys are.
    pub key: SetKey,
    /// What it maps its keys to.
    pub data: SetData,
    /// The elements; unless the data is [`SetData::None`] each has its value.
    pub elements: BTreeMap<Element, Option<Value>>,
}

/// What a set's keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum SetKey {
    /// Whole prefixes of the family: an interval set.
    Prefix(Family),
    /// Single addresses of the family: a hash set.
    Address(Family),
    /// Ports of a transport protocol.
    Port,
    /// The same at an address of the family.
    AddressPort(Family),
    /// Addresses of the family together with the link that a packet came in by.
    InputAddress(Family),
    /// Two addresses of the family: source and destination.
    AddressPair(Family),
}

/// What a set maps its keys to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum SetData {
    /// Nothing: a set.
    None,
    /// A verdict: a verdict map.
    Verdict,
    /// An address of the family and a port.
    Target(Family),
}

/// A set's element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Element {
    /// In an interval set.
    Prefix(Prefix),
    /// In a hash set.
    Address(IpAddr),
    /// A port.
    Port(Transport, u16),
    /// A port at an address.
    AddressPort(IpAddr, Transport, u16),
    /// An address and the link that a packet came in by.
    InputAddress(IfName, IpAddr),
    /// A source and a destination.
    AddressPair(IpAddr, IpAddr),
}

/// What an element is mapped to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Value {
    /// A verdict.
    Verdict(Verdict),
    /// An address and a port.
    Target(SocketAddr),
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// Where it is hooked in; `None`: only jumped to.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A base chain's place. Its policy is always accept: what is dropped is dropped by a rule that says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: ChainKind,
    /// The hook.
    pub point: HookPoint,
    /// Priority: lower comes first.
    pub priority: i32,
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ChainKind {
    /// Type filter.
    Filter,
    /// Type nat.
    Nat,
}

/// The hooks of family inet, with the kernel's numbers (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[repr(u8)]
pub enum HookPoint {
    /// Before routing.
    Prerouting = 0,
    /// To the host itself.
    Input = 1,
    /// Through the host.
    Forward = 2,
    /// From the host itself.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// A rule.
#[derive(Debug, Clone, Serialize)]
pub struct Rule {
    /// What it is for, in a few words: shown by `nft list` as the comment.
    pub comment: String,
    /// Its expressions; empty in a rule that was read from the kernel.
    pub exprs: Vec<Expr>,
    /// A hash of comment and expressions: two rules are the same when it is.
    pub digest: u64,
}

/// The parts of rules. The encoder adds what netlink needs and people do not write (the `meta nfproto` guard).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Expr {
    /// The packet's family is this one. Must stand before any expression that reads an address of that family.
    Family(Family),
    /// The address (source or destination) is, or with `negate` is not, in the set.
    Lookup {
        /// Which address.
        field: Field,
        /// Its family.
        family: Family,
        /// The set's name.
        set: String,
        /// Whether absence is what matches.
        negate: bool,
    },
    /// The address's verdict in the verdict map is taken; without an element the rule goes on.
    VerdictMap {
        /// Which address.
        field: Field,
        /// Its family.
        family: Family,
        /// The map's name.
        map: String,
    },
    /// The address lies, or with `negate` does not lie, in the prefix.
    Within {
        /// Which address.
        field: Field,
        /// The prefix.
        prefix: Prefix,
        /// Whether lying outside is what matches.
        negate: bool,
    },
    /// `meta mark & mask == value`, or `!=` with `negate`.
    Mark {
        /// The bits looked at.
        mask: u32,
        /// Their value.
        value: u32,
        /// Whether another value is what matches.
        negate: bool,
    },
    /// The destination is one of the host's own addresses.
    ToHost,
    /// The packet came in by, or with `negate` by another than, this link.
    Input {
        /// The link.
        name: IfName,
        /// Whether another is what matches.
        negate: bool,
    },
    /// The connection's destination was, or with `negate` was not, changed by a [`Expr::Redirect`].
    Redirected {
        /// Whether one that was not is what matches.
        negate: bool,
    },
    /// The link that the packet came in by and its destination are in the set.
    LookupInput {
        /// The destination's family.
        family: Family,
        /// The set's name.
        set: String,
    },
    /// Source and destination are in the set.
    LookupPair {
        /// Their family.
        family: Family,
        /// The set's name.
        set: String,
    },
    /// The destination becomes what the map has for its port, or for its address and port; without an element the rule ends.
    Redirect {
        /// The destination's family.
        family: Family,
        /// The map's name.
        map: String,
        /// Whether the map's keys have the address too.
        by_address: bool,
    },
    /// Counts packets and bytes.
    Counter,
    /// Masquerades, with the source port chosen fully at random (two connections at once must not clash).
    Masquerade,
    /// Ends the rule with a verdict.
    Verdict(Verdict),
}

/// An address field of the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Field {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Verdict {
    /// Let it pass this base chain.
    Accept,
    /// Drop it.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Call a chain.
    Jump(String),
    /// Go to a chain without coming back.
    Goto(String),
}

impl Rule {
    /// A rule with its digest.
    #[must_use]
    pub fn new(comment: &str, exprs: Vec<Expr>) -> Self {
        let mut hash = Fnv::new();
        hash.write(comment.as_bytes());
        hash.write(format!("{exprs:?}").as_bytes());
        Self { comment: comment.to_owned(), exprs, digest: hash.finish() }
    }

    /// The comment as the kernel keeps it: the words, then the digest in brackets.
    #[must_use]
    pub fn kernel_comment(&self) -> String {
        format!("{} [{:016x}]", self.comment, self.digest)
    }

    /// A rule as read from the kernel; `None` when the comment is not one of ours.
    #[must_use]
    pub fn from_kernel_comment(comment: &str) -> Option<Self> {
        let (words, rest) = comment.rsplit_once(" [")?;
        let digest = u64::from_str_radix(rest.strip_suffix(']')?, 16).ok()?;
        Some(Self { comment: words.to_owned(), exprs: Vec::new(), digest })
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Rule {}

/// One command of a batch that turns one table into another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// Make the set, without elements.
    NewSet(&'a str, &'a Set),
    /// Put elements in.
    AddElements(&'a str, &'a Set, BTreeSet<Element>),
    /// Take elements out.
    RemoveElements(&'a str, &'a Set, BTreeSet<Element>),
    /// Make the chain, without rules.
    NewChain(&'a str, &'a Chain),
    /// Take all rules out of the chain.
    FlushChain(&'a str),
    /// Append the rule to the chain.
    AddRule(&'a str, &'a Rule),
    /// Remove the (empty) chain.
    RemoveChain(&'a str),
    /// Remove the set.
    RemoveSet(&'a str),
}

/// The batch that turns `old` into `new`, in the order that the kernel accepts. `old` is `None` when there is no table.
///
/// A chain whose rules differ is flushed and filled again: the batch is one transaction, so no packet sees it empty.
#[must_use]
pub fn commands<'a>(old: Option<&'a Table>, new: &'a Table) -> Vec<Command<'a>> {
    let empty = const { &Table { sets: BTreeMap::new(), chains: BTreeMap::new() } };
    let old = old.unwrap_or(empty);
    let set_is_new =
        |name: &str, set: &Set| old.sets.get(name).is_none_or(|was| (was.key, was.data) != (set.key, set.data));
    let chain_is_new = |name: &str, chain: &Chain| old.chains.get(name).is_none_or(|was| was.hook != chain.hook);
    let mut out = Vec::new();

    // What must go or change is emptied first, so that nothing refers to it any more.
    for (name, was) in &old.chains {
        let keep = new.chains.get(name).is_some_and(|chain| chain == was);
        if !keep || new.chains[name].rules.iter().any(|rule| uses_new_set(rule, new, &set_is_new)) {
            out.push(Command::FlushChain(name));
        }
    }
    let flushed: BTreeSet<&str> =
        out.iter().filter_map(|c| if let Command::FlushChain(name) = c { Some(*name) } else { None }).collect();
    for name in old.chains.keys() {
        if new.chains.get(name).is_none_or(|chain| chain_is_new(name, chain)) {
            out.push(Command::RemoveChain(name));
        }
    }
    for name in old.sets.keys() {
        if new.sets.get(name).is_none_or(|set| set_is_new(name, set)) {
            out.push(Command::RemoveSet(name));
        }
    }

    for (name, set) in &new.sets {
        if set_is_new(name, set) {
            out.push(Command::NewSet(name, set));
        }
    }
    for (name, chain) in &new.chains {
        if chain_is_new(name, chain) {
            out.push(Command::NewChain(name, chain));
        }
    }
    for (name, set) in &new.sets {
        let was = old.sets.get(name).filter(|_| !set_is_new(name, set));
        let has = |set: Option<&Set>, element: &Element, verdict: &Option<Value>| {
            set.is_some_and(|set| set.elements.get(element) == Some(verdict))
        };
        let gone: BTreeSet<_> = was
            .into_iter()
            .flat_map(|was| was.elements.iter())
            .filter(|(element, verdict)| !has(Some(set), element, verdict))
            .map(|(element, _)| *element)
            .collect();
        let fresh: BTreeSet<_> = set
            .elements
            .iter()
            .filter(|(element, verdict)| !has(was, element, verdict))
            .map(|(element, _)| *element)
            .collect();
        if !gone.is_empty() {
            out.push(Command::RemoveElements(name, was.unwrap_or(set), gone));
        }
        if !fresh.is_empty() {
            out.push(Command::AddElements(name, set, fresh));
        }
    }
    for (name, chain) in &new.chains {
        if flushed.contains(name.as_str()) || !old.chains.contains_key(name) {
            out.extend(chain.rules.iter().map(|rule| Command::AddRule(name, rule)));
        }
    }
    out
}

/// Whether the rule looks into a set that is made anew: then it must be made anew too.
fn uses_new_set(rule: &Rule, new: &Table, set_is_new: &dyn Fn(&str, &Set) -> bool) -> bool {
    rule.exprs.iter().any(|expr| match expr {
        Expr::Lookup { set: name, .. }
        | Expr::VerdictMap { map: name, .. }
        | Expr::LookupInput { set: name, .. }
        | Expr::LookupPair { set: name, .. }
        | Expr::Redirect { map: name, .. } => new.sets.get(name).is_some_and(|set| set_is_new(name, set)),
        _ => false,
    })
}

impl fmt::Display for Table {
    /// The text that `nft list table` shows, less handles and counters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
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
            Self::Input { name, negate } => write!(f, "iifname {}\"{name}\"", not(negate)),
            Self::Redirected { negate } => {
                write!(f, "ct status & dnat {} 0", if *negate { "==" } else { "!=" })
            }
            Self::LookupInput { family, set } => write!(f, "iifname . {} daddr @{set}", ip(family)),
            Self::LookupPair { family, set } => write!(f, "{0} saddr . {0} daddr @{set}", ip(family)),
            Self::Redirect { family, map, by_address } => {
                let address = if *by_address { format!("{} daddr . ", ip(family)) } else { String::new() };
                write!(f, "dnat {} to {address}meta l4proto . th dport map @{map}", ip(family))
            }
            Self::Counter => write!(f, "counter"),
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
        }
    }
}
