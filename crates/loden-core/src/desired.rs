//! What this host's kernel should hold: every object with the reason that it is wanted.
//!
//! [`Desired`] keeps the wishes by their [`Source`] in the view, so that a change of one peer costs that peer's objects, and
//! against them what the kernel holds. What differs is always known; [`crate::plan`] orders it.

mod local;
mod source;
mod wishes;

pub(crate) use local::is_answered;
pub use local::{Published, published};
pub use source::{Origin, Source, Why};
pub use wishes::{Wanted, Wishes};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use foldhash::fast::FixedState;
use indexmap::IndexMap;

use crate::attach;
use crate::backend::TunnelEnd;
use crate::delta::DeltaMap;
use crate::kernel::link::LinkKind;
use crate::kernel::{Key, LINK_GROUP, Object, Observed, Scope, Sort};
use crate::model::{BackendConfig, IfName, PoolName};
use crate::view::{Changed, Problem, View};

/// A route, a nexthop, a neighbour, a forwarding entry: what most peers take of the map's room.
const OBJECTS_OF_A_PEER: usize = 4;

/// All wishes, what is there, and where the two differ.
#[derive(Debug)]
pub struct Desired {
    map: DeltaMap<Key, Wanted, Object>,
    by_source: IndexMap<Source, Held, FixedState>,
    /// Keys that are wanted and that an observation must name. Few: no peer's are among them.
    asked_by_name: BTreeSet<Key>,
    /// Wishes for keys that another source's wish has won.
    contested: BTreeMap<Key, BTreeMap<Source, Wanted>>,
    /// How many peers are sent to by which backend, pool by pool.
    uses: BTreeMap<PoolName, BTreeMap<BackendConfig, usize>>,
    /// Whether it has not been known since the start all that this host wants.
    is_unclear: bool,
    /// The tunnels' devices that this node's record promises.
    promised: BTreeMap<IfName, TunnelEnd>,
    /// Those of them that it promises as ports of an extended bridge.
    promised_segments: BTreeSet<IfName>,
    /// What it is to promise and does not yet.
    unsaid: Option<BTreeSet<TunnelEnd>>,
}

/// What is kept of a source's wishes.
#[derive(Debug, Default)]
struct Held {
    keys: Vec<Key>,
    problems: Vec<Problem>,
    notices: Vec<Problem>,
    uses: Vec<(PoolName, BackendConfig)>,
}

impl Default for Desired {
    fn default() -> Self {
        Self::new()
    }
}

impl Desired {
    /// Nothing wanted, nothing seen.
    #[must_use]
    pub fn new() -> Self {
        Self {
            map: DeltaMap::new(|wanted: &Wanted, actual: &Object| wanted.object.is_met_by(actual)),
            by_source: IndexMap::with_hasher(FixedState::default()),
            asked_by_name: BTreeSet::new(),
            contested: BTreeMap::new(),
            uses: BTreeMap::new(),
            is_unclear: false,
            promised: BTreeMap::new(),
            promised_segments: BTreeSet::new(),
            unsaid: None,
        }
    }

    /// Thinks over again what has changed in the view.
    pub fn update(&mut self, view: &View, changed: &Changed) {
        if changed.all {
            let mut sources: Vec<Source> = self.by_source.keys().cloned().collect();
            sources.push(Source::Local);
            // One that owns blocks and has no record is a peer too: that is a problem to be told.
            let peers = view.nodes.keys().chain(view.blocks.keys()).filter(|name| **name != view.local.node);
            sources.extend(peers.cloned().map(Source::Peer));
            sources.extend(view.attachments.keys().cloned().map(Source::Attachment));
            sources.extend(view.flows().map(|(dev, addr)| Source::Flow(dev, addr)));
            sources.sort();
            sources.dedup();
            self.map.reserve((sources.len() * OBJECTS_OF_A_PEER).saturating_sub(self.map.count_desired()));
            sources.iter().for_each(|source| self.update_source(view, source));
        } else {
            changed.sources.iter().for_each(|source| self.update_source(view, source));
        }
    }

