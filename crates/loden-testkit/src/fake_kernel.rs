//! A model of the kernel: refuses a step whose need is not met, and takes down with an object what stands on it.

use std::collections::{BTreeMap, BTreeSet};

use loden_core::kernel::link::LinkKind;
use loden_core::kernel::nft::{Table, element_of, take_open_sets};
use loden_core::kernel::{Kernel, KernelError, Key, LINK_GROUP, Object, Observed, Scope, Sort, Via};
use loden_core::model::IfName;
use loden_core::plan::{Plan, Step, Verb};

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;

/// An error number and the kernel's words.
type Refusal = (i32, String);

/// The kernel.
#[derive(Debug, Clone, Default)]
pub struct FakeKernel {
    /// What it holds, of loden's and (by its marks) of others'.
    pub objects: Observed,
    /// Devices that others made and that are only stood on, such as the underlay's.
    pub foreign: BTreeSet<IfName>,
    /// Changes carried out, by sort.
    pub writes: BTreeMap<Sort, u64>,
    /// Counts down with every step; the one at 0 fails with this error number. Then the kernel is well again.
    pub fail_in: Option<(usize, i32)>,
    /// How often it was read.
    pub observed: u64,
    /// While set, nothing can be read.
    pub is_blind: bool,
    /// While set, `/proc/sys` is read-only, as it is in a container without privileges.
    pub keeps_sysctls: bool,
}

impl FakeKernel {
    /// A kernel with one foreign device.
    ///
    /// # Panics
    /// On a name that is none.
    #[must_use]
    #[expect(clippy::expect_used, reason = "it is for tests alone")]
    pub fn new(foreign: &str) -> Self {
        let foreign = BTreeSet::from([foreign.parse().expect("interface name")]);
        Self { foreign, ..Self::default() }
    }

    /// Carries out a plan; after each step `look` sees the kernel as packets would. A step that is refused is a fault of
    /// the plan's order.
    ///
    /// # Panics
    /// When a step is refused.
    #[expect(clippy::panic, reason = "it is for tests alone")]
    pub fn run(&mut self, plan: &Plan, mut look: impl FnMut(&Self, &Step)) {
        for step in &plan.steps {
            if let Err((_, words)) = self.step(step) {
                panic!("{words}\nat step: {step}\nof plan:\n{plan}");
            }
            look(self, step);
        }
    }

    /// What loden would observe.
    #[must_use]
    pub fn all_sorts() -> BTreeSet<Sort> {
        Sort::ALL.into()
    }

