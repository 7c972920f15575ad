//! The store in etcd, against real servers: the suite of all stores, and what is etcd's own.

mod faults;
pub mod outages;
mod pki;
pub mod server;
mod writers;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::GetOptions;
use loden_core::model::{Key, Record};
use loden_store::{Change, Expect, Store, StoreError, Watch, conformance};

use super::race;
use server::Server;

/// etcd grants no lease that is shorter than one and a half elections.
const LEAST_TTL: Duration = Duration::from_secs(2);

fn node(name: &str, label: &str) -> Record {
    let value = serde_json::json!({"kind": "node", "name": name, "uid": "u", "labels": {"l": label}});
    serde_json::from_value(value).expect("a node")
}

fn lease(name: &str, instance: &str) -> Record {
    let value = serde_json::json!({"kind": "lease", "node": name, "uid": "u", "instance": instance});
    serde_json::from_value(value).expect("a lease")
}

fn block(cidr: &str, owner: &str) -> Record {
    let value = serde_json::json!({"kind": "block", "cidr": cidr, "pool": "p", "owner": owner, "ownerUid": "u"});
    serde_json::from_value(value).expect("a block")
}

fn key(name: &str) -> Key {
    Key::Node(name.parse().expect("a name"))
}

async fn next(watch: &mut Watch) -> Change {
    tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("in time").expect("a change")
}

#[tokio::test]
async fn etcd_conforms() {
    let server = Server::start(&[]);
    let handles: Vec<Arc<dyn Store>> = (0..3).map(|_| server.store("")).collect();
    assert_eq!(conformance::run(&handles, LEAST_TTL).await, Ok(()));
}

#[tokio::test]
async fn records_stand_under_their_names_as_json() {
    let server = Server::start(&[]);
    let store = server.store("prefix=/net/a");
    store.put(block("10.9.0.0/24", "n"), Expect::Absent, None).await.expect("written");
    store.put(block("fd00:9::/64", "n"), Expect::Absent, None).await.expect("written");
    store.put(lease("n", "1"), Expect::Absent, Some(LEAST_TTL)).await.expect("written");
    let id = store.list().await.expect("lists").id;
    let found = server.client().await.get("/", Some(GetOptions::new().with_prefix())).await.expect("read");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let found: Vec<_> = found.kvs().iter().map(|kv| (text(kv.key()), text(kv.value()), kv.lease() != 0)).collect();
    let block = |cidr| format!(r#"{{"kind":"block","cidr":"{cidr}","pool":"p","owner":"n","ownerUid":"u"}}"#);
    assert_eq!(
        found,
        [
            ("/net/a/block/10.9.0.0-24".to_owned(), block("10.9.0.0/24"), false),
            ("/net/a/block/fd00:9::-64".to_owned(), block("fd00:9::/64"), false),
            ("/net/a/id".to_owned(), id, false),
            ("/net/a/lease/n".to_owned(), r#"{"kind":"lease","node":"n","uid":"u","instance":"1"}"#.to_owned(), true),
        ]
    );
}

#[tokio::test]
async fn what_is_no_record_is_named_and_hides_no_other() {
    let server = Server::start(&[]);
    let (store, mut client) = (server.store(""), server.client().await);
    store.put(node("good", "1"), Expect::Any, None).await.expect("written");
    let from = store.list().await.expect("lists").revision;
    let mut watch = store.watch(from).await.expect("watches");
    client.put("/loden/node/odd", "{\"kind\":", None).await.expect("written");
    client.put("/loden/block/10.0.0.1-24", "x", None).await.expect("written");
    let listing = store.list().await.expect("lists");
    assert_eq!(listing.entries.len(), 1);
    assert_eq!(listing.flaws.keys().collect::<Vec<_>>(), ["block/10.0.0.1-24", "node/odd"]);
    assert!(matches!(store.get(&key("odd")).await, Err(StoreError::Unreadable { .. })));
    store.delete(&key("odd"), Expect::Any).await.expect("what cannot be read can be removed");
    client.delete("/loden/block/10.0.0.1-24", None).await.expect("removed");
    let told = [next(&mut watch).await, next(&mut watch).await, next(&mut watch).await, next(&mut watch).await];
    assert!(matches!(&told[0], Change::Flaw { place, cause: Some(_), .. } if place == "node/odd"), "{told:?}");
    assert!(matches!(&told[1], Change::Flaw { place, cause: Some(_), .. } if place == "block/10.0.0.1-24"), "{told:?}");
    assert!(matches!(&told[2], Change::Delete { key: gone, .. } if *gone == key("odd")), "{told:?}");
    assert!(matches!(&told[3], Change::Flaw { place, cause: None, .. } if place == "block/10.0.0.1-24"), "{told:?}");
}

#[tokio::test]
async fn thousands_are_listed_at_one_revision() {
    const MANY: usize = 2500;
    let server = Server::start(&[]);
    let store = server.store("");
    let mut tasks = Vec::new();
    for writer in 0..25 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for n in (writer..MANY).step_by(25) {
                store.put(node(&format!("n{n}"), "1"), Expect::Absent, None).await.expect("written");
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    // Every listing is of one moment: while one record after the other changes its label, no older one is behind a newer one.
    let changing = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                store
                    .put(node(&format!("n{}", n % 2 * (MANY - 1)), &n.to_string()), Expect::Any, None)
                    .await
                    .expect("written");
            }
        })
    };
    while !changing.is_finished() {
        let listing = store.list().await.expect("lists");
        assert_eq!(listing.entries.len(), MANY);
        let newest = listing.entries.iter().map(|entry| entry.revision).max().expect("records");
        assert!(newest == listing.revision || newest + 1 >= listing.revision, "{newest} in {}", listing.revision);
    }
    changing.await.expect("no panic");
}

#[tokio::test]
async fn what_other_prefixes_are_written_disturbs_nobody() {
    let server = Server::start(&[]);
    let (store, mut client) = (server.store(""), server.client().await);
    let from = store.list().await.expect("lists").revision;
    let mut watch = store.watch(from).await.expect("watches");
    client.put("/lodenx", "1", None).await.expect("written");
    client.put("/lode", "1", None).await.expect("written");
    let made = store.put(node("a", "1"), Expect::Absent, None).await.expect("written");
    assert_eq!(next(&mut watch).await, Change::Put(made.clone()));
    assert_eq!(made.revision, from + 3);
    assert_eq!(store.list().await.expect("lists").entries, [made]);
}

#[tokio::test]
async fn several_changes_of_one_revision_are_all_told() {
    let server = Server::start(&[]);
    let (store, mut client) = (server.store(""), server.client().await);
    for n in 0..3 {
        store.put(node(&format!("n{n}"), "1"), Expect::Absent, None).await.expect("written");
    }
    let from = store.list().await.expect("lists").revision;
    let mut watch = store.watch(from).await.expect("watches");
    client.delete("/loden/node/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.expect("removed");
    let mut gone = Vec::new();
    for _ in 0..3 {
        match next(&mut watch).await {
            Change::Delete { key, revision } if revision == from + 1 => gone.push(key.to_string()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gone, ["node/n0", "node/n1", "node/n2"]);
}

#[tokio::test]
async fn two_hundred_race_for_blocks() {
    let server = Server::start(&[]);
    race::race("etcd", race::handles(|| server.store(""))).await;
}
