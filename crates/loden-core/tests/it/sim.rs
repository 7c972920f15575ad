//! A small cluster: one datastore whose records have one order, and hosts that follow it with any delay.
//!
//! Each host has a view, a desired state and a [`FakeKernel`], and does what the agent does: it takes in records, makes its
//! kernel follow, and writes its own record later, when it has come to know what it may say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use loden_core::desired::{Desired, Source, published};
use loden_core::kernel::link::{Link, LinkKind, Vxlan};
use loden_core::kernel::nft::Expr;
use loden_core::kernel::{Key, Object, Observed, Sort, Via, default_priority};
use loden_core::model::{
    Attachment, BackendConfig, Block, Entry, IfName, Node, NodeName, PerFamily, Pool, PoolName, Prefix, Receive, Record,
};
use loden_core::plan::{Plan, Verb};
use loden_core::underlay::Underlay;
use loden_core::view::{Abilities, Changed, Local, Said, View};

use serde_json::json;

use crate::picture;
use loden_testkit::FakeKernel;

type Sends = BTreeMap<PoolName, BTreeSet<BackendConfig>>;

/// The cluster.
pub struct Sim {
    log: Vec<Entry>,
    pub hosts: Vec<Host>,
    /// Whether a hole in a route is a fault yet: not while the cluster comes up.
    pub watching: bool,
}

/// A host and its agent.
pub struct Host {
    pub name: NodeName,
    pub view: View,
    pub desired: Desired,
    pub kernel: FakeKernel,
    changed: Changed,
    /// How much of the log has been taken in.
    cursor: usize,
    /// What is to be written: set when the kernel has followed.
    facts: Option<(Vec<Receive>, Sends)>,
    /// Set for a host that is dead: it does nothing any more.
    pub dead: bool,
    /// Set while a new agent has not looked at its kernel yet.
    is_starting: bool,
    /// Set from when a device has been made anew until what stood on it is back: a packet may be lost meanwhile.
    is_remaking: bool,
    /// The pools that a pod here has an address of with the pool's length, so that it reaches others by their segment alone.
    pods: BTreeMap<PoolName, Prefix>,
}

impl Sim {
    /// Hosts `a`, `b`, … with one block each in every pool, at rest.
    pub fn at_rest(count: usize, pools: &[Pool]) -> Self {
        let mut sim = Self { log: Vec::new(), hosts: Vec::new(), watching: false };
        for n in 0..count {
            let host = Host::new(n);
            for pool in pools {
                let cidr = pool.cidr.nth_subnet(pool.block_len, n as u128).expect("a block");
                let owner_uid = host.view.local.uid.clone();
                sim.write(Record::Block(Block { cidr, pool: pool.name.clone(), owner: host.name.clone(), owner_uid }));
            }
            sim.hosts.push(host);
        }
        pools.iter().for_each(|pool| sim.write(Record::Pool(pool.clone())));
        sim.settle();
        sim.watching = true;
        sim.check("at rest");
        sim
    }

    /// Writes a record.
    pub fn write(&mut self, record: Record) {
        let key = record.key();
        let revision = self.log.len() as u64 + 1;
        let created = self.log.iter().find(|entry| entry.record.key() == key).map_or(revision, |entry| entry.created);
        self.log.push(Entry { record, created, revision });
    }

    /// Lets a host see the next record.
    pub fn deliver(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        if let (false, Some(entry)) = (host.dead, self.log.get(host.cursor)) {
            host.cursor += 1;
            host.changed.merge(host.view.put(entry));
        }
    }