    /// The number of changes carried out.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.writes.values().sum()
    }

    /// Removes an object as somebody else would, with what stands on it.
    pub fn drift(&mut self, key: &Key) {
        // One that is not there cannot drift; the test that asks for it will see that nothing was repaired.
        let _ = self.remove(key);
    }

    fn carry_out(&mut self, step: &Step) -> Result<(), KernelError> {
        let error = |(errno, cause): Refusal| KernelError { object: step.key.to_string(), errno, cause };
        match &mut self.fail_in {
            Some((0, errno)) => {
                let errno = *errno;
                self.fail_in = None;
                return Err(error((errno, format!("error {errno}, as the test asked for"))));
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        match self.step(step) {
            Ok(()) => {
                *self.writes.entry(step.key.sort()).or_default() += 1;
                Ok(())
            }
            // As the driver has it: deleting what is gone is done.
            Err((ENOENT, _)) if step.verb == Verb::Remove => Ok(()),
            Err(refusal) => Err(error(refusal)),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), Refusal> {
        match (step.verb, &step.new) {
            (Verb::Remove, _) => self.remove(&step.key),
            (Verb::Add, Some(new)) => {
                // An element that a set has already is put in again without a word.
                let is_again = element_of(&step.key).is_some();
                if self.objects.contains_key(&step.key) && !is_again {
                    return Err((EEXIST, "File exists".to_owned()));
                }
                self.set(step.key, new)
            }
            (Verb::Change, Some(new)) => {
                if !self.objects.contains_key(&step.key) {
                    return Err((ENOENT, "No such object".to_owned()));
                }
                self.set(step.key, new)
            }
            (Verb::Recreate, Some(new)) => {
                self.remove(&step.key)?;
                self.set(step.key, new)
            }
            (_, None) => Err((EINVAL, "a step without what is to be".to_owned())),
        }
    }

    fn set(&mut self, key: Key, new: &Object) -> Result<(), Refusal> {
        if self.keeps_sysctls && key.sort() == Sort::Sysctl {
            return Err((EROFS, "Read-only file system".to_owned()));
        }
        if !matches!(key, Key::Link(_)) {
            key.device().map_or(Ok(()), |dev| self.needs_link(dev))?;
        }
        if let Key::Nexthop(_, gateway) = key
            && self.objects.keys().any(|key| matches!(key, Key::Address(_, net) if net.addr() == gateway))
        {
            // `fib_check_nh` (net/ipv4/fib_semantics.c)
            return Err((EINVAL, "Nexthop has invalid gateway".to_owned()));
        }
        if let Some((set, ..)) = element_of(&key) {
            let has_set =
                matches!(self.objects.get(&Key::Nft), Some(Object::Nft(table)) if table.sets.contains_key(set));
            if !has_set {
                return Err((ENOENT, format!("No such set {set}")));
            }
        }
        if let Key::KnownBlock(block) = key {
            let overlaps =
                |other: &Key| matches!(other, Key::KnownBlock(other) if *other != block && other.overlaps(block));
            if self.objects.keys().any(overlaps) {
                return Err((EEXIST, "File exists".to_owned()));
            }
        }
        match new {
            Object::Nft(table) => {
                self.fill_sets(table);
                let mut table = table.clone();
                take_open_sets(&mut table);
                self.objects.insert(key, Object::Nft(table));
                return Ok(());
            }
            Object::TunnelPeer(_) if !key.device().is_some_and(|dev| self.objects.contains_key(&Key::Tunnel(dev))) => {
                return Err((ENOENT, "no such tunnel".to_owned()));
            }
            Object::Route(Via::Nexthop(dev, gateway)) if !self.objects.contains_key(&Key::Nexthop(*dev, *gateway)) => {
                return Err((EINVAL, "Nexthop id does not exist".to_owned()));
            }
            Object::Route(Via::Gateway(dev, _) | Via::Link(dev)) => self.needs_link(*dev)?,
            Object::Link(link) => {
                link.master.map_or(Ok(()), |master| self.needs_link(master))?;
                if let LinkKind::Vxlan(new) = &link.kind {
                    let clashes = self.objects.iter().any(|(other, object)| match object {
                        Object::Link(other_link) => matches!(&other_link.kind, LinkKind::Vxlan(v)
                            if *other != key && (v.vni, v.port, v.local.is_some_and(|a| a.is_ipv4()))
                                == (new.vni, new.port, new.local.is_some_and(|a| a.is_ipv4()))),
                        _ => false,
                    });
                    if clashes {
                        return Err((EEXIST, "A VXLAN device with the specified VNI already exists".to_owned()));
                    }
                }
            }
            _ => {}
        }
        self.objects.insert(key, new.clone());
        Ok(())
    }

    /// What a table's open sets hold when they are made, and that they lose it when they go.
    fn fill_sets(&mut self, new: &Table) {
        self.objects.retain(|key, _| element_of(key).is_none_or(|(set, ..)| new.sets.contains_key(set)));
        let was = self.objects.get(&Key::Nft).cloned();
        let has = |set: &str| matches!(&was, Some(Object::Nft(old)) if old.sets.contains_key(set));
        let fresh = take_open_sets(&mut new.clone());
        self.objects.extend(fresh.into_iter().filter(|(key, _)| element_of(key).is_some_and(|(set, ..)| !has(set))));
    }

    fn needs_link(&self, dev: IfName) -> Result<(), Refusal> {
        let is_up = match self.objects.get(&Key::Link(dev)) {
            Some(Object::Link(link)) => link.up,
            _ => self.foreign.contains(&dev),
        };
        if is_up { Ok(()) } else { Err((ENODEV, format!("Cannot find device {dev}, or it is down"))) }
    }

    fn remove(&mut self, key: &Key) -> Result<(), Refusal> {
        self.objects.remove(key).ok_or_else(|| (ENOENT, "No such object".to_owned()))?;
        match *key {
            Key::Nft => self.objects.retain(|other, _| element_of(other).is_none()),
            Key::Tunnel(dev) => self.objects.retain(|other, _| !matches!(other, Key::TunnelPeer(on, _) if *on == dev)),
            Key::Link(dev) => self.objects.retain(|other, object| {
                let via = match object {
                    Object::Route(via) => via.device(),
                    _ => None,
                };
                other.device() != Some(dev) && via != Some(dev)
            }),
            Key::Nexthop(dev, gateway) => {
                self.objects.retain(|_, object| *object != Object::Route(Via::Nexthop(dev, gateway)));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Kernel for FakeKernel {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        self.observed += 1;
        if self.is_blind {
            let cause = "Input/output error".to_owned();
            return Err(KernelError { object: "list links".to_owned(), errno: 5, cause });
        }
        let is_in_scope = |key: &Key, object: &Object| match (key, object) {
            (Key::Link(dev), Object::Link(link)) => link.group == LINK_GROUP || scope.links.contains(dev),
            _ => true,
        };
        let seen =
            self.objects.iter().filter(|(key, object)| scope.sorts.contains(&key.sort()) && is_in_scope(key, object));
        Ok(seen.map(|(key, object)| (*key, object.clone())).collect())
    }

    fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), KernelError>> {
        steps.iter().map(|step| self.carry_out(step)).collect()
    }
}
