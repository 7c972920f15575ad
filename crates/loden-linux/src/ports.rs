//! Ports of the host that lead to pods, in the kernel: the plugin's table. A pod's elements are put in and taken out by themselves;
//! the whole table is looked at only to repair it. To be called under the ledger's lock, so that nobody repairs what another is
//! just changing.

use loden_core::kernel::nft::{Command, Set, TABLE_PORTS, Table};
use loden_core::model::{Attachment, Transport};
use loden_core::ports;

use crate::conntrack;
use crate::error::LinuxError;
use crate::nft::{Nft, Ownership};

/// Puts an attachment's elements in. Where the table is missing it is made with those of all `others` that are complete.
///
/// # Errors
/// [`LinuxError`]; EEXIST when a port leads to another pod. Nothing has changed then.
pub fn add(attachment: &Attachment, others: impl FnOnce() -> Vec<Attachment>) -> Result<(), LinuxError> {
    let sets = sets_of(attachment);
    if sets.is_empty() {
        return Ok(());
    }
    let mut nft = Nft::open(TABLE_PORTS, Ownership::Shared)?;
    let commands: Vec<Command<'_>> = sets
        .iter()
        .map(|(name, set)| Command::AddElements(name, set, set.elements.keys().copied().collect()))
        .collect();
    match nft.send(&commands) {
        Err(error) if error.errno() == libc::ENOENT => {
            let others: Vec<Attachment> = others().into_iter().filter(|there| there.complete).collect();
            let old = nft.observe()?;
            nft.apply(old.as_ref(), Some(&ports::table(others.iter().chain([attachment]))))
        }
        sent => sent,
    }?;
    forget_flows(attachment)
}

/// Takes an attachment's elements out; what is missing is out already. Of one that never came to its end some may be another's.
///
/// # Errors
/// [`LinuxError`].
pub fn remove(attachment: &Attachment) -> Result<(), LinuxError> {
    let sets = sets_of(attachment);
    if sets.is_empty() {
        return Ok(());
    }
    let mut nft = Nft::open(TABLE_PORTS, Ownership::Shared)?;
    if attachment.complete {
        match nft.send(&removals(&sets)) {
            Ok(()) => return forget_flows(attachment),
            Err(error) if error.errno() == libc::ENOENT => {}
            Err(error) => return Err(error),
        }
    }
    let Some(table) = nft.observe()? else { return Ok(()) };
    let there = sets.into_iter().map(|(name, mut set)| {
        let found = table.sets.get(&name).map(|set| &set.elements);
        set.elements.retain(|element, value| found.and_then(|found| found.get(element)) == Some(value));
        (name, set)
    });
    let there: Vec<(String, Set)> = there.filter(|(_, set)| !set.elements.is_empty()).collect();
    if !there.is_empty() {
        nft.send(&removals(&there))?;
    }
    forget_flows(attachment)
}

/// Makes the table what these attachments, those of them that are complete, need. Says whether something was otherwise.
///
/// # Errors
/// [`LinuxError`].
pub fn repair(attachments: &[Attachment]) -> Result<bool, LinuxError> {
    let mut nft = Nft::open(TABLE_PORTS, Ownership::Shared)?;
    let there = nft.observe()?;
    let needed: Table = ports::table(attachments.iter().filter(|there| there.complete));
    let is_of_use = needed.sets.values().any(|set| !set.elements.is_empty());
    if there.as_ref() == Some(&needed) || (there.is_none() && !is_of_use) {
        return Ok(false);
    }
    nft.apply(there.as_ref(), Some(&needed)).map(|()| true)
}

/// Takes the table away.
///
/// # Errors
/// [`LinuxError`].
pub fn remove_table() -> Result<(), LinuxError> {
    let mut nft = Nft::open(TABLE_PORTS, Ownership::Shared)?;
    match nft.observe()? {
        Some(there) => nft.apply(Some(&there), None),
        None => Ok(()),
    }
}

/// What of an attachment's elements, or of the rules that make them work, is missing: one line each.
///
/// # Errors
/// [`LinuxError`].
pub fn missing(attachment: &Attachment) -> Result<Vec<String>, LinuxError> {
    let sets = sets_of(attachment);
    if sets.is_empty() {
        return Ok(Vec::new());
    }
    let Some(table) = Nft::open(TABLE_PORTS, Ownership::Shared)?.observe()? else {
        return Ok(vec![format!("nft table inet {TABLE_PORTS} is missing")]);
    };
    let mut missing = Vec::new();
    for (name, set) in &sets {
        let there = table.sets.get(name);
        for (element, value) in &set.elements {
            if there.and_then(|there| there.elements.get(element)) != Some(value) {
                missing.push(format!("{element} is missing in {name} of nft table inet {TABLE_PORTS}"));
            }
        }
    }
    for (name, chain) in &ports::frame().chains {
        if table.chains.get(name) != Some(chain) {
            missing.push(format!("chain {name} of nft table inet {TABLE_PORTS} is not as it should be"));
        }
    }
    Ok(missing)
}

fn sets_of(attachment: &Attachment) -> Vec<(String, Set)> {
    let mut frame = ports::frame();
    let of_set = |(name, elements)| {
        let mut set = frame.sets.remove(&name)?;
        set.elements = elements;
        Some((name, set))
    };
    ports::elements(attachment).into_iter().filter_map(of_set).collect()
}

fn removals(sets: &[(String, Set)]) -> Vec<Command<'_>> {
    sets.iter().map(|(name, set)| Command::RemoveElements(name, set, set.elements.keys().copied().collect())).collect()
}

/// A flow of UDP keeps the way that its first packet took, for as long as packets come: without this the packets of a client that goes on
/// sending lead to the host itself, or to the pod that had the port before.
fn forget_flows(attachment: &Attachment) -> Result<(), LinuxError> {
    let udp = attachment.ports.iter().filter(|port| port.protocol == Transport::Udp);
    let ports: Vec<u16> = udp.map(|port| port.host_port).collect();
    if ports.is_empty() { Ok(()) } else { conntrack::forget_udp(&ports) }
}