    /// Lets a host make its kernel follow what it has seen. The cluster is looked at after each step.
    pub fn reconcile(&mut self, n: usize) {
        if self.hosts[n].dead {
            return;
        }
        let asked = self.asked();
        let host = &mut self.hosts[n];
        for (dev, addr) in asked {
            // Where no answer is to be given nothing is kept.
            host.changed.merge(host.view.ask(dev, addr, 1).unwrap_or_default());
        }
        let changed = std::mem::take(&mut host.changed);
        host.desired.update(&host.view, &changed);
        for pass in 0.. {
            let host = &mut self.hosts[n];
            let seen = host.kernel.objects.clone();
            host.desired.observed(&FakeKernel::all_sorts(), seen);
            let plan = Plan::of(&host.desired);
            assert!(plan.refused.is_empty(), "{plan}");
            if plan.is_empty() {
                (host.is_starting, host.is_remaking) = (false, false);
                break;
            }
            host.is_remaking |= plan.steps.iter().any(|step| step.verb == Verb::Recreate);
            assert!(pass < 4, "{} does not come to an end:\n{plan}", host.name);
            let mut kernel = std::mem::take(&mut host.kernel);
            kernel.run(&plan, |now, step| {
                self.hosts[n].kernel = now.clone();
                self.check(&format!("after step of {}: {step}", self.hosts[n].name));
            });
            self.hosts[n].kernel = kernel;
        }
        let host = &mut self.hosts[n];
        assert_eq!(host.desired.problems_of(&Source::Local), []);
        if let Some(now) = published(&host.view) {
            // One record is under way at a time, as the agent has it.
            if host.view.is_heard() {
                let said = Said { receives: now.receives, sends: host.desired.uses() };
                host.view.set_said(said.clone());
                host.facts = Some((said.receives, said.sends));
            }
        }
    }

    /// Lets a host write its record, if it has something new to say.
    pub fn publish(&mut self, n: usize) {
        let host = &self.hosts[n];
        let (false, Some((receives, sends))) = (host.dead, host.facts.clone()) else { return };
        let node = Node {
            name: host.name.clone(),
            uid: host.view.local.uid.clone(),
            underlay: host.view.local.underlay.as_ref().expect("underlay").addresses,
            public: PerFamily::default(),
            asked: PerFamily::default(),
            labels: BTreeMap::new(),
            receives,
            sends,
            unknown: BTreeMap::new(),
        };
        let latest = self.log.iter().rev().find_map(|entry| match &entry.record {
            Record::Node(node) if node.name == host.name => Some(node),
            _ => None,
        });
        if latest != Some(&node) {
            self.write(Record::Node(node));
        }
    }

    /// Ends a host's agent and starts it again: it knows its kernel and the datastore, nothing else.
    pub fn restart(&mut self, n: usize) {
        if self.hosts[n].dead {
            return;
        }
        let mut kernel = std::mem::take(&mut self.hosts[n].kernel);
        // Engines end with the process.
        kernel.objects.retain(|key, _| key.sort() != Sort::Tunnel);
        let pods = std::mem::take(&mut self.hosts[n].pods);
        self.hosts[n] = Host { kernel, changed: picture::everything(), is_starting: true, pods, ..Host::new(n) };
        self.hosts[n].look_at_pods();
        while self.hosts[n].cursor < self.log.len() {
            self.deliver(n);
        }
    }

    /// Attaches a pod of each pool here, with the prefix that the plugin would have been told; or takes them away.
    pub fn attach(&mut self, n: usize, is_there: bool) {
        let host = &mut self.hosts[n];
        let is_right = host.desired.map().count_differences() == 0 && host.changed.is_empty() && !host.is_starting;
        if host.dead || (is_there && !is_right) {
            return;
        }
        host.pods.clear();
        if is_there {
            let whole = host.view.pools.values().filter(|pool| host.view.is_whole_segment(pool));
            host.pods = whole.map(|pool| (pool.name.clone(), pool.cidr)).collect();
        }
        host.look_at_pods();
    }

