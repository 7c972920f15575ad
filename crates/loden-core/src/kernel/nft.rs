//! The model of loden's one nftables table: sets, maps, chains and rules, as data.
//!
//! Rules are built from [`Expr`]; `loden-linux` encodes them for netlink and [`Table`]'s Display renders `nft` text for
//! people and golden files. A rule is known again by its [`Rule::digest`], which travels in the rule's comment: a rule read
//! from the kernel has the digest and no expressions. Anything that changes is an element of a set or map, not a rule.

mod open;
mod text;

pub(crate) use open::fill_open_sets;
pub use open::{blocks_set, element_of, hosts_set, open_set, take_open_sets};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::model::{Family, Fnv, IfName, Mac, Prefix, Transport};

/// The agent's table.
pub const TABLE: TableName = TableName { family: TableFamily::Inet, name: "loden" };
/// The plugin's tables: the agent's own is closed to other processes, and pods come and go without it. This one has ports of
/// the host and masquerading.
pub const TABLE_PORTS: TableName = TableName { family: TableFamily::Inet, name: "loden_ports" };
/// And this one whose frames ports of bridges take in.
pub const TABLE_SENDERS: TableName = TableName { family: TableFamily::Bridge, name: "loden_senders" };

/// What a table is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TableName {
    /// Whose packets it sees.
    pub family: TableFamily,
    /// Its name within the family.
    pub name: &'static str,
}

/// The families of tables, with the kernel's numbers (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[repr(u8)]
pub enum TableFamily {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ipv4 = 2,
    /// Frames that a bridge forwards or takes in.
    Bridge = 7,
    /// IPv6.
    Ipv6 = 10,
}

/// How many elements go into a message at most. The longest takes about 100 bytes.
const ELEMENTS_AT_ONCE: usize = 500;

/// A table with all that loden wants of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// Sets by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A named set, map or verdict map.
///
/// Two open sets are equal whatever is in them.
#[derive(Debug, Clone, Serialize)]
pub struct Set {
    /// What its keys are.
    pub key: SetKey,
    /// What it maps its keys to.
    pub data: SetData,
    /// The elements; unless the data is [`SetData::None`] each has its value.
    pub elements: BTreeMap<Element, Option<Value>>,
    /// Whether each element is an object of its own ([`element_of`]), so that one more costs what one costs: these are only what
    /// the set is made with.
    pub is_open: bool,
}

impl Set {
    /// A set with nothing in it.
    #[must_use]
    pub fn new(key: SetKey, data: SetData) -> Self {
        Self { key, data, elements: BTreeMap::new(), is_open: false }
    }
}

impl PartialEq for Set {
    fn eq(&self, other: &Self) -> bool {
        let is_open = self.is_open && other.is_open;
        (self.key, self.data) == (other.key, other.data) && (is_open || self.elements == other.elements)
    }
}

impl Eq for Set {}

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
    /// Links that packets come in by.
    Input,
    /// The same with an Ethernet address.
    InputMac,
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
    /// A link.
    Input(IfName),
    /// A link and an Ethernet address.
    InputMac(IfName, Mac),
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

/// The hooks, with the kernel's numbers (`NF_INET_*`, which are those of `NF_BR_*` too).
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
    /// The packet is of this transport protocol and goes to this port.
    ToPort(Transport, u16),
    /// The packet is of this IP protocol.
    Protocol(u8),
    /// The packet came in by, or with `negate` by another than, this link.
    Input {
        /// The link.
        name: IfName,
        /// Whether another is what matches.
        negate: bool,
    },
    /// The packet leaves, or with `negate` does not leave, by this link.
    Output {
        /// The link.
        name: IfName,
        /// Whether another is what matches.
        negate: bool,
    },
    /// The packet is of ICMP, or of ICMPv6 in that family, and of this type.
    Icmp(Family, u8),
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
    /// The link that the packet came in by is in the set.
    LookupLink {
        /// The set's name.
        set: String,
    },
    /// That link and the frame's source are, or with `negate` are not, in the set.
    LookupSender {
        /// The set's name.
        set: String,
        /// Whether absence is what matches.
        negate: bool,
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
    /// Refuses the packet and tells its sender that there is no such host (ICMP).
    Reject,
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

impl Table {
    /// A table with nothing in it.
    #[must_use]
    pub const fn new(name: TableName) -> Self {
        Self { name, sets: BTreeMap::new(), chains: BTreeMap::new() }
    }
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
    let empty = const { &Table::new(TABLE) };
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
        if set.is_open && was.is_some() {
            continue;
        }
        let has = |set: Option<&Set>, element: &Element, verdict: &Option<Value>| {
            set.is_some_and(|set| set.elements.get(element) == Some(verdict))
        };
        let gone = was.into_iter().flat_map(|was| was.elements.iter());
        let gone = gone.filter(|(element, verdict)| !has(Some(set), element, verdict)).map(|(element, _)| *element);
        let fresh = set.elements.iter().filter(|(element, verdict)| !has(was, element, verdict));
        let fresh = fresh.map(|(element, _)| *element);
        out.extend(in_parts(gone).into_iter().map(|part| Command::RemoveElements(name, was.unwrap_or(set), part)));
        out.extend(in_parts(fresh).into_iter().map(|part| Command::AddElements(name, set, part)));
    }
    for (name, chain) in &new.chains {
        if flushed.contains(name.as_str()) || !old.chains.contains_key(name) {
            out.extend(chain.rules.iter().map(|rule| Command::AddRule(name, rule)));
        }
    }
    out
}

/// Elements in parts that a message holds each: the length of a list in it has 16 bits (`struct nlattr`).
#[must_use]
pub fn in_parts(elements: impl Iterator<Item = Element>) -> Vec<BTreeSet<Element>> {
    let all: Vec<Element> = elements.collect();
    all.chunks(ELEMENTS_AT_ONCE).map(|part| part.iter().copied().collect()).collect()
}

/// Whether the rule looks into a set that is made anew: then it must be made anew too.
fn uses_new_set(rule: &Rule, new: &Table, set_is_new: &dyn Fn(&str, &Set) -> bool) -> bool {
    rule.exprs.iter().any(|expr| match expr {
        Expr::Lookup { set: name, .. }
        | Expr::VerdictMap { map: name, .. }
        | Expr::LookupInput { set: name, .. }
        | Expr::LookupLink { set: name }
        | Expr::LookupSender { set: name, .. }
        | Expr::LookupPair { set: name, .. }
        | Expr::Redirect { map: name, .. } => new.sets.get(name).is_some_and(|set| set_is_new(name, set)),
        _ => false,
    })
}
