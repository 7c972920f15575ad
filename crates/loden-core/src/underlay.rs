//! Which of the host's links carries traffic to the peers, and what is reached over it directly.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Family, IfName, PerFamily, Prefix};

/// The external interface, as far as the model needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// Its name.
    pub ifname: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The addresses at which peers reach this host.
    pub addresses: PerFamily<IpAddr>,
    /// The prefixes that are reached over it without a gateway.
    pub onlink: Vec<Prefix>,
}

impl Underlay {
    /// Whether the address is reached without a gateway.
    #[must_use]
    pub fn is_onlink(&self, addr: IpAddr) -> bool {
        self.onlink.iter().any(|prefix| prefix.contains(addr))
    }
}

/// What the choice is made from: the links of the host with their addresses and routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The links.
    pub links: Vec<LinkFacts>,
    /// The links of the default routes, most preferred first.
    pub default_routes: Vec<(Family, IfName)>,
    /// Where a route to the address given by `iface_can_reach` leads, if one was asked for.
    pub can_reach: Option<IfName>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Its addresses of global scope, in the kernel's order.
    pub addresses: Vec<AddressFacts>,
    /// Destinations of its routes in table `main` that have no gateway.
    pub onlink: Vec<Prefix>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressFacts {
    /// The address with its prefix length.
    pub net: IpNet,
    /// Whether it may change by itself (a lifetime runs) or is about to go.
    pub temporary: bool,
}

/// What the operator said about the choice. The first of the given ways that finds a link wins, in this order.
#[derive(Clone, Default)]
pub struct Wish<'a> {
    /// Names or addresses, tried in order.
    pub iface: &'a [String],
    /// Whether a link's name fits the regular expression, which is compiled outside of the pure core.
    pub iface_regex: Option<&'a dyn Fn(&str) -> bool>,
    /// Whether `iface_can_reach` was given (the answer is in the facts).
    pub can_reach: bool,
    /// Addresses that peers dial, when they are not the link's own.
    pub public: PerFamily<IpAddr>,
    /// Which of its addresses this host's record says that it is to serve at. Which link it is the host's own configuration says
    /// before, where it says it.
    pub asked: PerFamily<IpAddr>,
}

impl Wish<'_> {
    /// Whether the host's own configuration leaves it open which link it is.
    fn is_link_open(&self) -> bool {
        self.iface.is_empty() && self.iface_regex.is_none() && !self.can_reach && self.public.is_empty()
    }
}

/// Why no link was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnderlayError {
    /// None of those asked for is there.
    #[error("no interface fits {wanted}; this host has {present}. It is chosen as soon as it appears")]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// The links that there are.
        present: String,
    },
    /// The chosen one has no address.
    #[error("interface {0} has no global address yet; it is used as soon as it has one")]
    NoAddress(IfName),
    /// It is down.
    #[error("interface {0} is down: set it up, or name another with `iface`")]
    Down(IfName),
}

/// Chooses the external interface and the addresses on it.
///
/// # Errors
/// [`UnderlayError`] says what is missing; the agent waits for it and does not exit.
pub fn choose(facts: &HostFacts, wish: &Wish<'_>) -> Result<Underlay, UnderlayError> {
    let link = choose_link(facts, wish)?;
    if !link.up {
        return Err(UnderlayError::Down(link.name));
    }
    let mut addresses = wish.public;
    for family in Family::ALL {
        if addresses.get(family).is_none()
            && let Some(addr) = choose_address(link, family, wish)
        {
            addresses.set(family, addr);
        }
    }
    if addresses.is_empty() {
        return Err(UnderlayError::NoAddress(link.name));
    }
    let mut onlink = link.onlink.clone();
    onlink.sort();
    onlink.dedup();
    Ok(Underlay { ifname: link.name, mtu: link.mtu, addresses, onlink })
}

fn choose_link<'a>(facts: &'a HostFacts, wish: &Wish<'_>) -> Result<&'a LinkFacts, UnderlayError> {
    let by_name = |name: IfName| facts.links.iter().find(|link| link.name == name);
    let owns = |addr: IpAddr| facts.links.iter().find(|link| link.addresses.iter().any(|a| a.net.addr() == addr));
    let not_found = |wanted: String| {
        let present: Vec<_> = facts.links.iter().map(|link| link.name.to_string()).collect();
        UnderlayError::NotFound { wanted, present: present.join(", ") }
    };
    let asked = |given: &String| match given.parse::<IpAddr>() {
        Ok(addr) => owns(addr),
        Err(_) => given.parse::<IfName>().ok().and_then(by_name),
    };
    if !wish.iface.is_empty() || wish.iface_regex.is_some() {
        return wish
            .iface
            .iter()
            .find_map(asked)
            .or_else(|| facts.links.iter().find(|link| wish.iface_regex.is_some_and(|fits| fits(link.name.as_str()))))
            .ok_or_else(|| not_found(all_asked(wish)));
    }
    if wish.can_reach {
        return facts.can_reach.and_then(by_name).ok_or_else(|| not_found("iface_can_reach".to_owned()));
    }
    if wish.is_link_open() && !wish.asked.is_empty() {
        let words = wish.asked.iter().map(|(_, addr)| addr.to_string()).collect::<Vec<_>>().join(" or ");
        let link = wish.asked.iter().find_map(|(_, addr)| owns(addr));
        return link.ok_or_else(|| not_found(format!("{words}, which this node's record asks for")));
    }
    if let Some(link) = wish.public.iter().find_map(|(_, addr)| owns(addr)) {
        return Ok(link);
    }
    facts.default_routes.iter().find_map(|(_, name)| by_name(*name)).ok_or_else(|| {
        not_found("the default route (there is none; `iface` names an interface without one)".to_owned())
    })
}

/// The names and the regular expression that were asked for, as text.
fn all_asked(wish: &Wish<'_>) -> String {
    let names: Vec<_> = wish.iface.iter().map(|given| format!("{given:?}")).collect();
    let names = (!names.is_empty()).then(|| format!("iface {}", names.join(" or ")));
    let regex = wish.iface_regex.map(|_| "iface_regex".to_owned());
    names.into_iter().chain(regex).collect::<Vec<_>>().join(" or ")
}

/// A permanent address before a temporary one; else the kernel's order. An address that was asked for by itself wins.
fn choose_address(link: &LinkFacts, family: Family, wish: &Wish<'_>) -> Option<IpAddr> {
    let of_family = || link.addresses.iter().filter(|a| Family::of(a.net.addr()) == family);
    let find = |is_it: &dyn Fn(IpAddr) -> bool| of_family().find(|a| is_it(a.net.addr()));
    let by_host = find(&|addr| wish.iface.iter().any(|given| given.parse() == Ok(addr)));
    let asked = by_host.or_else(|| find(&|addr| wish.asked.get(family) == Some(addr)));
    asked.or_else(|| of_family().find(|a| !a.temporary)).or_else(|| of_family().next()).map(|a| a.net.addr())
}
