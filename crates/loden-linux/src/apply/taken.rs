//! What is to be made is there already: either it is as wanted, or the answer says what stands in its place.

use std::collections::BTreeMap;

use loden_core::kernel::{Key, Object};
use loden_core::model::Family;
use loden_core::plan::{Step, Verb};

use super::Outcome;
use crate::error::LinuxError;
use crate::observe::{LinuxKernel, route_object, unmarked_route};
use crate::rt::{address, route};

/// What stands somewhere: the object, if it is one of the model's, and words for it.
type Standing = (Option<Object>, String);

impl LinuxKernel {
    /// Looks at what stands in the place of what was to be made: what is wanted (then all is well), a predecessor's route that leads
    /// the same way (then it is replaced), or something else.
    pub(super) fn judge_taken(&mut self, steps: &[Step], taken: &[usize]) -> Vec<(usize, Outcome)> {
        match self.what_stands(&steps[taken[0]].key) {
            Err(error) => taken.iter().map(|n| (*n, Err(error.clone()))).collect(),
            Ok(standing) => taken
                .iter()
                .map(|n| {
                    let Step { key, new, .. } = &steps[*n];
                    if let (Some(Object::Route(wanted)), Some((Some(Object::Route(is)), _))) = (new, standing.get(key))
                        && wanted.leads_as(is)
                    {
                        let step = Step { verb: Verb::Change, ..steps[*n].clone() };
                        return (*n, self.try_batch(&[step]).pop().unwrap_or(Ok(())));
                    }
                    let outcome = match standing.get(key).or_else(|| standing.get(&place(key))) {
                        Some((Some(object), _)) if new.as_ref().is_some_and(|new| new.is_met_by(object)) => Ok(()),
                        Some((_, words)) => Err(LinuxError::Netlink {
                            what: key.to_string(),
                            errno: libc::EEXIST,
                            cause: format!("{words} is there already; it is left alone: remove it"),
                        }),
                        None => Err(LinuxError::Netlink {
                            what: key.to_string(),
                            errno: libc::EEXIST,
                            cause: "something of the kind was there a moment ago; it is tried again".to_owned(),
                        }),
                    };
                    (*n, outcome)
                })
                .collect(),
        }
    }

    /// All routes, or all addresses, by their place: as an object if it is one in the model's terms, and in words.
    fn what_stands(&mut self, key: &Key) -> Result<BTreeMap<Key, Standing>, LinuxError> {
        let mut all = BTreeMap::new();
        if let Key::Address(..) = key {
            self.writer.clear();
            address::list(&mut self.writer);
            let seen =
                self.socket.dump("list addresses", &mut self.writer, Vec::new, |all: &mut Vec<_>, message| {
                    all.extend(address::parse(message.payload));
                })?;
            for seen in seen {
                let Some(dev) = self.index.name(seen.index) else { continue };
                let key = Key::Address(dev, seen.net);
                let object = Object::Address { ours: seen.ours };
                all.insert(key, (Some(object), key.to_string()));
                // The kernel takes an IPv6 address but once on a link, whatever its prefix length.
                all.entry(place(&key)).or_insert((None, key.to_string()));
            }
            return Ok(all);
        }
        for family in Family::ALL {
            for seen in route::read(&mut self.socket, family, 0)? {
                let object = route_object(&self.index, seen).or_else(|| unmarked_route(&self.index, seen));
                let object = object.map(|(_, object)| object);
                let words = self.words_for(&seen);
                all.insert(Key::Route(seen.prefix, seen.priority), (object, words));
            }
        }
        Ok(all)
    }

    fn words_for(&self, seen: &route::Seen) -> String {
        let name = |number| self.index.name(number).map_or_else(|| format!("link {number}"), |n| format!("dev {n}"));
        let via = match seen.to {
            Some(route::To::Gateway(number, gateway)) => format!(" via {gateway} {}", name(number)),
            Some(route::To::Link(number)) => format!(" {}", name(number)),
            Some(route::To::Nexthop(id)) => format!(" through nexthop {id}"),
            Some(route::To::Blackhole) => " to nowhere".to_owned(),
            None => String::new(),
        };
        format!("a route to it{via}, made by route protocol {},", seen.protocol)
    }
}

/// What the kernel tells objects apart by.
fn place(key: &Key) -> Key {
    match *key {
        Key::Address(dev, net) if net.addr().is_ipv6() => Key::Address(dev, net.addr().into()),
        key => key,
    }
}