    fn update_source(&mut self, view: &View, source: &Source) {
        let mut wishes = match source {
            Source::Local => local::local(view),
            Source::Peer(name) => local::peer(view, name),
            Source::Attachment(key) => local::attachment(view, key),
            Source::Flow(dev, addr) => local::flow(view, *dev, *addr),
        };
        let former = self.by_source.get_mut(source).map(std::mem::take);
        if *source == Source::Local {
            // After a start there is no old state to go on with but what the kernel holds: nothing of it is removed then.
            self.is_unclear = (wishes.hold || wishes.partial) && (self.is_unclear || former.is_none());
            self.promised = std::mem::take(&mut wishes.promised);
            self.promised_segments = std::mem::take(&mut wishes.promised_segments);
            self.unsaid = wishes.unsaid.take();
        }
        let mut held = former.unwrap_or_default();
        held.problems = std::mem::take(&mut wishes.problems);
        held.notices = std::mem::take(&mut wishes.notices);
        // With a fault in what is asked for the old state goes on, and the problem says why.
        if !wishes.hold {
            self.follow(source, wishes, &mut held);
        }
        let is_idle = held.keys.is_empty() && held.uses.is_empty();
        let is_of_use = !(is_idle && held.problems.is_empty() && held.notices.is_empty());
        // That this host has been thought over once is worth remembering even when it wants nothing.
        if is_of_use || *source == Source::Local {
            self.by_source.insert(source.clone(), held);
        } else {
            self.by_source.swap_remove(source);
        }
    }

    /// Puts a source's new wishes in the place of the former.
    fn follow(&mut self, source: &Source, mut wishes: Wishes, held: &mut Held) {
        if held.uses != wishes.uses {
            let former = std::mem::replace(&mut held.uses, wishes.uses.clone());
            // In before out, as with the objects.
            wishes.uses.iter().for_each(|(pool, backend)| self.count_use(pool, backend, true));
            former.iter().for_each(|(pool, backend)| self.count_use(pool, backend, false));
        }
        let objects = wishes.ordered();
        for key in &held.keys {
            if objects.binary_search_by_key(key, |(key, _)| *key).is_err() {
                self.unwant(key, source);
            }
        }
        held.keys.clear();
        held.keys.extend(objects.iter().map(|(key, _)| *key));
        for (key, wanted) in objects {
            self.want(key, wanted);
        }
    }

    fn count_use(&mut self, pool: &PoolName, backend: &BackendConfig, is_in: bool) {
        let known = self.uses.get_mut(pool).and_then(|of_pool| of_pool.get_mut(backend));
        match (known, is_in) {
            (Some(count), true) => *count += 1,
            (None, true) => drop(self.uses.entry(pool.clone()).or_default().insert(backend.clone(), 1)),
            (Some(count), false) if *count > 1 => *count -= 1,
            (_, false) => {
                self.uses.entry(pool.clone()).or_default().remove(backend);
                self.uses.retain(|_, of_pool| !of_pool.is_empty());
            }
        }
    }

    /// Of two sources that want one key the lesser has its wish: the result must not depend on who came first.
    fn want(&mut self, key: Key, wanted: Wanted) {
        if is_asked_by_name(&key) {
            self.asked_by_name.insert(key);
        }
        let mut loser = None;
        self.map.want_if(key, wanted, |holder, wanted| match holder {
            Some(holder) if holder.why.origin.source < wanted.why.origin.source => loser = Some(wanted),
            Some(holder) if holder.why.origin.source > wanted.why.origin.source => {
                loser = Some(std::mem::replace(holder, wanted));
            }
            _ => *holder = Some(wanted),
        });
        if let Some(loser) = loser {
            self.contested.entry(key).or_default().insert(loser.why.origin.source.clone(), loser);
        }
    }

    fn unwant(&mut self, key: &Key, source: &Source) {
        let waiting = self.contested.get_mut(key);
        if self.map.desired(key).is_some_and(|holder| holder.why.origin.source != *source) {
            if let Some(waiting) = waiting {
                waiting.remove(source);
            }
        } else {
            match waiting.and_then(BTreeMap::pop_first) {
                Some((_, next)) => drop(self.map.want(*key, next)),
                None => {
                    self.map.unwant(key);
                    self.asked_by_name.remove(key);
                }
            }
        }
        if self.contested.get(key).is_some_and(BTreeMap::is_empty) {
            self.contested.remove(key);
        }
    }

    /// Takes in a whole observation of these sorts: what is not in it is not there. Says which objects that were as wanted
    /// are no longer, in order.
    pub fn observed(&mut self, sorts: &BTreeSet<Sort>, seen: Observed) -> Vec<Key> {
        let gone: Vec<Key> = self
            .map
            .all_actual()
            .map(|(key, _)| key)
            .filter(|key| sorts.contains(&key.sort()) && !seen.contains_key(key))
            .copied()
            .collect();
        let mut drifted: Vec<Key> = gone.into_iter().filter(|key| self.map.missed(key)).collect();
        drifted.extend(seen.into_iter().filter_map(|(key, object)| self.map.saw(key, object).then_some(key)));
        drifted.sort_unstable();
        drifted
    }

    /// Notes that one object is there like this (`None`: is not there).
    pub fn noted(&mut self, key: Key, object: Option<Object>) {
        match object {
            Some(object) => self.map.saw(key, object),
            None => self.map.missed(&key),
        };
    }

