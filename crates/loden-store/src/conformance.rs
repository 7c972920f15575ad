//! The suite that every store passes. Each check is given a way to open one more handle on the same store.

use std::sync::Arc;
use std::time::Duration;

use loden_core::model::{Block, Entry, Key, Lease, Node, NodeName, Prefix, Record};

use crate::{Change, Expect, Store, StoreError, Watch};

/// What a check answers: `Err` says what was not as it should be.
pub type Verdict = Result<(), String>;

/// Runs all checks on one store through several handles (of other processes, where the store can). `least_ttl` is the shortest time
/// to live that the store keeps to.
///
/// # Errors
/// The first check that fails, by name.
pub async fn run(handles: &[Arc<dyn Store>], least_ttl: Duration) -> Verdict {
    let [first, second, ..] = handles else { return Err("two handles are needed".to_owned()) };
    let named = |name: &'static str| move |cause: String| format!("{name}: {cause}");
    compare_and_swap(first, second).await.map_err(named("compare and swap"))?;
    race_for_a_block(handles).await.map_err(named("race for a block"))?;
    same_record_writes_nothing(first).await.map_err(named("writing the same"))?;
    lease_ends_and_is_renewed(first, second, least_ttl).await.map_err(named("lease"))?;
    watch_resumes(first, second).await.map_err(named("watch"))?;
    watch_under_concurrent_writers(handles).await.map_err(named("watch under writers"))?;
    unknown_keys_are_kept(first, second).await.map_err(named("unknown keys"))
}

fn node(name: &str, label: &str) -> Record {
    let value = serde_json::json!({"kind": "node", "name": name, "uid": format!("uid-{name}"), "labels": {"l": label}});
    serde_json::from_value(value).unwrap_or_else(|error| unreachable!("a node: {error}"))
}

