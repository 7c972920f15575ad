//! The stores, each through the conformance suite, and the faults of SQLite and etcd.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

#[cfg(feature = "etcd")]
mod etcd;
mod faults;
#[cfg(feature = "etcd")]
mod flannel;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod race;

use std::sync::Arc;
use std::time::Duration;

use loden_store::memory::Memory;
use loden_store::sqlite::Sqlite;
use loden_store::{Store, conformance};

/// These keep to any time to live: a short one makes a short test.
const LEAST_TTL: Duration = Duration::from_millis(400);

#[tokio::test]
async fn memory_conforms() {
    let memory = Memory::new();
    let handles: Vec<Arc<dyn Store>> = (0..3).map(|_| Arc::new(memory.clone()) as Arc<dyn Store>).collect();
    assert_eq!(conformance::run(&handles, LEAST_TTL).await, Ok(()));
}

#[tokio::test]
async fn sqlite_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut handles: Vec<Arc<dyn Store>> = Vec::new();
    for _ in 0..3 {
        handles.push(Arc::new(Sqlite::open(&dir.path().join("loden.db")).await.expect("opens")));
    }
    assert_eq!(conformance::run(&handles, LEAST_TTL).await, Ok(()));
}
