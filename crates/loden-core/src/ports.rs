//! The plugin's table of ports: ports of the host that lead to pods, and pods whose packets to the outside take the host's address.
//! Each pod is a few elements of sets and maps; the rules are always the same.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::kernel::nft::{
    Chain, ChainKind, Element, Expr, Field, Hook, HookPoint, Rule, Set, SetData, SetKey, TABLE_PORTS, Table, Value,
    Verdict,
};
use crate::masquerade::multicast;
use crate::model::{Attach, Attachment, Family, IfName, Prefix};
use crate::pod_tables::Elements;

/// The table without any pod's elements.
#[must_use]
pub fn frame() -> Table {
    let mut table = Table::new(TABLE_PORTS);
    for family in Family::ALL {
        let set = Set::new;
        let to = SetData::Target(family);
        table.sets.insert(name("ports", family), set(SetKey::Port, to));
        table.sets.insert(name("ports_at", family), set(SetKey::AddressPort(family), to));
        table.sets.insert(name("hairpin", family), set(SetKey::InputAddress(family), SetData::None));
        table.sets.insert(name("itself", family), set(SetKey::AddressPair(family), SetData::None));
        table.sets.insert(name("masquerade", family), set(SetKey::Address(family), SetData::None));
    }
    let chain = |kind, point, priority, rules| Chain { hook: Some(Hook { kind, point, priority }), rules };
    for (name, point) in [("incoming", HookPoint::Prerouting), ("outgoing", HookPoint::Output)] {
        table.chains.insert(name.to_owned(), chain(ChainKind::Nat, point, -100, redirects()));
    }
    table.chains.insert("leaving".to_owned(), chain(ChainKind::Nat, HookPoint::Postrouting, 100, sources()));
    table.chains.insert("guard".to_owned(), chain(ChainKind::Filter, HookPoint::Input, -1, guards()));
    table
}

/// An attachment's elements, by the name of the set.
#[must_use]
pub fn elements(attachment: &Attachment) -> Elements {
    let mut all = Elements::new();
    let mut put = |set: &str, family, element, value| all.entry(name(set, family)).or_default().insert(element, value);
    for family in Family::ALL {
        // One address of each family: that which the runtime takes for the pod's.
        let Some(addr) = attachment.ips().find(|addr| Family::of(*addr) == family) else { continue };
        for port in &attachment.ports {
            let to = Some(Value::Target(SocketAddr::new(addr, port.container_port)));
            match port.host_ip {
                Some(host) if Family::of(host) != family => {}
                Some(host) if !host.is_unspecified() => {
                    drop(put("ports_at", family, Element::AddressPort(host, port.protocol, port.host_port), to));
                }
                _ => drop(put("ports", family, Element::Port(port.protocol, port.host_port), to)),
            }
        }
        if let Some(dev) = host_device(attachment).filter(|_| !attachment.ports.is_empty()) {
            put("hairpin", family, Element::InputAddress(dev, addr), None);
            put("itself", family, Element::AddressPair(addr, addr), None);
        }
    }
    for addr in attachment.ips().filter(|_| attachment.masquerade) {
        put("masquerade", Family::of(addr), Element::Address(addr), None);
    }
    all
}

/// The host's link that the pod's packets come in by.
#[must_use]
pub fn host_device(attachment: &Attachment) -> Option<IfName> {
    match &attachment.attach {
        Attach::Bridge(port) => port.gateway_device(),
        Attach::Routed | Attach::Ptp => attachment.host_side,
        Attach::Foreign { host_device } => *host_device,
        Attach::Macvlan(macvlan) => macvlan.host_link,
    }
}

/// Whether the host calls a pod by its loopback address: in IPv6 the kernel lets no such packet out.
#[must_use]
pub fn serves_loopback(attachment: &Attachment) -> bool {
    let is_v4 = |host: IpAddr| host.is_ipv4();
    attachment.ips().any(|addr| addr.is_ipv4()) && attachment.ports.iter().any(|port| port.host_ip.is_none_or(is_v4))
}

fn name(set: &str, family: Family) -> String {
    format!("{set}_{}", if family == Family::V4 { "v4" } else { "v6" })
}

/// What comes to a port of the host goes to the pod; a port at one address goes before the same port at all.
fn redirects() -> Vec<Rule> {
    let one = |family, by_address: bool| {
        let (set, comment) = if by_address {
            ("ports_at", "a port of one address of the host")
        } else {
            ("ports", "a port of the host")
        };
        let redirect = Expr::Redirect { family, map: name(set, family), by_address };
        Rule::new(comment, vec![Expr::Family(family), Expr::ToHost, redirect])
    };
    Family::ALL.into_iter().flat_map(|family| [one(family, true), one(family, false)]).collect()
}

/// Whose answer would not come back by the host takes the host's address: a pod on the same link as the one that it calls, a pod that
/// calls itself, and the host calling by its loopback address. A bridge that has its packets looked at here too (br_netfilter) does not
/// say where they came in by: the answers of neighbours come back by it then, and only a pod's own must be told apart.
fn sources() -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let hairpin = Expr::LookupInput { family, set: name("hairpin", family) };
        let redirected = Expr::Redirected { negate: false };
        rules.push(Rule::new(
            "from the link that it goes back to",
            vec![Expr::Family(family), redirected, hairpin, Expr::Masquerade],
        ));
        let itself = Expr::LookupPair { family, set: name("itself", family) };
        rules.push(Rule::new(
            "a pod to itself",
            vec![Expr::Family(family), Expr::Redirected { negate: false }, itself, Expr::Masquerade],
        ));
        let within = |field, prefix, negate| Expr::Within { field, prefix, negate };
        let lookup = Expr::Lookup { field: Field::Source, family, set: name("masquerade", family), negate: false };
        rules.push(Rule::new(
            "pods to the outside take the host's address",
            vec![Expr::Family(family), lookup, within(Field::Destination, multicast(family), true), Expr::Masquerade],
        ));
    }
    let from_loopback = Expr::Within { field: Field::Source, prefix: loopback(), negate: false };
    let redirected = Expr::Redirected { negate: false };
    rules.push(Rule::new(
        "the host by its loopback address",
        vec![Expr::Family(Family::V4), redirected, from_loopback, Expr::Masquerade],
    ));
    rules
}

/// For the host's calls by its loopback address the links to pods take such packets (`route_localnet`): none but their answers may come in
/// that way (CVE-2020-8558).
fn guards() -> Vec<Rule> {
    let Ok(lo) = IfName::new("lo") else { return Vec::new() };
    vec![Rule::new(
        "nobody else reaches the loopback address",
        vec![
            Expr::Family(Family::V4),
            Expr::Input { name: lo, negate: true },
            Expr::Within { field: Field::Destination, prefix: loopback(), negate: false },
            Expr::Redirected { negate: true },
            Expr::Verdict(Verdict::Drop),
        ],
    )]
}

fn loopback() -> Prefix {
    Prefix::holding(IpAddr::V4(Ipv4Addr::LOCALHOST), 8)
}