fn node_key(name: &str) -> Result<Key, String> {
    name.parse::<NodeName>().map(Key::Node).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn ensure(holds: bool, what: &str) -> Verdict {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

async fn compare_and_swap(a: &Arc<dyn Store>, b: &Arc<dyn Store>) -> Verdict {
    let key = node_key("cas")?;
    let made = a.put(node("cas", "1"), Expect::Absent, None).await.map_err(text)?;
    let lost = b.put(node("cas", "2"), Expect::Absent, None).await;
    ensure(
        matches!(&lost, Err(StoreError::Conflict { found: Some(found), .. }) if **found == made),
        "a second claim must be told who won",
    )?;
    let changed = b.put(node("cas", "2"), Expect::Revision(made.revision), None).await.map_err(text)?;
    ensure(changed.revision > made.revision && changed.created == made.created, "revisions rise, creation stays")?;
    let stale = a.delete(&key, Expect::Revision(made.revision)).await;
    ensure(matches!(stale, Err(StoreError::Conflict { .. })), "a stale revision must not delete")?;
    a.delete(&key, Expect::Revision(changed.revision)).await.map_err(text)?;
    ensure(b.get(&key).await.map_err(text)?.is_none(), "a deleted record is gone for all")?;
    b.delete(&key, Expect::Any).await.map_err(text)?;
    let gone = b.put(node("cas", "3"), Expect::Revision(changed.revision), None).await;
    ensure(matches!(gone, Err(StoreError::Conflict { found: None, .. })), "a deleted record is no revision")
}

async fn race_for_a_block(handles: &[Arc<dyn Store>]) -> Verdict {
    for round in 0..20_u8 {
        let cidr = Prefix::holding([10, 9, round, 0].into(), 24);
        let claim = |n: usize| -> Result<Record, String> {
            Ok(Record::Block(Block {
                cidr,
                pool: "race".parse().map_err(text)?,
                owner: format!("n{n}").parse().map_err(text)?,
                owner_uid: format!("u{n}").parse().map_err(text)?,
            }))
        };
        let mut tasks = Vec::new();
        for (n, store) in handles.iter().cycle().take(8).cloned().enumerate() {
            let record = claim(n)?;
            tasks.push(tokio::spawn(async move { store.put(record, Expect::Absent, None).await }));
        }
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.map_err(text)? {
                Ok(entry) => winners.push(entry),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(text(error)),
            }
        }
        ensure(winners.len() == 1, &format!("{} claims of {cidr} won", winners.len()))?;
        let held = handles[0].get(&Key::Block(cidr)).await.map_err(text)?;
        ensure(held.as_ref() == winners.first(), "the winner's record is the one that is there")?;
        handles[0].delete(&Key::Block(cidr), Expect::Any).await.map_err(text)?;
    }
    Ok(())
}

async fn same_record_writes_nothing(store: &Arc<dyn Store>) -> Verdict {
    let made = store.put(node("same", "1"), Expect::Any, None).await.map_err(text)?;
    let before = store.list().await.map_err(text)?;
    for expect in [Expect::Any, Expect::Revision(made.revision)] {
        let again = store.put(node("same", "1"), expect, None).await.map_err(text)?;
        ensure(made == again, "the same record has the same revision")?;
    }
    ensure(store.list().await.map_err(text)? == before, "nothing was written")
}

async fn lease_ends_and_is_renewed(a: &Arc<dyn Store>, b: &Arc<dyn Store>, ttl: Duration) -> Verdict {
    let lease = |instance: &str| -> Result<Record, String> {
        Ok(Record::Lease(Lease {
            node: "leased".parse().map_err(text)?,
            uid: "uid-l".parse().map_err(text)?,
            instance: instance.to_owned(),
        }))
    };
    let key = Key::Lease("leased".parse().map_err(text)?);
    let held = a.put(lease("one")?, Expect::Absent, Some(ttl)).await.map_err(text)?;
    let mut watch = b.watch(held.revision).await.map_err(text)?;
    let taken = b.put(lease("two")?, Expect::Absent, Some(ttl)).await;
    ensure(matches!(taken, Err(StoreError::Conflict { .. })), "a held lease cannot be taken")?;
    for _ in 0..2 {
        tokio::time::sleep(ttl / 2).await;
        a.renew(&key, held.revision, ttl).await.map_err(|error| format!("renewing a held lease: {error}"))?;
        tokio::time::sleep(ttl / 2).await;
        let again = a.put(lease("one")?, Expect::Revision(held.revision), Some(ttl)).await.map_err(text)?;
        ensure(again == held, "writing a held lease again renews it")?;
    }
    ensure(b.get(&key).await.map_err(text)?.as_ref() == Some(&held), "a renewed lease holds, without a revision")?;
    let over = tokio::time::timeout(ttl + Duration::from_secs(10), watch.next()).await.map_err(text)?.map_err(text)?;
    ensure(matches!(&over, Change::Delete { key: k, .. } if *k == key), "a lease that ran out is reported as removed")?;
    let late = a.renew(&key, held.revision, ttl).await;
    ensure(matches!(late, Err(StoreError::Conflict { .. })), "a lease that ran out cannot be renewed")?;
    b.put(lease("two")?, Expect::Absent, Some(ttl)).await.map(drop).map_err(text)
}

/// The next change of a watch. Revisions rise; other writers of the same datastore may leave gaps between them.
async fn next(watch: &mut Watch, last: &mut u64) -> Result<Change, String> {
    let change = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.map_err(text)?.map_err(text)?;
    ensure(change.revision() > *last, &format!("revision {} was told behind {last}", change.revision()))?;
    *last = change.revision();
    Ok(change)
}

async fn watch_resumes(a: &Arc<dyn Store>, b: &Arc<dyn Store>) -> Verdict {
    let first = a.put(node("w", "1"), Expect::Any, None).await.map_err(text)?;
    let second = b.put(node("w", "2"), Expect::Any, None).await.map_err(text)?;
    a.delete(&node_key("w")?, Expect::Any).await.map_err(text)?;
    let all = [Some(first.clone()), Some(second.clone()), None];
    for (after, seen) in [(first.revision - 1, 0), (first.revision, 1), (second.revision, 2)] {
        let mut watch = b.watch(after).await.map_err(text)?;
        let mut last = after;
        for expected in &all[seen..] {
            let told = match next(&mut watch, &mut last).await? {
                Change::Put(entry) => Some(entry),
                Change::Delete { key, .. } if key == node_key("w")? => None,
                other => return Err(format!("{other:?} was not written")),
            };
            ensure(told == *expected, &format!("{expected:?} was written, {told:?} was told"))?;
        }
    }
    Ok(())
}

async fn watch_under_concurrent_writers(handles: &[Arc<dyn Store>]) -> Verdict {
    const EACH: usize = 50;
    let mut last = handles[0].list().await.map_err(text)?.revision;
    let mut watch = handles[0].watch(last).await.map_err(text)?;
    let mut writers = Vec::new();
    for (n, store) in handles.iter().cloned().enumerate() {
        writers.push(tokio::spawn(async move {
            for i in 0..EACH {
                store.put(node(&format!("writer-{n}"), &i.to_string()), Expect::Any, None).await?;
            }
            Ok::<_, StoreError>(())
        }));
    }
    let mut told = vec![0; handles.len()];
    while told.iter().sum::<usize>() < EACH * handles.len() {
        // A lease of an earlier check may run out meanwhile, which is a change as well.
        let Change::Put(Entry { record, .. }) = next(&mut watch, &mut last).await? else { continue };
        let writer = told.iter().enumerate().find(|(n, _)| record.key().to_string() == format!("node/writer-{n}"));
        let Some((n, i)) = writer.map(|(n, i)| (n, *i)) else { return Err(format!("{} has no writer", record.key())) };
        ensure(record == node(&format!("writer-{n}"), &i.to_string()), "a watch has no gap and no repetition")?;
        told[n] += 1;
    }
    for writer in writers {
        writer.await.map_err(text)?.map_err(text)?;
    }
    Ok(())
}

async fn unknown_keys_are_kept(a: &Arc<dyn Store>, b: &Arc<dyn Store>) -> Verdict {
    let value = serde_json::json!({"kind": "node", "name": "newer", "uid": "u", "fromTheFuture": {"x": [1, 2]}});
    let record: Record = serde_json::from_value(value).map_err(text)?;
    a.put(record.clone(), Expect::Any, None).await.map_err(text)?;
    let found = b.get(&node_key("newer")?).await.map_err(text)?.map(|entry| entry.record);
    let kept = matches!(&found, Some(Record::Node(Node { unknown, .. })) if unknown.contains_key("fromTheFuture"));
    ensure(kept && found == Some(record), "keys of a newer version are kept")
}
