//! nftables by raw netlink: loden's tables, read back and changed in transactions.
//!
//! The agent's table is owned by this socket and persistent where the kernel can (owner since 5.12, persist since 6.9): no
//! other process can change it while the agent lives, `nft flush ruleset` passes it by, and it stays when the agent dies. The plugin's is shared.

pub mod former;

mod decode;
mod encode;
mod form;

use std::collections::BTreeMap;

use loden_core::kernel::Key;
use loden_core::kernel::nft::{
    Command, Set, Table, TableName, commands, element_of, in_parts, open_set, take_open_sets,
};

use crate::error::LinuxError;
use crate::netlink::attr::{Attrs, be32, text};
use crate::netlink::{Protocol, Socket, Writer};
use encode::{GENMSG, head, msg};

/// How often a transaction is begun anew because something else committed one first.
const TRIES: usize = 16;

/// Who may change the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// This process alone, for as long as it lives.
    Owned,
    /// Everybody: this kernel has no owned and persistent tables. Foreign changes are seen and repaired.
    Shared,
}

/// The nftables side of the driver.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    table: TableName,
    ownership: Ownership,
    /// Whether the table, as it is now, has been taken over by this socket.
    is_adopted: bool,
}

impl Nft {
    /// Opens the socket for a table, and with [`Ownership::Owned`] will own it.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn open(table: TableName, ownership: Ownership) -> Result<Self, LinuxError> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)?, table, ownership, is_adopted: false })
    }

    /// Who may change the table.
    #[must_use]
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// The port of the socket.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Reads the table, `None` when there is none. An orphan is taken over on the way: that changes nothing in it.
    ///
    /// # Errors
    /// [`LinuxError`]; when another living process owns it, too.
    pub fn observe(&mut self) -> Result<Option<Table>, LinuxError> {
        let Some(owner) = self.owner()? else {
            self.is_adopted = false;
            return Ok(None);
        };
        match owner {
            Some(port) if port == self.socket.port() => self.is_adopted = true,
            Some(port) => {
                return Err(LinuxError::Netlink {
                    what: format!("nft table {}", self.table),
                    errno: libc::EPERM,
                    cause: format!(
                        "it is owned by another living process (netlink port {port}): is a second agent running?"
                    ),
                });
            }
            None => self.adopt()?,
        }
        self.read().map(Some)
    }

    /// Turns the table that is `old` into `new` in one transaction; `None`: no table.
    ///
    /// # Errors
    /// [`LinuxError::Netlink`] naming the set, chain or rule that the kernel refused; nothing has changed then.
    pub fn apply(&mut self, old: Option<&Table>, new: Option<&Table>) -> Result<(), LinuxError> {
        for _ in 0..TRIES {
            // An owned table changes by this process alone; any other must still be what the change was made for.
            let generation = if self.is_adopted {
                None
            } else {
                let generation = self.generation()?;
                let mut now = if self.owner()?.is_some() { Some(self.read()?) } else { None };
                now.as_mut().map(take_open_sets);
                if now.as_ref() != old {
                    return Err(LinuxError::Netlink {
                        what: format!("nft table {}", self.table),
                        errno: libc::EAGAIN,
                        cause: "it was changed by something else meanwhile; it is read again".to_owned(),
                    });
                }
                Some(generation)
            };
            let done = match old.zip(new).and_then(|(old, new)| with_new_sets(old, new)) {
                None => self.transact(generation, old, new),
                Some(between) => self.transact(generation, old, Some(&between)).and_then(|()| {
                    let generation = if self.is_adopted { None } else { Some(self.generation()?) };
                    self.transact(generation, Some(&between), new)
                }),
            };
            match done {
                Err(error) if error.errno() == libc::ERESTART => {}
                Err(error) if self.lacks_ownership(&error) => self.ownership = Ownership::Shared,
                Err(error) => return Err(error),
                Ok(()) => {
                    self.is_adopted = new.is_some() && self.ownership == Ownership::Owned;
                    return Ok(());
                }
            }
        }
        Err(LinuxError::Netlink {
            what: format!("nft table {}", self.table),
            errno: libc::EAGAIN,
            cause: format!("something else changed the ruleset {TRIES} times while it was written"),
        })
    }

    /// Puts objects that are elements of sets into them, or takes them out, in one transaction.
    ///
    /// # Errors
    /// [`LinuxError::Netlink`] when the kernel refuses one, or has no such set; nothing has changed then.
    pub fn change_elements(&mut self, objects: &[Key], is_in: bool) -> Result<(), LinuxError> {
        let mut sets: BTreeMap<&str, Set> = BTreeMap::new();
        for (name, key, element) in objects.iter().filter_map(element_of) {
            let set = sets.entry(name).or_insert_with(|| open_set(key));
            set.elements.insert(element, None);
        }
        let commands = sets.iter().flat_map(|(&name, set)| {
            in_parts(set.elements.keys().copied()).into_iter().map(move |part| {
                if is_in { Command::AddElements(name, set, part) } else { Command::RemoveElements(name, set, part) }
            })
        });
        let commands: Vec<Command<'_>> = commands.collect();
        self.send(&commands)
    }

    /// How many packets the rules with these words have counted together.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn counted(&mut self, comment: &str) -> Result<u64, LinuxError> {
        let rules = self.list(msg::GET_RULE, &[(1, self.table.name)])?;
        let rules = rules.iter().map(|payload| Attrs::behind(payload, GENMSG));
        Ok(rules.filter(|rule| decode::rule(*rule).comment == comment).filter_map(decode::packets).sum())
    }

    /// Sends commands as one transaction, whatever else the table holds.
    ///
    /// # Errors
    /// [`LinuxError::Netlink`] naming the command that the kernel refused; nothing has changed then.
    pub fn send(&mut self, commands: &[Command<'_>]) -> Result<(), LinuxError> {
        let mut w = Writer::default();
        let mut names = vec!["the transaction".to_owned()];
        encode::batch_begin(&mut w, None);
        for (n, command) in commands.iter().enumerate() {
            encode::command(&mut w, self.table, command, u32::try_from(n + 1).unwrap_or(u32::MAX));
            names.push(describe(command));
        }
        names.push("the transaction".to_owned());
        encode::batch_end(&mut w);
        self.socket.transaction(&mut w, &names)
    }

    fn transact(
        &mut self,
        generation: Option<u32>,
        old: Option<&Table>,
        new: Option<&Table>,
    ) -> Result<(), LinuxError> {
        let mut w = Writer::default();
        let mut names = vec!["the transaction".to_owned()];
        encode::batch_begin(&mut w, generation);
        if old.is_none() || new.is_none() {
            names.push(format!("table {}", self.table));
        }
        match new {
            None => encode::delete_table(&mut w, self.table),
            Some(new) => {
                if old.is_none() {
                    encode::new_table(&mut w, self.table, self.ownership == Ownership::Owned);
                }
                for (n, command) in commands(old, new).iter().enumerate() {
                    encode::command(&mut w, self.table, command, u32::try_from(n + 1).unwrap_or(u32::MAX));
                    names.push(describe(command));
                }
            }
        }
        names.push("the transaction".to_owned());
        encode::batch_end(&mut w);
        if names.len() == 2 {
            return Ok(());
        }
        self.socket.transaction(&mut w, &names)
    }

    fn adopt(&mut self) -> Result<(), LinuxError> {
        if self.ownership == Ownership::Shared {
            return Ok(());
        }
        let mut w = Writer::default();
        encode::batch_begin(&mut w, None);
        encode::new_table(&mut w, self.table, true);
        encode::batch_end(&mut w);
        let table = format!("table {}", self.table);
        match self.socket.transaction(&mut w, &["the transaction".to_owned(), table, String::new()]) {
            Ok(()) => self.is_adopted = true,
            // A plain table cannot be given an owner afterwards; it is shared until it is made anew.
            Err(error) if matches!(error.errno(), libc::EOPNOTSUPP | libc::EINVAL) => {
                self.ownership = Ownership::Shared;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn lacks_ownership(&self, error: &LinuxError) -> bool {
        self.ownership == Ownership::Owned && matches!(error.errno(), libc::EOPNOTSUPP | libc::EINVAL)
    }

    /// `None`: no table; else the port of the living socket that owns it, if one does.
    fn owner(&mut self) -> Result<Option<Option<u32>>, LinuxError> {
        let mut w = Writer::default();
        w.begin(msg::GET_TABLE, 0);
        w.raw(&head(self.table.family));
        w.text(1, self.table.name);
        w.end();
        let mut owner = None;
        let results = self.socket.batch_with_echo(&mut w, |_, message| {
            // NFTA_TABLE_OWNER
            owner = Attrs::behind(message.payload, GENMSG).find(7).and_then(be32).filter(|port| *port != 0);
        })?;
        match results.into_iter().collect::<Result<(), _>>() {
            Ok(()) => Ok(Some(owner)),
            Err(error) if error.errno() == libc::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn generation(&mut self) -> Result<u32, LinuxError> {
        let mut w = Writer::default();
        w.begin(msg::GET_GENERATION, 0);
        w.raw(&head(self.table.family));
        w.end();
        let mut generation = 0;
        let results = self.socket.batch_with_echo(&mut w, |_, message| {
            generation = Attrs::behind(message.payload, GENMSG).find(1).and_then(be32).unwrap_or(0);
        })?;
        results.into_iter().collect::<Result<(), _>>().map(|()| generation)
    }

    /// Reads sets, their elements, chains and rules. If a transaction came between the listings it is all read again.
    fn read(&mut self) -> Result<Table, LinuxError> {
        for _ in 0..TRIES {
            let before = self.generation()?;
            let table = self.read_once()?;
            if self.generation()? == before {
                return Ok(table);
            }
        }
        self.read_once()
    }

    fn read_once(&mut self) -> Result<Table, LinuxError> {
        let mut table = Table::new(self.table);
        let sets = self.list(msg::GET_SET, &[(1, self.table.name)])?;
        for payload in &sets {
            if let Some((name, mut set)) = decode::set(Attrs::behind(payload, GENMSG)) {
                self.read_elements(&name, &mut set)?;
                table.sets.insert(name, set);
            }
        }
        for payload in self.list(msg::GET_CHAIN, &[])? {
            let attrs = Attrs::behind(&payload, GENMSG);
            if attrs.find(1).and_then(text) == Some(self.table.name)
                && let Some((name, chain)) = decode::chain(attrs)
            {
                table.chains.insert(name, chain);
            }
        }
        let names: Vec<String> = table.chains.keys().cloned().collect();
        for name in names {
            let rules = self.list(msg::GET_RULE, &[(1, self.table.name), (2, &name)])?;
            if let Some(chain) = table.chains.get_mut(&name) {
                chain.rules = rules.iter().map(|p| decode::rule(Attrs::behind(p, GENMSG))).collect();
            }
        }
        Ok(table)
    }

    fn read_elements(&mut self, name: &str, set: &mut Set) -> Result<(), LinuxError> {
        let mut keys = BTreeMap::new();
        for payload in self.list(msg::GET_ELEMENT, &[(1, self.table.name), (2, name)])? {
            decode::elements(set, Attrs::behind(&payload, GENMSG), &mut keys);
        }
        set.elements = decode::assemble(set.key, keys);
        Ok(())
    }

    fn list(&mut self, kind: u16, filter: &[(u16, &str)]) -> Result<Vec<Vec<u8>>, LinuxError> {
        let mut w = Writer::default();
        w.begin(kind, crate::netlink::socket::DUMP);
        w.raw(&head(self.table.family));
        for (attr, value) in filter {
            w.text(*attr, value);
        }
        w.end();
        self.socket.dump("list nftables", &mut w, Vec::new, |all: &mut Vec<_>, message| {
            all.push(message.payload.to_vec());
        })
    }
}

/// A table with those sets of another that it does not have, if there are any. They come before the rules that look into them: a kernel
/// shows a new set of prefixes to packets some ten microseconds after the rules of the same transaction (seen with 6.18), and what
/// is looked for in it meanwhile is not found.
fn with_new_sets(old: &Table, new: &Table) -> Option<Table> {
    let mut table = old.clone();
    let is_fresh = |(name, set): &(&String, &Set)| !old.sets.contains_key(*name) && !set.elements.is_empty();
    table.sets.extend(new.sets.iter().filter(is_fresh).map(|(name, set)| (name.clone(), set.clone())));
    (table.sets.len() > old.sets.len()).then_some(table)
}

fn describe(command: &Command<'_>) -> String {
    match command {
        Command::NewSet(name, _) => format!("new set {name}"),
        Command::AddElements(name, _, elements) => format!("{} elements into set {name}", elements.len()),
        Command::RemoveElements(name, _, elements) => format!("{} elements out of set {name}", elements.len()),
        Command::NewChain(name, _) => format!("new chain {name}"),
        Command::FlushChain(name) => format!("flush of chain {name}"),
        Command::AddRule(chain, rule) => format!("rule {:?} in chain {chain}", rule.comment),
        Command::RemoveChain(name) => format!("removal of chain {name}"),
        Command::RemoveSet(name) => format!("removal of set {name}"),
    }
}
