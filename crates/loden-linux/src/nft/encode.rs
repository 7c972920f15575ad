//! The model's table as nfnetlink messages (numbers: linux/netfilter/nf_tables.h). Numbers travel in network order.

use std::net::IpAddr;

use loden_core::kernel::nft::{
    Chain, ChainKind, Command, Element, Expr, Field, Rule, Set, SetData, SetKey, TableFamily, TableName, Value, Verdict,
};
use loden_core::model::{Family, IfName};

use super::form::{key_bytes, key_form, target_bytes, target_form};

use crate::netlink::attr::Writer;
use crate::netlink::socket::{APPEND, CREATE};

/// Length of `struct nfgenmsg`.
pub const GENMSG: usize = 4;
/// The nftables subsystem.
const SUBSYSTEM: u16 = 10;

/// Message types.
pub mod msg {
    #![allow(missing_docs, reason = "the kernel's names")]
    const BASE: u16 = super::SUBSYSTEM << 8;
    pub const NEW_TABLE: u16 = BASE;
    pub const GET_TABLE: u16 = BASE | 1;
    pub const DEL_TABLE: u16 = BASE | 2;
    pub const NEW_CHAIN: u16 = BASE | 3;
    pub const GET_CHAIN: u16 = BASE | 4;
    pub const DEL_CHAIN: u16 = BASE | 5;
    pub const NEW_RULE: u16 = BASE | 6;
    pub const GET_RULE: u16 = BASE | 7;
    pub const DEL_RULE: u16 = BASE | 8;
    pub const NEW_SET: u16 = BASE | 9;
    pub const GET_SET: u16 = BASE | 10;
    pub const DEL_SET: u16 = BASE | 11;
    pub const NEW_ELEMENT: u16 = BASE | 12;
    pub const GET_ELEMENT: u16 = BASE | 13;
    pub const DEL_ELEMENT: u16 = BASE | 14;
    pub const GET_GENERATION: u16 = BASE | 16;
    pub const BATCH_BEGIN: u16 = 16;
    pub const BATCH_END: u16 = 17;
}

/// Flags of a set.
pub mod set_flag {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const INTERVAL: u32 = 4;
    pub const MAP: u32 = 8;
}

/// Flag of an element: it ends an interval.
pub const INTERVAL_END: u32 = 1;
/// A set's data type when it maps to verdicts.
pub const DATA_VERDICT: u32 = 0xffff_ff00;
/// `struct nfgenmsg` of a table's family.
#[must_use]
pub fn head(family: TableFamily) -> [u8; GENMSG] {
    [family as u8, 0, 0, 0]
}

/// Opens the transaction; with a generation the kernel refuses it when another has come first.
pub fn batch_begin(w: &mut Writer, generation: Option<u32>) {
    w.begin(msg::BATCH_BEGIN, 0);
    w.raw(&[0, 0, 0, SUBSYSTEM as u8]);
    if let Some(generation) = generation {
        w.be32(1, generation);
    }
    w.end();
}

/// Closes it.
pub fn batch_end(w: &mut Writer) {
    w.begin(msg::BATCH_END, 0);
    w.raw(&[0, 0, 0, SUBSYSTEM as u8]);
    w.end();
}

/// Makes the table, or takes over an orphan.
pub fn new_table(w: &mut Writer, table: TableName, owned: bool) {
    w.begin(msg::NEW_TABLE, CREATE);
    w.raw(&head(table.family));
    w.text(1, table.name);
    // NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST
    w.be32(2, if owned { 6 } else { 0 });
    w.end();
}

/// Deletes the table with all that is in it.
pub fn delete_table(w: &mut Writer, table: TableName) {
    w.begin(msg::DEL_TABLE, 0);
    w.raw(&head(table.family));
    w.text(1, table.name);
    w.end();
}

