//! Properties of view, desired state and plan: nothing hangs on the order of events, nothing is ever missing in between.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use loden_core::config::cluster::parse_pools;
use loden_core::desired::{Desired, Source};
use loden_core::kernel::{Key, Object};
use loden_core::model::{
    BackendConfig, Block, Entry, Family, IfName, Lease, Mac, Node, NodeName, PerFamily, Pool, Prefix, Receive, Record,
    UdpConfig, Vni,
};
use loden_core::plan::{Plan, Step, Verb};
use loden_core::underlay::Underlay;
use loden_core::view::{Changed, Local, View};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::json;

use crate::picture;
use loden_testkit::FakeKernel;

const HOSTS: u8 = 5;

fn local() -> Local {
    Local {
        node: name(0),
        uid: "uid-0".parse().expect("identity"),
        labels: BTreeMap::new(),
        bridge: "cni0".parse().expect("name"),
        found: BTreeMap::new(),
        rules: loden_core::view::HostRules::default(),
        abilities: Default::default(),
        underlay: Some(Underlay {
            ifname: "eth0".parse().expect("name"),
            mtu: 1500,
            addresses: PerFamily { v4: Some([192, 0, 2, 1].into()), v6: Some("2001:db8::1".parse().expect("address")) },
            onlink: ["192.0.2.0/24", "2001:db8::/64"].map(|p| p.parse().expect("prefix")).to_vec(),
        }),
    }
}

fn name(n: u8) -> NodeName {
    format!("node-{n}").parse().expect("name")
}

/// Every record with a revision of its own, so that the age of pools is part of the records.
fn entry(record: Record) -> Entry {
    let created = match &record {
        Record::Pool(pool) if pool.name.as_str() == "late" => 9,
        // Some are of one age: then the text decides.
        Record::Block(block) => 1 + u64::from(block.owner.as_str().bytes().last().unwrap_or(0) + block.cidr.len()) % 4,
        Record::Node(node) => 1 + u64::from(node.name.as_str().bytes().last().unwrap_or(0)) % 3,
        _ => 1,
    };
    Entry { record, created, revision: created }
}

fn backend() -> impl Strategy<Value = BackendConfig> {
    let all = [
        json!({ "type": "vxlan" }),
        json!({ "type": "vxlan", "vni": 2 }),
        json!({ "type": "vxlan", "vni": 2, "direct_routing": true }),
        json!({ "type": "vxlan", "vni": 3, "control": "learn", "group": { "v4": "239.1.1.42", "v6": "ff05::42" } }),
        json!({ "type": "vxlan", "vni": 4, "control": "learn", "bridge": "tenant1" }),
        json!({ "type": "vxlan", "control": "miss" }),
        json!({ "type": "vxlan", "vni": 2, "control": "miss", "direct_routing": true }),
        json!({ "type": "host-gw" }),
        json!({ "type": "udp" }),
        json!({ "type": "ipip" }),
    ];
    select(all.map(|table| one_pool("any", "10.0.0.0/16", &table).backend).to_vec())
}

fn one_pool(name: &str, cidr: &str, backend: &serde_json::Value) -> Pool {
    let table = json!({ "pool": [{ "name": name, "cidr": cidr, "backend": backend }] });
    parse_pools(table).expect("pool").remove(0)
}

/// The pools: one a family, and a younger one that overlaps the first.
fn pool() -> impl Strategy<Value = Record> {
    let all = [("four", "10.244.0.0/16"), ("six", "fd00:244::/48"), ("late", "10.244.128.0/17")];
    (select(all.to_vec()), backend(), any::<bool>()).prop_map(|((name, cidr), backend, nat_outgoing)| {
        let pool = one_pool(name, cidr, &json!({ "type": "host-gw" }));
        // What is faulty goes on as it was, which hangs on what came before it.
        let is_fit = pool.cidr.family() == Family::V4 || backend.kind() != "ipip";
        let backend = if is_fit { backend } else { BackendConfig::Udp(UdpConfig::default()) };
        Record::Pool(Pool { backend, nat_outgoing, ..pool })
    })
}

