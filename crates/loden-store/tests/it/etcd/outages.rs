//! Members that die, fall silent or are replaced; connections that are cut; history that is forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loden_core::model::Record;
use loden_store::{Change, Expect, Store, StoreError, Watch};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::server::{self, Server};
use super::{key, next, node};

/// A way to the server that the test can cut.
pub struct Line {
    /// Where it begins.
    pub port: u16,
    cut: watch::Sender<u64>,
}

impl Line {
    /// A line that is whole.
    pub async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let (port, to) = (listener.local_addr().expect("bound").port(), server.port);
        let (cut, heard) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut heard = heard.clone();
                heard.borrow_and_update();
                tokio::spawn(async move {
                    let Ok(mut to) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                        _ = heard.changed() => {}
                    }
                });
            }
        });
        Self { port, cut }
    }

    fn cut(&self) {
        self.cut.send_modify(|times| *times += 1);
    }

    /// Cuts it again and again until the task is ended.
    pub fn cut_on(&self, pause: Duration) -> tokio::task::JoinHandle<()> {
        let cut = self.cut.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                cut.send_modify(|times| *times += 1);
            }
        })
    }

    fn store(&self) -> Arc<dyn Store> {
        server::store(&[&format!("http://127.0.0.1:{}", self.port)], "")
    }
}

/// Writes 0, 1, … to one record until told to stop; answers how many.
fn counter(store: Arc<dyn Store>, name: &'static str, mut stop: watch::Receiver<bool>) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let mut n = 0;
        while !*stop.borrow_and_update() {
            store.put(node(name, &n.to_string()), Expect::Any, None).await.expect("written");
            n += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        n
    })
}

/// Follows the counter up to a number: none may be missing, come twice or out of order.
async fn count(watch: &mut Watch, next_number: &mut u64, end: u64) {
    while *next_number < end {
        let Change::Put(entry) = next(watch).await else { continue };
        let Record::Node(found) = entry.record else { continue };
        if found.name.to_string() == "counter" {
            assert_eq!(found.labels["l"], next_number.to_string());
            *next_number += 1;
        }
    }
}

#[tokio::test]
async fn a_watch_whose_stream_is_cut_loses_nothing_and_tells_nothing_twice() {
    let server = Server::start(&[]);
    let line = Line::to(&server).await;
    let from = server.store("").list().await.expect("lists").revision;
    let mut watch = line.store().watch(from).await.expect("watches");
    let (stop, stopped) = watch::channel(false);
    let writer = counter(server.store(""), "counter", stopped);
    let mut number = 0;
    for _ in 0..20 {
        let end = number + 10;
        count(&mut watch, &mut number, end).await;
        line.cut();
    }
    stop.send_replace(true);
    let written = writer.await.expect("no panic");
    count(&mut watch, &mut number, written).await;
}

#[tokio::test]
async fn a_write_whose_connection_is_cut_is_made_once_and_its_answer_is_true() {
    let server = Server::start(&[]);
    let line = Line::to(&server).await;
    let (store, sure) = (line.store(), server.store(""));
    let cutter = line.cut_on(Duration::from_millis(7));
    let mut last = None;
    for n in 0..300 {
        let expect = last.map_or(Expect::Absent, Expect::Revision);
        let record = node("a", &n.to_string());
        let entry = match store.put(record.clone(), expect, None).await {
            Ok(entry) => entry,
            // All the tries of one call may be cut, and one of them be carried out now or later: once it is in the way of a sure one.
            Err(StoreError::Unavailable { .. }) => match sure.put(record.clone(), expect, None).await {
                Ok(entry) => entry,
                Err(StoreError::Conflict { found: Some(found), .. }) if found.record == record => *found,
                Err(error) => panic!("{n}: {error}"),
            },
            Err(error) => panic!("{n}: {error}"),
        };
        assert_eq!(sure.get(&key("a")).await.expect("readable"), Some(entry.clone()), "{n}");
        last = Some(entry.revision);
    }
    cutter.abort();
}

#[tokio::test]
async fn history_that_was_forgotten_is_told() {
    let server = Server::start(&[]);
    let (store, mut client) = (server.store(""), server.client().await);
    let first = store.put(node("a", "0"), Expect::Any, None).await.expect("written");
    let mut last = first.revision;
    for n in 1..10 {
        last = store.put(node("a", &n.to_string()), Expect::Any, None).await.expect("written").revision;
    }
    let compacted = i64::try_from(last).expect("small");
    client.compact(compacted, None).await.expect("compacted");
    let error = match store.watch(first.revision).await {
        Err(error) => error,
        Ok(mut watch) => watch.next().await.expect_err("it is forgotten"),
    };
    assert!(matches!(error, StoreError::Compacted { oldest } if oldest == last), "{error:?}");
    // What is behind that is there.
    let mut watch = store.watch(last - 1).await.expect("watches");
    assert_eq!(next(&mut watch).await.revision(), last);
}

