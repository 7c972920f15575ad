//! The rules that flanneld left on a node which has changed hands: its own tables, and its chains in those of iptables.
//!
//! Only what bears flanneld's names is touched. Rules of `iptables-legacy` are not among nftables' and stay; they do no harm beside
//! loden's, which have the same effect.

use loden_core::kernel::nft::{TableFamily, TableName};

use super::decode;
use super::encode::{GENMSG, batch_begin, batch_end, delete_table, head, msg};
use crate::error::LinuxError;
use crate::netlink::attr::{Attrs, text};
use crate::netlink::socket::DUMP;
use crate::netlink::{Protocol, Socket, Writer};

/// With `EnableNFTables`.
const TABLES: [TableName; 2] = [
    TableName { family: TableFamily::Ipv4, name: "flannel-ipv4" },
    TableName { family: TableFamily::Ipv6, name: "flannel-ipv6" },
];

/// A chain that a base chain of iptables jumps to.
struct Hooked {
    family: TableFamily,
    table: &'static str,
    base: &'static str,
    name: &'static str,
}

const CHAINS: [Hooked; 4] = {
    let (nat, filter) = (("nat", "POSTROUTING", "FLANNEL-POSTRTG"), ("filter", "FORWARD", "FLANNEL-FWD"));
    [
        Hooked::of(TableFamily::Ipv4, nat),
        Hooked::of(TableFamily::Ipv4, filter),
        Hooked::of(TableFamily::Ipv6, nat),
        Hooked::of(TableFamily::Ipv6, filter),
    ]
};

impl Hooked {
    const fn of(family: TableFamily, (table, base, name): (&'static str, &'static str, &'static str)) -> Self {
        Self { family, table, base, name }
    }

    fn begin(&self, w: &mut Writer, kind: u16, flags: u16) {
        w.begin(kind, flags);
        w.raw(&head(self.family));
        w.text(1, self.table);
    }
}

/// Looks for them.
///
/// Whoever closes a socket of this kind waits until all that was removed by transactions is freed, which on a busy machine are seconds
/// (`nft_rcv_nl_event`, net/netfilter/nf_tables_api.c): one that works for others keeps this.
#[derive(Debug)]
pub struct Former {
    socket: Socket,
}

impl Former {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`LinuxError::System`].
    pub fn open() -> Result<Self, LinuxError> {
        Socket::open(Protocol::Netfilter).map(|socket| Self { socket })
    }

    /// Takes them away in one transaction and says what went; mostly nothing is there.
    ///
    /// # Errors
    /// [`LinuxError::Netlink`]; nothing has changed then.
    pub fn remove(&mut self) -> Result<Vec<String>, LinuxError> {
        remove(&mut self.socket)
    }
}

fn remove(socket: &mut Socket) -> Result<Vec<String>, LinuxError> {
    let (mut w, mut gone) = (Writer::default(), Vec::new());
    let mut names = vec!["the transaction".to_owned()];
    batch_begin(&mut w, None);
    for table in TABLES {
        if is_there(socket, table)? {
            delete_table(&mut w, table);
            names.push(format!("removal of table {table}"));
            gone.push(format!("table {table}"));
        }
    }
    for chain in &CHAINS {
        if !has_chain(socket, chain)? {
            continue;
        }
        for handle in jumps(socket, chain)? {
            chain.begin(&mut w, msg::DEL_RULE, 0);
            w.text(2, chain.base);
            w.bytes(3, &handle);
            w.end();
            names.push(format!("removal of the jump from {} to {}", chain.base, chain.name));
        }
        chain.begin(&mut w, msg::DEL_RULE, 0);
        w.text(2, chain.name);
        w.end();
        names.push(format!("flush of chain {}", chain.name));
        chain.begin(&mut w, msg::DEL_CHAIN, 0);
        w.text(3, chain.name);
        w.end();
        names.push(format!("removal of chain {}", chain.name));
        let table = TableName { family: chain.family, name: chain.table };
        gone.push(format!("chain {} of table {table}", chain.name));
    }
    names.push("the transaction".to_owned());
    batch_end(&mut w);
    if !gone.is_empty() {
        socket.transaction(&mut w, &names)?;
    }
    Ok(gone)
}

fn is_there(socket: &mut Socket, table: TableName) -> Result<bool, LinuxError> {
    let mut w = Writer::default();
    w.begin(msg::GET_TABLE, 0);
    w.raw(&head(table.family));
    w.text(1, table.name);
    w.end();
    exists(socket, &mut w)
}

fn has_chain(socket: &mut Socket, chain: &Hooked) -> Result<bool, LinuxError> {
    let mut w = Writer::default();
    chain.begin(&mut w, msg::GET_CHAIN, 0);
    w.text(3, chain.name);
    w.end();
    exists(socket, &mut w)
}

fn exists(socket: &mut Socket, w: &mut Writer) -> Result<bool, LinuxError> {
    match socket.batch(w)?.into_iter().collect::<Result<(), _>>() {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == libc::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}

/// The handles of the base chain's rules that jump to the chain.
fn jumps(socket: &mut Socket, chain: &Hooked) -> Result<Vec<Vec<u8>>, LinuxError> {
    let mut w = Writer::default();
    chain.begin(&mut w, msg::GET_RULE, DUMP);
    w.text(2, chain.base);
    w.end();
    socket.dump("list rules", &mut w, Vec::new, |all: &mut Vec<_>, message| {
        let attrs = Attrs::behind(message.payload, GENMSG);
        // An older kernel does not heed which chain is asked for.
        let is_its =
            attrs.find(1).and_then(text) == Some(chain.table) && attrs.find(2).and_then(text) == Some(chain.base);
        if is_its && decode::jumps_to(attrs) == Some(chain.name) {
            all.extend(attrs.find(3).map(<[u8]>::to_vec));
        }
    })
}