fn node() -> impl Strategy<Value = Record> {
    let receive = prop_oneof![
        Just(Receive::HostGw),
        Just(Receive::Ipip),
        any::<bool>().prop_map(|is_v4| Receive::Udp {
            underlay: if is_v4 { Family::V4 } else { Family::V6 },
            port: 8285,
            bursts: true,
        }),
        (1..5_u32, any::<bool>()).prop_map(|(vni, is_v4)| Receive::Vxlan {
            vni: Vni::new(vni).expect("VNI"),
            underlay: if is_v4 { Family::V4 } else { Family::V6 },
            mac: Mac([2, 0, 0, 0, 0, 0]),
            port: 8472,
            bridged: vni > 2,
        }),
    ];
    let receives = proptest::collection::vec(receive, 0..4);
    let sends = proptest::collection::btree_set(backend(), 0..3);
    // Some nodes share a VTEP's address, as cloned machines do: their wishes contend for one FDB entry.
    // Some say that they are where another is.
    let place = (any::<bool>(), prop_oneof![4 => Just(None), 1 => (0..HOSTS).prop_map(Some)]);
    (0..HOSTS, 0..2_u8, any::<bool>(), any::<bool>(), place, receives, sends, 0..8_u8).prop_map(
        |(n, install, has_v4, has_v6, (is_onlink, twin), mut receives, sends, clone)| {
            for receive in &mut receives {
                if let Receive::Vxlan { mac, .. } = receive {
                    *mac = Mac([2, 0, 0, 0, 0, clone.min(n + 1)]);
                }
            }
            let segment = if is_onlink || n == 0 { 2 } else { 3 };
            Record::Node(Node {
                name: name(n),
                uid: uid(n, install),
                underlay: PerFamily {
                    v4: has_v4.then(|| [192, 0, segment, twin.unwrap_or(n) + 1].into()),
                    v6: has_v6.then(|| format!("2001:db8::{}", n + 1).parse().expect("address")),
                },
                public: PerFamily::default(),
                asked: PerFamily::default(),
                labels: BTreeMap::new(),
                receives,
                sends: [("four", sends)].into_iter().map(|(p, s)| (p.parse().expect("name"), s)).collect(),
                unknown: BTreeMap::new(),
            })
        },
    )
}

fn uid(n: u8, install: u8) -> loden_core::model::NodeUid {
    let text = if install == 0 { format!("uid-{n}") } else { format!("uid-{n}-{install}") };
    text.parse().expect("identity")
}

fn block() -> impl Strategy<Value = Record> {
    let len = prop_oneof![5 => Just(24_u8), 1 => Just(22), 1 => Just(23), 1 => Just(26)];
    (select(vec!["four", "six", "late", "gone"]), 0..8_u8, 0..HOSTS, 0..2_u8, len).prop_map(
        |(pool, k, owner, install, len)| {
            let cidr = match pool {
                "six" => format!("fd00:244:0:{k}::/64"),
                "four" if len != 24 => Prefix::holding([10, 244, k, 64].into(), len).to_string(),
                "late" => format!("10.244.{}.0/24", 200 + k),
                _ => format!("10.244.{k}.0/24"),
            };
            Record::Block(Block {
                cidr: cidr.parse().expect("prefix"),
                pool: pool.parse().expect("name"),
                owner: name(owner),
                owner_uid: uid(owner, install),
            })
        },
    )
}

fn lease() -> impl Strategy<Value = Record> {
    let lease = |n| Lease { node: name(n), uid: uid(n, 0), instance: "now".to_owned() };
    (0..HOSTS).prop_map(move |n| Record::Lease(lease(n)))
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![1 => pool(), 3 => node(), 4 => block(), 1 => lease()]
}

/// What the kernel may ask for: addresses in blocks of either length and in none, on devices of both networks.
fn asked() -> impl Strategy<Value = Vec<(IfName, IpAddr)>> {
    let dev = select(vec!["flannel.1", "flannel.2", "flannel-v6.1", "cni0"]).prop_map(|dev| dev.parse().expect("name"));
    let addr = (0..9_u8, 60..70_u8, any::<bool>()).prop_map(|(k, last, is_v4)| match is_v4 {
        true => IpAddr::from([10, 244, k, last]),
        false => format!("fd00:244:0:{k}::{last:x}").parse().expect("address"),
    });
    proptest::collection::vec((dev, addr), 0..4)
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    proptest::collection::vec(record(), 0..30)
}

/// A host that follows its view change by change.
struct Follower {
    view: View,
    desired: Desired,
}