/// One command; `id` numbers new sets within the batch.
pub fn command(w: &mut Writer, table: TableName, command: &Command<'_>, id: u32) {
    let mut begin = |kind, flags| {
        w.begin(kind, flags);
        w.raw(&head(table.family));
        w.text(1, table.name);
    };
    match command {
        Command::NewSet(name, set) => {
            begin(msg::NEW_SET, CREATE);
            new_set(w, name, set, id);
        }
        Command::AddElements(name, set, elements) => {
            begin(msg::NEW_ELEMENT, CREATE);
            w.text(2, name);
            self::elements(w, set, elements.iter());
        }
        Command::RemoveElements(name, set, elements) => {
            begin(msg::DEL_ELEMENT, 0);
            w.text(2, name);
            self::elements(w, set, elements.iter());
        }
        Command::NewChain(name, chain) => {
            begin(msg::NEW_CHAIN, CREATE);
            new_chain(w, name, chain);
        }
        Command::FlushChain(name) => {
            begin(msg::DEL_RULE, 0);
            w.text(2, name);
        }
        Command::AddRule(chain, rule) => {
            begin(msg::NEW_RULE, CREATE | APPEND);
            w.text(2, chain);
            self::rule(w, rule);
        }
        Command::RemoveChain(name) => {
            begin(msg::DEL_CHAIN, 0);
            w.text(3, name);
        }
        Command::RemoveSet(name) => {
            begin(msg::DEL_SET, 0);
            w.text(2, name);
        }
    }
    w.end();
}

fn new_set(w: &mut Writer, name: &str, set: &Set, id: u32) {
    let is_interval = matches!(set.key, SetKey::Prefix(_));
    let is_map = set.data != SetData::None;
    w.text(2, name);
    w.be32(3, if is_interval { set_flag::INTERVAL } else { 0 } | if is_map { set_flag::MAP } else { 0 });
    let (kind, len) = key_form(set.key);
    w.be32(4, kind);
    w.be32(5, len);
    match set.data {
        SetData::None => {}
        SetData::Verdict => {
            w.be32(6, DATA_VERDICT);
            w.be32(7, 0);
        }
        SetData::Target(family) => {
            let (kind, len) = target_form(family);
            w.be32(6, kind);
            w.be32(7, len);
        }
    }
    w.be32(10, id);
}

fn new_chain(w: &mut Writer, name: &str, chain: &Chain) {
    w.text(3, name);
    let Some(hook) = chain.hook else { return };
    let nest = w.nest(4);
    w.be32(1, hook.point as u32);
    w.be32(2, hook.priority.cast_unsigned());
    w.close(nest);
    // NF_ACCEPT
    w.be32(5, 1);
    w.text(7, if hook.kind == ChainKind::Nat { "nat" } else { "filter" });
}

fn elements<'a>(w: &mut Writer, set: &Set, elements: impl Iterator<Item = &'a Element>) {
    let list = w.nest(3);
    for element in elements {
        let value = set.elements.get(element).and_then(Option::as_ref);
        self::element(w, &key_bytes(element), 0, value);
        // An interval that reaches the last address has no end.
        if let Element::Prefix(prefix) = element
            && let Some(end) = next(prefix.last())
        {
            self::element(w, &key_bytes(&Element::Address(end)), INTERVAL_END, None);
        }
    }
    w.close(list);
}

fn element(w: &mut Writer, key: &[u8], flags: u32, value: Option<&Value>) {
    let element = w.nest(1);
    let nest = w.nest(1);
    w.bytes(1, key);
    w.close(nest);
    match value {
        None => {}
        Some(Value::Verdict(verdict)) => data_verdict(w, 2, verdict),
        Some(Value::Target(target)) => {
            let data = w.nest(2);
            w.bytes(1, &target_bytes(*target));
            w.close(data);
        }
    }
    if flags != 0 {
        w.be32(3, flags);
    }
    w.close(element);
}

