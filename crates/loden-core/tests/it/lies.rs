//! Records that contradict each other: blocks that overlap, nodes at one address. One is in force, whatever came first.

use loden_core::config::cluster::parse_pools;
use loden_core::model::{Block, Entry, Key, Lease, Node, PerFamily, Record};
use loden_core::underlay::Underlay;
use loden_core::view::{Local, View};
use serde_json::json;

use crate::picture;

fn view() -> View {
    let mut view = View::new(Local {
        node: "a".parse().expect("name"),
        uid: "uid-a".parse().expect("identity"),
        labels: Default::default(),
        bridge: "cni0".parse().expect("name"),
        found: Default::default(),
        rules: Default::default(),
        abilities: Default::default(),
        underlay: Some(Underlay {
            ifname: "eth0".parse().expect("name"),
            mtu: 1500,
            addresses: PerFamily { v4: Some([192, 0, 2, 1].into()), v6: None },
            onlink: vec!["192.0.2.0/24".parse().expect("prefix")],
        }),
    });
    let pools = json!({ "pool": [{ "name": "p", "cidr": "10.0.0.0/16", "backend": { "type": "host-gw" } }] });
    for pool in parse_pools(pools).expect("a pool") {
        view.put(&Entry { record: Record::Pool(pool), created: 1, revision: 1 });
    }
    view
}

fn block(cidr: &str, owner: &str, created: u64) -> Entry {
    let (pool, name, uid) = ("p".parse().expect("name"), owner.parse().expect("name"), format!("uid-{owner}"));
    let block =
        Block { cidr: cidr.parse().expect("prefix"), pool, owner: name, owner_uid: uid.parse().expect("identity") };
    Entry { record: Record::Block(block), created, revision: created }
}

fn node(name: &str, addr: [u8; 4], created: u64) -> Entry {
    let value = json!({ "name": name, "uid": format!("uid-{name}"), "underlay": { "v4": std::net::IpAddr::from(addr) },
        "receives": [{ "type": "host-gw" }] });
    let node: Node = serde_json::from_value(value).expect("a node");
    Entry { record: Record::Node(node), created, revision: created }
}

fn lease(name: &str) -> Entry {
    let (node, uid) = (name.parse().expect("name"), format!("uid-{name}").parse().expect("identity"));
    let lease = Lease { node, uid, instance: "now".to_owned() };
    Entry { record: Record::Lease(lease), created: 1, revision: 1 }
}

fn in_force(view: &View) -> Vec<String> {
    let all = view.blocks.values().flatten();
    let mut all: Vec<_> = all.map(|block| format!("{} {}", block.cidr, block.owner)).collect();
    all.sort();
    all
}

/// Every order of some entries.
fn orders(entries: &[Entry]) -> Vec<Vec<Entry>> {
    if entries.is_empty() {
        return vec![Vec::new()];
    }
    let rest = |n: usize| entries.iter().enumerate().filter(move |(m, _)| *m != n).map(|(_, entry)| entry.clone());
    let with = |n: usize| {
        let behind = orders(&rest(n).collect::<Vec<_>>());
        behind.into_iter().map(move |behind| [vec![entries[n].clone()], behind].concat())
    };
    (0..entries.len()).flat_map(with).collect()
}

#[test]
fn of_blocks_that_overlap_the_one_that_was_recorded_first_is_in_force() {
    let entries = [
        block("10.0.0.0/24", "b", 5),
        block("10.0.0.64/26", "c", 3),
        block("10.0.0.128/26", "d", 7),
        block("10.0.1.0/24", "d", 9),
        block("10.0.0.0/22", "e", 8),
    ];
    for order in orders(&entries) {
        let mut view = view();
        order.iter().for_each(|entry| drop(view.put(entry)));
        // The first is refused because of the second, so that it stands in nobody's way.
        assert_eq!(in_force(&view), ["10.0.0.128/26 d", "10.0.0.64/26 c", "10.0.1.0/24 d"], "{order:#?}");
        let problems: Vec<_> = view.problems().map(ToString::to_string).collect();
        let tail = "recorded before: it is not in force. Remove the record of the one that is wrong";
        assert_eq!(problems.len(), 2, "{problems:#?}");
        assert_eq!(
            problems[1],
            format!(
                "block 10.0.0.0/24: node b has recorded it, and it overlaps 10.0.0.64/26 of node c, which was {tail}"
            )
        );
        view.delete(&Key::Block("10.0.0.64/26".parse().expect("prefix")));
        assert_eq!(in_force(&view), ["10.0.0.0/24 b", "10.0.1.0/24 d"], "{order:#?}");
        view.delete(&Key::Block("10.0.0.0/22".parse().expect("prefix")));
        assert_eq!(in_force(&view), ["10.0.0.0/24 b", "10.0.1.0/24 d"]);
        view.delete(&Key::Block("10.0.0.0/24".parse().expect("prefix")));
        assert_eq!(in_force(&view), ["10.0.0.128/26 d", "10.0.1.0/24 d"]);
        assert_eq!(view.problems().count(), 0);
    }
}

