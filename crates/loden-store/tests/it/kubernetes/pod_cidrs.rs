//! flannel's way: blocks are the nodes' podCIDRs, and nodes speak by annotations.

use loden_core::model::{Block, Lease, Record};
use loden_store::{Expect, Readiness, Store, StoreError};
use serde_json::json;

use super::*;

async fn bench() -> Bench {
    Bench::new(Role::shipped("loden-net-conf")).await
}

fn block(cidr: &str, owner: &str, uid: &str) -> Record {
    let pool = if cidr.contains(':') { "flannel-v6" } else { "flannel" };
    Record::Block(Block {
        cidr: prefix(cidr),
        pool: pool.parse().expect("a name"),
        owner: name(owner),
        owner_uid: uid.parse().expect("an identity"),
    })
}

#[tokio::test]
async fn a_node_says_what_it_is_in_both_languages() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24", "2001:db8:f000:1::/64"]).await;
    let (store, other) = (bench.on_pod_cidrs().await, bench.on_pod_cidrs().await);
    let node = node_record("suite-a", "uid-a", 1);
    let made = store.put(Record::Node(node.clone()), Expect::Absent, None).await.expect("written");
    assert_eq!(made.record, Record::Node(node.clone()));

    let listing = other.list().await.expect("lists");
    assert_eq!(find(&listing, &node_key("suite-a")).map(|entry| entry.record), Some(Record::Node(node.clone())));
    for cidr in ["198.18.1.0/24", "2001:db8:f000:1::/64"] {
        let entry = find(&listing, &block_key(cidr)).expect(cidr);
        assert_eq!(entry.record, block(cidr, "suite-a", "uid-a"));
    }
    let annotations = bench.annotations("suite-a").await;
    for (key, value) in flannels(1).as_object().expect("annotations") {
        assert_eq!(annotations.get(key).map(String::as_str), value.as_str(), "{key}");
    }

    let before = bench.api("Node").get("suite-a").await.expect("there").metadata.resource_version;
    let again = store.put(Record::Node(node), Expect::Any, None).await.expect("written");
    assert_eq!(again, made, "the same record has the same revision");
    assert_eq!(bench.api("Node").get("suite-a").await.expect("there").metadata.resource_version, before);

    store.delete(&node_key("suite-a"), Expect::Revision(made.revision)).await.expect("removed");
    assert!(store.get(&node_key("suite-a")).await.expect("readable").is_none());
    assert!(
        bench.annotations("suite-a").await.keys().all(|key| !key.starts_with("flannel") && !key.starts_with("loden"))
    );
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn a_kubelets_beats_are_no_changes_of_the_record() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    let store = bench.on_pod_cidrs().await;
    let made =
        store.put(Record::Node(node_record("suite-a", "uid-a", 1)), Expect::Absent, None).await.expect("written");
    let mut follower = Follower::new(&store).await;
    for n in 1..20 {
        bench.beat("suite-a", n).await;
    }
    let changed =
        store.put(Record::Node(node_record("suite-a", "uid-a", 2)), Expect::Revision(made.revision), None).await;
    let changed = changed.expect("the record is at the revision that was expected, whatever the kubelet wrote");
    assert!(changed.revision > made.revision);
    let stale =
        store.put(Record::Node(node_record("suite-a", "uid-a", 3)), Expect::Revision(made.revision), None).await;
    let Err(StoreError::Conflict { found: Some(found), .. }) = stale else { panic!("a conflict: {stale:?}") };
    assert_eq!(*found, changed);
    follower
        .until("the change", |it| {
            it.node("suite-a").is_some_and(|node| node.receives == node_record("suite-a", "uid-a", 2).receives)
        })
        .await;
    assert_eq!(follower.changes.len(), 1, "{:?}", follower.changes);
    assert_eq!(follower.changes[0].revision(), changed.revision);
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn writers_do_not_undo_each_others_work() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    let store = Arc::new(bench.on_pod_cidrs().await);
    let mut tasks = Vec::new();
    for n in 1..=6 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            store.put(Record::Node(node_record("suite-a", &format!("uid-{n}"), n)), Expect::Absent, None).await
        }));
        bench.beat("suite-a", n.into()).await;
    }
    let mut won = Vec::new();
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(entry) => won.push(entry),
            Err(StoreError::Conflict { found: Some(_), .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(store.get(&node_key("suite-a")).await.expect("readable").as_ref(), won.first());
}

#[tokio::test]
async fn a_flanneld_is_a_node_like_another() {
    let bench = Bench::new(Role::flannels()).await;
    bench.node("suite-early", &["198.18.1.0/24"]).await;
    bench.annotate("suite-early", flannels(1)).await;
    bench.node("suite-silent", &["198.18.9.0/24"]).await;
    let store = bench.on_pod_cidrs().await;
    let mut follower = Follower::new(&store).await;
    let early = bench.api("Node").get("suite-early").await.expect("there").metadata.uid.expect("a uid");
    assert_eq!(follower.owner("198.18.1.0/24"), Some(("suite-early".to_owned(), early)));
    assert!(follower.node("suite-silent").is_none(), "a node that nobody serves is none");

    let late = bench.node("suite-late", &["198.18.2.0/24"]).await.metadata.uid.expect("a uid");
    bench.annotate("suite-late", flannels(2)).await;
    follower.until("the late one", |it| it.owner("198.18.2.0/24").is_some()).await;
    assert_eq!(follower.owner("198.18.2.0/24"), Some(("suite-late".to_owned(), late)));
    let node = follower.node("suite-late").expect("a node");
    assert_eq!(node.receives, node_record("suite-late", "u", 2).receives);
    assert_eq!(node.underlay, node_record("suite-late", "u", 2).underlay);

    bench.annotate("suite-late", flannels(7)).await;
    follower
        .until("its new VTEP", |it| {
            it.node("suite-late").is_some_and(|node| node.receives == node_record("x", "u", 7).receives)
        })
        .await;
    bench.beat("suite-early", 9).await;
    bench.remove("Node", "suite-late").await;
    follower.until("its end", |it| it.node("suite-late").is_none() && it.owner("198.18.2.0/24").is_none()).await;
    if let Some(double) = &bench.double {
        let mut whole = double.log().whole.clone();
        whole.sort();
        assert_eq!(whole, ["nodes/suite-early", "nodes/suite-late"], "each is read whole once");
    }
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn an_operators_words_are_read_and_never_written() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    bench
        .annotate(
            "suite-a",
            json!({
                "flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.7",
                "flannel.alpha.coreos.com/node-public-ip": "192.0.2.99",
            }),
        )
        .await;
    let store = bench.on_pod_cidrs().await;
    let made =
        store.put(Record::Node(node_record("suite-a", "uid-a", 1)), Expect::Absent, None).await.expect("written");
    let Record::Node(node) = &made.record else { panic!("a node") };
    assert_eq!(node.public.v4, Some([203, 0, 113, 7].into()));
    assert_eq!(node.asked.v4, Some([192, 0, 2, 99].into()));
    let again = store.put(made.record.clone(), Expect::Revision(made.revision), None).await.expect("written");
    assert_eq!(again, made, "what was read can be written as it is");
    let json = &bench.annotations("suite-a").await["loden.dev/node"];
    assert!(!json.contains("203.0.113.7") && !json.contains("192.0.2.99"), "{json}");

    let mut follower = Follower::new(&store).await;
    bench.annotate("suite-a", json!({"flannel.alpha.coreos.com/public-ip-overwrite": null})).await;
    follower.until("the overwrite is gone", |it| it.node("suite-a").is_some_and(|node| node.public.is_empty())).await;
    bench.annotate("suite-a", json!({"flannel.alpha.coreos.com/public-ip-overwrite": "nonsense"})).await;
    follower.until("the flaw", |it| it.flaws.contains_key("node/suite-a")).await;
    assert!(follower.flaws["node/suite-a"].contains("public-ip-overwrite"), "{:?}", follower.flaws);
}

#[tokio::test]
async fn of_two_nodes_with_one_pod_cidr_the_older_has_it() {
    let bench = bench().await;
    for (name, n, cidr) in
        [("suite-old", 1, "198.18.1.0/24"), ("suite-young", 2, "198.18.1.0/24"), ("suite-wide", 3, "198.18.0.0/22")]
    {
        bench.node(name, &[cidr]).await;
        bench.annotate(name, flannels(n)).await;
    }
    let (store, other) = (bench.on_pod_cidrs().await, bench.on_pod_cidrs().await);
    let mut follower = Follower::new(&store).await;
    assert_eq!(follower.owner("198.18.1.0/24").map(|it| it.0), Some("suite-old".to_owned()));
    assert_eq!(follower.owner("198.18.0.0/22"), None);
    let young = &follower.flaws["node/suite-young podCIDR 198.18.1.0/24"];
    assert!(young.contains("suite-young") && young.contains("suite-old"), "{young}");
    let wide = &follower.flaws["node/suite-wide podCIDR 198.18.0.0/22"];
    assert!(wide.contains("suite-old") && wide.contains("overlaps"), "{wide}");
    assert!(follower.node("suite-young").is_some(), "the node itself is as good as before");

    bench.remove("Node", "suite-old").await;
    follower.until("the next one has it", |it| it.owner("198.18.1.0/24").is_some_and(|it| it.0 == "suite-young")).await;
    follower.until("its flaw is over", |it| !it.flaws.contains_key("node/suite-young podCIDR 198.18.1.0/24")).await;
    follower
        .until("the other is another's now", |it| {
            it.flaws["node/suite-wide podCIDR 198.18.0.0/22"].contains("suite-young")
        })
        .await;
    assert_eq!(follower.picture(), Follower::new(&other).await.picture(), "a new listing says the same");
    bench.remove("Node", "suite-young").await;
    follower.until("the last one has all", |it| it.owner("198.18.0.0/22").is_some() && it.flaws.is_empty()).await;
}

#[tokio::test]
async fn what_cannot_be_read_hides_nothing_else() {
    let bench = bench().await;
    for (name, cidr) in [("suite-a", "198.18.1.0/24"), ("suite-b", "198.18.2.0/24"), ("suite-far", "203.0.113.0/24")] {
        bench.node(name, &[cidr]).await;
    }
    let store = bench.on_pod_cidrs().await;
    for (name, n) in [("suite-a", 1), ("suite-b", 2), ("suite-far", 3)] {
        store
            .put(Record::Node(node_record(name, &format!("uid-{n}"), n)), Expect::Absent, None)
            .await
            .expect("written");
    }
    let mut follower = Follower::new(&store).await;
    let far = &follower.flaws["node/suite-far podCIDR 203.0.113.0/24"];
    assert!(far.contains("198.18.0.0/16") && far.contains("--cluster-cidr"), "{far}");

    let good = bench.annotations("suite-b").await["loden.dev/node"].clone();
    bench.annotate("suite-b", json!({"loden.dev/node": "{\"uid\":"})).await;
    follower.until("the flaw", |it| it.flaws.contains_key("node/suite-b") && it.owner("198.18.2.0/24").is_none()).await;
    assert!(follower.node("suite-b").is_none());
    assert!(follower.node("suite-a").is_some() && follower.owner("198.18.1.0/24").is_some());
    bench.annotate("suite-b", json!({"loden.dev/node": good})).await;
    follower
        .until("it is mended", |it| it.owner("198.18.2.0/24").is_some() && !it.flaws.contains_key("node/suite-b"))
        .await;

    // A backend that is not the network's: the node is there, and takes nothing in.
    bench.node("suite-wg", &["198.18.3.0/24"]).await;
    let mut wireguard = flannels(4);
    wireguard["flannel.alpha.coreos.com/backend-type"] = "wireguard".into();
    wireguard["flannel.alpha.coreos.com/backend-data"] = r#"{"PublicKey":"x","Port":51820}"#.into();
    bench.annotate("suite-wg", wireguard).await;
    follower.until("it is named", |it| it.flaws.contains_key("node/suite-wg annotations")).await;
    assert!(follower.flaws["node/suite-wg annotations"].contains("wireguard"), "{:?}", follower.flaws);
    assert!(follower.node("suite-wg").is_some_and(|node| node.receives.is_empty()));
}

#[tokio::test]
async fn a_node_changes_hands_in_place_and_back() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    bench.annotate("suite-a", flannels(1)).await;
    let store = bench.on_pod_cidrs().await;
    let mut follower = Follower::new(&store).await;
    let held = follower.entries[&block_key("198.18.1.0/24")].clone();
    let before = bench.annotations("suite-a").await;

    // lodend starts where flanneld was: the block is fenced by its own identity, and peers of flannel's see nothing of it.
    let taken = store
        .put(block("198.18.1.0/24", "suite-a", "uid-l"), Expect::Revision(held.revision), None)
        .await
        .expect("taken");
    assert_eq!(taken.record, block("198.18.1.0/24", "suite-a", "uid-l"));
    let stale = store.put(block("198.18.1.0/24", "suite-a", "uid-m"), Expect::Revision(held.revision), None).await;
    assert!(matches!(stale, Err(StoreError::Conflict { found: Some(_), .. })), "{stale:?}");
    follower.until("the identity", |it| it.owner("198.18.1.0/24").is_some_and(|it| it.1 == "uid-l")).await;
    let mut now = bench.annotations("suite-a").await;
    now.remove("loden.dev/node").expect("the record");
    assert_eq!(now, before, "flannel's annotations are as they were");
    let node = follower.node("suite-a").expect("a node").clone();
    assert_eq!(node.receives, node_record("suite-a", "u", 1).receives, "its VTEP is still known");
    let again = store.put(block("198.18.1.0/24", "suite-a", "uid-l"), Expect::Any, None).await.expect("the same");
    assert_eq!(again, taken);

    // flanneld is started again: what it writes is newer than the record.
    bench.annotate("suite-a", flannels(9)).await;
    let uid = bench.api("Node").get("suite-a").await.expect("there").metadata.uid.expect("a uid");
    let flannels = Some(("suite-a".to_owned(), uid));
    follower.until("flannel's words", |it| it.owner("198.18.1.0/24") == flannels).await;
    assert_eq!(follower.node("suite-a").expect("a node").receives, node_record("x", "u", 9).receives);
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn blocks_and_pools_are_not_ours_to_give() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    bench.node("suite-bare", &[]).await;
    let store = bench.on_pod_cidrs().await;
    let claim =
        store.put(block("198.18.7.0/24", "suite-a", "uid-a"), Expect::Absent, None).await.expect_err("another's");
    assert!(matches!(claim, StoreError::Refused { .. }) && claim.to_string().contains("198.18.1.0/24"), "{claim}");
    let listing = store.list().await.expect("lists");
    let pool = listing.entries.iter().find(|entry| matches!(entry.record, Record::Pool(_))).expect("a pool").clone();
    let written = store.put(pool.record, Expect::Any, None).await.expect_err("the file's");
    assert!(written.to_string().contains("net-conf.json"), "{written}");
    let bare = store
        .put(Record::Node(node_record("suite-bare", "uid-b", 2)), Expect::Absent, None)
        .await
        .expect_err("no podCIDR");
    assert!(bare.to_string().contains("--allocate-node-cidrs"), "{bare}");
    let none = store
        .put(Record::Node(node_record("suite-none", "uid-n", 3)), Expect::Absent, None)
        .await
        .expect_err("no Node");
    assert!(none.to_string().contains("kubelet"), "{none}");

    let lease =
        Record::Lease(Lease { node: name("suite-a"), uid: "u".parse().expect("a uid"), instance: "1".to_owned() });
    let key = lease.key();
    let held = store.put(lease, Expect::Absent, Some(Duration::from_secs(30))).await.expect("taken");
    store.renew(&key, held.revision, Duration::from_secs(30)).await.expect("renewed");
    assert_eq!(store.get(&key).await.expect("readable"), None);
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn the_condition_is_said_once_and_taken_back() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    let conditions = async || {
        let node = bench.api("Node").get("suite-a").await.expect("there");
        let all = node.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|it| it["type"] == "NetworkUnavailable").collect::<Vec<_>>()
    };
    let ready = Readiness { ready: true, message: "pods are served".to_owned() };
    let down = Readiness { ready: false, message: "the pool is exhausted".to_owned() };
    for (readiness, status, reason) in
        [(&ready, "False", "LodenIsUp"), (&down, "True", "LodenIsDown"), (&ready, "False", "LodenIsUp")]
    {
        let store = bench.on_pod_cidrs().await;
        store.announce(&name("suite-a"), readiness).await.expect("said");
        let found = conditions().await;
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0]["status"], &found[0]["reason"]), (&json!(status), &json!(reason)));
        assert!(found[0]["lastTransitionTime"].is_string(), "{}", found[0]);
        let before = bench.api("Node").get("suite-a").await.expect("there").metadata.resource_version;
        store.announce(&name("suite-a"), readiness).await.expect("said");
        bench.on_pod_cidrs().await.announce(&name("suite-a"), readiness).await.expect("said");
        let after = bench.api("Node").get("suite-a").await.expect("there").metadata.resource_version;
        assert_eq!(before, after, "nothing is written that is so");
    }
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn an_agent_in_a_pod_is_told_which_node_it_is_on() {
    let bench = Bench::of(Double::start(Role::flannels()).await).await;
    let pod = |name: &str, spec: Value| json!({"metadata": {"name": name, "namespace": "kube-flannel"}, "spec": spec});
    bench.double().cluster().create("pods", pod("ds-x", json!({"nodeName": "suite-a"}))).expect("made");
    bench.double().cluster().create("pods", pod("ds-y", json!({}))).expect("made");
    let address = format!("kubernetes:?kubeconfig={}", bench.kubeconfig.display());
    let ask = async |pod: &str| loden_store::node_of_pod(&address, "kube-flannel", pod).await;
    assert_eq!(ask("ds-x").await.expect("told"), name("suite-a"));
    for (pod, says) in [("ds-y", "ds-y"), ("ds-z", "404")] {
        let text = ask(pod).await.expect_err(pod).to_string();
        assert!(text.contains(says), "{text}");
    }
    bench.asked_for_nothing_else();
}
