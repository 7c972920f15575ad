//! flannel's layout of etcd: who has which block, what is refused and how it is named, and that the order of events is nothing.

use std::collections::BTreeMap;

use loden_core::dialect::flannel::layout::{Layout, Pair, RawChange, Told, mirror};
use loden_core::dialect::flannel::{NetConf, SubnetKey};
use loden_core::model::{Block, Entry, Key, Lease, Node, Receive, Record};
use proptest::prelude::*;

const PREFIX: &str = "/coreos.com/network";
const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan","Port":4789}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","SubnetLen":25,"Backend":{"Type":"host-gw"}}"#;

/// What an etcd would hold.
#[derive(Debug, Default, Clone)]
struct Etcd {
    pairs: BTreeMap<String, Pair>,
    revision: u64,
    events: Vec<RawChange>,
}

impl Etcd {
    fn put(&mut self, key: &str, value: &str) -> &mut Self {
        self.revision += 1;
        let created = self.pairs.get(key).map_or(self.revision, |pair| pair.created);
        let pair = Pair { key: key.to_owned(), value: value.into(), created, revision: self.revision, lease: 7 };
        self.events.push(RawChange::Put(pair.clone()));
        self.pairs.insert(key.to_owned(), pair);
        self
    }

    fn delete(&mut self, key: &str) -> &mut Self {
        if self.pairs.remove(key).is_some() {
            self.revision += 1;
            self.events.push(RawChange::Delete { key: key.to_owned(), revision: self.revision });
        }
        self
    }

    fn put_own(&mut self, record: Record) -> &mut Self {
        self.put(&Layout::path(&record.key()), &serde_json::to_string(&record).expect("JSON"))
    }

    fn layout(&self) -> Layout {
        let mut layout = Layout::new(PREFIX, true);
        layout.apply(self.pairs.values().cloned().map(RawChange::Put));
        layout
    }

    /// All pairs but those that are new, then those in one go.
    fn told_since(&self, before: &Self) -> Vec<Told> {
        before.layout().apply(self.events[before.events.len()..].iter().cloned())
    }
}

fn lease(ip: &str, kind: &str, data: &str) -> String {
    let vtep = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;
    let data = data.replace("VTEP", vtep);
    format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{kind}"{data}}}"#)
}

