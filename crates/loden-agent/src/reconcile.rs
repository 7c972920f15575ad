//! The reconciler: view → desired → difference → plan → kernel, and what came of it.
//!
//! It owns the kernel and is driven from outside: changes come in by [`Reconciler::records`], [`Reconciler::local`],
//! [`Reconciler::attachments`] and [`Reconciler::kernel_event`]; [`Reconciler::round`] does what they call for. It reads no
//! clock and opens nothing, so the fake kernel drives it as the real one does. What the kernel reports is a hint; what
//! is read from it is the truth: a report that contradicts what is known makes the sort be read again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use loden_core::attach;
use loden_core::desired::{Desired, Source, Why, published};
use loden_core::kernel::link::LinkKind;
use loden_core::kernel::{Event, Kernel, KernelError, Key, Object, Scope, Sort};
use loden_core::model::{Attachment, AttachmentKey, BackendConfig, Entry, IfName, NodeName, PoolName, Receive};
use loden_core::plan::{Plan, Refusal, Step, Verb};
use loden_core::view::{Changed, Local, Problem, Said, View};
use loden_store::Change;

use crate::events::EventLog;

/// How often a round observes and applies again when its own steps changed what others hang on.
const PASSES: usize = 4;

/// What this host tells the cluster and the plugin. It changes only when the kernel has followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// What the kernel is ready to take in.
    pub receives: Vec<Receive>,
    /// What it sends with; `None` until it has been thought over.
    pub sends: Option<BTreeMap<PoolName, BTreeSet<BackendConfig>>>,
    /// MTU for pods in bytes; `None` until the host's own objects are in the kernel.
    pub mtu_pod: Option<u32>,
}

/// What a round came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    /// Steps carried out.
    pub done: usize,
    /// Steps that the kernel refused, or observations that failed.
    pub failed: usize,
    /// Objects that something else had changed.
    pub repairs: usize,
}

/// A step that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kernel's answer.
    pub error: KernelError,
    /// Who wants it.
    pub why: Option<Why>,
}