#[test]
fn a_block_that_overlaps_ours_has_no_objects_and_one_that_was_before_ours_ends_it() {
    let mut view = view();
    view.put(&block("10.0.5.0/24", "a", 5));
    view.put(&node("b", [192, 0, 2, 2], 1));
    let changed = view.put(&block("10.0.5.128/25", "b", 6));
    assert!(changed.is_empty(), "{changed:?}");
    assert_eq!(in_force(&view), ["10.0.5.0/24 a"]);
    let changed = view.put(&block("10.0.4.0/23", "b", 4));
    assert_eq!(changed.sources.len(), 2, "{changed:?}");
    assert_eq!(in_force(&view), ["10.0.4.0/23 b"]);
    assert_eq!(view.refused_blocks().map(|block| block.owner.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

/// Which peers have objects, and why others have none.
fn reached(view: &View) -> (Vec<String>, Vec<String>) {
    let desired = picture::desired(view);
    let has_route = |name: &&str| {
        let source = loden_core::desired::Source::Peer(name.parse().expect("name"));
        !desired.keys_of(&source).is_empty()
    };
    let reached = ["b", "c", "d"].into_iter().filter(has_route).map(str::to_owned).collect();
    (
        reached,
        desired.problems().filter(|problem| problem.subject.starts_with("node ")).map(ToString::to_string).collect(),
    )
}

#[test]
fn of_nodes_at_one_address_one_that_shows_signs_of_life_wins_and_then_the_older() {
    let shared = [192, 0, 2, 9];
    let blocks =
        [("10.0.1.0/24", "b"), ("10.0.2.0/24", "c"), ("10.0.3.0/24", "d")].map(|(cidr, owner)| block(cidr, owner, 1));
    let nodes = [node("b", shared, 7), node("c", shared, 5), node("d", [192, 0, 2, 4], 6)];
    for (alive, winner, because) in [
        (&[][..], "c", "was recorded before"),
        (&["b"], "b", "shows signs of life"),
        (&["c"], "c", "shows signs of life"),
        (&["b", "c"], "c", "was recorded before"),
        (&["d"], "c", "was recorded before"),
    ] {
        let leases: Vec<Entry> = alive.iter().map(|name| lease(name)).collect();
        for order in orders(&[nodes.to_vec(), leases].concat()) {
            let mut view = view();
            blocks.iter().chain(&order).for_each(|entry| drop(view.put(entry)));
            let (reached, problems) = reached(&view);
            assert_eq!(reached, [winner, "d"], "{alive:?} {order:#?}");
            let loser = if winner == "b" { "c" } else { "b" };
            let text =
                format!("node {loser}: it is said to be at 192.0.2.9, where node {winner} is too, which {because}: ");
            assert!(problems.len() == 1 && problems[0].starts_with(&text), "{problems:?}");
        }
    }
    // It passes on with signs of life and with the record, and nobody else is thought over.
    let mut view = view();
    blocks.iter().chain(&nodes).for_each(|entry| drop(view.put(entry)));
    let changed = view.put(&lease("b"));
    assert_eq!(changed.sources.len(), 2);
    assert_eq!(reached(&view).0, ["b", "d"]);
    assert!(view.put(&lease("d")).is_empty());
    view.delete(&Key::Lease("b".parse().expect("name")));
    assert_eq!(reached(&view).0, ["c", "d"]);
    view.delete(&Key::Node("c".parse().expect("name")));
    assert_eq!(reached(&view).0, ["b", "d"]);
    view.put(&node("c", [192, 0, 2, 3], 5));
    assert_eq!(reached(&view), (["b", "c", "d"].map(str::to_owned).to_vec(), Vec::new()));
}

/// A host of flannel's that changes hands: loden's node is there before it has the blocks.
#[test]
fn a_node_of_flannels_and_one_of_lodens_at_one_address_are_one_host() {
    let mut flannels = node("b", [192, 0, 2, 9], 1);
    let Record::Node(record) = &mut flannels.record else { panic!("a node") };
    record.uid = "flannel".parse().expect("identity");
    let mut theirs = block("10.0.1.0/24", "b", 1);
    let Record::Block(record) = &mut theirs.record else { panic!("a block") };
    record.owner_uid = "flannel".parse().expect("identity");
    let records = [flannels, theirs, node("c", [192, 0, 2, 9], 2), lease("c")];
    for order in orders(&records) {
        let mut view = view();
        order.iter().for_each(|entry| drop(view.put(entry)));
        assert_eq!(reached(&view), (vec!["b".to_owned()], Vec::new()), "{order:#?}");
        // What leads to the block stays as it is when it changes hands.
        let keys = |view: &View| {
            let desired = picture::desired(view);
            desired.map().all_desired().map(|(key, _)| *key).collect::<std::collections::BTreeSet<_>>()
        };
        let before = keys(&view);
        view.put(&block("10.0.1.0/24", "c", 3));
        assert_eq!(reached(&view), (vec!["c".to_owned()], Vec::new()));
        assert_eq!(keys(&view), before);
    }
}

#[test]
fn our_own_address_is_ours() {
    let mut view = view();
    view.put(&block("10.0.1.0/24", "b", 1));
    view.put(&node("b", [192, 0, 2, 1], 1));
    view.put(&lease("b"));
    let (there, problems) = reached(&view);
    assert!(
        there.is_empty() && problems[0].contains("192.0.2.1, where node a is too, which is this host"),
        "{problems:?}"
    );
    // Another address is given to this host: it is the peer's.
    let mut local = view.local.clone();
    if let Some(underlay) = &mut local.underlay {
        underlay.addresses.v4 = Some([192, 0, 2, 100].into());
    }
    view.set_local(local);
    assert_eq!(reached(&view).0, ["b"]);
}
