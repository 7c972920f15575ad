//! flannel's layout of etcd, against a real server: flannel's keys to the byte, and nodes of both kinds side by side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use loden_core::model::{Block, Entry, Key, Record};
use loden_store::{Change, Expect, Store, StoreError, Watch, flannel::Flannel};

use super::etcd::outages::Line;
use super::etcd::server::Server;
use super::race;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;
const TTL: Option<Duration> = Some(Duration::from_secs(24 * 60 * 60));

/// What a flanneld at an address writes.
fn theirs(ip: &str) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}}}}"#
    )
}

/// The network of a test: a server with a configuration.
struct Network {
    server: Server,
    client: Client,
}

impl Network {
    async fn new(config: &str) -> Self {
        let server = Server::start(&[]);
        let mut client = server.client().await;
        client.put("/coreos.com/network/config", config, None).await.expect("written");
        Self { server, client }
    }

    fn store(&self) -> Arc<dyn Store> {
        Self::store_at(&self.server.endpoint())
    }

    fn store_at(endpoint: &str) -> Arc<dyn Store> {
        let address = format!("flannel:{endpoint}").parse().expect("an address");
        let loden_core::config::store::StoreAddress::Flannel(address) = address else { panic!("of flannel") };
        Arc::new(Flannel::new(&address).expect("opens"))
    }

    /// All keys below the prefix but the configuration and the identity, with value and lease.
    async fn keys(&mut self) -> BTreeMap<String, (String, i64)> {
        let found = self.client.get("/coreos.com/network/", Some(GetOptions::new().with_prefix())).await.expect("read");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let keys = found.kvs().iter().map(|kv| (text(&kv.key()[20..]), (text(kv.value()), kv.lease())));
        keys.filter(|(key, _)| key != "config" && key != "loden/id").collect()
    }

    async fn put(&mut self, key: &str, value: &str) {
        self.client.put(format!("/coreos.com/network/{key}"), value, None).await.expect("written");
    }
}

/// As flanneld makes its lease: the key must not be there. Whether it was made, and its lease.
async fn flanneld_claims(client: &mut Client, key: &str, ip: &str) -> Option<i64> {
    let lease = client.lease_grant(86400, None).await.expect("granted").id();
    flanneld_writes(client, key, ip, lease).await.then_some(lease)
}

async fn flanneld_writes(client: &mut Client, key: &str, ip: &str, lease: i64) -> bool {
    let key = format!("/coreos.com/network/subnets/{key}");
    let put = TxnOp::put(key.as_str(), theirs(ip), Some(PutOptions::new().with_lease(lease)));
    let made = Txn::new().when([Compare::version(key.as_str(), CompareOp::Equal, 0)]).and_then([put]);
    client.txn(made).await.expect("answered").succeeded()
}

fn block(cidr: &str, owner: &str) -> Record {
    let pool = if cidr.contains(':') { "flannel-v6" } else { "flannel" };
    let value = serde_json::json!({"kind": "block", "cidr": cidr, "pool": pool, "owner": owner, "ownerUid": owner});
    serde_json::from_value(value).expect("a block")
}

fn block_key(cidr: &str) -> Key {
    Key::Block(cidr.parse().expect("a prefix"))
}

/// A node that has not published yet what it takes in, or has.
fn node(name: &str, ip: &str, is_ready: bool) -> Record {
    let vtep =
        serde_json::json!({"type": "vxlan", "vni": 1, "underlay": "v4", "mac": "02:00:00:00:00:01", "port": 8472});
    let receives = if is_ready { vec![vtep] } else { Vec::new() };
    let value =
        serde_json::json!({"kind": "node", "name": name, "uid": name, "underlay": {"v4": ip}, "receives": receives});
    serde_json::from_value(value).expect("a node")
}

async fn next(watch: &mut Watch) -> Change {
    tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("in time").expect("a change")
}

