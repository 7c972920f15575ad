//! Carries steps out: runs of one sort as one batch, with a result for each step.

mod taken;

use std::net::IpAddr;

use loden_core::kernel::link::{Link, LinkKind, Port};
use loden_core::kernel::{KernelError, Key, Object, Observed, Sort, Via};
use loden_core::model::IfName;
use loden_core::plan::{Step, Verb};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::observe::LinuxKernel;
use crate::rt::{address, link, neighbour, nexthop, route};
use crate::{sysctl, tun};

type Outcome = Result<(), LinuxError>;

impl LinuxKernel {
    pub(crate) fn carry_out(&mut self, steps: &[Step]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::with_capacity(steps.len());
        let mut rest = steps;
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|step| step.key.sort() == first.key.sort()).count();
            let (now, later) = rest.split_at(run);
            let outcomes = match first.key {
                Key::Sysctl(_) | Key::DeviceSysctl(..) => now.iter().map(set_sysctl).collect(),
                Key::Nft | Key::KnownHost(_) | Key::KnownBlock(_) => self.change_filter(now),
                Key::Link(_) => now.iter().map(|step| self.link(step)).collect(),
                Key::Tunnel(_) | Key::TunnelPeer(..) => now.iter().map(|_| Err(not_the_kernels())).collect(),
                _ => self.batch(now),
            };
            let report = |(step, outcome): (&Step, Outcome)| {
                forgive(step.verb, outcome).map_err(|error| error.about(step.key.to_string()))
            };
            results.extend(now.iter().zip(outcomes).map(report));
            rest = later;
        }
        results
    }

    /// The table's steps one by one, those of elements that are alike together: the kernel takes all of a transaction or nothing.
    fn change_filter(&mut self, steps: &[Step]) -> Vec<Outcome> {
        let is_alike = |a: &Step, b: &Step| a.key != Key::Nft && b.key != Key::Nft && a.verb == b.verb;
        let mut outcomes = Vec::with_capacity(steps.len());
        for run in steps.chunk_by(is_alike) {
            if run[0].key == Key::Nft {
                outcomes.extend(run.iter().map(|step| self.change_table(step)));
                continue;
            }
            let keys: Vec<Key> = run.iter().map(|step| step.key).collect();
            let outcome = self.nft.change_elements(&keys, run[0].verb != Verb::Remove);
            let by_itself = |key: &Key| match &outcome {
                Err(_) if keys.len() > 1 => self.nft.change_elements(&[*key], run[0].verb != Verb::Remove),
                outcome => outcome.clone(),
            };
            let all: Vec<Outcome> = keys.iter().map(by_itself).collect();
            outcomes.extend(all);
        }
        outcomes
    }

    fn change_table(&mut self, step: &Step) -> Outcome {
        let table = |object: &Option<Object>| match object {
            Some(Object::Nft(table)) => Some(table.clone()),
            _ => None,
        };
        self.nft.apply(table(&step.old).as_deref(), table(&step.new).as_deref())
    }

    /// Links are few and hang on each other by number, so each is carried out by itself.
    fn link(&mut self, step: &Step) -> Outcome {
        let Key::Link(name) = step.key else { return Ok(()) };
        let of = |object: &Option<Object>| match object {
            Some(Object::Link(link)) => Some(link.clone()),
            _ => None,
        };
        let (new, old) = (of(&step.new), of(&step.old));
        let numbers = new.as_deref().map(|new| self.hangs_on(new)).transpose()?;
        if matches!(step.verb, Verb::Remove | Verb::Recreate) {
            forgive(Verb::Remove, self.send(|w| link::delete(w, name)))?;
            self.index.remove_link(name);
        }
        let (Some(new), Some((underlay, master))) = (new, numbers) else { return Ok(()) };
        match old.filter(|_| step.verb == Verb::Change) {
            Some(old) => self.change_link(name, &new, &old, underlay, master)?,
            None => {
                // By itself: should somebody else's link have come between, what follows must not touch it.
                match new.kind {
                    LinkKind::Tun => self.make_tun(name, &new)?,
                    _ => self.send(|w| link::create(w, name, &new, underlay, master))?,
                }
                // A kernel without IPv6 makes up no address.
                forgive_errno(libc::EAFNOSUPPORT, self.send(|w| link::no_made_up_address(w, name)))?;
                if new.master.is_some() && new.port != Port::default() {
                    self.send(|w| link::set_port(w, name, new.port))?;
                }
                if new.up {
                    self.send(|w| link::set_up(w, name, true))?;
                }
            }
        }
        self.learn_number(name)
    }

    /// A TUN device is made by its file, and then told what a message can tell it. Until it bears loden's group it is one of nobody's,
    /// and taken over when it is found again.
    fn make_tun(&mut self, name: IfName, new: &Link) -> Outcome {
        tun::create(name)?;
        let made = link::read(&mut self.socket, name)?.ok_or_else(|| no_link(name))?;
        self.send(|w| link::change(w, name, &Link { up: false, ..new.clone() }, &made.link, None, None))
    }

    /// The pod's end of a veth pair follows the host's: it shrinks before and grows after, so that nothing is sent that the
    /// other end would drop.
    fn change_link(
        &mut self,
        name: IfName,
        new: &Link,
        old: &Link,
        underlay: Option<u32>,
        master: Option<u32>,
    ) -> Outcome {
        let pod = match &new.kind {
            LinkKind::Veth { pod: Some(pod) } if new.mtu != old.mtu => Some(pod),
            _ => None,
        };
        if let Some(pod) = pod.filter(|_| new.mtu < old.mtu) {
            set_mtu_in_pod(&pod.netns, pod.ifname, new.mtu)?;
        }
        self.send(|w| link::change(w, name, new, old, underlay, master))?;
        match pod.filter(|_| new.mtu > old.mtu) {
            Some(pod) => set_mtu_in_pod(&pod.netns, pod.ifname, new.mtu),
            None => Ok(()),
        }
    }

    /// The numbers of the links that a link hangs on: its underlay and its master.
    fn hangs_on(&self, link: &Link) -> Result<(Option<u32>, Option<u32>), LinuxError> {
        let number = |name: Option<IfName>| match name {
            None => Ok(None),
            Some(name) => self.index.number(name).map(Some).ok_or_else(|| no_link(name)),
        };
        let underlay = match &link.kind {
            LinkKind::Vxlan(vxlan) => vxlan.underlay,
            LinkKind::Ipip(ipip) => ipip.underlay,
            _ => None,
        };
        Ok((number(underlay)?, number(link.master)?))
    }

    /// Sends what is written; the first refusal counts.
    fn send(&mut self, write: impl FnOnce(&mut Writer)) -> Outcome {
        self.writer.clear();
        write(&mut self.writer);
        self.socket.batch(&mut self.writer)?.into_iter().collect()
    }

    /// Asks for the number of a link that was just made.
    fn learn_number(&mut self, name: IfName) -> Outcome {
        let seen = link::read(&mut self.socket, name)?.ok_or_else(|| no_link(name))?;
        self.index.put_link(name, seen.index, seen.is_tunnel());
        Ok(())
    }

    /// Addresses, nexthops, neighbours, forwarding entries and routes: all messages in one batch.
    fn batch(&mut self, steps: &[Step]) -> Vec<Outcome> {
        let mut outcomes = self.try_batch(steps);
        let is_taken = |(n, outcome): (usize, &Outcome)| {
            let exists = outcome.as_ref().is_err_and(|error| error.errno() == libc::EEXIST);
            (exists && steps[n].verb == Verb::Add).then_some(n)
        };
        let taken: Vec<usize> = outcomes.iter().enumerate().filter_map(is_taken).collect();
        if taken.is_empty() {
            return outcomes;
        }
        if steps[taken[0]].key.sort() == Sort::Nexthop {
            // Others made nexthops since they were last read, by the numbers that were next.
            if let Err(error) = self.observe_nexthops(&mut Observed::new()) {
                taken.iter().for_each(|n| outcomes[*n] = Err(error.clone()));
                return outcomes;
            }
            let again: Vec<Step> = taken.iter().map(|n| steps[*n].clone()).collect();
            for (n, outcome) in taken.into_iter().zip(self.try_batch(&again)) {
                outcomes[n] = outcome;
            }
        } else {
            for (n, outcome) in self.judge_taken(steps, &taken) {
                outcomes[n] = outcome;
            }
        }
        outcomes
    }

    fn try_batch(&mut self, steps: &[Step]) -> Vec<Outcome> {
        self.writer.clear();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(steps.len());
        // The step of each message.
        let mut sent = Vec::with_capacity(steps.len());
        for (n, step) in steps.iter().enumerate() {
            let written = self.messages(step);
            sent.extend(std::iter::repeat_n(n, *written.as_ref().unwrap_or(&0)));
            outcomes.push(written.map(drop));
        }
        match self.socket.batch(&mut self.writer) {
            // Of a step's messages the last is the one that counts.
            Ok(results) => sent.into_iter().zip(results).for_each(|(n, result)| outcomes[n] = result),
            Err(error) => sent.into_iter().for_each(|n| outcomes[n] = Err(error.clone())),
        }
        for (step, outcome) in steps.iter().zip(&outcomes) {
            // What was to be removed is gone or unknown; what could not be made is not there.
            if let Key::Nexthop(dev, gateway) = step.key
                && (step.verb == Verb::Remove || outcome.is_err())
            {
                self.index.remove_nexthop(dev, gateway);
            }
        }
        outcomes
    }

    /// Writes the messages of a step and says how many: one, but for what takes two.
    fn messages(&mut self, step: &Step) -> Result<usize, LinuxError> {
        let w = &mut self.writer;
        let is_removal = step.verb == Verb::Remove;
        let number = |dev: IfName| self.index.number(dev).ok_or_else(|| no_link(dev));
        match (step.key, &step.new) {
            (Key::Address(dev, net), _) if is_removal => address::delete(w, net, number(dev)?),
            (Key::Address(dev, net), _) => address::add(w, net, number(dev)?),
            (Key::Nexthop(dev, gateway), _) if is_removal => {
                nexthop::delete(w, self.index.nexthop(dev, gateway).ok_or_else(|| no_nexthop(dev, gateway))?);
            }
            (Key::Nexthop(dev, gateway), _) => {
                let number = number(dev)?;
                let id = self.index.fresh_nexthop();
                // A link-local gateway is on its link without saying so, and is looked for elsewhere if one says so.
                let is_link_local = matches!(gateway, IpAddr::V6(addr) if addr.is_unicast_link_local());
                nexthop::add(w, id, number, gateway, self.index.is_tunnel(dev) && !is_link_local);
                self.index.put_nexthop(dev, gateway, id);
            }
            (Key::Neighbour(dev, addr), Some(Object::Neighbour(mac))) => neighbour::put(w, number(dev)?, addr, *mac),
            (Key::Neighbour(dev, addr), _) => neighbour::delete(w, number(dev)?, addr),
            (Key::Fdb(dev, mac), Some(Object::Fdb(dst))) => {
                let number = number(dev)?;
                if neighbour::leads_to_many(mac) && step.verb == Verb::Change {
                    neighbour::delete_fdb(w, number, mac);
                    neighbour::put_fdb(w, number, mac, *dst);
                    return Ok(2);
                }
                neighbour::put_fdb(w, number, mac, *dst);
            }
            (Key::Fdb(dev, mac), _) => neighbour::delete_fdb(w, number(dev)?, mac),
            (Key::Flood(dev, vtep), _) if is_removal => neighbour::delete_flood(w, number(dev)?, vtep),
            (Key::Flood(dev, vtep), _) => neighbour::put_flood(w, number(dev)?, vtep),
            (Key::Route(prefix, priority), Some(Object::Route(via))) => {
                let to = match *via {
                    Via::Nexthop(dev, gateway) => {
                        route::To::Nexthop(self.index.nexthop(dev, gateway).ok_or_else(|| no_nexthop(dev, gateway))?)
                    }
                    Via::Gateway(dev, gateway) => route::To::Gateway(number(dev)?, gateway),
                    Via::Link(dev) => route::To::Link(number(dev)?),
                    Via::Blackhole => route::To::Blackhole,
                };
                route::add(w, prefix, priority, to, step.verb == Verb::Change);
            }
            (Key::Route(prefix, priority), _) => match step.old {
                Some(Object::Route(Via::Gateway(dev, gateway))) => {
                    route::delete_by_way(w, prefix, priority, number(dev)?, gateway);
                }
                _ => route::delete(w, prefix, priority),
            },
            (Key::Sysctl(_) | Key::DeviceSysctl(..) | Key::Nft | Key::KnownHost(_) | Key::KnownBlock(_), _)
            | (Key::Link(_) | Key::Tunnel(_) | Key::TunnelPeer(..), _) => return Ok(0),
        }
        Ok(1)
    }
}

