//! What a node costs in bytes of the API: its metadata against the whole object, which flannel lists and watches.

use loden_core::model::Record;
use loden_store::{Expect, Store};
use loden_testkit::kubernetes::file;

use super::*;

#[tokio::test]
async fn a_node_costs_a_fifth_of_its_object() {
    let bench = Bench::of(Double::start(Role::shipped("loden-net-conf")).await).await;
    let whole: Value = serde_json::from_str(&file("fixtures/kubernetes/node.json")).expect("JSON");
    bench.make("Node", whole).await;
    let store = bench.on_pod_cidrs().await;
    store.put(Record::Node(node_record("suite-a", "uid-a", 1)), Expect::Absent, None).await.expect("written");
    bench.double().log().bytes.clear();
    let mut follower = Follower::new(&store).await;
    bench.beat("suite-a", 1).await;
    bench.annotate("suite-a", flannels(3)).await;
    follower
        .until("the change", |it| {
            it.node("suite-a").is_some_and(|node| node.receives == node_record("x", "u", 3).receives)
        })
        .await;
    let object = bench.double().cluster().get("nodes", "suite-a").expect("there").to_string().len();
    let (listed, watched) = {
        let log = bench.double().log();
        (log.bytes["list nodes"], log.bytes["watch nodes"] / 2)
    };
    let text = format!("a node whole: {object} bytes; its part of a list: {listed}, a change in a watch: {watched}\n");
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).expect("stderr");
    assert!(listed * 5 <= object && watched * 5 <= object, "{text}");
}