impl Follower {
    fn new() -> Self {
        let view = View::new(local());
        let desired = picture::desired(&view);
        Self { view, desired }
    }

    fn put(&mut self, record: &Record) -> Changed {
        let changed = self.view.put(&entry(record.clone()));
        self.desired.update(&self.view, &changed);
        changed
    }

    fn ask(&mut self, dev: IfName, addr: IpAddr) {
        let changed = self.view.ask(dev, addr, 1).unwrap_or_default();
        self.desired.update(&self.view, &changed);
    }

    fn delete(&mut self, key: &loden_core::model::Key) {
        let changed = self.view.delete(key);
        self.desired.update(&self.view, &changed);
    }
}

/// All that a desired state says, line by line.
fn told(view: &View, desired: &Desired) -> Vec<String> {
    let wanted = desired.map().all_desired();
    let mut wanted: Vec<_> = wanted.map(|(key, wanted)| format!("{key} {} # {}", wanted.object, wanted.why)).collect();
    wanted.sort();
    let uses = desired.uses().into_iter().map(|used| format!("{used:?}"));
    let rest = format!("{}{}", picture::problems(view, desired), Plan::of(desired));
    wanted.into_iter().chain(uses).chain(rest.lines().map(str::to_owned)).collect()
}

/// Compares what two say, and names only what differs.
fn compare(ours: &[String], theirs: &[String]) -> Result<(), TestCaseError> {
    let only = |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
    prop_assert!(ours == theirs, "\n{:#?}\nand not\n{:#?}", only(ours, theirs), only(theirs, ours));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_desired_state_hangs_on_the_records_and_not_on_their_order(
        given in records(),
        noise in proptest::collection::vec((record(), any::<Index>(), any::<bool>()), 0..20),
        shuffle in proptest::collection::vec(any::<Index>(), 30),
    ) {
        let last: BTreeMap<_, _> = given.into_iter().map(|record| (record.key(), record)).collect();
        let mut view = View::new(local());
        for record in last.values() {
            view.put(&entry(record.clone()));
        }
        let at_once = told(&view, &picture::desired(&view));

        // The same in another order, with older forms, deletions and repetitions in between.
        let mut rest: Vec<_> = last.values().cloned().collect();
        let mut follower = Follower::new();
        let mut noise = noise.into_iter();
        for index in shuffle {
            if let Some((record, _, deletes)) = noise.next() {
                let key = record.key();
                let is_over = last.contains_key(&key) && !rest.iter().any(|record| record.key() == key);
                if !is_over {
                    follower.put(&record);
                }
                if deletes && !is_over {
                    follower.delete(&key);
                }
            }
            if !rest.is_empty() {
                let record = rest.swap_remove(index.index(rest.len()));
                follower.put(&record);
                prop_assert!(follower.put(&record).is_empty());
            }
        }
        rest.iter().for_each(|record| drop(follower.put(record)));
        for key in follower.view.known_keys() {
            if !last.contains_key(&key) {
                follower.delete(&key);
            }
        }
        compare(&told(&follower.view, &follower.desired), &at_once)?;
    }

    #[test]
    fn thinking_over_what_changed_is_thinking_over_everything(steps in records(), asked in asked(), forget in proptest::collection::vec(any::<Index>(), 0..8)) {
        let mut follower = Follower::new();
        let check = |follower: &Follower| {
            let at_once = told(&follower.view, &picture::desired(&follower.view));
            compare(&told(&follower.view, &follower.desired), &at_once)
        };
        for record in &steps {
            follower.put(record);
            check(&follower)?;
            asked.iter().for_each(|(dev, addr)| follower.ask(*dev, *addr));
            check(&follower)?;
        }
        for index in forget {
            let keys = follower.view.known_keys();
            if !keys.is_empty() {
                follower.delete(&keys[index.index(keys.len())]);
                check(&follower)?;
            }
        }
    }

    #[test]
    fn a_plan_makes_before_it_breaks_and_then_there_is_nothing_to_do(before in records(), after in records()) {
        let mut follower = Follower::new();
        let mut kernel = FakeKernel::new("eth0");
        before.iter().for_each(|record| drop(follower.put(record)));
        reach_rest(&mut follower.desired, &mut kernel, &BTreeSet::new())?;

        let had: BTreeSet<Key> = kernel.objects.keys().copied().collect();
        for key in follower.view.known_keys() {
            follower.delete(&key);
        }
        before.iter().chain(&after).for_each(|record| drop(follower.put(record)));
        let stays = had.into_iter().filter(|key| follower.desired.map().desired(key).is_some()).collect();
        reach_rest(&mut follower.desired, &mut kernel, &stays)?;
    }
}

