//! Who reaches whom: every pair, both families, all protocols, payloads up to the MTU.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_core::model::{Family, PerFamily};
use loden_linux::netns::NetNs;
use serde::Serialize;

use super::responder::Responder;
use super::{Protocol, icmp, tcp, udp};
use crate::LabError;
use crate::lab::Lab;
use crate::underlay::OUTSIDE;

/// One probe and its outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// Who sends.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// Which family.
    pub family: Family,
    /// Which protocol.
    pub protocol: Protocol,
    /// Bytes of payload.
    pub payload: usize,
    /// What went wrong; `None`: it arrived, whole, from the address that was expected.
    pub fault: Option<String>,
}

/// One end of probes.
#[derive(Debug, Clone)]
struct End {
    name: String,
    addresses: PerFamily<IpAddr>,
    mtu: u32,
    /// The host that it is on (its own name for a host); `None`: the outside.
    host: Option<String>,
    is_pod: bool,
}

/// Probes every pair of which one is a pod.
///
/// # Errors
/// [`LabError`] when the probes cannot be made; one that fails is in the list.
pub fn all(lab: &Lab) -> Result<Vec<Probe>, LabError> {
    let ends = ends(lab);
    let mut spaces = BTreeMap::new();
    let mut responders = Vec::new();
    for end in &ends {
        let ns = lab.netns(&end.name)?;
        responders.push(Responder::start(&ns)?);
        spaces.insert(end.name.clone(), ns);
    }
    // Every sender is a thread of its own: what does not answer costs its patience once.
    let results: Vec<Result<Vec<Probe>, LabError>> = std::thread::scope(|scope| {
        let senders = ends.iter().filter(|from| from.host.is_some());
        let threads: Vec<_> =
            senders.map(|from| scope.spawn(|| from_one(lab, from, &ends, &spaces[&from.name]))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|done| done.unwrap_or_else(|_| Err(LabError::system("probes", "a thread panicked")))).collect()
    });
    let mut probes = Vec::new();
    for result in results {
        probes.extend(result?);
    }
    Ok(probes)
}

fn from_one(lab: &Lab, from: &End, ends: &[End], ns: &NetNs) -> Result<Vec<Probe>, LabError> {
    let targets = ends.iter().filter(|to| to.name != from.name && (from.is_pod || to.is_pod));
    let targets: Vec<&End> = targets.collect();
    let done = ns.run(|| targets.iter().flat_map(|to| pair(lab, from, to)).collect());
    done.map_err(LabError::linux(format!("probes from {}", from.name)))
}

/// The distinct pairs among the probes, and how many of them are whole.
#[must_use]
pub fn count_pairs(probes: &[Probe]) -> (usize, usize) {
    let mut pairs: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for probe in probes {
        *pairs.entry((&probe.from, &probe.to)).or_insert(true) &= probe.fault.is_none();
    }
    (pairs.len(), pairs.values().filter(|whole| **whole).count())
}

/// The table for people: a row a sender, a column a receiver, one letter a family.
#[must_use]
pub fn table(probes: &[Probe]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for probe in probes {
        for name in [probe.from.as_str(), probe.to.as_str()] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut text = format!("{:width$} ", "from \\ to");
    names.iter().for_each(|name| text.push_str(&format!(" {name:>width$}")));
    for from in &names {
        text.push_str(&format!("\n{from:width$} "));
        for to in &names {
            let cell: Vec<&Probe> = probes.iter().filter(|p| p.from == *from && p.to == *to).collect();
            let of = |family: Family, letter: &'static str| {
                let probes: Vec<_> = cell.iter().filter(|p| p.family == family).collect();
                match (probes.is_empty(), probes.iter().all(|p| p.fault.is_none())) {
                    (true, _) => "",
                    (false, true) => letter,
                    (false, false) => "x",
                }
            };
            let shown = format!("{}{}", of(Family::V4, "4"), of(Family::V6, "6"));
            text.push_str(&format!(" {:>width$}", if shown.is_empty() { "·" } else { &shown }));
        }
    }
    text
}

fn ends(lab: &Lab) -> Vec<End> {
    let pods = lab.pods().iter().map(|pod| End {
        name: pod.name.clone(),
        addresses: pod.addresses,
        mtu: pod.mtu,
        host: Some(pod.host.clone()),
        is_pod: true,
    });
    let mtu = lab.pods().iter().map(|pod| pod.mtu).min().unwrap_or(1280);
    let hosts = lab.hosts().iter().map(|host| End {
        name: host.name.clone(),
        addresses: host.addresses,
        mtu,
        host: Some(host.name.clone()),
        is_pod: false,
    });
    let outside = End { name: OUTSIDE.to_owned(), addresses: lab.outside(), mtu, host: None, is_pod: false };
    pods.chain(hosts).chain([outside]).collect()
}

/// All probes from one end to another, made in the sender's namespace.
fn pair(lab: &Lab, from: &End, to: &End) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (family, addr) in to.addresses.iter() {
        let Some(own) = from.addresses.get(family) else { continue };
        let headers = if family == Family::V4 { 28 } else { 48 };
        let whole = from.mtu.min(to.mtu).saturating_sub(headers) as usize;
        for protocol in Protocol::ALL {
            let payload = if protocol == Protocol::Tcp { 65536 } else { whole };
            let seen = match protocol {
                Protocol::Icmp => icmp::echo(addr, payload).map(|()| None),
                Protocol::Udp => udp(addr, payload).map(Some),
                Protocol::Tcp => tcp(addr, payload).map(Some),
            };
            let fault = match seen {
                Err(fault) => Some(fault),
                Ok(None) => None,
                Ok(Some(seen)) => wrong_source(lab, from, to, family, own, seen),
            };
            let (from, to) = (from.name.clone(), to.name.clone());
            probes.push(Probe { from, to, family, protocol, payload, fault });
        }
    }
    probes
}

/// A pod keeps its address towards pods and its own host; towards everybody else its packets have its host's address. A host's
/// own packets into the overlay have an address of its block or its own.
fn wrong_source(lab: &Lab, from: &End, to: &End, family: Family, own: IpAddr, seen: IpAddr) -> Option<String> {
    let of_host = || {
        let host = lab.hosts().iter().find(|host| Some(&host.name) == from.host.as_ref());
        host.and_then(|host| host.addresses.get(family))
    };
    let expected = match (from.is_pod, to.is_pod, from.host == to.host) {
        (true, true, _) | (true, false, true) => Some(own),
        (true, false, false) => of_host(),
        (false, ..) => None,
    };
    expected
        .filter(|expected| *expected != seen)
        .map(|expected| format!("it arrived from {seen}, expected was {expected}"))
}
