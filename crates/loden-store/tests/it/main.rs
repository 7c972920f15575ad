//! The stores, each through the conformance suite, and SQLite's own faults.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

mod faults;

use std::sync::Arc;

use loden_store::memory::Memory;
use loden_store::sqlite::Sqlite;
use loden_store::{Store, conformance};

#[tokio::test]
async fn memory_conforms() {
    let memory = Memory::new();
    let handles: Vec<Arc<dyn Store>> = (0..3).map(|_| Arc::new(memory.clone()) as Arc<dyn Store>).collect();
    assert_eq!(conformance::run(&handles).await, Ok(()));
}

#[tokio::test]
async fn sqlite_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut handles: Vec<Arc<dyn Store>> = Vec::new();
    for _ in 0..3 {
        handles.push(Arc::new(Sqlite::open(&dir.path().join("loden.db")).await.expect("opens")));
    }
    assert_eq!(conformance::run(&handles).await, Ok(()));
}