/// The reconciler of one host.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    view: View,
    desired: Desired,
    changed: Changed,
    stale: BTreeSet<Sort>,
    /// Sorts of what the kernel refused: that may stand on a wrong idea of what it holds. They are read again at the next
    /// try, not at every change that comes before it.
    doubted: BTreeSet<Sort>,
    /// Set by the first whole listing of the store: before it nothing is known, and nothing is touched.
    synced: bool,
    /// Set by the first observation: what differs before it is no drift.
    observed_once: bool,
    facts: Facts,
    failures: BTreeMap<Key, Failure>,
    observe_error: Option<KernelError>,
    refused: Vec<Refusal>,
    writes: BTreeMap<Sort, u64>,
    repairs: BTreeMap<Sort, u64>,
    rounds: u64,
    /// The view is what the store said before this agent started.
    is_remembered: bool,
    /// How long an answer to a question of the kernel's stays, in milliseconds.
    flow_age: u64,
    /// The time that was told last, in milliseconds.
    now: u64,
    /// What happened.
    pub events: EventLog,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that knows nothing but its host.
    pub fn new(kernel: K, local: Local) -> Self {
        Self {
            kernel,
            view: View::new(local),
            desired: Desired::new(),
            changed: Changed::default(),
            stale: Sort::ALL.into(),
            doubted: BTreeSet::new(),
            synced: false,
            observed_once: false,
            facts: Facts::default(),
            failures: BTreeMap::new(),
            observe_error: None,
            refused: Vec::new(),
            writes: BTreeMap::new(),
            repairs: BTreeMap::new(),
            rounds: 0,
            is_remembered: false,
            flow_age: 600_000,
            now: 0,
            events: EventLog::default(),
        }
    }

    /// Takes in a whole listing of the store: what is not in it is gone.
    pub fn listing(&mut self, entries: &[Entry]) {
        let listed: BTreeSet<_> = entries.iter().map(|entry| entry.record.key()).collect();
        for key in self.view.known_keys() {
            if !listed.contains(&key) {
                self.changed.merge(self.view.delete(&key));
            }
        }
        self.is_remembered = false;
        for entry in entries {
            self.record(&Change::Put(entry.clone()));
        }
        if !self.synced {
            self.synced = true;
            self.changed.all = true;
        }
    }

    /// Takes in what the store said before this agent started. Signs of life in it are old ones.
    pub fn remembered(&mut self, entries: &[Entry]) {
        self.listing(entries);
        self.is_remembered = true;
    }

    /// Takes in one change of the store.
    pub fn record(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => self.changed.merge(self.view.put(entry)),
            Change::Delete { key, .. } => self.changed.merge(self.view.delete(key)),
            Change::Flaw { .. } => {}
        }
    }

    /// Takes in what is known of this host.
    pub fn local(&mut self, local: Local) {
        self.changed.merge(self.view.set_local(local));
    }

    /// Takes in all of this host's attachments: what is not among them is gone.
    pub fn attachments(&mut self, now: BTreeMap<AttachmentKey, Arc<Attachment>>) {
        let gone: Vec<_> = self.view.attachments.keys().filter(|key| !now.contains_key(key)).cloned().collect();
        for key in gone {
            self.changed.merge(self.view.set_attachment(key, None));
        }
        for (key, attachment) in now {
            self.changed.merge(self.view.set_attachment(key, Some(attachment)));
        }
    }

    /// Says how long an answer to a question of the kernel's stays, in milliseconds.
    pub fn set_flow_age(&mut self, flow_age: u64) {
        self.flow_age = flow_age;
    }

    /// Takes in what time it is, in milliseconds of a clock that does not go back: answers end by it.
    pub fn tick(&mut self, now: u64) {
        self.now = now;
        self.changed.merge(self.view.end_flows(now));
    }

    /// Takes in that the kernel asks for a neighbour. Says whether there is an answer, which the next round gives.
    pub fn asked(&mut self, dev: IfName, addr: IpAddr) -> bool {
        let Some(changed) = self.view.ask(dev, addr, self.now + self.flow_age) else { return false };
        // Whatever was known of it: it asks, so it has none.
        self.desired.noted(Key::Neighbour(dev, addr), None);
        self.changed.merge(changed);
        true
    }

    /// Whether what has changed is nothing but answers to the kernel's questions: nobody else has to be told of it.
    #[must_use]
    pub fn has_flows_alone(&self) -> bool {
        let is_flow = |source: &Source| matches!(source, Source::Flow(..));
        self.stale.is_empty() && !self.changed.all && self.changed.sources.iter().all(is_flow)
    }

    /// Takes in a report of the kernel. Says whether a round is called for.
    pub fn kernel_event(&mut self, event: Event) -> bool {
        let (key, seen) = match event {
            Event::Seen(key, object) => (key, Some(object)),
            Event::Gone(key) => (key, None),
            Event::Stale(sort) => return self.stale.insert(sort) || !self.stale.is_empty(),
            Event::Overrun => {
                self.stale = Sort::ALL.into();
                return true;
            }
            Event::Parked | Event::PodTables | Event::Underlay => return false,
        };
        let known = self.desired.map().actual(&key);
        let wanted = self.desired.map().desired(&key);
        let meets = |object: Option<&Object>| match (wanted, object) {
            (Some(wanted), Some(object)) => wanted.object.is_met_by(object),
            (None, None) => true,
            // A pod's link is the plugin's to make and to remove, and what is on it; its attachment is heard of a little later.
            (None, Some(Object::Link(link))) => matches!(link.kind, LinkKind::Veth { .. }),
            (None, Some(object)) => self.desired.retains(&key, Some(object)),
            (Some(_), None) => false,
        };
        if known == seen.as_ref() {
            return false;
        }
        if meets(known) && meets(seen.as_ref()) {
            self.desired.noted(key, seen);
            return false;
        }
        self.stale.insert(key.sort());
        true
    }

    /// Looks at everything again at the next round, though nothing was reported.
    pub fn resync(&mut self) {
        self.stale = Sort::ALL.into();
    }

    /// Has what the kernel refused looked at and tried again at the next round.
    pub fn retry(&mut self) {
        self.stale.append(&mut self.doubted);
    }

    /// Thinks over what has changed, looks at what may have, and makes the kernel follow.
    pub fn round(&mut self) -> Round {
        let mut round = Round::default();
        if !self.synced {
            return round;
        }
        self.rounds += 1;
        let changed = std::mem::take(&mut self.changed);
        if changed.all || changed.sources.contains(&Source::Local) {
            // A device that is wanted for the first time may be there already, made by somebody else.
            self.stale.extend([Sort::Link, Sort::Address, Sort::Sysctl]);
        }
        self.desired.update(&self.view, &changed);
        let has_pods = changed.sources.iter().any(|source| matches!(source, Source::Attachment(_)));
        if has_pods {
            self.look_at_pods();
        }
        let mut whole = false;
        for _ in 0..PASSES {
            if !self.observe(&changed, &mut round) {
                break;
            }
            let plan = if whole { Plan::of(&self.desired) } else { Plan::stage(&self.desired) };
            let links_changed = self.apply(&plan, &mut round);
            self.refused = plan.refused;
            if plan.steps.is_empty() && !plan.is_partial {
                break;
            }
            if links_changed {
                // A link that was made, remade or set up or down takes others' objects with it or lets them be made.
                self.stale = Sort::ALL.into();
            } else if !plan.is_partial {
                break;
            } else {
                // Links that cannot be had must not keep the rest from being done.
                whole = true;
            }
        }
        self.publish();
        round
    }

    /// A pod's link has been made or parked by the plugin, which the mirror need not have seen yet, and sysctls are not reported
    /// before they have been looked at: only those that differ are, or an ADD would cost what the other pods have.
    fn look_at_pods(&mut self) {
        let mut scope = Scope { sorts: [Sort::Sysctl].into(), ..Scope::default() };
        for (key, ..) in self.desired.map().differences() {
            match *key {
                Key::Link(_) => drop(self.stale.insert(Sort::Link)),
                Key::DeviceSysctl(dev, sysctl) => drop(scope.device_sysctls.insert((dev, sysctl))),
                _ => {}
            }
        }
        if scope.device_sysctls.is_empty() || self.stale.contains(&Sort::Sysctl) {
            return;
        }
        match self.kernel.observe(&scope) {
            Ok(seen) => seen.into_iter().for_each(|(key, object)| self.desired.noted(key, Some(object))),
            // The whole look that follows says what is wrong.
            Err(_) => drop(self.stale.insert(Sort::Sysctl)),
        }
    }

    /// Reads the stale sorts. What was as wanted before and is not now was changed by something else: that is a repair.
    fn observe(&mut self, changed: &Changed, round: &mut Round) -> bool {
        if self.stale.is_empty() {
            return true;
        }
        let sorts = std::mem::take(&mut self.stale);
        let drifted = match self.kernel.observe(&self.desired.scope(sorts.clone())) {
            Ok(seen) => {
                self.observe_error = None;
                let drifted = self.desired.observed(&sorts, seen);
                self.adopt_flows(changed);
                drifted
            }
            Err(error) => {
                self.events.push("error", &error.object, format!("cannot be read: {}", error.cause));
                self.observe_error = Some(error);
                // Before it has been read nothing is planned: what is known of it may be wrong.
                self.stale = sorts;
                round.failed += 1;
                return false;
            }
        };
        let drifted = if self.observed_once { drifted } else { Vec::new() };
        for key in drifted {
            let Some(wanted) = self.desired.map().desired(&key) else { continue };
            let was = match self.desired.map().actual(&key) {
                None => "was missing".to_owned(),
                Some(actual) => format!("had been changed ({actual})"),
            };
            *self.repairs.entry(key.sort()).or_default() += 1;
            round.repairs += 1;
            self.events.push("repair", &key.to_string(), format!("{was}; made right: {}", wanted.why));
        }
        self.observed_once = true;
        true
    }

    /// Neighbours that nobody wants and that a question would be answered with are answers of a former agent's: they stay, so that a
    /// start takes nothing away. They end one by one, and none of them at once; those that have ended now are not meant.
    fn adopt_flows(&mut self, ended: &Changed) {
        let has_ended = |(dev, addr): &(IfName, IpAddr)| ended.sources.contains(&Source::Flow(*dev, *addr));
        let mut strays: Vec<_> = self.desired.stray_neighbours().filter(|stray| !has_ended(stray)).collect();
        strays.sort_unstable();
        let (count, half) = (strays.len() as u64, self.flow_age / 2);
        let mut changed = Changed::default();
        for (n, (dev, addr)) in (1..).zip(strays) {
            let until = self.now + half + half * n / count;
            changed.merge(self.view.ask(dev, addr, until).unwrap_or_default());
        }
        self.desired.update(&self.view, &changed);
    }

    /// Carries out the steps. Says whether a link changed, so that everything has to be looked at again.
    fn apply(&mut self, plan: &Plan, round: &mut Round) -> bool {
        let former = std::mem::take(&mut self.failures);
        // Make before break: while something could not be made, nothing is removed that may stand in for it.
        let (makes, removals) = plan.makes_and_removals();
        let mut links_changed = self.carry_out(makes, round, &former);
        if !self.is_hindered() {
            links_changed |= self.carry_out(removals, round, &former);
        }
        links_changed
    }

    fn carry_out(&mut self, steps: &[Step], round: &mut Round, former: &BTreeMap<Key, Failure>) -> bool {
        if steps.is_empty() {
            return false;
        }
        let results = self.kernel.apply(steps);
        let mut links_changed = false;
        let done_before = round.done;
        for (step, result) in steps.iter().zip(results) {
            match result {
                Ok(()) => {
                    round.done += 1;
                    // What runs in this process is started with it: that is no write to the kernel.
                    if step.key.sort() != Sort::Tunnel {
                        *self.writes.entry(step.key.sort()).or_default() += 1;
                    }
                    links_changed |= step.key.sort() == Sort::Link;
                    self.desired.noted(step.key, step.new.clone());
                }
                Err(error) => {
                    round.failed += 1;
                    self.doubted.insert(step.key.sort());
                    // It is tried again and again, and said once.
                    if former.get(&step.key).is_none_or(|before| before.error != error) {
                        self.events.push("error", &step.key.to_string(), error.cause.clone());
                    }
                    self.failures.insert(step.key, Failure { error, why: step.why.clone() });
                }
            }
        }
        // Answers come one by one, and there are many.
        if round.done > done_before && !steps.iter().all(is_answer) {
            let verbs = |verb| steps.iter().filter(|step| step.verb == verb).count();
            let text = format!(
                "{} added, {} changed, {} remade, {} removed, {} failed",
                verbs(Verb::Add),
                verbs(Verb::Change),
                verbs(Verb::Recreate),
                verbs(Verb::Remove),
                self.failures.len()
            );
            self.events.push("apply", &format!("{} objects", steps.len()), text);
        }
        links_changed
    }

    /// Brings the facts up to date as far as the kernel has followed.
    fn publish(&mut self) {
        let of_local =
            |key: &Key| self.desired.map().desired(key).is_some_and(|wanted| wanted.why.origin.source == Source::Local);
        let (mut host_right, mut routes_right) = (self.observe_error.is_none(), self.observe_error.is_none());
        for (key, wanted, actual) in self.desired.map().differences() {
            let is_others = actual.is_some_and(|actual| !actual.is_ours()) || attach::is_on_host_side(key, actual);
            let is_left_alone = (wanted.is_none() && is_others) || self.desired.keeps_segment(key);
            let is_borne = self.failures.get(key).is_some_and(|failure| failure.error.is_bearable(key));
            host_right &= !of_local(key) || is_left_alone || is_borne;
            routes_right &= key.sort() != Sort::Route || is_left_alone;
        }
        let mut sends = self.desired.uses();
        for pool in self.view.pools.values() {
            sends.entry(pool.name.clone()).or_default().insert(pool.backend.clone());
        }
        if !routes_right {
            // Some packets may still take the former way.
            for (pool, backends) in self.facts.sends.iter().flatten() {
                sends.entry(pool.clone()).or_default().extend(backends.iter().cloned());
            }
        }
        let now = published(&self.view).filter(|_| host_right && self.desired.problems_of(&Source::Local).is_empty());
        self.facts.mtu_pod = now.as_ref().map(|now| now.mtu_pod).or(self.facts.mtu_pod);
        // One record is under way at a time: of two, a peer may have heard the one or the other.
        if self.view.is_heard() {
            self.facts.sends = Some(sends.clone());
            self.facts.receives = now.map_or_else(|| std::mem::take(&mut self.facts.receives), |now| now.receives);
            let recorded = || self.view.own_record().map(|node| node.receives.clone()).unwrap_or_default();
            // Before the kernel has been seen to be right the record goes on saying what it says.
            let receives = if self.facts.mtu_pod.is_some() { self.facts.receives.clone() } else { recorded() };
            self.view.set_said(Said { receives, sends });
        }
    }

    /// What the host may tell the cluster now.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Reads everything and says what a round would do.
    ///
    /// # Errors
    /// [`KernelError`] when the kernel cannot be read.
    pub fn dry_run(&mut self) -> Result<Plan, KernelError> {
        if self.synced {
            let changed = std::mem::take(&mut self.changed);
            self.desired.update(&self.view, &changed);
            let sorts: BTreeSet<Sort> = Sort::ALL.into();
            let seen = self.kernel.observe(&self.desired.scope(sorts.clone()))?;
            self.desired.observed(&sorts, seen);
        }
        Ok(Plan::of(&self.desired))
    }

    /// The view.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What is wanted and what is there.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The kernel.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Whether the store has been listed once.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Whether a round has something to do.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.synced && (!self.changed.is_empty() || !self.stale.is_empty())
    }

    /// What the kernel refuses now.
    #[must_use]
    pub fn failures(&self) -> &BTreeMap<Key, Failure> {
        &self.failures
    }

    /// Whether the kernel refuses something that pods need.
    #[must_use]
    pub fn is_hindered(&self) -> bool {
        self.failures.iter().any(|(key, failure)| !failure.error.is_bearable(key))
    }

    /// Whether a node's agent has lately shown signs of life, as far as anybody shows them: Kubernetes keeps none.
    #[must_use]
    pub fn is_alive(&self, node: &NodeName) -> bool {
        let alive = self.view.alive();
        !self.is_remembered && (alive.is_empty() || alive.contains(node))
    }

    /// Writes and repairs since the start, by sort, and the number of rounds.
    #[must_use]
    pub fn counts(&self) -> (&BTreeMap<Sort, u64>, &BTreeMap<Sort, u64>, u64) {
        (&self.writes, &self.repairs, self.rounds)
    }

    /// Everything that is not as it should be.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.view.problems().chain(self.desired.problems()).cloned().collect();
        if !self.synced {
            problems.push(Problem::new("the datastore", "it has not been read yet: nothing is touched before it has"));
        }
        if let Some(error) = &self.observe_error {
            problems.push(Problem::new(error.object.clone(), format!("cannot be read: {}", error.cause)));
        }
        problems.extend(self.refused.iter().map(|r| Problem::new(r.key.to_string(), format!("refused: {}", r.cause))));
        problems.extend(self.failures.iter().map(|(key, failure)| {
            let cause = &failure.error.cause;
            let text = if failure.error.is_bearable(key) {
                format!("{cause}; pods are served without it (set it on the host, or make the container privileged)")
            } else {
                cause.clone()
            };
            Problem::new(key.to_string(), text)
        }));
        problems
    }
}

/// Whether a step gives the kernel an answer that it has asked for, or takes one back.
fn is_answer(step: &Step) -> bool {
    let is_flow = |why: &Why| matches!(why.origin.source, Source::Flow(..));
    step.key.sort() == Sort::Neighbour && step.why.as_ref().is_none_or(is_flow)
}