fn owner(entry: &Entry) -> (String, String) {
    match &entry.record {
        Record::Block(Block { owner, owner_uid, .. }) => (owner.to_string(), owner_uid.to_string()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_of_lodens_is_seen_by_flannel_as_one_of_its_own() {
    let mut network = Network::new(CONFIG).await;
    let store = network.store();
    let claimed = store.put(block("10.5.34.0/24", "a"), Expect::Absent, TTL).await.expect("claimed");
    let keys = network.keys().await;
    let lease = keys["loden/block/10.5.34.0-24"].1;
    let json = r#"{"kind":"block","cidr":"10.5.34.0/24","pool":"flannel","owner":"a","ownerUid":"a"}"#;
    assert!(lease != 0);
    // Taken, and nothing more: nobody sends there yet.
    let shown = |value: &str| {
        BTreeMap::from([
            ("loden/block/10.5.34.0-24".to_owned(), (json.to_owned(), lease)),
            ("subnets/10.5.34.0-24".to_owned(), (value.to_owned(), lease)),
        ])
    };
    assert_eq!(keys, shown(r#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#));
    let without_node = |mut keys: BTreeMap<String, (String, i64)>| {
        assert_eq!(keys.remove("loden/node/a").map(|(_, lease)| lease), Some(0));
        keys
    };
    let made = store.put(node("a", "192.0.2.1", false), Expect::Absent, None).await.expect("published");
    assert_eq!(without_node(network.keys().await), shown(r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#));
    let made = store.put(node("a", "192.0.2.1", true), Expect::Revision(made.revision), None).await.expect("published");
    assert_eq!(
        without_node(network.keys().await),
        shown(
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#
        )
    );
    // The same again writes nothing.
    let before = store.list().await.expect("lists");
    assert_eq!(store.put(node("a", "192.0.2.1", true), Expect::Any, None).await.expect("the same"), made);
    assert_eq!(store.put(block("10.5.34.0/24", "a"), Expect::Any, TTL).await.expect("the same"), claimed);
    store.renew(&block_key("10.5.34.0/24"), claimed.revision, TTL.expect("a time")).await.expect("renewed");
    assert_eq!(store.list().await.expect("lists"), before);
    assert_eq!(network.client.leases().await.expect("answered").leases().len(), 1);
    // Given back: nothing is left but the node.
    store.delete(&block_key("10.5.34.0/24"), Expect::Revision(claimed.revision)).await.expect("given back");
    assert_eq!(without_node(network.keys().await), BTreeMap::new());
    assert_eq!(network.client.leases().await.expect("answered").leases().len(), 0);
}

#[tokio::test]
async fn nodes_of_flannels_are_records_while_their_leases_are_there() {
    let mut network = Network::new(CONFIG).await;
    let store = network.store();
    let listing = store.list().await.expect("lists");
    let mut watch = store.watch(listing.revision).await.expect("watches");
    let lease = flanneld_claims(&mut network.client, "10.5.7.0-24", "172.16.0.5").await.expect("free");
    network.put("subnets/10.5.8.0-24", "no JSON").await;
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(next(&mut watch).await);
    }
    let records: Vec<Key> = told
        .iter()
        .filter_map(|change| match change {
            Change::Put(entry) => Some(entry.record.key()),
            _ => None,
        })
        .collect();
    assert_eq!(records, [Key::Node("172.16.0.5".parse().expect("a name")), block_key("10.5.7.0/24")]);
    assert!(
        matches!(&told[2], Change::Flaw { place, cause: Some(_), .. } if place == "/coreos.com/network/subnets/10.5.8.0-24"),
        "{told:?}"
    );
    // What is taken cannot be claimed, readable or not.
    let taken = store.put(block("10.5.7.0/24", "a"), Expect::Absent, TTL).await;
    assert!(matches!(taken, Err(StoreError::Conflict { found: Some(_), .. })), "{taken:?}");
    let taken = store.put(block("10.5.8.0/24", "a"), Expect::Absent, TTL).await;
    assert!(matches!(taken, Err(StoreError::Conflict { found: None, .. })), "{taken:?}");
    network.client.lease_revoke(lease).await.expect("revoked");
    let mut gone = Vec::new();
    for _ in 0..2 {
        match next(&mut watch).await {
            Change::Delete { key, .. } => gone.push(key),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gone, records);
}

#[tokio::test]
async fn a_claim_of_lodens_and_one_of_flannels_exclude_each_other() {
    let mut network = Network::new(CONFIG).await;
    let store = network.store();
    let lease = network.client.lease_grant(86400, None).await.expect("granted").id();
    let mut won = (0, 0);
    for n in 0..100_u8 {
        // Without a lease of etcd's ours is as quick as theirs.
        let (key, record) = (format!("10.5.{n}.0-24"), block(&format!("10.5.{n}.0/24"), "a"));
        let ours = store.put(record, Expect::Absent, None);
        let theirs = flanneld_writes(&mut network.client, &key, "172.16.0.5", lease);
        let (ours, theirs) = if n % 2 == 0 {
            tokio::join!(ours, theirs)
        } else {
            let (theirs, ours) = tokio::join!(theirs, ours);
            (ours, theirs)
        };
        match (ours, theirs) {
            (Ok(_), false) => won.0 += 1,
            (Err(StoreError::Conflict { .. }), true) => won.1 += 1,
            other => panic!("{n}: {other:?}"),
        }
    }
    let entries = store.list().await.expect("lists").entries;
    let blocks: Vec<_> = entries.iter().filter(|entry| matches!(entry.record, Record::Block(_))).map(owner).collect();
    assert_eq!(blocks.iter().filter(|(owner, _)| owner == "a").count(), won.0);
    assert_eq!(blocks.iter().filter(|(owner, uid)| owner == "172.16.0.5" && uid == "flannel").count(), won.1);
}

#[tokio::test]
async fn a_block_of_flannels_is_taken_over_with_its_lease_or_as_a_reservation() {
    let mut network = Network::new(CONFIG).await;
    let store = network.store();
    let lease = flanneld_claims(&mut network.client, "10.5.7.0-24", "172.16.0.5").await.expect("free");
    network.put("subnets/10.5.9.0-24", &theirs("172.16.0.5")).await;
    store.put(node("a", "172.16.0.5", true), Expect::Absent, None).await.expect("published");
    for (cidr, key, bound) in [("10.5.7.0/24", "10.5.7.0-24", lease), ("10.5.9.0/24", "10.5.9.0-24", 0)] {
        let found = store.get(&block_key(cidr)).await.expect("read").expect("there");
        assert_eq!(owner(&found), ("172.16.0.5".to_owned(), "flannel".to_owned()));
        let stale = store.put(block(cidr, "a"), Expect::Revision(found.revision - 1), TTL).await;
        assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
        let taken = store.put(block(cidr, "a"), Expect::Revision(found.revision), TTL).await.expect("taken over");
        assert_eq!(owner(&taken), ("a".to_owned(), "a".to_owned()));
        store.renew(&block_key(cidr), taken.revision, TTL.expect("a time")).await.expect("renewed");
        store.put(block(cidr, "a"), Expect::Any, TTL).await.expect("the same");
        let keys = network.keys().await;
        let (shown, shown_lease) = &keys[&format!("subnets/{key}")];
        assert!(shown.contains("02:00:00:00:00:01") && shown.contains("172.16.0.5"), "{shown}");
        assert_eq!((*shown_lease, keys[&format!("loden/block/{key}")].1), (bound, bound));
    }
    let listing = store.list().await.expect("lists");
    assert!(listing.flaws.is_empty(), "{:?}", listing.flaws);
    // The node of flannel's is gone with its last lease.
    assert!(listing.entries.iter().all(|entry| entry.record.key().to_string() != "node/172.16.0.5"));
    let leases = network.client.leases().await.expect("answered");
    assert_eq!(leases.leases().iter().map(etcd_client::LeaseStatus::id).collect::<Vec<_>>(), [lease]);
}

#[tokio::test]
async fn a_network_of_both_families_has_one_key_for_both_blocks() {
    let mut network = Network::new(DUAL).await;
    let store = network.store();
    store.put(node("a", "192.0.2.1", true), Expect::Absent, None).await.expect("published");
    let v4 = store.put(block("10.5.34.0/24", "a"), Expect::Absent, TTL).await.expect("claimed");
    assert!(!network.keys().await.keys().any(|key| key.starts_with("subnets/")), "half a block is shown");
    let v6 = store.put(block("fc00:0:0:1::/64", "a"), Expect::Absent, TTL).await.expect("claimed");
    let keys = network.keys().await;
    let shown = &keys["subnets/10.5.34.0-24&fc00:0:0:1::-64"];
    assert_eq!(shown.1, keys["loden/block/10.5.34.0-24"].1);
    // A node of flannel's with both: neither can be claimed, and both change hands together.
    flanneld_claims(&mut network.client, "10.5.7.0-24&fc00:0:0:7::-64", "172.16.0.5").await.expect("free");
    for cidr in ["10.5.7.0/24", "fc00:0:0:7::/64"] {
        let taken = store.put(block(cidr, "b"), Expect::Absent, TTL).await;
        assert!(matches!(taken, Err(StoreError::Conflict { found: Some(_), .. })), "{taken:?}");
    }
    let found = store.get(&block_key("10.5.7.0/24")).await.expect("read").expect("there");
    store.put(block("10.5.7.0/24", "b"), Expect::Revision(found.revision), TTL).await.expect("taken over");
    let fellow = store.get(&block_key("fc00:0:0:7::/64")).await.expect("read").expect("there");
    assert_eq!(owner(&fellow), ("b".to_owned(), "b".to_owned()));
    // One of the two given back: the key of both goes.
    store.delete(&block_key("fc00:0:0:1::/64"), Expect::Revision(v6.revision)).await.expect("given back");
    assert!(!network.keys().await.contains_key("subnets/10.5.34.0-24&fc00:0:0:1::-64"));
    assert_eq!(store.get(&block_key("10.5.34.0/24")).await.expect("read"), Some(v4));
    // Of two that hang on one lease the other stays.
    store.delete(&fellow.record.key(), Expect::Any).await.expect("given back");
    assert!(store.get(&block_key("10.5.7.0/24")).await.expect("read").is_some());
    assert!(store.list().await.expect("lists").flaws.is_empty());
}

#[tokio::test]
async fn a_term_that_ran_out_takes_record_and_lease_at_once() {
    let mut network = Network::new(CONFIG).await;
    let store = network.store();
    let short = Some(Duration::from_secs(2));
    let claimed = store.put(block("10.5.34.0/24", "a"), Expect::Absent, short).await.expect("claimed");
    let mut watch = network.store().watch(claimed.revision).await.expect("watches");
    let gone = next(&mut watch).await;
    assert!(matches!(&gone, Change::Delete { key, .. } if *key == block_key("10.5.34.0/24")), "{gone:?}");
    assert_eq!(network.keys().await, BTreeMap::new());
    // The store's own picture had it still: that does not stand in the way of the next one.
    let late = store.renew(&claimed.record.key(), claimed.revision, Duration::from_secs(2)).await;
    assert!(matches!(late, Err(StoreError::Conflict { found: None, .. })), "{late:?}");
    let again = store.put(block("10.5.34.0/24", "b"), Expect::Absent, TTL).await.expect("claimed");
    assert!(again.created > claimed.created);
}

#[tokio::test]
async fn what_is_written_at_once_is_told_at_once_and_a_resumed_watch_agrees() {
    let network = Network::new(CONFIG).await;
    let (store, other) = (network.store(), network.store());
    let from = store.list().await.expect("lists").revision;
    let mut watch = store.watch(from).await.expect("watches");
    let claimed = other.put(block("10.5.34.0/24", "a"), Expect::Absent, TTL).await.expect("claimed");
    let made = other.put(node("a", "192.0.2.1", true), Expect::Absent, None).await.expect("published");
    assert_eq!(next(&mut watch).await, Change::Put(claimed.clone()));
    assert_eq!(next(&mut watch).await, Change::Put(made.clone()));
    // From an earlier revision, with another handle: the same.
    let mut resumed = network.store().watch(from).await.expect("watches");
    assert_eq!(next(&mut resumed).await, Change::Put(claimed));
    assert_eq!(next(&mut resumed).await, Change::Put(made.clone()));
    // What a handle writes itself is told to it, too.
    let from = store.list().await.expect("lists").revision;
    store.put(node("a", "192.0.2.2", true), Expect::Revision(made.revision), None).await.expect("published");
    let mut watch = store.watch(from).await.expect("watches");
    assert!(matches!(next(&mut watch).await, Change::Put(entry) if entry.record == node("a", "192.0.2.2", true)));
}

#[tokio::test]
async fn two_hundred_race_for_blocks() {
    let network = Network::new(CONFIG).await;
    race::race("flannel's layout", race::handles(|| network.store())).await;
}

#[tokio::test]
async fn a_lost_configuration_is_no_empty_network() {
    let mut network = Network::new(CONFIG).await;
    let store = network.store();
    store.put(block("10.5.34.0/24", "a"), Expect::Absent, TTL).await.expect("claimed");
    let from = store.list().await.expect("lists").revision;
    let mut watch = store.watch(from).await.expect("watches");
    network.put("config", "no JSON").await;
    let told = next(&mut watch).await;
    assert!(matches!(&told, Change::Flaw { place, .. } if place == "/coreos.com/network/config"), "{told:?}");
    let error = network.store().list().await.expect_err("it cannot be listed");
    assert!(error.to_string().starts_with("/coreos.com/network/config: "), "{error}");
    let error = network.store().put(block("10.5.35.0/24", "b"), Expect::Absent, TTL).await.expect_err("no network");
    assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
    network.put("config", CONFIG).await;
    assert!(matches!(next(&mut watch).await, Change::Put(_) | Change::Flaw { cause: None, .. }));
    assert_eq!(store.list().await.expect("lists").entries.len(), 2);
}

#[tokio::test]
async fn pools_are_written_as_flannels_configuration() {
    let mut network = Network::new(CONFIG).await;
    network.client.delete("/coreos.com/network/config", None).await.expect("removed");
    let store = network.store();
    assert!(store.list().await.expect("a network that begins").entries.is_empty());
    let pool = |name: &str, nat: bool| -> Record {
        let backend = serde_json::json!({"type": "vxlan", "vni": 1, "port": 8472});
        let value = serde_json::json!({"kind": "pool", "name": name, "cidr": "10.5.0.0/16", "blockLen": 24,
            "lastBlock": "10.5.255.0/24", "firstBlock": "10.5.1.0/24", "backend": backend, "natOutgoing": nat});
        serde_json::from_value(value).expect("a pool")
    };
    for (record, says) in [(pool("default", false), "flannel"), (pool("flannel", true), "ip_masq")] {
        let error = store.put(record, Expect::Any, None).await.expect_err("flannel cannot say it").to_string();
        assert!(error.contains(says), "{error}");
    }
    let made = store.put(pool("flannel", false), Expect::Any, None).await.expect("written");
    assert_eq!(store.list().await.expect("lists").entries, std::slice::from_ref(&made));
    let found = network.client.get("/coreos.com/network/config", None).await.expect("read");
    assert_eq!(
        found.kvs()[0].value_str().expect("text"),
        r#"{"EnableNFTables":false,"Network":"10.5.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#
    );
    assert_eq!(store.put(pool("flannel", false), Expect::Any, None).await.expect("the same"), made);
}

#[tokio::test]
async fn over_a_line_that_is_cut_again_and_again_records_and_leases_stay_of_one_mind() {
    let mut network = Network::new(CONFIG).await;
    let line = Line::to(&network.server).await;
    let (store, sure) = (Network::store_at(&format!("http://127.0.0.1:{}", line.port)), network.store());
    let cutter = line.cut_on(Duration::from_millis(9));
    for n in 0..60_u8 {
        let cidr = format!("10.5.{n}.0/24");
        match store.put(block(&cidr, "a"), Expect::Absent, TTL).await {
            Ok(made) => assert_eq!(sure.get(&block_key(&cidr)).await.expect("read"), Some(made)),
            Err(StoreError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        if n % 3 == 0 {
            match store.delete(&block_key(&cidr), Expect::Any).await {
                Ok(()) => assert_eq!(sure.get(&block_key(&cidr)).await.expect("read"), None),
                Err(StoreError::Unavailable { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let node = node("a", &format!("192.0.2.{}", n + 1), true);
        match store.put(node.clone(), Expect::Any, None).await {
            Ok(made) => assert_eq!(made.record, node),
            Err(StoreError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    cutter.abort();
    sure.put(node("a", "192.0.2.99", true), Expect::Any, None).await.expect("published");
    let keys = network.keys().await;
    let of = |kind: &str| -> BTreeMap<String, i64> {
        let below = keys.iter().filter_map(|(key, (_, lease))| Some((key.strip_prefix(kind)?.to_owned(), *lease)));
        below.collect()
    };
    // Each block of loden's has its lease of flannel's, on the same term, and there is none without the other.
    assert_eq!(of("loden/block/"), of("subnets/"));
    assert!(keys.iter().all(|(key, (value, _))| !key.starts_with("subnets/") || value.contains("192.0.2.99")));
    assert!(sure.list().await.expect("lists").flaws.is_empty());
}