fn next(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(addr) => u32::from(addr).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(addr) => u128::from(addr).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

fn rule(w: &mut Writer, rule: &Rule) {
    let list = w.nest(4);
    for expr in &rule.exprs {
        self::expr(w, expr);
    }
    w.close(list);
    // The comment in libnftables' own form (type 0, length, text with its zero byte), so that `nft list` shows it.
    let comment = rule.kernel_comment();
    let text = &comment.as_bytes()[..comment.len().min(250)];
    let mut userdata = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    userdata.extend_from_slice(text);
    userdata.push(0);
    w.bytes(7, &userdata);
}

/// Registers: the verdict; the first of the data registers, by its old name; the 4-byte ones that it is made of
/// (`NFT_REG32_00` = 8 is the first 4 bytes of register 1).
const VERDICT: u32 = 0;
const REG: u32 = 1;
const REG32: u32 = 8;
/// `NFT_META_*`.
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `IPS_DST_NAT`, linux/netfilter/nf_conntrack_common.h.
const DST_NAT: u32 = 1 << 5;

fn expr(w: &mut Writer, expr: &Expr) {
    match expr {
        Expr::Family(family) => {
            meta(w, META_NFPROTO, REG);
            cmp(w, false, &[crate::rt::af(*family)]);
        }
        Expr::Lookup { field, family, set, negate } => {
            payload(w, *field, *family, REG);
            lookup(w, set, REG, *negate);
        }
        Expr::VerdictMap { field, family, map } => {
            payload(w, *field, *family, REG);
            named(w, "lookup", |w| {
                w.text(1, map);
                w.be32(2, REG);
                w.be32(3, VERDICT);
            });
        }
        Expr::Within { field, prefix, negate } => {
            payload(w, *field, prefix.family(), REG);
            let len = usize::from(prefix.family().bits() / 8);
            let mut mask = vec![0_u8; len];
            for bit in 0..usize::from(prefix.len()) {
                mask[bit / 8] |= 0x80 >> (bit % 8);
            }
            bitwise(w, &mask);
            match prefix.network() {
                IpAddr::V4(addr) => cmp(w, *negate, &addr.octets()),
                IpAddr::V6(addr) => cmp(w, *negate, &addr.octets()),
            }
        }
        Expr::Mark { mask, value, negate } => {
            // In host order.
            meta(w, META_MARK, REG);
            bitwise(w, &mask.to_ne_bytes());
            cmp(w, *negate, &value.to_ne_bytes());
        }
        Expr::ToHost => {
            // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR is RTN_LOCAL.
            named(w, "fib", |w| {
                w.be32(1, REG);
                w.be32(2, 3);
                w.be32(3, 2);
            });
            cmp(w, false, &2_u32.to_ne_bytes());
        }
        Expr::ToPort(transport, port) => {
            meta(w, META_L4PROTO, REG);
            cmp(w, false, &[transport.number()]);
            // NFT_PAYLOAD_TRANSPORT_HEADER
            load(w, 2, 2, 2, REG);
            cmp(w, false, &port.to_be_bytes());
        }
        Expr::Protocol(number) => {
            meta(w, META_L4PROTO, REG);
            cmp(w, false, &[*number]);
        }
        Expr::Input { name, negate } => {
            meta(w, META_IIFNAME, REG);
            cmp(w, *negate, &padded(*name));
        }
        Expr::Output { name, negate } => {
            meta(w, META_OIFNAME, REG);
            cmp(w, *negate, &padded(*name));
        }
        Expr::Icmp(family, kind) => {
            meta(w, META_L4PROTO, REG);
            cmp(w, false, &[if *family == Family::V4 { 1 } else { 58 }]);
            // NFT_PAYLOAD_TRANSPORT_HEADER
            load(w, 2, 0, 1, REG);
            cmp(w, false, &[*kind]);
        }
        Expr::Redirected { negate } => {
            // NFT_CT_STATUS
            named(w, "ct", |w| {
                w.be32(1, REG);
                w.be32(2, 2);
            });
            bitwise(w, &DST_NAT.to_ne_bytes());
            cmp(w, !*negate, &0_u32.to_ne_bytes());
        }
        Expr::LookupInput { family, set } => {
            meta(w, META_IIFNAME, REG);
            payload(w, Field::Destination, *family, REG32 + 4);
            lookup(w, set, REG, false);
        }
        Expr::LookupLink { set } => {
            meta(w, META_IIFNAME, REG);
            lookup(w, set, REG, false);
        }
        Expr::LookupSender { set, negate } => {
            meta(w, META_IIFNAME, REG);
            // The source in NFT_PAYLOAD_LL_HEADER.
            load(w, 0, 6, 6, REG32 + 4);
            lookup(w, set, REG, *negate);
        }
        Expr::LookupPair { family, set } => {
            payload(w, Field::Source, *family, REG32);
            payload(w, Field::Destination, *family, REG32 + u32::from(family.bits() / 32));
            lookup(w, set, REG32, false);
        }
        Expr::Redirect { family, map, by_address } => redirect(w, *family, map, *by_address),
        // NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_HOST_UNREACH: the code is one byte.
        Expr::Reject => named(w, "reject", |w| {
            w.be32(1, 2);
            w.u8(2, 2);
        }),
        Expr::Counter => named(w, "counter", |_| {}),
        // NF_NAT_RANGE_PROTO_RANDOM_FULLY
        Expr::Masquerade => named(w, "masq", |w| w.be32(1, 1 << 4)),
        Expr::Verdict(verdict) => named(w, "immediate", |w| {
            w.be32(1, VERDICT);
            data_verdict(w, 2, verdict);
        }),
    }
}

/// The key's parts stand in registers one behind the other, and so do the address and the port that the map has for them.
fn redirect(w: &mut Writer, family: Family, map: &str, by_address: bool) {
    let words = u32::from(family.bits() / 32);
    let mut at = REG32;
    if by_address {
        payload(w, Field::Destination, family, at);
        at += words;
    }
    meta(w, META_L4PROTO, at);
    // The destination port: NFT_PAYLOAD_TRANSPORT_HEADER, of each protocol that has ports.
    load(w, 2, 2, 2, at + 1);
    named(w, "lookup", |w| {
        w.text(1, map);
        w.be32(2, REG32);
        w.be32(3, REG32);
    });
    named(w, "nat", |w| {
        // NFT_NAT_DNAT
        w.be32(1, 1);
        w.be32(2, u32::from(crate::rt::af(family)));
        w.be32(3, REG32);
        w.be32(5, REG32 + words);
    });
}

/// An interface's name as the kernel compares it: 16 bytes.
pub fn padded(name: IfName) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    bytes
}

