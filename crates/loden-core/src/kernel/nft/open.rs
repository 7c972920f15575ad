//! Sets whose elements are objects of their own, so that one more costs what one costs: which set and element an object is, and
//! what a set is made with.

use super::{Element, Set, SetData, SetKey, Table};
use crate::kernel::{Key, Object};
use crate::model::Family;

/// The set of the hosts' addresses of a family.
#[must_use]
pub fn hosts_set(family: Family) -> &'static str {
    if family == Family::V4 { "hosts_v4" } else { "hosts_v6" }
}

/// The set of the peers' blocks of a family.
#[must_use]
pub fn blocks_set(family: Family) -> &'static str {
    if family == Family::V4 { "blocks_v4" } else { "blocks_v6" }
}

/// All of them: their names and what their keys are.
fn all() -> impl Iterator<Item = (&'static str, SetKey)> {
    let of = |family| [(hosts_set(family), SetKey::Address(family)), (blocks_set(family), SetKey::Prefix(family))];
    Family::ALL.into_iter().flat_map(of)
}

/// An open set with nothing in it.
#[must_use]
pub fn open_set(key: SetKey) -> Set {
    Set { is_open: true, ..Set::new(key, SetData::None) }
}

/// The set and the element that an object is, if it is one.
#[must_use]
pub fn element_of(key: &Key) -> Option<(&'static str, SetKey, Element)> {
    match *key {
        Key::KnownHost(addr) => {
            let family = Family::of(addr);
            Some((hosts_set(family), SetKey::Address(family), Element::Address(addr)))
        }
        Key::KnownBlock(block) => {
            let family = block.family();
            Some((blocks_set(family), SetKey::Prefix(family), Element::Prefix(block)))
        }
        _ => None,
    }
}

/// Puts elements into those open sets that `old` does not have: a set is never made empty, or what is known would be shut out
/// until it is put in one by one.
pub(crate) fn fill_open_sets(table: &mut Table, old: Option<&Table>, wanted: impl Fn() -> Vec<Key>) {
    for (name, _) in all() {
        let is_new = old.is_none_or(|old| !old.sets.contains_key(name));
        if let Some(set) = table.sets.get_mut(name).filter(|_| is_new) {
            let here = wanted().iter().filter_map(element_of).filter(|(of, ..)| *of == name).collect::<Vec<_>>();
            set.elements = here.into_iter().map(|(_, _, element)| (element, None)).collect();
        }
    }
}

/// What is in a table's open sets, as objects; the sets are left empty and open.
pub fn take_open_sets(table: &mut Table) -> Vec<(Key, Object)> {
    let mut taken = Vec::new();
    for (name, _) in all() {
        let Some(set) = table.sets.get_mut(name) else { continue };
        set.is_open = true;
        taken.extend(std::mem::take(&mut set.elements).into_keys().filter_map(|element| match element {
            Element::Address(addr) => Some((Key::KnownHost(addr), Object::KnownHost)),
            Element::Prefix(block) => Some((Key::KnownBlock(block), Object::KnownBlock)),
            _ => None,
        }));
    }
    taken
}