/// Plans and applies until nothing is left to do. What `stays` is there after every step; only a device that has to be made
/// anew takes with it what stands on it.
fn reach_rest(desired: &mut Desired, kernel: &mut FakeKernel, stays: &BTreeSet<Key>) -> Result<(), TestCaseError> {
    let mut breaks = false;
    for _ in 0..4 {
        desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
        let plan = Plan::of(desired);
        if plan.is_empty() {
            return Ok(());
        }
        let (makes, removals) = plan.makes_and_removals();
        prop_assert!(removals.iter().all(|step| step.verb == Verb::Remove), "made after it is broken:\n{}", plan);
        for step in makes.iter().filter(|step| step.verb == Verb::Remove && step.key != Key::Nft) {
            // Only an address of ours that is to be a peer's gateway goes before, and a device that another takes the place of.
            let is_for = |other: &Step| {
                matches!((step.key, other.key), (Key::Address(_, net), Key::Nexthop(_, addr))
                if net.addr() == addr && other.verb == Verb::Add)
            };
            let is_device = matches!(step.key, Key::Link(_))
                && makes.iter().any(|other| matches!(other.key, Key::Link(_)) && other.verb != Verb::Remove);
            // Or a block that one which overlaps it takes the place of.
            let is_in_place = |other: &Step| {
                matches!((step.key, other.key), (Key::KnownBlock(gone), Key::KnownBlock(new))
                if gone.overlaps(new) && other.verb == Verb::Add)
            };
            let is_for = |other: &Step| is_for(other) || is_in_place(other);
            prop_assert!(is_device || makes.iter().any(is_for), "broken before it is made: {}\n{}", step, plan);
        }
        breaks |= plan.steps.iter().any(|step| step.verb == Verb::Recreate);
        let mut missing = Vec::new();
        kernel.run(&plan, |now, step| {
            missing.extend(
                stays.iter().filter(|key| !now.objects.contains_key(key)).map(|key| format!("{key} at {step}")),
            );
        });
        prop_assert!(missing.is_empty() || breaks, "{:?}\n{}", missing, plan);
    }
    Err(TestCaseError::fail(format!("no rest after four plans:\n{}", Plan::of(desired))))
}

fn peer(n: u32) -> [Record; 2] {
    let [.., a, b] = n.to_be_bytes();
    let name: NodeName = format!("peer-{n}").parse().expect("name");
    let uid: loden_core::model::NodeUid = format!("uid-peer-{n}").parse().expect("identity");
    let receives = vec![Receive::Vxlan {
        vni: Vni::new(1).expect("VNI"),
        underlay: Family::V4,
        mac: Mac([2, 9, 0, 0, a, b]),
        port: 8472,
        bridged: false,
    }];
    let pool: loden_core::model::PoolName = "big".parse().expect("name");
    let sends = BTreeMap::from([(pool.clone(), BTreeSet::from([big_pool().backend]))]);
    let v6 = Some(format!("2001:db8::9:{n:x}").parse().expect("address"));
    let underlay = PerFamily { v4: Some([198, 18, a, b].into()), v6 };
    let node = Node {
        name: name.clone(),
        uid: uid.clone(),
        underlay,
        public: PerFamily::default(),
        asked: PerFamily::default(),
        labels: BTreeMap::new(),
        receives,
        sends,
        unknown: BTreeMap::new(),
    };
    let cidr = format!("10.{}.{}.0/24", n / 256, n % 256).parse().expect("prefix");
    [Record::Node(node), Record::Block(Block { cidr, pool, owner: name, owner_uid: uid })]
}

fn big_pool() -> Pool {
    one_pool("big", "10.0.0.0/8", &json!({ "type": "vxlan" }))
}