    /// What to look at to compare all of it.
    #[must_use]
    pub fn scope(&self, sorts: BTreeSet<Sort>) -> Scope {
        let mut scope = Scope { sorts, ..Scope::default() };
        for key in &self.asked_by_name {
            match key {
                Key::Sysctl(path) => drop(scope.sysctls.insert(path)),
                Key::Link(dev) => drop(scope.links.insert(*dev)),
                Key::DeviceSysctl(dev, sysctl) => drop(scope.device_sysctls.insert((*dev, *sysctl))),
                Key::Address(dev, _) => drop(scope.links.insert(*dev)),
                _ => {}
            }
        }
        scope
    }

    /// Neighbours that are there and nobody wants: those that a former agent has left among them.
    pub fn stray_neighbours(&self) -> impl Iterator<Item = (IfName, IpAddr)> + '_ {
        let is_stray = |(key, wanted, actual): (&Key, Option<&Wanted>, Option<&Object>)| match *key {
            Key::Neighbour(dev, addr) if wanted.is_none() && actual.is_some() => Some((dev, addr)),
            _ => None,
        };
        self.map.differences().filter_map(is_stray)
    }

    /// The wishes and what is there.
    #[must_use]
    pub fn map(&self) -> &DeltaMap<Key, Wanted, Object> {
        &self.map
    }

    /// Whether something of ours that nobody wants is left all the same: everything as long as not all wishes are known, a
    /// tunnel's device for as long as this node's record promises it to peers, or may come to; with it its addresses, unless
    /// it is wanted by itself, when it is known which they are. What is on a pod's end goes with it: the plugin may have made it
    /// just now.
    #[must_use]
    pub fn retains(&self, key: &Key, actual: Option<&Object>) -> bool {
        let is_wanted = |dev| self.map.desired(&Key::Link(dev)).is_some();
        match *key {
            _ if self.is_unclear => true,
            Key::Link(dev) | Key::Tunnel(dev) => self.may_be_promised(dev),
            _ if attach::is_on_host_side(key, actual) => true,
            Key::Address(dev, _) | Key::TunnelPeer(dev, _) => self.may_be_promised(dev) && !is_wanted(dev),
            _ => false,
        }
    }

    /// Whether a device stays a port of its bridge although that is not wanted any more: for as long as this node's record promises
    /// peers that it is one.
    #[must_use]
    pub fn keeps_segment(&self, key: &Key) -> bool {
        let master = |object: Option<&Object>| match object {
            Some(Object::Link(link)) if matches!(link.kind, LinkKind::Vxlan(_)) => Some((link.master, link.group)),
            _ => None,
        };
        let Key::Link(dev) = *key else { return false };
        let wanted = master(self.map.desired(key).map(|wanted| &wanted.object));
        let actual = master(self.map.actual(key));
        let is_to_leave = matches!((wanted, actual), (Some((None, _)), Some((Some(_), LINK_GROUP))));
        is_to_leave && (self.promised_segments.contains(&dev) || self.unsaid.is_some())
    }

    fn may_be_promised(&self, dev: IfName) -> bool {
        let Some(Object::Link(link)) = self.map.actual(&Key::Link(dev)) else { return false };
        let Some(end) = TunnelEnd::of_device(dev, link) else { return false };
        self.promised.get(&dev) == Some(&end) || self.unsaid.as_ref().is_some_and(|unsaid| !unsaid.contains(&end))
    }

    /// What could not be wished for, and what people should know besides, by source.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let is_troubled = |(_, held): &(&Source, &Held)| !(held.problems.is_empty() && held.notices.is_empty());
        let mut troubled: Vec<_> = self.by_source.iter().filter(is_troubled).collect();
        troubled.sort_by_key(|(source, _)| *source);
        troubled.into_iter().flat_map(|(_, held)| held.problems.iter().chain(&held.notices))
    }

    /// What one source could not wish for.
    #[must_use]
    pub fn problems_of(&self, source: &Source) -> &[Problem] {
        self.by_source.get(source).map(|held| held.problems.as_slice()).unwrap_or_default()
    }

    /// The objects that one source wants.
    #[must_use]
    pub fn keys_of(&self, source: &Source) -> &[Key] {
        self.by_source.get(source).map(|held| held.keys.as_slice()).unwrap_or_default()
    }

    /// By which backends each pool's peers are sent to, and are going to be as soon as this is announced: what this node
    /// publishes as [`Node::sends`](crate::model::Node::sends).
    #[must_use]
    pub fn uses(&self) -> BTreeMap<PoolName, BTreeSet<BackendConfig>> {
        self.uses.iter().map(|(pool, of_pool)| (pool.clone(), of_pool.keys().cloned().collect())).collect()
    }
}

fn is_asked_by_name(key: &Key) -> bool {
    matches!(key.sort(), Sort::Sysctl | Sort::Link | Sort::Address)
}