fn named(w: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
    let element = w.nest(1);
    w.text(1, name);
    let data = w.nest(2);
    fill(w);
    w.close(data);
    w.close(element);
}

fn meta(w: &mut Writer, key: u32, register: u32) {
    named(w, "meta", |w| {
        w.be32(1, register);
        w.be32(2, key);
    });
}

/// Whether what stands in a register is, or with `negate` is not, in a set.
fn lookup(w: &mut Writer, set: &str, register: u32, negate: bool) {
    named(w, "lookup", |w| {
        w.text(1, set);
        w.be32(2, register);
        if negate {
            // NFT_LOOKUP_F_INV
            w.be32(5, 1);
        }
    });
}

/// Loads an address of the IP header.
fn payload(w: &mut Writer, field: Field, family: Family, register: u32) {
    let (offset, len) = match (family, field) {
        (Family::V4, Field::Source) => (12, 4),
        (Family::V4, Field::Destination) => (16, 4),
        (Family::V6, Field::Source) => (8, 16),
        (Family::V6, Field::Destination) => (24, 16),
    };
    // NFT_PAYLOAD_NETWORK_HEADER
    load(w, 1, offset, len, register);
}

fn load(w: &mut Writer, base: u32, offset: u32, len: u32, register: u32) {
    named(w, "payload", |w| {
        w.be32(1, register);
        w.be32(2, base);
        w.be32(3, offset);
        w.be32(4, len);
    });
}

fn bitwise(w: &mut Writer, mask: &[u8]) {
    named(w, "bitwise", |w| {
        w.be32(1, REG);
        w.be32(2, REG);
        w.be32(3, u32::try_from(mask.len()).unwrap_or(0));
        for (attr, bytes) in [(4, mask), (5, &vec![0; mask.len()][..])] {
            let nest = w.nest(attr);
            w.bytes(1, bytes);
            w.close(nest);
        }
    });
}

fn cmp(w: &mut Writer, negate: bool, value: &[u8]) {
    named(w, "cmp", |w| {
        w.be32(1, REG);
        // NFT_CMP_EQ, NFT_CMP_NEQ
        w.be32(2, negate.into());
        let nest = w.nest(3);
        w.bytes(1, value);
        w.close(nest);
    });
}

/// A verdict's code and, for those that call one, its chain.
fn data_verdict(w: &mut Writer, attr: u16, verdict: &Verdict) {
    let (code, chain): (i32, Option<&str>) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    let data = w.nest(attr);
    let nest = w.nest(2);
    w.be32(1, code.cast_unsigned());
    if let Some(chain) = chain {
        w.text(2, chain);
    }
    w.close(nest);
    w.close(data);
}
