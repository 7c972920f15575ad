//! Leases and writers: nothing is left over, and who is killed leaves nothing half.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use loden_store::{Change, Expect, StoreError};

use super::server::{self, Server};
use super::{LEAST_TTL, block, lease, next, node};

/// How many leases etcd has.
async fn leases(server: &Server) -> usize {
    server.client().await.leases().await.expect("answered").leases().len()
}

#[tokio::test]
async fn a_lease_is_kept_while_it_does_and_given_back_when_not() {
    let server = Server::start(&[]);
    let (store, other) = (server.store(""), server.store(""));
    let key = lease("n", "1").key();
    let ttl = Duration::from_secs(30);
    let held = store.put(lease("n", "1"), Expect::Absent, Some(ttl)).await.expect("taken");
    assert_eq!(leases(&server).await, 1);
    // A claim that is lost, the same again, and a renewal need no other lease; nor does another record of the same length.
    let lost = other.put(lease("n", "2"), Expect::Absent, Some(ttl)).await;
    assert!(matches!(lost, Err(StoreError::Conflict { .. })), "{lost:?}");
    assert_eq!(store.put(lease("n", "1"), Expect::Any, Some(ttl)).await.expect("the same"), held);
    store.renew(&key, held.revision, ttl).await.expect("renewed");
    let taken = other.put(lease("n", "2"), Expect::Revision(held.revision), Some(ttl)).await.expect("taken over");
    assert_eq!((leases(&server).await, taken.created), (1, held.created));
    // Another length is another lease, and a revision.
    let longer = store.put(lease("n", "2"), Expect::Any, Some(ttl * 2)).await.expect("longer");
    assert!(longer.revision > taken.revision && leases(&server).await == 1);
    // Less than etcd grants is what it grants.
    let short = store.put(lease("m", "1"), Expect::Absent, Some(Duration::from_millis(10))).await.expect("short");
    let again = store.put(lease("m", "1"), Expect::Any, Some(Duration::from_millis(10))).await.expect("short");
    assert_eq!((short, leases(&server).await), (again, 2));
    // For ever, and gone.
    store.put(lease("n", "2"), Expect::Any, None).await.expect("for ever");
    store.delete(&lease("m", "1").key(), Expect::Any).await.expect("gone");
    assert_eq!(leases(&server).await, 0);
}

#[tokio::test]
async fn a_lease_that_ran_out_between_is_replaced() {
    let server = Server::start(&[]);
    let store = server.store("");
    let held = store.put(lease("n", "1"), Expect::Absent, Some(LEAST_TTL)).await.expect("taken");
    let mut watch = store.watch(held.revision).await.expect("watches");
    assert!(matches!(next(&mut watch).await, Change::Delete { .. }));
    let late = store.renew(&held.record.key(), held.revision, LEAST_TTL).await;
    assert!(matches!(late, Err(StoreError::Conflict { found: None, .. })), "{late:?}");
    let again = store.put(lease("n", "1"), Expect::Any, Some(LEAST_TTL)).await.expect("taken again");
    assert!(again.created > held.created);
}

/// The other process of the test below: this test binary again, told to claim.
#[tokio::test]
async fn other_process_claims() {
    let Ok(endpoint) = std::env::var("LODEN_TEST_CLAIMER") else { return };
    let store = server::store(&[&endpoint], "");
    for n in 0..u16::MAX {
        let [high, low] = n.to_be_bytes();
        let claimed =
            store.put(block(&format!("10.{high}.{low}.0/24"), "victim"), Expect::Absent, Some(LEAST_TTL)).await;
        match claimed {
            // What was acknowledged is said aloud, so that the test knows what must be there.
            Ok(_) => server::say(&n.to_string()),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_killed_writer_leaves_nothing_half_and_nothing_behind() {
    let server = Server::start(&[]);
    let store = server.store("");
    for round in 0..5_u64 {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "etcd::writers::other_process_claims", "--nocapture"]);
        command.env("LODEN_TEST_CLAIMER", server.endpoint()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        tokio::time::sleep(Duration::from_millis(150 + round * 37)).await;
        child.kill().expect("killed");
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.signal(), Some(9));
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<u16> = said.lines().filter_map(|line| line.parse().ok()).collect();
        let listing = store.list().await.expect("lists");
        assert!(listing.flaws.is_empty(), "{:?}", listing.flaws);
        for n in said {
            let [high, low] = n.to_be_bytes();
            let there = store.get(&block(&format!("10.{high}.{low}.0/24"), "victim").key()).await.expect("readable");
            assert!(there.is_some() || round > 0, "{n} was acknowledged");
        }
        // Another one claims on meanwhile.
        store.put(node(&format!("round-{round}"), "1"), Expect::Absent, None).await.expect("written");
    }
    // The victim's blocks run out, and with them every lease, also one that was granted and not used yet.
    tokio::time::sleep(LEAST_TTL * 2).await;
    let listing = store.list().await.expect("lists");
    assert_eq!(listing.entries.len(), 5, "{listing:?}");
    assert_eq!(leases(&server).await, 0);
}
