//! The plugin's tables in the kernel. A pod's elements are put in and taken out by themselves; a whole table is looked at only to
//! repair it. To be called under the ledger's lock, so that nobody repairs what another is just changing.

use loden_core::kernel::nft::{Command, Set, TableName};
use loden_core::model::{Attachment, Transport};
use loden_core::pod_tables::{ALL, PodTable};

use crate::conntrack;
use crate::error::LinuxError;
use crate::nft::{Nft, Ownership};

/// Puts an attachment's elements in. Where a table is missing it is made with those of all `others` that are complete.
///
/// # Errors
/// [`LinuxError`]; EEXIST when a port leads to another pod; EOPNOTSUPP when the kernel has no such tables. The table that it is
/// about has not changed then.
pub fn add(
    tables: &[PodTable],
    attachment: &Attachment,
    others: impl Fn() -> Vec<Attachment>,
) -> Result<(), LinuxError> {
    for table in tables {
        add_to(table, attachment, &others).map_err(|error| explained(table, error))?;
    }
    forget_flows(attachment)
}

fn add_to(table: &PodTable, attachment: &Attachment, others: &impl Fn() -> Vec<Attachment>) -> Result<(), LinuxError> {
    let sets = sets_of(table, attachment);
    if sets.is_empty() {
        return Ok(());
    }
    let mut nft = open(table)?;
    let commands: Vec<Command<'_>> = sets
        .iter()
        .map(|(name, set)| Command::AddElements(name, set, set.elements.keys().copied().collect()))
        .collect();
    match nft.send(&commands) {
        Err(error) if error.errno() == libc::ENOENT => {
            let others: Vec<Attachment> = others().into_iter().filter(|there| there.complete).collect();
            let old = nft.observe()?;
            nft.apply(old.as_ref(), Some(&table.with(others.iter().chain([attachment]))))
        }
        sent => sent,
    }
}

fn explained(table: &PodTable, error: LinuxError) -> LinuxError {
    match error {
        LinuxError::Netlink { what, errno: libc::EOPNOTSUPP | libc::EAFNOSUPPORT, cause } => {
            let cause = format!("{cause}: it needs a kernel with {}", table.needs);
            LinuxError::Netlink { what: format!("nft {what}"), errno: libc::EOPNOTSUPP, cause }
        }
        other => other,
    }
}

/// Takes an attachment's elements out; what is missing is out already. Of one that never came to its end some may be another's.
///
/// # Errors
/// Whatever could not be taken out, all of it.
pub fn remove(tables: &[PodTable], attachment: &Attachment) -> Result<(), LinuxError> {
    let mut errors: Vec<LinuxError> = tables.iter().filter_map(|table| remove_from(table, attachment).err()).collect();
    errors.extend(forget_flows(attachment).err());
    LinuxError::collected(errors)
}

fn remove_from(table: &PodTable, attachment: &Attachment) -> Result<(), LinuxError> {
    let sets = sets_of(table, attachment);
    if sets.is_empty() {
        return Ok(());
    }
    let mut nft = open(table)?;
    if attachment.complete {
        match nft.send(&removals(&sets)) {
            Err(error) if error.errno() == libc::ENOENT => {}
            sent => return sent,
        }
    }
    let Some(there) = nft.observe()? else { return Ok(()) };
    let still = sets.into_iter().map(|(name, mut set)| {
        let found = there.sets.get(&name).map(|set| &set.elements);
        set.elements.retain(|element, value| found.and_then(|found| found.get(element)) == Some(value));
        (name, set)
    });
    let still: Vec<(String, Set)> = still.filter(|(_, set)| !set.elements.is_empty()).collect();
    if still.is_empty() { Ok(()) } else { nft.send(&removals(&still)) }
}

/// Makes the tables what these attachments, those of them that are complete, need. Says which were otherwise.
///
/// # Errors
/// Whatever could not be repaired, all of it.
pub fn repair(attachments: &[Attachment]) -> Result<Vec<TableName>, LinuxError> {
    let (mut repaired, mut errors) = (Vec::new(), Vec::new());
    for table in &ALL {
        match repair_one(table, attachments) {
            Ok(true) => repaired.push((table.frame)().name),
            Ok(false) => {}
            Err(error) => errors.push(error),
        }
    }
    LinuxError::collected(errors).map(|()| repaired)
}

fn repair_one(table: &PodTable, attachments: &[Attachment]) -> Result<bool, LinuxError> {
    let mut nft = open(table)?;
    let there = nft.observe()?;
    let needed = table.with(attachments.iter().filter(|there| there.complete));
    let is_of_use = needed.sets.values().any(|set| !set.elements.is_empty());
    if there.as_ref() == Some(&needed) || (there.is_none() && !is_of_use) {
        return Ok(false);
    }
    nft.apply(there.as_ref(), Some(&needed)).map(|()| true)
}

/// Takes the tables away.
///
/// # Errors
/// Whatever stayed, all of it.
pub fn remove_all() -> Result<(), LinuxError> {
    let mut errors = Vec::new();
    for table in &ALL {
        let removed = open(table).and_then(|mut nft| match nft.observe()? {
            Some(there) => nft.apply(Some(&there), None),
            None => Ok(()),
        });
        errors.extend(removed.err());
    }
    LinuxError::collected(errors)
}

/// What of an attachment's elements, or of the rules that make them work, is missing: one line each.
///
/// # Errors
/// [`LinuxError`].
pub fn missing(attachment: &Attachment) -> Result<Vec<String>, LinuxError> {
    let mut missing = Vec::new();
    for table in &ALL {
        let sets = sets_of(table, attachment);
        if sets.is_empty() {
            continue;
        }
        let frame = (table.frame)();
        let Some(found) = open(table)?.observe()? else {
            missing.push(format!("nft table {} is missing", frame.name));
            continue;
        };
        for (name, set) in &sets {
            let there = found.sets.get(name);
            for (element, value) in &set.elements {
                if there.and_then(|there| there.elements.get(element)) != Some(value) {
                    missing.push(format!("{element} is missing in {name} of nft table {}", frame.name));
                }
            }
        }
        for (name, chain) in &frame.chains {
            if found.chains.get(name) != Some(chain) {
                missing.push(format!("chain {name} of nft table {} is not as it should be", frame.name));
            }
        }
    }
    Ok(missing)
}

fn open(table: &PodTable) -> Result<Nft, LinuxError> {
    Nft::open((table.frame)().name, Ownership::Shared)
}

fn sets_of(table: &PodTable, attachment: &Attachment) -> Vec<(String, Set)> {
    let elements = (table.elements)(attachment);
    if elements.is_empty() {
        return Vec::new();
    }
    let mut frame = (table.frame)();
    let of_set = |(name, elements)| {
        let mut set = frame.sets.remove(&name)?;
        set.elements = elements;
        Some((name, set))
    };
    elements.into_iter().filter_map(of_set).collect()
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
