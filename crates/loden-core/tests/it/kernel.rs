//! A model of the kernel that refuses a step whose need is not met, and takes down with an object what stands on it.

use std::collections::BTreeSet;

use loden_core::kernel::link::LinkKind;
use loden_core::kernel::{Key, Object, Observed, Sort, Via};
use loden_core::model::IfName;
use loden_core::plan::{Plan, Step, Verb};

/// The model. `foreign` are devices that others made, such as the underlay's.
#[derive(Debug, Clone, Default)]
pub struct ModelKernel {
    pub objects: Observed,
    pub foreign: BTreeSet<IfName>,
}

impl ModelKernel {
    pub fn new(foreign: &str) -> Self {
        Self { objects: Observed::new(), foreign: BTreeSet::from([foreign.parse().expect("interface name")]) }
    }

    /// Carries out a plan; after each step `look` sees the kernel as packets would. A step that is refused is a fault of
    /// the plan's order.
    pub fn apply(&mut self, plan: &Plan, mut look: impl FnMut(&Self, &Step)) {
        for step in &plan.steps {
            if let Err(error) = self.step(step) {
                panic!("{error}\nat step: {step}\nof plan:\n{plan}");
            }
            look(self, step);
        }
    }

    /// What loden would observe.
    pub fn all_sorts() -> BTreeSet<Sort> {
        Sort::ALL.into()
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match (step.verb, &step.new) {
            (Verb::Remove, _) => self.remove(&step.key),
            (Verb::Add, Some(new)) => {
                if self.objects.contains_key(&step.key) {
                    return Err("File exists".to_owned());
                }
                self.set(step.key, new)
            }
            (Verb::Change, Some(new)) => {
                if !self.objects.contains_key(&step.key) {
                    return Err("No such object".to_owned());
                }
                self.set(step.key, new)
            }
            (Verb::Recreate, Some(new)) => {
                self.remove(&step.key)?;
                self.set(step.key, new)
            }
            (_, None) => Err("a step without what is to be".to_owned()),
        }
    }

    fn set(&mut self, key: Key, new: &Object) -> Result<(), String> {
        if !matches!(key, Key::Link(_)) {
            key.device().map_or(Ok(()), |dev| self.needs_link(dev))?;
        }
        match new {
            Object::Route(Via::Nexthop(dev, gateway)) if !self.objects.contains_key(&Key::Nexthop(*dev, *gateway)) => {
                return Err("Nexthop id does not exist".to_owned());
            }
            Object::Route(Via::Link(dev)) => self.needs_link(*dev)?,
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
                        return Err("A VXLAN device with the specified VNI already exists".to_owned());
                    }
                }
            }
            _ => {}
        }
        self.objects.insert(key, new.clone());
        Ok(())
    }

    fn needs_link(&self, dev: IfName) -> Result<(), String> {
        let is_up = match self.objects.get(&Key::Link(dev)) {
            Some(Object::Link(link)) => link.up,
            _ => self.foreign.contains(&dev),
        };
        if is_up { Ok(()) } else { Err(format!("Cannot find device {dev}, or it is down")) }
    }

    fn remove(&mut self, key: &Key) -> Result<(), String> {
        self.objects.remove(key).ok_or("No such object")?;
        match *key {
            Key::Link(dev) => self.objects.retain(|other, object| {
                let via = match object {
                    Object::Route(Via::Nexthop(via, _) | Via::Link(via)) => Some(*via),
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
