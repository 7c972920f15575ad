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

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loden_core::model::Record;
use loden_store::memory::Memory;
use loden_store::sqlite::Sqlite;
use loden_store::{Change, Expect, Store, Watch, conformance};
use loden_testkit::user;

/// These keep to any time to live: a short one makes a short test.
const LEAST_TTL: Duration = Duration::from_millis(400);

#[tokio::test]
async fn memory_conforms() {
    let memory = Memory::new();
    let handles: Vec<Arc<dyn Store>> = (0..3).map(|_| Arc::new(memory.clone()) as Arc<dyn Store>).collect();
    assert_eq!(conformance::run(&handles, LEAST_TTL).await, Ok(()));
}

async fn sqlite_conforms_in(dir: &Path) {
    let mut handles: Vec<Arc<dyn Store>> = Vec::new();
    for _ in 0..3 {
        handles.push(Arc::new(Sqlite::open(&dir.join("loden.db")).await.expect("opens")));
    }
    assert_eq!(conformance::run(&handles, LEAST_TTL).await, Ok(()));
}

#[tokio::test]
async fn sqlite_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    sqlite_conforms_in(dir.path()).await;
}

fn here<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

#[test]
fn sqlite_conforms_without_inotify() {
    user::as_somebody(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let _all = user::all_inotify_instances();
        here(sqlite_conforms_in(dir.path()));
    });
}

/// Writes a record and waits until the watch has brought it; says how long that took.
async fn heard_of(store: &Sqlite, watch: &mut Watch, label: &str) -> Duration {
    let value = serde_json::json!({"kind": "node", "name": "n", "uid": "u", "labels": {"l": label}});
    let record: Record = serde_json::from_value(value).expect("a node");
    let made = store.put(record, Expect::Any, None).await.expect("written");
    let began = Instant::now();
    let heard = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("in time");
    assert_eq!(heard.expect("a change"), Change::Put(made));
    began.elapsed()
}

#[test]
fn a_watch_on_sqlite_without_inotify_says_so_and_gets_over_it() {
    user::as_somebody(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("loden.db");
        let all = user::all_inotify_instances();
        here(async {
            let store = Sqlite::open(&path).await.expect("opens");
            let mut watch = store.watch(0).await.expect("a watch");
            let why = watch.hindrance().expect("it is hindered");
            assert!(why.contains("looked at every second") && why.contains("fs.inotify.max_user_instances"), "{why}");
            heard_of(&store, &mut watch, "a").await;
            heard_of(&store, &mut watch, "b").await;
            assert!(watch.hindrance().is_some());
            drop(all);
            for n in 0.. {
                heard_of(&store, &mut watch, &format!("c{n}")).await;
                if watch.hindrance().is_none() {
                    break;
                }
                assert!(n < 10, "it has an instance again");
            }
            // Each of these would take a second if it were looked for.
            let began = Instant::now();
            for n in 0..5 {
                heard_of(&store, &mut watch, &format!("d{n}")).await;
            }
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        });
    });
}

#[test]
fn a_file_in_the_stores_place_is_not_followed_without_inotify_either() {
    user::as_somebody(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, other) = (dir.path().join("loden.db"), dir.path().join("other.db"));
        let _all = user::all_inotify_instances();
        here(async {
            let store = Sqlite::open(&path).await.expect("opens");
            let mut watch = store.watch(0).await.expect("a watch");
            drop(Sqlite::open(&other).await.expect("opens"));
            std::fs::rename(&other, &path).expect("renamed");
            let heard = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("in time");
            let error = heard.expect_err("it is another file").to_string();
            assert!(error.contains("removed or replaced"), "{error}");
        });
    });
}