    /// Goes on until nobody has anything left to do.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 50, "the cluster does not come to rest");
            let before = self.log.len();
            for n in 0..self.hosts.len() {
                while !self.hosts[n].dead && self.hosts[n].cursor < self.log.len() {
                    self.deliver(n);
                }
                self.reconcile(n);
                self.check("while it settles");
                self.publish(n);
            }
            if self.log.len() == before && round > 0 {
                return;
            }
        }
    }

    /// What kernels may ask for: an address of each block, on any VXLAN device.
    fn asked(&self) -> Vec<(IfName, IpAddr)> {
        let devices =
            self.hosts.iter().flat_map(|host| host.kernel.objects.iter()).filter_map(|(key, object)| match object {
                Object::Link(link) if matches!(link.kind, LinkKind::Vxlan(_)) => key.device(),
                _ => None,
            });
        let devices: BTreeSet<IfName> = devices.collect();
        let blocks = self.log.iter().filter_map(|entry| match &entry.record {
            Record::Block(block) => Some(block.cidr),
            _ => None,
        });
        blocks.flat_map(|block| devices.iter().map(move |dev| (*dev, some_pod(block)))).collect()
    }

    /// Each host's route to each other's blocks leads somewhere where the packet is taken in.
    pub fn check(&self, when: &str) {
        if !self.watching {
            return;
        }
        for a in &self.hosts {
            for b in self.hosts.iter().filter(|b| b.name != a.name && !b.dead) {
                for pool in a.pods.keys() {
                    let way = |from: &Host, to| if from.is_remaking { Ok(()) } else { on_one_segment(from, to) };
                    if let Err(fault) = way(a, b).and_then(|()| way(b, a)) {
                        panic!("a pod of {pool} at {} to {}, {when}: {fault}", a.name, b.name);
                    }
                }
                if a.is_remaking {
                    continue;
                }
                for block in self.log.iter().filter_map(|entry| match &entry.record {
                    Record::Block(block) if block.owner == b.name => Some(block),
                    _ => None,
                }) {
                    if let Err(fault) = usable(a, b, block) {
                        panic!("{} to {} ({}), {when}: {fault}", a.name, b.name, block.cidr);
                    }
                }
            }
        }
    }
}

impl Host {
    fn new(n: usize) -> Self {
        let name = ["a", "b", "c", "d"][n];
        let last = n as u8 + 1;
        let underlay = Underlay {
            ifname: eth0(),
            mtu: 1500,
            addresses: PerFamily { v4: Some([192, 0, 2, last].into()), v6: None },
            onlink: vec!["192.0.2.0/24".parse().expect("prefix")],
        };
        let local = Local {
            node: name.parse().expect("name"),
            uid: format!("uid-{name}").parse().expect("identity"),
            labels: BTreeMap::new(),
            bridge: "cni0".parse().expect("name"),
            found: BTreeMap::new(),
            rules: loden_core::view::HostRules::default(),
            // Kernels differ.
            abilities: Abilities { ipip: n == 1 },
            underlay: Some(underlay),
        };
        Self {
            name: local.node.clone(),
            view: View::new(local),
            desired: Desired::new(),
            kernel: FakeKernel::new("eth0"),
            changed: picture::everything(),
            cursor: 0,
            facts: None,
            dead: false,
            is_starting: false,
            is_remaking: false,
            pods: BTreeMap::new(),
        }
    }

    fn address(&self) -> IpAddr {
        self.view.local.underlay.as_ref().and_then(|underlay| underlay.addresses.v4).expect("address")
    }

    /// Lets the agent see the pods: written down, complete, nothing else made for them.
    fn look_at_pods(&mut self) {
        let addresses: Vec<_> = (self.pods.values())
            .map(|cidr| json!({ "net": format!("{}/{}", cidr.nth(9).expect("an address"), cidr.len()) }))
            .collect();
        let attachment = json!({ "key": { "network": "loden", "container": "pod", "ifname": "eth0" }, "complete": true,
            "addresses": addresses, "attach": "foreign", "mac": "0a:00:00:00:00:02", "mtu": 1450, "netns": "/run/netns/pod" });
        let attachment: Attachment = serde_json::from_value(attachment).expect("an attachment");
        let key = attachment.key.clone();
        let attachment = (!attachment.addresses.is_empty()).then(|| Arc::new(attachment));
        self.changed.merge(self.view.set_attachment(key, attachment));
    }

