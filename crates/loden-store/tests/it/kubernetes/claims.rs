//! loden's own way: pools are objects, and blocks are claimed by making some.

use kube::api::{Patch, PatchParams};
use loden_core::model::{Block, Record};
use loden_store::{Expect, Store, StoreError};
use serde_json::json;

use super::*;

async fn bench() -> Bench {
    let bench = Bench::new(Role::shipped("loden")).await;
    for n in 0..4 {
        bench.node(&format!("suite-n{n}"), &[]).await;
    }
    bench
}

fn claim(cidr: &str, n: usize) -> Record {
    Record::Block(Block {
        cidr: prefix(cidr),
        pool: "suite-pool".parse().expect("a name"),
        owner: name(&format!("suite-n{n}")),
        owner_uid: format!("u{n}").parse().expect("an identity"),
    })
}

fn pool(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "loden.dev/v1alpha1", "kind": "Pool", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn one_of_many_claims_wins() {
    let bench = bench().await;
    let handles = [shared(bench.on_pools().await), shared(bench.on_pools().await), shared(bench.on_pools().await)];
    for round in 0..5 {
        let cidr = format!("198.18.{round}.0/24");
        let mut tasks = Vec::new();
        for (n, store) in handles.iter().cycle().take(8).cloned().enumerate() {
            let record = claim(&cidr, n % 4);
            tasks.push(tokio::spawn(async move { store.put(record, Expect::Absent, None).await }));
        }
        let (mut won, mut told) = (Vec::new(), Vec::new());
        for task in tasks {
            match task.await.expect("no panic") {
                Ok(entry) => won.push(entry),
                Err(StoreError::Conflict { found: Some(found), .. }) => told.push(*found),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(won.len(), 1);
        assert!(told.iter().all(|found| found.record == won[0].record), "losers are told who won");
        assert_eq!(handles[1].get(&block_key(&cidr)).await.expect("readable"), Some(won[0].clone()));
    }
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn records_are_compared_and_swapped() {
    let bench = bench().await;
    let (a, b) = (bench.on_pools().await, bench.on_pools().await);
    let key = block_key("198.18.1.0/24");
    let made = a.put(claim("198.18.1.0/24", 0), Expect::Absent, None).await.expect("claimed");
    let again = a.put(claim("198.18.1.0/24", 0), Expect::Any, None).await.expect("the same");
    assert_eq!(again, made);
    let Record::Block(mut block) = claim("198.18.1.0/24", 0) else { panic!("a block") };
    block.owner_uid = "u-new".parse().expect("an identity");
    let taken = b.put(Record::Block(block.clone()), Expect::Revision(made.revision), None).await.expect("taken over");
    assert!(taken.revision > made.revision && taken.created == made.created);
    let stale = a.delete(&key, Expect::Revision(made.revision)).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "a stale revision must not delete: {stale:?}");
    a.delete(&key, Expect::Revision(taken.revision)).await.expect("given back");
    assert_eq!(b.get(&key).await.expect("readable"), None);
    a.delete(&key, Expect::Any).await.expect("nothing is there any more");
    let gone = a.put(Record::Block(block), Expect::Revision(taken.revision), None).await;
    assert!(matches!(gone, Err(StoreError::Conflict { found: None, .. })), "{gone:?}");
    let v6 = a.put(claim("2001:db8:f000:7::/64", 1), Expect::Absent, None).await.expect("claimed");
    assert_eq!(b.get(&block_key("2001:db8:f000:7::/64")).await.expect("readable"), Some(v6));
    a.delete(&block_key("2001:db8:f000:7::/64"), Expect::Any).await.expect("given back");
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn all_sorts_are_listed_and_watched() {
    let bench = bench().await;
    let (store, other) = (bench.on_pools().await, bench.on_pools().await);
    bench.make("Pool", pool("suite-pool", json!({"cidr": "198.18.0.0/16"}))).await;
    let mut follower = Follower::new(&store).await;
    let found = &follower.entries[&Key::Pool("suite-pool".parse().expect("a name"))];
    assert!(matches!(&found.record, Record::Pool(pool) if pool.block_len == 24 && pool.nat_outgoing), "{found:?}");

    store.put(Record::Node(node_record("suite-n0", "u0", 1)), Expect::Absent, None).await.expect("written");
    other.put(claim("198.18.4.0/24", 0), Expect::Absent, None).await.expect("claimed");
    other.put(claim("198.18.5.0/24", 1), Expect::Absent, None).await.expect("claimed");
    let patch = Patch::Merge(json!({"spec": {"natOutgoing": false, "backend": {"type": "host-gw"}}}));
    bench.api("Pool").patch("suite-pool", &PatchParams::default(), &patch).await.expect("changed");
    other.delete(&block_key("198.18.5.0/24"), Expect::Any).await.expect("given back");
    follower
        .until("all of it", |it| {
            it.node("suite-n0").is_some()
                && it.owner("198.18.4.0/24").is_some()
                && it.changes.iter().any(|change| matches!(change, Change::Delete { .. }))
                && it.entries.values().any(|entry| matches!(&entry.record, Record::Pool(pool) if !pool.nat_outgoing))
        })
        .await;
    assert_eq!(follower.picture(), Follower::new(&other).await.picture());
    assert!(
        !bench.annotations("suite-n0").await.keys().any(|key| key.starts_with("flannel")),
        "flannel has no part in this"
    );
    let node = follower.entries[&node_key("suite-n0")].clone();
    other.delete(&node_key("suite-n0"), Expect::Any).await.expect("forgotten");
    follower.until("it is forgotten", |it| it.node("suite-n0").is_none()).await;
    assert!(node.revision > 0);
    bench.asked_for_nothing_else();
}

#[tokio::test]
async fn a_block_that_lies_is_named() {
    let bench = bench().await;
    let store = bench.on_pools().await;
    let mut follower = Follower::new(&store).await;
    let v6 = json!({"cidr": "2001:db8:f000:1::/64", "pool": "suite-pool", "owner": "suite-n0", "ownerUid": "u"});
    let block =
        json!({"apiVersion": "loden.dev/v1alpha1", "kind": "Block", "metadata": {"name": "suite-wrong"}, "spec": v6});
    bench.make("Block", block).await;
    follower.until("the flaw", |it| it.flaws.contains_key("blocks.loden.dev/suite-wrong")).await;
    assert!(
        follower.flaws["blocks.loden.dev/suite-wrong"].contains("2001-db8-f000-1-0-0-0-0-64"),
        "{:?}",
        follower.flaws
    );
    bench.remove("Block", "suite-wrong").await;
    follower.until("it is over", |it| it.flaws.is_empty()).await;
}

#[tokio::test]
async fn what_the_schema_does_not_allow_is_refused() {
    let bench = bench().await;
    for spec in [
        json!({}),
        json!({"cidr": "198.18.0.0/16", "blockLen": 127}),
        json!({"cidr": "198.18.0.0/16", "backend": {"type": "carrier-pigeon"}}),
        json!({"cidr": "198.18.0.0/16", "backend": {"type": "vxlan", "vni": 0}}),
    ] {
        let object = serde_json::from_value(pool("suite-bad", spec.clone())).expect("an object");
        assert!(bench.api("Pool").create(&Default::default(), &object).await.is_err(), "{spec}");
    }
}

/// What only a real server can tell: its CEL rules, and whose field is whose.
#[tokio::test]
async fn a_real_server_holds_pools_and_blocks_against_the_rules() {
    if std::env::var_os("LODEN_KUBERNETES").is_none() {
        return;
    }
    let bench = bench().await;
    for spec in [
        json!({"cidr": "198.18.1.0/16"}),
        json!({"cidr": "nonsense"}),
        json!({"cidr": "198.18.0.0/16", "blockLen": 8}),
        json!({"cidr": "198.18.0.0/16", "blockLen": 31}),
        json!({"cidr": "198.18.0.0/16", "blockLen": 24, "firstBlock": "198.19.0.0/24"}),
        json!({"cidr": "198.18.0.0/16", "blockLen": 24, "lastBlock": "198.18.0.0/25"}),
    ] {
        let object = serde_json::from_value(pool("suite-bad", spec.clone())).expect("an object");
        assert!(bench.api("Pool").create(&Default::default(), &object).await.is_err(), "{spec}");
    }
    let apply = |manager: &str, spec: Value| {
        let (api, params) = (bench.api("Pool"), PatchParams::apply(manager));
        async move { api.patch("suite-pool", &params, &Patch::Apply(pool("suite-pool", spec))).await }
    };
    apply("one", json!({"cidr": "198.18.0.0/16", "natOutgoing": false})).await.expect("applied");
    apply("two", json!({"cidr": "198.18.0.0/16", "nodeSelector": {"zone": "a"}})).await.expect("another's field");
    let conflict = apply("two", json!({"cidr": "198.18.0.0/16", "natOutgoing": true})).await.expect_err("one's field");
    assert!(conflict.to_string().contains("conflict"), "{conflict}");
    assert!(
        apply("one", json!({"cidr": "198.19.0.0/16", "natOutgoing": false})).await.is_err(),
        "a pool's addresses stay"
    );
    let store = bench.on_pools().await;
    store.put(claim("198.18.1.0/24", 0), Expect::Absent, None).await.expect("claimed");
    let patch = Patch::Merge(json!({"spec": {"owner": "suite-n1"}}));
    assert!(
        bench.api("Block").patch("198-18-1-0-24", &PatchParams::default(), &patch).await.is_err(),
        "an owner stays"
    );
}

#[tokio::test]
async fn a_nodes_blocks_go_with_it() {
    let bench = bench().await;
    if bench.double.is_none() {
        // It takes Kubernetes' collector, which is the controller manager's.
        return;
    }
    let store = bench.on_pools().await;
    store.put(claim("198.18.1.0/24", 0), Expect::Absent, None).await.expect("claimed");
    store.put(claim("198.18.2.0/24", 1), Expect::Absent, None).await.expect("claimed");
    let mut follower = Follower::new(&store).await;
    bench.remove("Node", "suite-n0").await;
    follower.until("its block is gone", |it| it.owner("198.18.1.0/24").is_none()).await;
    assert!(follower.owner("198.18.2.0/24").is_some());
    let nobody = store.put(claim("198.18.3.0/24", 0), Expect::Absent, None).await.expect_err("no such Node");
    assert!(matches!(nobody, StoreError::Refused { .. }), "{nobody}");
}
