//! What an API server meets in the field: no answer, wrong certificates, missing rights, overload, lost history, broken streams.

use std::collections::BTreeSet;
use std::time::Instant;

use loden_core::model::{Block, Lease, Record};
use loden_store::{Expect, Store, StoreError};
use serde_json::json;

use super::*;

async fn bench() -> Bench {
    Bench::of(Double::start(Role::shipped("loden-net-conf")).await).await
}

async fn text_of(store: &Kubernetes) -> String {
    store.list().await.expect_err("it cannot be listed").to_string()
}

async fn with(bench: &Bench, kubeconfig: &std::path::Path) -> Kubernetes {
    let address = format!("kubernetes:?kubeconfig={}&net_conf={}", kubeconfig.display(), bench.net_conf.display());
    Kubernetes::open(&address_of(&address)).await.expect("opens")
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    let other = Double::start(Role::flannels()).await;
    let token = "agents-token";
    let cases = [
        (
            "another cluster's CA",
            bench.double().kubeconfig("ca", token, other.path("ca.pem").to_str().expect("a path")),
            "UnknownIssuer",
        ),
        ("another token", bench.double().kubeconfig("token", "expired", "ca.pem"), "has expired"),
    ];
    for (what, kubeconfig, says) in cases {
        let text = text_of(&with(&bench, &kubeconfig).await).await;
        assert!(
            text.contains(says) && !text.contains('\n') && text.contains("Kubernetes at https://127.0.0.1"),
            "{what}: {text}"
        );
        show(what, &text);
    }
    let expired = Bench::of(Double::start_with(Role::flannels(), (2020, 2021)).await).await;
    let text = text_of(&expired.on_pod_cidrs().await).await;
    assert!(text.contains("xpired") && text.contains("renew the server's certificate"), "{text}");
    show("an expired certificate", &text);

    let rights = [("list", "nodes"), ("watch", "nodes"), ("get", "nodes"), ("patch", "nodes/status")];
    for (n, (verb, resource)) in (1..).zip(rights) {
        bench.double().set_role(Role::flannels().without(verb, resource));
        let store = bench.on_pod_cidrs().await;
        let text = denied(&store, n).await.to_string();
        assert!(text.contains(&format!("may not {verb} {resource}")) && text.contains("deploy/rbac.yaml"), "{text}");
        show(&format!("no right to {verb} {resource}"), &text);
    }
    bench.double().set_role(Role::shipped("loden"));
    bench.double().cluster().has_crds = false;
    let text = text_of(&bench.on_pools().await).await;
    assert!(text.contains("pools.loden.dev") && text.contains("deploy/crds.yaml"), "{text}");
    show("no CRDs", &text);
    bench.double().set_down(true);
    let text = text_of(&bench.on_pod_cidrs().await).await;
    assert!(text.contains("not available"), "{text}");
    show("away", &text);
    let address = "kubernetes:?kubeconfig=/nonexistent";
    let text = Kubernetes::open(&address_of(address)).await.err().expect("no file").to_string();
    assert!(text.contains("/nonexistent"), "{text}");
    show("no kubeconfig", &text);
}