fn vxlan(ip: &str) -> String {
    lease(ip, "vxlan", r#","BackendData":VTEP"#)
}

fn uid(name: &str) -> String {
    format!("uid-{}", name.replace('.', "-"))
}

fn node(name: &str, ip: &str) -> Node {
    serde_json::from_value(serde_json::json!({ "name": name, "uid": uid(name), "underlay": { "v4": ip } }))
        .expect("a node")
}

fn block(cidr: &str, owner: &str) -> Block {
    let pool = if cidr.contains(':') { "flannel-v6" } else { "flannel" };
    Block {
        cidr: cidr.parse().expect("a prefix"),
        pool: pool.parse().expect("a name"),
        owner: owner.parse().expect("a name"),
        owner_uid: uid(owner).parse().expect("an identity"),
    }
}

fn owners(layout: &Layout) -> String {
    let blocks = layout.entries().filter_map(|entry| match &entry.record {
        Record::Block(block) => Some(format!("{} {}", block.cidr, block.owner)),
        _ => None,
    });
    blocks.collect::<Vec<_>>().join(", ")
}

fn nodes(layout: &Layout) -> String {
    let nodes = layout.entries().filter_map(|entry| match &entry.record {
        Record::Node(node) => Some(format!("{} {}", node.name, node.receives.len())),
        _ => None,
    });
    nodes.collect::<Vec<_>>().join(", ")
}

/// The flaws, each with its key behind the prefix.
fn flaws(layout: &Layout) -> Vec<(String, String)> {
    let short = |place: &str| place.strip_prefix(&format!("{PREFIX}/")).expect("under the prefix").to_owned();
    layout.flaws().into_iter().map(|(place, cause)| (short(&place), cause)).collect()
}

#[track_caller]
fn assert_flaw(layout: &Layout, place: &str, says: &[&str]) {
    let flaws = flaws(layout);
    let [(at, cause)] = flaws.as_slice() else { panic!("one flaw at {place}, not {flaws:#?}") };
    assert_eq!(at, place);
    says.iter().for_each(|part| assert!(cause.contains(part), "{cause:?} does not say {part:?}"));
}

#[test]
fn leases_of_flannels_become_blocks_and_nodes() {
    let mut etcd = Etcd::default();
    etcd.put("config", DUAL).put("subnets/10.5.34.0-24&fc00:0:0:1::-64", &vxlan("172.16.0.5"));
    etcd.put("subnets/10.5.35.0-24&fc00:0:0:2::-64", &vxlan("172.16.0.6")).put("elsewhere/config", "x");
    let layout = etcd.layout();
    assert_eq!(
        owners(&layout),
        "10.5.34.0/24 172.16.0.5, 10.5.35.0/24 172.16.0.6, fc00:0:0:1::/64 172.16.0.5, fc00:0:0:2::/64 172.16.0.6"
    );
    assert_eq!(flaws(&layout), []);
    let entry = layout.entry(&Key::Node("172.16.0.5".parse().expect("a name"))).expect("a node");
    let Record::Node(node) = &entry.record else { panic!("a node") };
    assert_eq!(
        (node.uid.as_str(), node.reached_at(loden_core::model::Family::V4)),
        ("flannel", "172.16.0.5".parse().ok())
    );
    assert!(matches!(node.receives[..], [Receive::Vxlan { port: 4789, .. }]), "the port is the pool's");
    assert_eq!((entry.created, entry.revision), (2, 2));
    // A renewal is a new revision and no more.
    let before = etcd.clone();
    etcd.put("subnets/10.5.34.0-24&fc00:0:0:1::-64", &vxlan("172.16.0.5"));
    let told = etcd.told_since(&before);
    assert!(told.iter().all(|told| matches!(told, Told::Put(Entry { created: 2, revision: 5, .. }))), "{told:?}");
    assert_eq!(told.len(), 3);
    let before = etcd.clone();
    etcd.delete("subnets/10.5.34.0-24&fc00:0:0:1::-64");
    let told = etcd.told_since(&before);
    assert!(told.iter().all(|told| matches!(told, Told::Delete(_))) && told.len() == 3, "{told:?}");
}

#[test]
fn a_block_of_lodens_is_lodens_whatever_stands_under_subnets() {
    let mut etcd = Etcd::default();
    etcd.put("config", V4).put("subnets/10.5.34.0-24", &vxlan("172.16.0.5"));
    let before = etcd.clone();
    // The node changes hands: its lease becomes the twin of its block.
    etcd.put_own(Record::Node(node("worker-1", "172.16.0.5")))
        .put_own(Record::Block(block("10.5.34.0/24", "worker-1")));
    etcd.put("subnets/10.5.34.0-24", &vxlan("172.16.0.5"));
    assert_eq!(owners(&etcd.layout()), "10.5.34.0/24 worker-1");
    assert_eq!(nodes(&etcd.layout()), "worker-1 0");
    assert_eq!(flaws(&etcd.layout()), []);
    let told = etcd.told_since(&before);
    let (puts, deletes): (Vec<_>, Vec<_>) = told.iter().partition(|told| matches!(told, Told::Put(_)));
    assert_eq!((puts.len(), deletes), (2, vec![&Told::Delete(Key::Node("172.16.0.5".parse().expect("a name")))]));
    assert!(matches!(told.last(), Some(Told::Delete(_))), "what is there comes first: {told:?}");
    // A flanneld takes it: named on both sides, and the block stays.
    etcd.put("subnets/10.5.34.0-24", &vxlan("172.16.0.9"));
    assert_eq!(owners(&etcd.layout()), "10.5.34.0/24 worker-1");
    assert_flaw(&etcd.layout(), "subnets/10.5.34.0-24", &["worker-1", "172.16.0.5", "172.16.0.9", "10.5.34.0/24"]);
    // The node's own address changes: what stands there is older, and no flanneld's.
    etcd.put_own(Record::Node(node("worker-1", "172.16.0.77")));
    assert_eq!(flaws(&etcd.layout()), []);
}

#[test]
fn the_older_of_two_leases_of_a_subnet_holds() {
    let mut etcd = Etcd::default();
    etcd.put("config", DUAL).put("subnets/10.5.34.0-24&fc00:0:0:1::-64", &vxlan("172.16.0.5"));
    etcd.put("subnets/10.5.34.0-24&fc00:0:0:2::-64", &vxlan("172.16.0.6"));
    assert_eq!(
        owners(&etcd.layout()),
        "10.5.34.0/24 172.16.0.5, fc00:0:0:1::/64 172.16.0.5, fc00:0:0:2::/64 172.16.0.6"
    );
    assert_flaw(&etcd.layout(), "subnets/10.5.34.0-24&fc00:0:0:2::-64", &["172.16.0.5", "172.16.0.6"]);
    let before = etcd.clone();
    etcd.delete("subnets/10.5.34.0-24&fc00:0:0:1::-64");
    let told = etcd.told_since(&before);
    assert!(
        told.iter().any(|told| matches!(told, Told::Flaw { cause: None, .. }))
            && told
                .iter()
                .any(|told| matches!(told, Told::Put(entry) if entry.record.key().to_string() == "block/10.5.34.0/24")),
        "{told:?}"
    );
    // Two leases of one node are no clash; the newer says what the node is.
    etcd.put("subnets/10.5.34.0-24", &lease("172.16.0.6", "vxlan", ""));
    assert_eq!((nodes(&etcd.layout()).as_str(), flaws(&etcd.layout())), ("172.16.0.6 0", vec![]));
}

#[test]
fn what_is_malformed_or_does_not_fit_is_named_and_hides_nothing_else() {
    let good = "subnets/10.5.1.0-24";
    let own = |record: &Record| serde_json::to_string(record).expect("JSON");
    for (place, value, says) in [
        ("subnets/10.5.34.0", vxlan("172.16.0.5"), "no length"),
        ("subnets/10.5.34.1-24", vxlan("172.16.0.5"), "10.5.34.0/24 was probably meant"),
        ("subnets/10.5.34.0-25", vxlan("172.16.0.5"), "/24"),
        ("subnets/10.9.34.0-24", vxlan("172.16.0.5"), "10.5.0.0/16"),
        ("subnets/10.5.34.0-24", "{".to_owned(), "JSON"),
        ("subnets/10.5.34.0-24", vxlan("0.0.0.0"), "PublicIP"),
        ("subnets/10.5.34.0-24", lease("172.16.0.5", "host-gw", ""), "host-gw"),
        ("subnets/10.5.34.0-24", lease("172.16.0.5", "wireguard", ""), "wireguard"),
        ("subnets/10.5.34.0-24", lease("172.16.0.5", "vxlan", r#","BackendData":{"VNI":1}"#), "BackendData"),
        ("loden/node/UPPER", "{}".to_owned(), "UPPER"),
        ("loden/node/a", own(&Record::Node(node("b", "172.16.0.5"))), "node/b"),
        ("loden/lease/a", "[]".to_owned(), "missing field"),
        ("loden/block/10.5.34.0-024", own(&Record::Block(block("10.5.34.0/24", "a"))), "prefix"),
        ("loden/block/10.9.34.0-24", own(&Record::Block(block("10.9.34.0/24", "a"))), "10.5.0.0/16"),
        ("loden/block/10.5.34.0-25", own(&Record::Block(block("10.5.34.0/25", "a"))), "/24"),
    ] {
        let mut etcd = Etcd::default();
        etcd.put("config", V4).put(good, &vxlan("172.16.0.1")).put(place, &value);
        let layout = etcd.layout();
        assert_flaw(&layout, place, &[says]);
        assert!(owners(&layout).contains("10.5.1.0/24 172.16.0.1"), "{place}");
    }
    // Of another backend: it is not reached, but has its block.
    let mut etcd = Etcd::default();
    etcd.put("config", V4).put("subnets/10.5.34.0-24", &lease("172.16.0.5", "ipip", ""));
    assert_eq!(owners(&etcd.layout()), "10.5.34.0/24 172.16.0.5");
    assert_eq!(nodes(&etcd.layout()), "172.16.0.5 0");
    // Unreadable: whose it is cannot be said, but it is not free.
    etcd.put("subnets/10.5.34.0-24", "?");
    assert_eq!(etcd.layout().leases_of("10.5.34.0/24".parse().expect("a prefix")).count(), 1);
}

#[test]
fn a_broken_configuration_takes_nothing_away() {
    let mut etcd = Etcd::default();
    etcd.put("config", V4).put("subnets/10.5.34.0-24", &vxlan("172.16.0.5"));
    for broken in [Some("{"), Some(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#), None] {
        let before = etcd.clone();
        match broken {
            Some(text) => etcd.put("config", text),
            None => etcd.delete("config"),
        };
        let told = etcd.told_since(&before);
        let place = format!("{PREFIX}/config");
        assert!(matches!(&told[..], [Told::Flaw { place: at, cause: Some(_) }] if *at == place), "{told:?}");
        assert!(etcd.layout().conf().is_err(), "a listing is to be refused");
        let mut layout = before.layout();
        layout.apply(etcd.events[before.events.len()..].iter().cloned());
        // What comes and goes meanwhile is told when it can be read again.
        etcd = before;
        let mut later = etcd.clone();
        later.revision += 10;
        later.delete("subnets/10.5.34.0-24").put("subnets/10.5.35.0-24", &vxlan("172.16.0.6"));
        assert_eq!(layout.apply(later.events[etcd.events.len()..].iter().cloned()), []);
        let events = later.events.len();
        later.put("config", V4);
        let told = layout.apply(later.events[events..].iter().cloned());
        let deleted = |key: &str| told.iter().any(|told| matches!(told, Told::Delete(at) if at.to_string() == key));
        assert!(deleted("node/172.16.0.5") && deleted("block/10.5.34.0/24"), "{told:?}");
        assert_eq!(owners(&layout), "10.5.35.0/24 172.16.0.6");
    }
}

#[test]
fn what_flannel_sees_of_a_node_of_lodens() {
    let pools = |conf: &str| NetConf::parse(conf.as_bytes(), true).expect("a configuration").pools;
    let mut worker = node("worker-1", "172.16.0.5");
    let blocks = ["10.5.35.0/24", "10.5.34.0/24", "fc00:0:0:7::/64"].map(|cidr| block(cidr, "worker-1"));
    let keys = |worker: &Node, conf: &str| -> Vec<(String, String)> {
        mirror(worker, &blocks, &pools(conf)).into_iter().collect()
    };
    let silent = r#"{"PublicIP":"172.16.0.5","PublicIPv6":null}"#.to_owned();
    assert_eq!(
        keys(&worker, V4),
        [("subnets/10.5.34.0-24".to_owned(), silent.clone()), ("subnets/10.5.35.0-24".to_owned(), silent.clone())],
        "no backend before it takes anything in"
    );
    assert_eq!(keys(&worker, DUAL), [("subnets/10.5.34.0-24&fc00:0:0:7::-64".to_owned(), silent)], "pairs only");
    let receive = |port: u16| Receive::Vxlan {
        vni: loden_core::model::Vni::new(1).expect("a VNI"),
        underlay: loden_core::model::Family::V4,
        mac: "02:00:00:00:00:01".parse().expect("a MAC"),
        port,
        bridged: false,
    };
    worker.receives = vec![receive(8472)];
    assert_eq!(keys(&worker, V4)[0].1, vxlan("172.16.0.5"));
    assert!(!keys(&worker, DUAL)[0].1.contains("vxlan"), "the pool's port is another one");
    assert_eq!(mirror(&node("other", "172.16.0.6"), &blocks, &pools(V4)), BTreeMap::new());
    // What is mirrored is nothing but a twin to whoever reads it.
    let mut etcd = Etcd::default();
    etcd.put("config", DUAL).put_own(Record::Node(worker.clone()));
    for block in &blocks {
        etcd.put_own(Record::Block(block.clone()));
    }
    for (key, value) in mirror(&worker, &blocks, &pools(DUAL)) {
        etcd.put(&key, &value);
    }
    assert_eq!(flaws(&etcd.layout()), []);
    assert_eq!(nodes(&etcd.layout()), "worker-1 1");
}

/// One write.
#[derive(Debug, Clone)]
enum Write {
    Put(String, String),
    Delete(String),
}

fn any_write() -> impl Strategy<Value = Write> {
    let v4 = prop::sample::select(vec!["10.5.1.0-24", "10.5.2.0-24", "10.5.2.128-25", "10.9.0.0-24"]);
    let v6 = prop::sample::select(vec!["", "&fc00:0:0:1::-64", "&fc00:0:0:2::-64"]);
    let ip = prop::sample::select(vec!["172.16.0.1", "172.16.0.2", "172.16.0.3", "0.0.0.0"]);
    let kind = prop::sample::select(vec!["vxlan", "vxlan", "host-gw", ""]);
    let lease = (v4.clone(), v6.clone(), ip.clone(), kind)
        .prop_map(|(v4, v6, ip, kind)| Write::Put(format!("subnets/{v4}{v6}"), lease(ip, kind, "")));
    let name = prop::sample::select(vec!["a", "b", "172.16.0.1"]);
    let own_node = (name.clone(), ip).prop_map(|(name, ip)| Record::Node(node(name, ip)));
    let cidr =
        prop::sample::select(vec!["10.5.1.0/24", "10.5.2.0/24", "10.5.2.128/25", "fc00:0:0:1::/64", "10.9.0.0/24"]);
    let own_block = (cidr.clone(), name.clone()).prop_map(|(cidr, name)| Record::Block(block(cidr, name)));
    let own_lease = name.clone().prop_map(|name| {
        let uid = "u".parse().expect("an identity");
        Record::Lease(Lease { node: name.parse().expect("a name"), uid, instance: "1".to_owned() })
    });
    let own = prop_oneof![own_node, own_block, own_lease]
        .prop_map(|record| Write::Put(Layout::path(&record.key()), serde_json::to_string(&record).expect("JSON")));
    let config = prop::sample::select(vec![V4, DUAL, DUAL, HOST_GW, "{"])
        .prop_map(|text| Write::Put("config".to_owned(), text.to_owned()));
    let key = prop_oneof![
        (v4, v6).prop_map(|(v4, v6)| format!("subnets/{v4}{v6}")),
        name.prop_map(|name| format!("loden/node/{name}")),
        cidr.prop_map(|cidr| format!("loden/block/{}", cidr.replace('/', "-"))),
        prop::sample::select(vec!["config", "loden/block/x", "loden/other", "subnets/x"]).prop_map(str::to_owned),
    ];
    let junk = key.clone().prop_map(|key| Write::Put(key, "junk".to_owned()));
    prop_oneof![6 => lease, 5 => own, 1 => config, 1 => junk, 4 => key.prop_map(Write::Delete)]
}

/// What one who is told has.
#[derive(Debug, Default)]
struct Listener {
    entries: BTreeMap<Key, Entry>,
    flaws: BTreeMap<String, String>,
}

impl Listener {
    fn hear(&mut self, told: Vec<Told>) {
        for told in told {
            match told {
                Told::Put(entry) => drop(self.entries.insert(entry.record.key(), entry)),
                Told::Delete(key) => assert!(self.entries.remove(&key).is_some(), "{key} is removed, and is not there"),
                Told::Flaw { place, cause: Some(cause) } => drop(self.flaws.insert(place, cause)),
                Told::Flaw { place, cause: None } => assert!(self.flaws.remove(&place).is_some(), "{place} was right"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_order_of_events_is_nothing(
        writes in prop::collection::vec(any_write(), 1..60),
        begins_well in any::<bool>(),
        again in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..60),
    ) {
        let mut etcd = Etcd::default();
        etcd.put(if begins_well { "config" } else { "loden/other" }, DUAL);
        for write in &writes {
            match write {
                Write::Put(key, value) => etcd.put(key, value),
                Write::Delete(key) => etcd.delete(key),
            };
        }
        let at_once = etcd.layout();
        let listed = |layout: &Layout| (layout.entries().cloned().collect::<Vec<_>>(), layout.flaws());

        // One by one, with repetitions.
        let mut layout = Layout::new(PREFIX, true);
        let mut listener = Listener { flaws: layout.flaws(), ..Listener::default() };
        for (n, event) in etcd.events.iter().enumerate() {
            let late = again.get(n).filter(|_| n > 0).map(|(early, _)| etcd.events[early.index(n)].clone());
            listener.hear(layout.apply([event.clone()]));
            prop_assert_eq!(layout.apply(late), []);
        }
        prop_assert_eq!(listed(&layout), listed(&at_once));
        prop_assert_eq!(&listener.flaws, &layout.flaws());
        // Who is told has the same, and besides only what cannot be decided.
        for entry in layout.entries() {
            prop_assert_eq!(listener.entries.get(&entry.record.key()), Some(entry));
        }
        for key in listener.entries.keys().filter(|key| layout.entry(key).is_none()) {
            let is_unreadable = layout.flaws().contains_key(&format!("{PREFIX}/{}", Layout::path(key)));
            prop_assert!(layout.conf().is_err() || is_unreadable, "{} was kept", key);
        }

        // In any order, and in portions.
        let mut shuffled = etcd.events.clone();
        for (a, b) in &again {
            let (a, b) = (a.index(shuffled.len()), b.index(shuffled.len()));
            shuffled.swap(a, b);
        }
        let mut layout = Layout::new(PREFIX, true);
        for events in shuffled.chunks(3) {
            layout.apply(events.iter().cloned());
        }
        prop_assert_eq!(listed(&layout), listed(&at_once));
    }
}

#[test]
fn keys_stand_where_they_are_looked_for() {
    for (key, path) in [
        (Key::Block("10.5.34.0/24".parse().expect("a prefix")), "loden/block/10.5.34.0-24"),
        (Key::Block("fc00:0:0:1::/64".parse().expect("a prefix")), "loden/block/fc00:0:0:1::-64"),
        (Key::Node("a.b".parse().expect("a name")), "loden/node/a.b"),
        (Key::Pool("flannel".parse().expect("a name")), "config"),
    ] {
        assert_eq!(Layout::path(&key), path);
    }
    let key: SubnetKey = "10.5.34.0-24".parse().expect("a key");
    assert_eq!(key.prefixes().count(), 1);
}