/// Deleting what is gone already is done.
fn forgive(verb: Verb, outcome: Outcome) -> Outcome {
    match outcome {
        Err(error)
            if verb == Verb::Remove
                && matches!(error.errno(), libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn forgive_errno(errno: i32, outcome: Outcome) -> Outcome {
    match outcome {
        Err(error) if error.errno() == errno => Ok(()),
        other => other,
    }
}

fn set_sysctl(step: &Step) -> Outcome {
    let Some(Object::Sysctl(value)) = step.new else { return Ok(()) };
    match step.key {
        Key::Sysctl(path) => sysctl::write(path, value),
        Key::DeviceSysctl(dev, which) => sysctl::write(&which.path(dev), value),
        _ => Ok(()),
    }
}

fn set_mtu_in_pod(netns: &str, ifname: IfName, mtu: u32) -> Outcome {
    let set = || {
        let mut w = Writer::default();
        link::set_mtu(&mut w, ifname, mtu);
        Socket::open(Protocol::Route)?.batch(&mut w)?.into_iter().collect::<Outcome>()
    };
    let done = NetNs::open(std::path::Path::new(netns)).and_then(|ns| ns.run(set)).and_then(|done| done);
    done.map_err(|error| {
        let KernelError { errno, cause, .. } = error.about("");
        let cause = format!("the MTU of {ifname} in the pod's network namespace {netns}: {cause}");
        LinuxError::Netlink { what: format!("{ifname} in the pod"), errno, cause }
    })
}

fn not_the_kernels() -> LinuxError {
    let cause = "the kernel holds no such thing: the agent runs it itself".to_owned();
    LinuxError::Netlink { what: "tunnel".to_owned(), errno: libc::EOPNOTSUPP, cause }
}

fn no_link(name: IfName) -> LinuxError {
    LinuxError::Netlink { what: format!("link {name}"), errno: libc::ENODEV, cause: format!("there is no link {name}") }
}

fn no_nexthop(dev: IfName, gateway: std::net::IpAddr) -> LinuxError {
    LinuxError::Netlink {
        what: "nexthop".to_owned(),
        errno: libc::ENOENT,
        cause: format!("there is no nexthop via {gateway} dev {dev}"),
    }
}