    /// The VXLAN devices in the kernel.
    pub fn vteps(&self) -> impl Iterator<Item = &Link> {
        self.kernel.objects.values().filter_map(|object| match object {
            Object::Link(link) if matches!(link.kind, LinkKind::Vxlan(_)) => Some(&**link),
            _ => None,
        })
    }
}

fn eth0() -> IfName {
    "eth0".parse().expect("name")
}

/// Whether what `a` sends to the block reaches `b`: by the underlay, or by a tunnel of which `b` has the other end.
fn usable(a: &Host, b: &Host, block: &Block) -> Result<(), String> {
    let here = &a.kernel.objects;
    let there = b.address();
    let way = route_to(here, block.cidr);
    if way.and_then(|via| via.device()).is_some_and(|dev| is_refused(here, dev, block.cidr)) {
        return Err("it is refused as unknown".to_owned());
    }
    match way {
        Some(Via::Nexthop(dev, gateway)) => {
            if !here.contains_key(&Key::Nexthop(dev, gateway)) {
                return Err("no nexthop".to_owned());
            }
            if dev == eth0() {
                return if gateway == there { Ok(()) } else { Err(format!("routed to {gateway}")) };
            }
            match here.get(&Key::Link(dev)) {
                Some(Object::Link(link)) if matches!(link.kind, LinkKind::Ipip(_)) && gateway == there => {
                    takes_in(a, b, block.cidr, dev)
                }
                Some(Object::Link(link)) => usable_vtep(here, b, (dev, gateway), link),
                _ => Err(format!("no device {dev}")),
            }
        }
        Some(Via::Link(dev)) if dev.as_str() == "cni0" => on_one_segment(a, b),
        Some(Via::Link(dev)) => {
            if let Some(Object::Link(link)) = here.get(&Key::Link(dev))
                && matches!(link.kind, LinkKind::Vxlan(_))
            {
                return usable_by_answers(a, b, (dev, block.cidr), link);
            }
            if a.is_starting {
                // Its engine was in the process that has ended, and is started by the next one before anything else.
                return Ok(());
            }
            if !here.contains_key(&Key::Tunnel(dev)) {
                return Err(format!("no engine on {dev}"));
            }
            match here.get(&Key::TunnelPeer(dev, block.cidr)) {
                Some(Object::TunnelPeer(peer)) if peer.to.is_some_and(|to| to.addr == there) => {
                    takes_in(a, b, block.cidr, dev)
                }
                other => Err(format!("the engine on {dev} has {other:?}")),
            }
        }
        other => Err(format!("no route: {other:?}")),
    }
}

/// Whether what is flooded at `a` comes to `b`'s pods.
fn on_one_segment(a: &Host, b: &Host) -> Result<(), String> {
    let ports = |host: &Host| {
        let link_of = |(key, object): (&Key, &Object)| match (key, object) {
            (Key::Link(dev), Object::Link(link)) if link.up && link.master.is_some() => Some((*dev, (**link).clone())),
            _ => None,
        };
        let all: Vec<(IfName, Link)> = host.kernel.objects.iter().filter_map(link_of).collect();
        all.into_iter().filter_map(|(dev, link)| match link.kind {
            LinkKind::Vxlan(vxlan) => Some((dev, vxlan)),
            _ => None,
        })
    };
    let reaches = |(dev, near): &(IfName, Vxlan), far: &Vxlan| {
        let is_sent_a_copy = a.kernel.objects.contains_key(&Key::Flood(*dev, b.address()));
        let is_in_group = near.group.is_some() && near.group == far.group;
        let both = |vxlan: &Vxlan| (vxlan.vni, vxlan.port, vxlan.learning);
        (is_sent_a_copy || is_in_group) && near.learning && both(near) == both(far)
    };
    let is_there = ports(a).any(|near| ports(b).any(|(_, far)| reaches(&near, &far)));
    if is_there { Ok(()) } else { Err(format!("{} is on no segment with {}", b.name, a.name)) }
}