#[test]
fn one_peer_more_among_ten_thousand_is_six_objects_and_nothing_else_is_thought_over() {
    let mut follower = Follower::new();
    follower.put(&Record::Pool(big_pool()));
    for n in 1..=10_000 {
        for record in peer(n) {
            follower.view.put(&entry(record));
        }
    }
    follower.desired.update(&follower.view, &picture::everything());
    let mut kernel = FakeKernel::new("eth0");
    kernel.objects = follower.desired.map().all_desired().map(|(key, w)| (*key, w.object.clone())).collect();
    follower.desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
    assert!(Plan::of(&follower.desired).is_empty());

    let records = peer(10_001);
    let own = Source::Peer("peer-10001".parse().expect("name"));
    for record in &records {
        assert_eq!(follower.put(record), Changed { all: false, sources: BTreeSet::from([own.clone()]) });
    }
    let added = Plan::of(&follower.desired);
    assert_eq!(
        added.to_string(),
        "+ known host 198.18.39.17   # may send by tunnels of node peer-10001\n\
         + known host 2001:db8::9:2711   # may send by tunnels of node peer-10001\n\
         + nexthop via 10.39.17.0 dev flannel.1   # VTEP of node peer-10001, pool big\n\
         + neighbour 10.39.17.0 dev flannel.1 lladdr 02:09:00:00:27:11 permanent   # ARP entry of the VTEP of node \
         peer-10001, pool big\n\
         + fdb 02:09:00:00:27:11 dev flannel.1 dst 198.18.39.17 self permanent   # FDB entry of the VTEP of node \
         peer-10001, pool big\n\
         + route 10.39.17.0/24 via 10.39.17.0 dev flannel.1   # route to a block of node peer-10001, pool big\n"
    );
    kernel.run(&added, |_, _| {});
    follower.desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
    records.iter().for_each(|record| follower.delete(&record.key()));
    let removed: Vec<_> = Plan::of(&follower.desired).steps.into_iter().map(|step| (step.verb, step.key)).collect();
    let undone: Vec<_> = added.steps.iter().rev().map(|step| (Verb::Remove, step.key)).collect();
    assert_eq!(removed, undone);
}

#[test]
fn what_two_nodes_contend_for_goes_to_the_lesser_and_passes_on_when_it_goes() {
    let fdb = |follower: &Follower| {
        let key = Key::Fdb("flannel.1".parse().expect("name"), Mac([2, 9, 0, 0, 0, 1]));
        follower.desired.map().desired(&key).map(|wanted| wanted.object.clone())
    };
    let twin = |n: u32| {
        let [node, block] = peer(n);
        let Record::Node(mut node) = node else { panic!("a node comes first") };
        if let Some(Receive::Vxlan { mac, .. }) = node.receives.first_mut() {
            *mac = Mac([2, 9, 0, 0, 0, 1]);
        }
        [Record::Node(node), block]
    };
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1], [2, 1, 3]] {
        let mut follower = Follower::new();
        follower.put(&Record::Pool(big_pool()));
        for n in order {
            twin(n).iter().for_each(|record| drop(follower.put(record)));
        }
        for n in 1..=3_u8 {
            assert_eq!(fdb(&follower), Some(Object::Fdb([198, 18, 0, n].into())), "{order:?}");
            follower.delete(&twin(n.into())[0].key());
        }
        assert_eq!(fdb(&follower), None);
    }
}

#[test]
fn after_a_start_nothing_is_removed_before_it_is_known_what_is_wanted() {
    let mut follower = Follower::new();
    follower.put(&Record::Pool(big_pool()));
    peer(1).iter().for_each(|record| drop(follower.put(record)));
    let mut kernel = FakeKernel::new("eth0");
    kernel.run(&Plan::of(&follower.desired), |_, _| {});

    // No external interface, a pool that is faulty, an MTU that is too small: in each case the agent has just begun.
    let mut without = follower.view.clone();
    without.set_local(Local { underlay: None, ..local() });
    let mut faulty = View::new(local());
    faulty.put(&entry(Record::Pool(Pool { block_len: 31, ..big_pool() })));
    peer(1).into_iter().for_each(|record| drop(faulty.put(&entry(record))));
    let mut small = follower.view.clone();
    small.set_local(Local { underlay: local().underlay.map(|underlay| Underlay { mtu: 100, ..underlay }), ..local() });
    for view in [without, faulty, small] {
        let mut desired = picture::desired(&view);
        desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
        assert_eq!(Plan::of(&desired).to_string(), "");
    }
    // With everything known, what nobody wants goes.
    let mut desired = picture::desired(&View::new(local()));
    desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
    assert!(!Plan::of(&desired).is_empty());
}