#[tokio::test]
async fn a_watch_that_was_away_when_history_was_forgotten_says_so() {
    let server = Server::start(&[]);
    let line = Line::to(&server).await;
    let (store, mut client) = (server.store(""), server.client().await);
    let first = store.put(node("a", "0"), Expect::Any, None).await.expect("written");
    let mut watch = line.store().watch(first.revision).await.expect("watches");
    // Cut as often as it comes back, while more is written and forgotten.
    let cutter = line.cut_on(Duration::from_millis(1));
    tokio::time::sleep(Duration::from_millis(50)).await;
    for n in 1..10 {
        store.put(node("a", &n.to_string()), Expect::Any, None).await.expect("written");
    }
    let last = store.list().await.expect("lists").revision;
    client.compact(i64::try_from(last).expect("small"), None).await.expect("compacted");
    cutter.abort();
    let mut told = first.revision;
    let error = loop {
        match tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("in time") {
            Ok(change) => {
                assert_eq!(change.revision(), told + 1);
                told += 1;
            }
            Err(error) => break error,
        }
        if told == last {
            // It slipped through a gap between two cuts: it has all.
            return;
        }
    };
    // Either is an order to list again.
    assert!(matches!(error, StoreError::Compacted { .. } | StoreError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn another_store_in_the_place_of_the_former_is_not_taken_for_it() {
    let mut server = Server::start(&[]);
    let store = server.store("");
    let id = store.list().await.expect("lists").id;
    for n in 0..5 {
        store.put(node(&format!("n{n}"), "1"), Expect::Absent, None).await.expect("written");
    }
    let from = store.list().await.expect("lists").revision;
    let mut watch = store.watch(from).await.expect("watches");
    server.kill();
    server.wipe();
    server.run();
    server.wait();
    let end = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("in time");
    assert!(matches!(end, Err(StoreError::Compacted { .. } | StoreError::Unavailable { .. })), "{end:?}");
    let behind = store.watch(from).await.err();
    assert!(matches!(behind, Some(StoreError::Compacted { .. })), "{behind:?}");
    assert_ne!(store.list().await.expect("lists").id, id);
}

#[tokio::test]
async fn an_identity_that_is_removed_ends_the_watch() {
    let server = Server::start(&[]);
    let store = server.store("");
    let listing = store.list().await.expect("lists");
    let mut watch = store.watch(listing.revision).await.expect("watches");
    server.client().await.delete("/loden/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.expect("gone");
    let end = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("in time");
    assert!(matches!(&end, Err(StoreError::Unavailable { cause, .. }) if cause.contains("identity")), "{end:?}");
}

/// A store on all members, and a watch over it, while a member at a time fails by `fail` and comes back by `mend`.
async fn members_fail(fail: impl Fn(&mut Server), mend: impl Fn(&mut Server)) {
    let mut members = Server::start_three();
    let endpoints: Vec<String> = members.iter().map(Server::endpoint).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let store = server::store(&endpoints, "");
    let from = store.list().await.expect("lists").revision;
    let mut watch = store.watch(from).await.expect("watches");
    let mut number = 0;
    let mut write = 0_u64;
    for (n, member) in members.iter_mut().enumerate() {
        for i in 0..30 {
            if i == 10 {
                fail(member);
            }
            let began = Instant::now();
            store.put(node("counter", &write.to_string()), Expect::Any, None).await.expect("a majority is there");
            if began.elapsed() > Duration::from_millis(100) {
                server::say(&format!("member {n} failed: a write took {:?}", began.elapsed()));
            }
            write += 1;
        }
        let began = Instant::now();
        count(&mut watch, &mut number, write).await;
        server::say(&format!("member {n} failed: the watch had all after {:?}", began.elapsed()));
        mend(member);
        member.wait();
    }
}

#[tokio::test]
async fn a_member_that_dies_is_left_for_another() {
    members_fail(Server::kill, Server::run).await;
}

#[tokio::test]
async fn a_member_that_says_nothing_is_left_for_another() {
    members_fail(|member| member.freeze(true), |member| member.freeze(false)).await;
}

#[tokio::test]
async fn a_lost_majority_is_told_and_comes_back() {
    let mut members = Server::start_three();
    let endpoints: Vec<String> = members.iter().map(Server::endpoint).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let store = server::store(&endpoints, "");
    let made = store.put(node("a", "1"), Expect::Any, None).await.expect("written");
    members[1].kill();
    members[2].kill();
    // For a moment the last one does not know yet.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let began = Instant::now();
    let error = store.put(node("a", "2"), Expect::Any, None).await.expect_err("no majority");
    server::say(&format!("after {:?}: {error}", began.elapsed()));
    assert!(matches!(error, StoreError::NoQuorum { .. }), "{error:?}");
    members[1].run();
    members[1].wait();
    store.put(node("a", "2"), Expect::Revision(made.revision), None).await.expect("two of three are enough");
}
