//! Two hundred nodes start at once for 256 blocks, each with a handle of its own: nobody has another's block, nobody has none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use loden_core::ipam::choose_block;
use loden_core::model::{Block, Pool, Prefix, Record};
use loden_store::{Expect, Store, StoreError};

const NODES: u64 = 200;

/// A pool of 256 blocks. flannel has no use for the first.
fn pool() -> Pool {
    let value = serde_json::json!({"name": "flannel", "cidr": "10.5.0.0/16", "blockLen": 24, "firstBlock": "10.5.1.0/24",
        "backend": {"type": "vxlan", "vni": 1, "port": 8472}, "natOutgoing": false});
    serde_json::from_value(value).expect("a pool")
}

/// One node's claim; answers its block, and how often it lost.
async fn claim(store: Arc<dyn Store>, node: u64) -> (Prefix, u32) {
    let (pool, mut taken, mut lost) = (pool(), BTreeMap::<Prefix, ()>::new(), 0);
    // Ten of them each begin to look at the same place, so that most races are lost.
    let seed = (node / 10).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    loop {
        let cidr = choose_block(&pool, &taken, seed).expect("there are more blocks than nodes");
        let name = format!("n{node}").parse().expect("a name");
        let block = Block { cidr, pool: pool.name.clone(), owner: name, owner_uid: "u".parse().expect("an identity") };
        let ttl = store.term().map(|term| term.ttl);
        match store.put(Record::Block(block), Expect::Absent, ttl).await {
            Ok(_) => return (cidr, lost),
            Err(StoreError::Conflict { .. }) => {
                lost += 1;
                taken.insert(cidr, ());
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The race on a store that each node opens for itself.
pub async fn race(name: &str, handles: Vec<Arc<dyn Store>>) {
    let began = Instant::now();
    let claims: Vec<_> = handles.iter().cloned().zip(0..).map(|(store, n)| tokio::spawn(claim(store, n))).collect();
    let (mut won, mut lost) = (BTreeSet::new(), 0);
    for claim in claims {
        let (block, times) = claim.await.expect("no panic");
        assert!(won.insert(block), "{block} was given twice");
        lost += times;
    }
    let text = format!("{name}: {} blocks, {lost} races lost, {:?}\n", won.len(), began.elapsed());
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).expect("stderr");
    let listing = handles[0].list().await.expect("lists");
    let stored = listing.entries.iter().filter(|entry| matches!(entry.record, Record::Block(_))).count();
    assert_eq!((stored, listing.flaws.len()), (won.len(), 0));
}

/// A handle for each node.
pub fn handles(open: impl Fn() -> Arc<dyn Store>) -> Vec<Arc<dyn Store>> {
    (0..NODES).map(|_| open()).collect()
}

#[tokio::test]
async fn for_blocks_in_memory() {
    let memory = loden_store::memory::Memory::new();
    race("memory", handles(|| Arc::new(memory.clone()))).await;
}

#[tokio::test]
async fn for_blocks_in_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut handles: Vec<Arc<dyn Store>> = Vec::new();
    for _ in 0..NODES {
        let store = loden_store::sqlite::Sqlite::open(&dir.path().join("loden.db")).await.expect("opens");
        handles.push(Arc::new(store));
    }
    race("SQLite", handles).await;
}
