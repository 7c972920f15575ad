//! nfnetlink messages as the model's table. What loden would never write comes back as something that differs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_core::kernel::nft::{Chain, ChainKind, Element, Hook, HookPoint, Rule, Set, SetData, SetKey, Value, Verdict};
use loden_core::model::{Family, Prefix};

use super::encode::{INTERVAL_END, set_flag};
use super::form::{data_of, element_of, key_of, target_of};
use crate::netlink::attr::{Attrs, be32, text};

/// Keys of a set as the kernel lists them: (key, whether it begins something) → value. An end sorts before a beginning.
pub type Keys = BTreeMap<(Element, bool), Option<Value>>;

/// A set without its elements; `None` for one of a form that loden does not write.
pub fn set(attrs: Attrs<'_>) -> Option<(String, Set)> {
    let number = |kind| attrs.find(kind).and_then(be32).unwrap_or(0);
    let flags = number(3);
    let key = key_of(number(4), flags & set_flag::INTERVAL != 0)?;
    let data = if flags & set_flag::MAP == 0 { SetData::None } else { data_of(number(6)) };
    Some((attrs.find(2).and_then(text)?.to_owned(), Set::new(key, data)))
}

/// Adds the keys of one message.
pub fn elements(set: &Set, attrs: Attrs<'_>, keys: &mut Keys) {
    for (_, element) in attrs.find(3).map(Attrs::new).into_iter().flatten() {
        let element = Attrs::new(element);
        let key = element.find(1).and_then(|key| Attrs::new(key).find(1));
        let Some(key) = key.and_then(|key| element_of(set.key, key)) else { continue };
        let is_end = element.find(3).and_then(be32).unwrap_or(0) & INTERVAL_END != 0;
        let value = element.find(2).map(Attrs::new).and_then(|data| match set.data {
            SetData::None => None,
            SetData::Verdict => data.find(2).and_then(verdict).map(Value::Verdict),
            SetData::Target(family) => data.find(1).and_then(|bytes| target_of(family, bytes)).map(Value::Target),
        });
        keys.insert((key, !is_end), value);
    }
}

/// Makes elements of keys: an interval's two ends become its prefix.
pub fn assemble(key: SetKey, keys: Keys) -> BTreeMap<Element, Option<Value>> {
    let SetKey::Prefix(family) = key else {
        return keys.into_iter().map(|((element, _), value)| (element, value)).collect();
    };
    let mut elements = BTreeMap::new();
    let mut open: Option<(IpAddr, Option<Value>)> = None;
    for ((element, begins), value) in keys {
        let Element::Address(addr) = element else { continue };
        if let Some((begin, value)) = open.take() {
            elements.insert(interval(family, begin, number(addr).checked_sub(1)), value);
        }
        if begins {
            open = Some((addr, value));
        }
    }
    if let Some((begin, value)) = open {
        elements.insert(interval(family, begin, None), value);
    }
    elements
}

/// The prefix from `begin` to `last` (`None`: to the end). A range that is no prefix shows as its first address alone.
fn interval(family: Family, begin: IpAddr, last: Option<u128>) -> Element {
    let bits = family.bits();
    let end = last.unwrap_or_else(|| if family == Family::V4 { u128::from(u32::MAX) } else { u128::MAX });
    let len = (0..=bits).find(|len| {
        let prefix = Prefix::holding(begin, *len);
        prefix.network() == begin && number(prefix.last()) == end
    });
    Element::Prefix(Prefix::holding(begin, len.unwrap_or(bits)))
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => addr.into(),
    }
}

/// A chain without its rules.
pub fn chain(attrs: Attrs<'_>) -> Option<(String, Chain)> {
    let hook = attrs.find(4).map(Attrs::new).and_then(|hook| {
        let point = match hook.find(1).and_then(be32)? {
            0 => HookPoint::Prerouting,
            1 => HookPoint::Input,
            2 => HookPoint::Forward,
            3 => HookPoint::Output,
            4 => HookPoint::Postrouting,
            _ => return None,
        };
        let kind = if attrs.find(7).and_then(text) == Some("nat") { ChainKind::Nat } else { ChainKind::Filter };
        Some(Hook { kind, point, priority: hook.find(2).and_then(be32)?.cast_signed() })
    });
    Some((attrs.find(3).and_then(text)?.to_owned(), Chain { hook, rules: Vec::new() }))
}

/// A rule, known by its comment; one without a comment of loden's has a digest that no wanted rule has.
pub fn rule(attrs: Attrs<'_>) -> Rule {
    attrs.find(7).and_then(comment).and_then(Rule::from_kernel_comment).unwrap_or_else(|| Rule {
        comment: "a rule that loden did not write".to_owned(),
        exprs: Vec::new(),
        digest: 0,
    })
}

/// The chain that a rule jumps to.
pub fn jumps_to(attrs: Attrs<'_>) -> Option<&str> {
    attrs.find(4).map(Attrs::new).into_iter().flatten().find_map(|(_, expr)| {
        let expr = Attrs::new(expr);
        let data = expr.find(1).and_then(text).filter(|name| *name == "immediate").and(expr.find(2))?;
        let verdict = Attrs::new(Attrs::new(data).find(2)?).find(2)?;
        Attrs::new(verdict).find(2).and_then(text)
    })
}

/// How many packets a rule has counted.
pub fn packets(attrs: Attrs<'_>) -> Option<u64> {
    attrs.find(4).map(Attrs::new).into_iter().flatten().find_map(|(_, expr)| {
        let expr = Attrs::new(expr);
        let data = expr.find(1).and_then(text).filter(|name| *name == "counter").and(expr.find(2))?;
        // NFTA_COUNTER_PACKETS
        Some(u64::from_be_bytes(Attrs::new(data).find(2)?.try_into().ok()?))
    })
}

/// The comment among libnftables' user data: (type, length, text) one behind the other; type 0 is the comment.
fn comment(mut userdata: &[u8]) -> Option<&str> {
    loop {
        let (kind, len) = (*userdata.first()?, usize::from(*userdata.get(1)?));
        let value = userdata.get(2..2 + len)?;
        if kind == 0 {
            return text(value);
        }
        userdata = &userdata[2 + len..];
    }
}

fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let attrs = Attrs::new(bytes);
    let chain = || attrs.find(2).and_then(text).map(str::to_owned);
    Some(match attrs.find(1).and_then(be32)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => return None,
    })
}