/// The first thing that is denied on an agent's usual way.
async fn denied(store: &Kubernetes, n: u8) -> StoreError {
    let way = async {
        let listing = store.list().await?;
        let mut watch = store.watch(listing.revision).await?;
        store.put(Record::Node(node_record("suite-a", "uid-a", n)), Expect::Any, None).await?;
        loop {
            watch.next().await?;
        }
    };
    let error: Result<std::convert::Infallible, StoreError> =
        tokio::time::timeout(Duration::from_secs(20), way).await.expect("it is denied in time");
    match error {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Messages are shown in the tests' output, so that people judge them.
fn show(what: &str, text: &str) {
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{what}: {text}\n")).expect("stderr");
}

#[tokio::test]
async fn an_overloaded_server_is_asked_again_when_it_says_so() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    let store = bench.on_pod_cidrs().await;
    bench.double().faults().answers.extend([(429, Some(1)), (500, None), (503, None)]);
    let began = Instant::now();
    store.list().await.expect("it comes at last");
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After is heeded");
    assert_eq!(bench.double().log().requests.len(), 4);
    bench.double().faults().answers.extend([(429, Some(3600))]);
    let text = text_of(&store).await;
    assert!(text.contains("overloaded for 3600 s"), "{text}");
    bench.double().faults().answers.extend([(500, None); 4]);
    let text = text_of(&store).await;
    assert!(text.contains("500: ordered by the test"), "{text}");
    store.list().await.expect("and then it is well again");
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_cut() {
    goes_on_where_it_was_cut(false).await;
}

#[tokio::test]
async fn a_watch_in_json_goes_on_where_it_was_cut() {
    goes_on_where_it_was_cut(true).await;
}

async fn goes_on_where_it_was_cut(only_json: bool) {
    let bench = bench().await;
    bench.double().faults().only_json = only_json;
    for n in 0..8 {
        bench.node(&format!("suite-{n}"), &[&format!("198.18.{n}.0/24")]).await;
    }
    let store = bench.on_pod_cidrs().await;
    let mut follower = Follower::new(&store).await;
    {
        let mut faults = bench.double().faults();
        faults.cut = 3;
        faults.repeat = true;
        faults.delay = Duration::from_millis(5);
    }
    for n in 0..8 {
        bench.annotate(&format!("suite-{n}"), flannels(n)).await;
    }
    bench.remove("Node", "suite-3").await;
    bench.annotate("suite-2", flannels(22)).await;
    let last = node_record("x", "u", 22).receives;
    follower.until("the last change", |it| it.node("suite-2").is_some_and(|node| node.receives == last)).await;
    // Each change once, although they came in pieces, twice and late.
    let nodes = follower
        .changes
        .iter()
        .filter(|change| matches!(change, Change::Put(entry) if matches!(entry.record, Record::Node(_))));
    assert_eq!(nodes.count(), 9);
    assert!(follower.node("suite-3").is_none());
    assert_eq!(bench.double().log().requests.iter().filter(|request| *request == "list nodes").count(), 1);
    let other = bench.on_pod_cidrs().await;
    assert_eq!(follower.picture(), Follower::new(&other).await.picture());
}

#[tokio::test]
async fn a_server_that_restarts_is_not_asked_for_everything_again() {
    let bench = bench().await;
    for n in 0..4 {
        bench.node(&format!("suite-{n}"), &[&format!("198.18.{n}.0/24")]).await;
    }
    let store = bench.on_pod_cidrs().await;
    let mut follower = Follower::new(&store).await;
    bench.double().set_down(true);
    tokio::time::sleep(Duration::from_millis(900)).await;
    bench.double().set_down(false);
    bench.annotate("suite-2", flannels(2)).await;
    follower.until("the change", |it| it.owner("198.18.2.0/24").is_some()).await;
    assert_eq!(bench.double().log().requests.iter().filter(|request| *request == "list nodes").count(), 1);
}

#[tokio::test]
async fn history_that_is_lost_is_said_to_be() {
    let bench = bench().await;
    bench.node("suite-a", &["198.18.1.0/24"]).await;
    let store = bench.on_pod_cidrs().await;
    let listing = store.list().await.expect("lists");
    bench.annotate("suite-a", flannels(1)).await;
    bench.double().cluster().compact();
    let mut watch = store.watch(listing.revision).await.expect("watches");
    let error =
        tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("in time").expect_err("it is lost");
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    let unknown = store.watch(listing.revision).await.expect_err("a listing serves one watch");
    assert!(matches!(unknown, StoreError::Compacted { .. }), "{unknown}");
    Follower::new(&store).await.until("all is there", |it| it.owner("198.18.1.0/24").is_some()).await;
}

#[tokio::test]
async fn a_list_comes_in_pages_and_begins_anew_when_its_revision_is_lost() {
    let bench = bench().await;
    for n in 0..1100_u32 {
        let spec = json!({"podCIDRs": [format!("198.18.{}.{}/28", n / 16, n % 16 * 16)]});
        let object = json!({"metadata": {"name": format!("suite-{n}"), "annotations": flannels(1)}, "spec": spec});
        bench.double().cluster().create("nodes", object).expect("made");
    }
    let store = bench.on_pod_cidrs().await;
    let listing = store.list().await.expect("lists");
    let count =
        |listing: &Listing| listing.entries.iter().filter(|entry| matches!(entry.record, Record::Block(_))).count();
    assert_eq!(count(&listing), 1100);
    assert_eq!(bench.double().log().requests.iter().filter(|request| *request == "list nodes").count(), 3);
    assert_eq!(bench.double().log().requests.iter().filter(|request| *request == "get nodes").count(), 1100);

    bench.double().log().requests.clear();
    let seen = bench.double().log().requests.len();
    let lister = tokio::spawn(async move { store.list().await.map(|listing| (listing, store)) });
    while bench.double().log().requests.len() == seen {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.beat("suite-0", 1).await;
    bench.double().cluster().compact();
    let (listing, _) = lister.await.expect("no panic").expect("lists");
    assert_eq!(count(&listing), 1100);
    assert!(!bench.double().log().requests.iter().any(|request| request == "get nodes"), "podCIDRs are read once");
}

#[tokio::test]
async fn a_cluster_without_a_node_is_none() {
    let bench = bench().await;
    let text = text_of(&bench.on_pod_cidrs().await).await;
    assert!(text.contains("no Node at all"), "{text}");
}

#[tokio::test]
async fn clusters_are_told_apart() {
    let (one, other) = (Double::start(Role::shipped("loden")).await, Double::start(Role::shipped("loden")).await);
    let (one, other) = (Bench::of(one).await, Bench::of(other).await);
    other.double().cluster().delete("namespaces", "kube-system", None).expect("removed");
    other.double().cluster().create("namespaces", json!({"metadata": {"name": "kube-system"}})).expect("made");
    let id = async |bench: &Bench| bench.on_pools().await.list().await.expect("lists").id;
    assert_eq!(id(&one).await, id(&one).await);
    assert_ne!(id(&one).await, id(&other).await);
}

/// Each role is used up: what no request of an agent's whole life asks for is not in it.
#[tokio::test]
async fn the_roles_are_no_wider_than_needed() {
    for name in ["loden-net-conf", "loden"] {
        let role = Role::shipped(name);
        let bench = Bench::of(Double::start(role.clone()).await).await;
        bench.node("suite-a", &["198.18.1.0/24"]).await;
        bench.node("suite-b", &["198.18.2.0/24"]).await;
        bench.annotate("suite-b", flannels(2)).await;
        let has_pools = name == "loden";
        let store = if has_pools { bench.on_pools().await } else { bench.on_pod_cidrs().await };
        let spec = json!({"cidr": "198.18.0.0/16"});
        let pool = json!({"apiVersion": "loden.dev/v1alpha1", "kind": "Pool", "metadata": {"name": "suite-pool"}, "spec": spec});
        bench.make("Pool", pool).await;
        let mut follower = Follower::new(&store).await;
        let lease =
            Lease { node: super::name("suite-a"), uid: "uid-a".parse().expect("a uid"), instance: "1".to_owned() };
        store.put(Record::Lease(lease), Expect::Absent, None).await.expect("taken");
        store.put(Record::Node(node_record("suite-a", "uid-a", 1)), Expect::Absent, None).await.expect("written");
        let readiness = loden_store::Readiness { ready: true, message: "m".to_owned() };
        store.announce(&super::name("suite-a"), &readiness).await.expect("said");
        if has_pools {
            let block = |uid: &str| {
                Record::Block(Block {
                    cidr: prefix("198.18.1.0/24"),
                    pool: "suite-pool".parse().expect("a name"),
                    owner: super::name("suite-a"),
                    owner_uid: uid.parse().expect("an identity"),
                })
            };
            store.put(block("uid-0"), Expect::Absent, None).await.expect("claimed");
            let lost = store.put(block("uid-a"), Expect::Absent, None).await.expect_err("taken");
            let StoreError::Conflict { found: Some(found), .. } = lost else { panic!("a conflict: {lost}") };
            store.put(block("uid-a"), Expect::Revision(found.revision), None).await.expect("taken over");
            follower.until("the block", |it| it.owner("198.18.1.0/24").is_some_and(|it| it.1 == "uid-a")).await;
            let tally =
                async || bench.api("Pool").get("suite-pool").await.expect("there").data["status"]["blocks"].clone();
            let counts = async |n: u32| {
                let until = Instant::now() + Duration::from_secs(20);
                while tally().await != n {
                    assert!(Instant::now() < until, "the pool's status says {n}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            counts(1).await;
            store.delete(&block_key("198.18.1.0/24"), Expect::Any).await.expect("given back");
            counts(0).await;
        }
        follower.until("the node", |it| it.node("suite-a").is_some()).await;
        bench.asked_for_nothing_else();
        let asked: BTreeSet<String> = bench.double().log().requests.iter().cloned().collect();
        let allowed: BTreeSet<String> = role.all().into_iter().collect();
        assert_eq!(asked, allowed, "{name}");
    }
}