/// Whether packets for the block are refused before the device.
fn is_refused(here: &Observed, dev: IfName, block: Prefix) -> bool {
    let Some(Object::Nft(table)) = here.get(&Key::Nft) else { return false };
    let mut rules = table.chains.values().flat_map(|chain| &chain.rules);
    let is_for =
        |expr: &Expr| *expr == Expr::Output { name: dev, negate: false } || *expr == Expr::Family(block.family());
    let is_guarded = rules.any(|rule| rule.exprs.iter().filter(|expr| is_for(expr)).count() == 2);
    is_guarded && !here.contains_key(&Key::KnownBlock(block))
}

/// Whether the kernel has or gets an answer for the block's addresses, and the answer that it has or gets leads to `b`.
fn usable_by_answers(a: &Host, b: &Host, (dev, block): (IfName, Prefix), link: &Link) -> Result<(), String> {
    let here = &a.kernel.objects;
    if here.contains_key(&Key::Neighbour(dev, some_pod(block))) {
        return usable_vtep(here, b, (dev, some_pod(block)), link);
    }
    // A new agent takes its kernel's questions when it has looked at it.
    let is_answered = a.is_starting || a.view.clone().ask(dev, some_pod(block), 1).is_some();
    if is_answered { Ok(()) } else { Err("nobody answers for it".to_owned()) }
}

fn some_pod(block: Prefix) -> IpAddr {
    block.nth(5).expect("an address")
}

/// Where the longest prefix leads.
fn route_to(here: &Observed, block: Prefix) -> Option<Via> {
    let priority = default_priority(block.family());
    let covering = here.iter().filter_map(|(key, object)| match (key, object) {
        (Key::Route(prefix, of), Object::Route(via)) if *of == priority && prefix.covers(block) => Some((prefix, via)),
        _ => None,
    });
    covering.max_by_key(|(prefix, _)| prefix.len()).map(|(_, via)| *via)
}

/// Whether `b` takes in what `a` sends by the device of this name, which says what it is on the wire.
fn takes_in(a: &Host, b: &Host, to: Prefix, dev: IfName) -> Result<(), String> {
    if b.is_starting {
        return Ok(());
    }
    let there = &b.kernel.objects;
    match there.get(&Key::Link(dev)) {
        Some(Object::Link(link)) if !link.up => return Err(format!("{dev} is down there")),
        Some(Object::Link(link)) if matches!(link.kind, LinkKind::Ipip(_)) => return Ok(()),
        Some(_) if there.contains_key(&Key::Tunnel(dev)) => {}
        _ => return Err(format!("nobody takes in what {dev} sends")),
    }
    let from_a = a.view.blocks.get(&a.name).into_iter().flatten();
    let is_known = |block: &&Block| b.view.blocks.get(&a.name).is_some_and(|known| known.contains(block));
    for block in from_a.filter(|block| block.cidr.family() == to.family()).filter(is_known) {
        match there.get(&Key::TunnelPeer(dev, block.cidr)) {
            Some(Object::TunnelPeer(peer)) if peer.from.contains(&a.address()) => {}
            other => return Err(format!("from {} is dropped there: {other:?}", block.cidr)),
        }
    }
    Ok(())
}

fn usable_vtep(here: &Observed, b: &Host, (dev, gateway): (IfName, IpAddr), link: &Link) -> Result<(), String> {
    let Some(Object::Neighbour(mac)) = here.get(&Key::Neighbour(dev, gateway)) else {
        return Err("no ARP entry".to_owned());
    };
    if here.get(&Key::Fdb(dev, *mac)) != Some(&Object::Fdb(b.address())) {
        return Err("no FDB entry".to_owned());
    }
    let tells_apart = |link: &Link| match &link.kind {
        LinkKind::Vxlan(vxlan) => Some((vxlan.vni, vxlan.port)),
        _ => None,
    };
    let is_end = |end: &Link| end.up && end.mac == Some(*mac) && tells_apart(end) == tells_apart(link);
    if b.vteps().any(is_end) { Ok(()) } else { Err(format!("nobody takes in {link} to {mac}")) }
}
