//! Carries steps out: runs of one sort as one batch, with a result for each step.

use loden_core::kernel::link::LinkKind;
use loden_core::kernel::{KernelError, Key, Object, Via};
use loden_core::model::{IfName, Prefix};
use loden_core::plan::{Step, Verb};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::netns::NetNs;
use crate::observe::LinuxKernel;
use crate::rt::{address, link, neighbour, nexthop, route};
use crate::sysctl;

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
                Key::Nft => now.iter().map(|step| self.change_table(step)).collect(),
                Key::Link(_) => now.iter().map(|step| self.link(step)).collect(),
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
        self.writer.clear();
        if matches!(step.verb, Verb::Remove | Verb::Recreate) {
            link::delete(&mut self.writer, name);
        }
        if let Some(new) = &new {
            let number = |name: Option<IfName>| match name {
                None => Ok(None),
                Some(name) => self.index.number(name).map(Some).ok_or_else(|| no_link(name)),
            };
            let underlay = number(match &new.kind {
                LinkKind::Vxlan(vxlan) => vxlan.underlay,
                _ => None,
            })?;
            let master = number(new.master)?;
            match (&old, step.verb) {
                (Some(old), Verb::Change) => link::change(&mut self.writer, name, new, old, underlay, master),
                _ => link::create(&mut self.writer, name, new, underlay, master),
            }
        }
        let outcomes = self.socket.batch(&mut self.writer)?;
        outcomes.into_iter().collect::<Outcome>()?;
        self.index.remove_link(name);
        if let Some(new) = new {
            if let (LinkKind::Veth { pod: Some(pod) }, Some(old)) = (&new.kind, &old)
                && new.mtu != old.mtu
            {
                set_mtu_in_pod(&pod.netns, pod.ifname, new.mtu)?;
            }
            self.learn_number(name, matches!(new.kind, LinkKind::Vxlan(_)))?;
        }
        Ok(())
    }

    /// Asks for the number of a link that was just made.
    fn learn_number(&mut self, name: IfName, is_tunnel: bool) -> Outcome {
        let mut w = Writer::default();
        w.begin(link::GET, 0);
        w.raw(&link::info(0, 0, 0));
        w.text(link::ifla::IFNAME, name.as_str());
        w.end();
        let mut number = None;
        let results = self.socket.batch_with_echo(&mut w, |_, message| {
            number = link::parse(message.payload).map(|seen| seen.index);
        })?;
        results.into_iter().collect::<Outcome>()?;
        self.index.put_link(name, number.ok_or_else(|| no_link(name))?, is_tunnel);
        Ok(())
    }

    /// Addresses, nexthops, neighbours, forwarding entries and routes: all messages in one batch.
    fn batch(&mut self, steps: &[Step]) -> Vec<Outcome> {
        self.writer.clear();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(steps.len());
        let mut sent = Vec::with_capacity(steps.len());
        for (n, step) in steps.iter().enumerate() {
            let written = self.message(step);
            if written.is_ok() {
                sent.push(n);
            }
            outcomes.push(written);
        }
        match self.socket.batch(&mut self.writer) {
            Ok(results) => {
                for (n, result) in sent.into_iter().zip(results) {
                    outcomes[n] = result;
                }
            }
            Err(error) => sent.into_iter().for_each(|n| outcomes[n] = Err(error.clone())),
        }
        for (step, outcome) in steps.iter().zip(&mut outcomes) {
            self.follow_up(step, outcome);
        }
        outcomes
    }

    /// Writes the message of a step.
    fn message(&mut self, step: &Step) -> Outcome {
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
                nexthop::add(w, id, number, gateway, self.index.is_tunnel(dev));
                self.index.put_nexthop(dev, gateway, id);
            }
            (Key::Neighbour(dev, addr), Some(Object::Neighbour(mac))) => neighbour::put(w, number(dev)?, addr, *mac),
            (Key::Neighbour(dev, addr), _) => neighbour::delete(w, number(dev)?, addr),
            (Key::Fdb(dev, mac), Some(Object::Fdb(dst))) => neighbour::put_fdb(w, number(dev)?, mac, *dst),
            (Key::Fdb(dev, mac), _) => neighbour::delete_fdb(w, number(dev)?, mac),
            (Key::Route(prefix, priority), Some(Object::Route(via))) => {
                let to = match *via {
                    Via::Nexthop(dev, gateway) => {
                        route::To::Nexthop(self.index.nexthop(dev, gateway).ok_or_else(|| no_nexthop(dev, gateway))?)
                    }
                    Via::Link(dev) => route::To::Link(number(dev)?),
                    Via::Blackhole => route::To::Blackhole,
                };
                route::add(w, prefix, priority, to, step.verb == Verb::Change);
            }
            (Key::Route(prefix, priority), _) => route::delete(w, prefix, priority),
            (Key::Sysctl(_) | Key::DeviceSysctl(..) | Key::Nft | Key::Link(_), _) => {}
        }
        Ok(())
    }

    /// Keeps the index true, and gives the errors that the kernel leaves bare the words they need.
    fn follow_up(&mut self, step: &Step, outcome: &mut Outcome) {
        match (step.key, step.verb) {
            (Key::Nexthop(dev, gateway), Verb::Remove) if outcome.is_ok() => self.index.remove_nexthop(dev, gateway),
            (Key::Nexthop(dev, gateway), _) if outcome.is_err() => self.index.remove_nexthop(dev, gateway),
            (Key::Route(prefix, _), Verb::Add) => {
                if let Err(LinuxError::Netlink { errno: libc::EEXIST, cause, .. }) = outcome
                    && let Some(words) = self.who_has_route(prefix)
                {
                    *cause = words;
                }
            }
            _ => {}
        }
    }

    fn who_has_route(&mut self, prefix: Prefix) -> Option<String> {
        let all = route::read(&mut self.socket, prefix.family(), 0).ok()?;
        let seen = all.into_iter().find(|seen| seen.prefix == prefix)?;
        let via = match seen.to {
            Some(route::To::Gateway(number, gateway)) => {
                format!(" via {gateway} dev {}", self.index.name(number).map_or_else(String::new, |n| n.to_string()))
            }
            Some(route::To::Link(number)) => {
                format!(" dev {}", self.index.name(number).map_or_else(String::new, |n| n.to_string()))
            }
            _ => String::new(),
        };
        Some(format!(
            "a route to it is there already{via}, made by route protocol {}; it is left alone: remove it",
            seen.protocol
        ))
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

fn set_sysctl(step: &Step) -> Outcome {
    let Some(Object::Sysctl(value)) = step.new else { return Ok(()) };
    match step.key {
        Key::Sysctl(path) => sysctl::write(path, value),
        Key::DeviceSysctl(dev, which) => sysctl::write(&which.path(dev), value),
        _ => Ok(()),
    }
}

fn set_mtu_in_pod(netns: &str, ifname: IfName, mtu: u32) -> Outcome {
    let ns = NetNs::open(std::path::Path::new(netns))?;
    ns.run(|| {
        let mut w = Writer::default();
        link::set_mtu(&mut w, ifname, mtu);
        Socket::open(Protocol::Route)?.batch(&mut w)?.into_iter().collect::<Outcome>()
    })?
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
