//! flannel's layout of etcd, against a real server: flannel's keys to the byte, and nodes of both kinds side by side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use loden_core::model::{Block, Entry, Key, Record};
use loden_store::{Change, Expect, Store, StoreError, Watch, flannel::Flannel};

use super::etcd::server::Server;

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
        let address = format!("flannel:{}", self.server.endpoint()).parse().expect("an address");
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

    /// As flanneld makes its lease: the key must not be there. Whether it was made, and its lease.
    async fn flanneld_claims(&mut self, key: &str, ip: &str) -> Option<i64> {
        let lease = self.client.lease_grant(86400, None).await.expect("granted").id();
        let key = format!("/coreos.com/network/subnets/{key}");
        let put = TxnOp::put(key.as_str(), theirs(ip), Some(PutOptions::new().with_lease(lease)));
        let made = Txn::new().when([Compare::version(key.as_str(), CompareOp::Equal, 0)]).and_then([put]);
        self.client.txn(made).await.expect("answered").succeeded().then_some(lease)
    }

    async fn put(&mut self, key: &str, value: &str) {
        self.client.put(format!("/coreos.com/network/{key}"), value, None).await.expect("written");
    }
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
    let lease = network.flanneld_claims("10.5.7.0-24", "172.16.0.5").await.expect("free");
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
    let (store, mut flanneld) = (network.store(), Network { client: network.server.client().await, ..network });
    network = Network { client: flanneld.server.client().await, server: Server::start(&[]) };
    drop(network.server);
    let mut won = (0, 0);
    for n in 0..100_u8 {
        let key = format!("10.5.{n}.0-24");
        let (ours, theirs) = tokio::join!(
            store.put(block(&format!("10.5.{n}.0/24"), "a"), Expect::Absent, TTL),
            flanneld.flanneld_claims(&key, "172.16.0.5")
        );
        match (ours, theirs) {
            (Ok(_), None) => won.0 += 1,
            (Err(StoreError::Conflict { .. }), Some(_)) => won.1 += 1,
            other => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(won.0 + won.1, 100);
    let entries = store.list().await.expect("lists").entries;
    let blocks: Vec<_> = entries.iter().filter(|entry| matches!(entry.record, Record::Block(_))).map(owner).collect();
    assert_eq!(blocks.iter().filter(|(owner, _)| owner == "a").count(), won.0);
    assert_eq!(blocks.iter().filter(|(owner, uid)| owner == "172.16.0.5" && uid == "flannel").count(), won.1);
}
