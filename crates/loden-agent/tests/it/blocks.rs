//! This node's blocks in the store: claimed, given back, lent, lost and regained.

use std::collections::BTreeSet;
use std::time::Duration;

use loden_agent::blocks::Blocks;
use loden_agent::cluster::Waiting;
use loden_agent::status;
use loden_core::api::{BlockWish, ViewOrigin};
use loden_core::cni::{NodeBlock, NodeFile};
use loden_core::ipam::OwnBlock;
use loden_core::model::{Attachment, Block, Entry, Key, Prefix, Record};
use loden_core::view::Problem;
use loden_linux::clock::boot_ms;
use loden_linux::run_dir::{RunDir, write_json};
use loden_store::{Change, Expect, Readiness, Store, Term};
use loden_testkit::FakeKernel;
use tokio::sync::oneshot;

use crate::cluster::{host_gw, listing, reconciler};
use crate::double::{Agent, Double};

fn p(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// The same cluster, whose blocks are /28 and of which n0 has none.
fn small_blocks() -> Vec<Entry> {
    let mut all = listing(2, &host_gw());
    all.retain(|entry| !matches!(&entry.record, Record::Block(_)));
    for entry in &mut all {
        if let Record::Pool(pool) = &mut entry.record {
            pool.block_len = 28;
            pool.cidr = p("10.244.0.0/24");
        }
    }
    all
}

fn block(cidr: &str, owner: &str) -> Record {
    let (owner, owner_uid) = (owner.parse().expect("name"), format!("uid-{owner}").parse().expect("uid"));
    Record::Block(Block { cidr: p(cidr), pool: "default".parse().expect("name"), owner, owner_uid })
}

#[test]
fn a_pool_of_a_family_without_a_block_is_waited_for_until_it_says_why_it_gives_none() {
    let mut entries = listing(1, &host_gw());
    let mut sixth = entries.clone();
    sixth.truncate(1);
    for entry in &mut sixth {
        if let Record::Pool(pool) = &mut entry.record {
            pool.name = "sixth".parse().expect("name");
            pool.cidr = p("fd00:10:244::/56");
            pool.block_len = 64;
        }
    }
    entries.extend(sixth.clone());
    let mut agent = reconciler(FakeKernel::new("eth0"));
    agent.listing(&entries);
    let (v4, v6) = (p("10.244.0.0/24"), p("fd00:10:244::/64"));
    let awaited = |blocks: &[Prefix], problems: &[Problem]| -> Vec<String> {
        status::awaited(agent.view(), blocks, problems).iter().map(ToString::to_string).collect()
    };
    assert_eq!(awaited(&[], &[]), ["default", "sixth"]);
    assert_eq!(awaited(&[v4], &[]), ["sixth"], "a pod that is served now would have one family for good");
    assert_eq!(awaited(&[v4], &[Problem::new("pool sixth", "all blocks are taken")]), [""; 0]);
    assert_eq!(awaited(&[v4], &[Problem::new("pool default", "all blocks are taken")]), ["sixth"]);
    assert_eq!(awaited(&[v4, v6], &[]), [""; 0]);
    let Record::Pool(mut elsewhere) = sixth.remove(0).record else { panic!("a pool") };
    elsewhere.node_selector.insert("zone".to_owned(), "b".to_owned());
    agent.record(&Change::Put(Entry { record: Record::Pool(elsewhere), created: 1, revision: 2 }));
    assert!(status::awaited(agent.view(), &[v4], &[]).is_empty(), "a pool of other nodes is not waited for");
}

async fn put(store: &Double, record: Record) {
    store.memory.put(record, Expect::Any, None).await.expect("written");
}

fn owned(records: &[Record], by: &str) -> BTreeSet<Prefix> {
    let of = |record: &Record| match record {
        Record::Block(block) if block.owner.as_str() == by => Some(block.cidr),
        _ => None,
    };
    records.iter().filter_map(of).collect()
}

/// A pod's attachment with an address of a block, as the plugin writes it.
fn attach(run_dir: &RunDir, block: &str, n: u8) {
    let addr = p(block).nth(u128::from(n) + 2).expect("an address");
    let text = serde_json::json!({
        "key": { "network": "net", "container": format!("c{n}"), "ifname": "eth0" },
        "addresses": [{ "net": format!("{addr}/28"), "supply": block }],
        "hostSide": format!("veth{n}"), "attach": "bridge", "bridge": "cni0",
        "mac": "02:00:00:00:00:01", "mtu": 1450, "netns": "/run/netns/p", "complete": true,
    });
    let attachment: Attachment = serde_json::from_value(text).expect("an attachment");
    run_dir.put_attachment(&attachment).expect("written");
}

#[tokio::test]
async fn blocks_are_claimed_for_the_pods_that_wait_and_not_again_for_the_same() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(small_blocks()).await;
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    store.until("the first", |all| owned(all, "n0").len() == 1).await;
    let wait = |batch, count| {
        move |outward: &mut loden_agent::cluster::Outward| {
            outward.waiting.insert("default".parse().expect("name"), Waiting { batch, count });
        }
    };
    agent.outward.send_modify(wait(1, 1));
    store.until("one for one that waits", |all| owned(all, "n0").len() == 2).await;
    agent.outward.send_modify(wait(1, 13));
    agent.settle().await;
    store.until("it is enough for thirteen", |all| owned(all, "n0").len() == 2).await;
    agent.outward.send_modify(wait(1, 40));
    store.until("forty need four", |all| owned(all, "n0").len() == 5).await;
    agent.outward.send_modify(wait(2, 1));
    store.until("who waits anew", |all| owned(all, "n0").len() == 6).await;
    agent.outward.send_modify(wait(3, 5000));
    agent.until("the end of the pool", |agent| agent.problems().contains("16 blocks of /28 are all taken")).await;
    agent.outward.send_modify(wait(4, 0));
    agent.until("nobody waits", |agent| !agent.problems().contains("taken")).await;
    store.until("no block more than there are", |all| owned(all, "n0").len() == 16).await;
}

#[tokio::test]
async fn a_block_is_given_back_by_its_own_revision_and_the_view_on_disk_knows_before() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(small_blocks()).await;
    put(&store, block("10.244.0.16/28", "n0")).await;
    put(&store, block("10.244.0.32/28", "n0")).await;
    put(&store, block("10.244.0.48/28", "n1")).await;
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    // Another's block is not deleted, whoever asks.
    agent.outward.send_modify(|outward| {
        outward.retired = [p("10.244.0.32/28"), p("10.244.0.48/28")].into();
    });
    store.until("it is given back", |all| owned(all, "n0") == [p("10.244.0.16/28")].into()).await;
    agent.settle().await;
    store.until("the other is there", |all| owned(all, "n1").len() == 1).await;
    assert!(agent.heard.iter().any(|heard| heard.contains("block 10.244.0.32/28: was idle")), "{:?}", agent.heard);
    // Nor is it claimed anew as one that was lost.
    assert!(!agent.heard.iter().any(|heard| heard.contains("lost")), "{:?}", agent.heard);

    // Killed between the two: on disk it is no more, in the store it is ours, and so it is again.
    drop(agent);
    let path = dir.path().join("view");
    let mut text = std::fs::read_to_string(&path).expect("there");
    assert!(text.contains("{\"delete\":{\"key\":{\"block\":\"10.244.0.32/28\"}"), "{text}");
    text += "{\"delete\":{\"key\":{\"block\":\"10.244.0.16/28\"},\"revision\":99}}\n";
    std::fs::write(&path, text).expect("written");
    store.set_away(true);
    let mut again = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    again.until("the view on disk", |agent| agent.health.borrow().view == Some(ViewOrigin::Disk)).await;
    assert!(again.reconciler.view().blocks.keys().all(|owner| owner.as_str() == "n1"));
    store.set_away(false);
    again.settle().await;
    assert_eq!(again.reconciler.view().blocks.values().next().expect("one")[0].cidr, p("10.244.0.16/28"));
}

#[tokio::test]
async fn a_block_that_pods_live_on_is_claimed_anew_before_the_kernel_hears_that_it_was_lost() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(small_blocks()).await;
    put(&store, block("10.244.0.32/28", "n0")).await;
    let run_dir = RunDir::new(dir.path().join("run"));
    attach(&run_dir, "10.244.0.32/28", 1);
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    let before = agent.reconciler.kernel().objects.clone();

    // While it looks on.
    agent.outward.send_modify(|outward| outward.in_use = [p("10.244.0.32/28")].into());
    agent.settle().await;
    let key = Key::Block(p("10.244.0.32/28"));
    store.memory.delete(&key, Expect::Any).await.expect("deleted");
    store.until("it is there again", |all| owned(all, "n0") == [p("10.244.0.32/28")].into()).await;
    agent.settle().await;
    let is_loss = |heard: &String| heard.contains("Delete") && heard.contains("10.244.0.32");
    assert!(!agent.heard.iter().any(is_loss), "{:?}", agent.heard);

    // While the store is away, and while the agent is.
    for restarts in [false, true] {
        store.set_away(true);
        agent.until("it is away", |agent| !agent.health.borrow().up).await;
        let kernel = agent.reconciler.kernel().clone();
        store.memory.delete(&key, Expect::Any).await.expect("deleted");
        if restarts {
            agent = Agent::start(dir.path(), &store, kernel);
        }
        agent.reconciler.kernel().writes.clear();
        store.set_away(false);
        agent.settle().await;
        store.until("it is there again", |all| owned(all, "n0") == [p("10.244.0.32/28")].into()).await;
        assert_eq!(agent.reconciler.kernel().writes.len(), 0, "restarts: {restarts}");
        assert_eq!(agent.reconciler.kernel().objects, before);
    }
}

#[tokio::test]
async fn a_node_that_finds_its_block_anothers_says_so_and_takes_another_one() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(small_blocks()).await;
    put(&store, block("10.244.0.32/28", "n0")).await;
    let run_dir = RunDir::new(dir.path().join("run"));
    attach(&run_dir, "10.244.0.32/28", 1);
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    agent.outward.send_modify(|outward| outward.in_use = [p("10.244.0.32/28")].into());
    put(&store, block("10.244.0.32/28", "n2")).await;
    store.until("another one", |all| owned(all, "n0").len() == 1).await;
    agent
        .until("both are named", |agent| {
            let problems = agent.problems();
            problems.contains("block 10.244.0.32/28: ") && problems.contains("node n0") && problems.contains("node n2")
        })
        .await;
    assert!(agent.heard.iter().any(|heard| heard.starts_with("event block 10.244.0.32/28: ")), "{:?}", agent.heard);
    agent.outward.send_modify(|outward| outward.in_use.clear());
    agent.until("its pods are gone", |agent| !agent.problems().contains("10.244.0.32/28")).await;
}

#[tokio::test]
async fn what_was_ours_before_is_claimed_first() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(small_blocks()).await;
    put(&store, block("10.244.0.208/28", "n0")).await;
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    drop(agent);
    store.memory.delete(&Key::Block(p("10.244.0.208/28")), Expect::Any).await.expect("deleted");
    let _agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    store.until("the same again", |all| owned(all, "n0") == [p("10.244.0.208/28")].into()).await;
}

#[tokio::test]
async fn a_lent_block_is_renewed_and_is_not_ours_when_its_term_has_ended_until_the_store_has_said_so() {
    let dir = tempfile::tempdir().expect("directory");
    let run_dir = RunDir::new(dir.path().join("run"));
    run_dir.make().expect("made");
    let mut store = Double::with(small_blocks()).await;
    store.term = Some(Term { ttl: Duration::from_millis(1500), margin: Duration::from_millis(1000) });
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    let cidr = *owned(&records(&store).await, "n0").first().expect("it has one");
    let until = |agent: &Agent| agent.terms.as_ref().expect("it is lent")[&cidr];
    // Longer than the term: it is renewed.
    let began = boot_ms();
    agent.until("three terms", |_| boot_ms() > began + 4500).await;
    assert_eq!(owned(&records(&store).await, "n0"), [cidr].into());
    assert!(until(&agent) > boot_ms());

    // The store is away for longer than that; the record ends there, and nobody takes it.
    store.set_away(true);
    let told = until(&agent);
    let block = NodeBlock {
        cidr,
        gateway: cidr.nth(1).expect("one"),
        pool: "default".parse().expect("name"),
        segment: None,
        bridge: None,
        until_ms: Some(told),
    };
    let (node, bridge) = ("n0".parse().expect("name"), "cni0".parse().expect("name"));
    write_json(&run_dir.node_file(), &NodeFile { node, bridge, mtu_pod: 1500, blocks: vec![block] }).expect("written");
    agent.until("its end", |_| boot_ms() > told).await;
    assert_eq!(until(&agent), told, "nothing is said that is not known");
    // So it is for one that starts meanwhile.
    drop(agent);
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.until("the view on disk", |agent| agent.health.borrow().view == Some(ViewOrigin::Disk)).await;
    assert_eq!(until(&agent), told);
    // After a reboot nothing is known of terms.
    drop(agent);
    std::fs::remove_file(run_dir.node_file()).expect("removed");
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.until("the view on disk", |agent| agent.health.borrow().view == Some(ViewOrigin::Disk)).await;
    assert_eq!(agent.terms.as_ref().map(|terms| terms.len()), Some(0));
    store.set_away(false);
    agent.settle().await;
    assert_eq!(owned(&records(&store).await, "n0"), [cidr].into(), "the same one");
    assert!(until(&agent) > boot_ms());
}

async fn records(store: &Double) -> Vec<Record> {
    store.memory.list().await.expect("listed").entries.into_iter().map(|entry| entry.record).collect()
}

#[tokio::test]
async fn how_the_node_is_is_told_once_a_change_and_again_after_a_failure() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(small_blocks()).await;
    let say = |ready, message: &str| Some(Readiness { ready, message: message.to_owned() });
    let told = || store.announced.lock().expect("no panic").clone();
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    assert_eq!(told(), []);
    agent.outward.send_modify(|outward| outward.readiness = say(false, "not yet"));
    agent.until("the first", |_| told().len() == 1).await;
    agent.outward.send_modify(|outward| outward.in_use = [p("10.0.0.0/28")].into());
    agent.settle().await;
    assert_eq!(told().len(), 1, "what is the same is not told again");
    store.cannot_announce.store(true, std::sync::atomic::Ordering::Relaxed);
    agent.outward.send_modify(|outward| outward.readiness = say(true, "ready"));
    agent.until("the failure is named", |agent| agent.problems().contains("forbidden")).await;
    assert!(agent.health.borrow().up, "it ends nothing else");
    store.cannot_announce.store(false, std::sync::atomic::Ordering::Relaxed);
    agent.until("the second", |_| told().len() == 2).await;
    assert_eq!(told().last().map(|last| last.ready), Some(true));
    agent.until("no problem", |agent| !agent.problems().contains("forbidden")).await;
}

fn own(cidr: &str, used: u64) -> OwnBlock {
    OwnBlock { cidr: p(cidr), pool: "default".parse().expect("name"), used, idle_s: 0, is_wanted: true }
}

fn node_file(blocks: &[&str]) -> NodeFile {
    let block = |text: &&str| {
        let (pool, cidr) = ("default".parse().expect("name"), p(text));
        NodeBlock { cidr, gateway: cidr.nth(1).expect("an address"), pool, segment: None, bridge: None, until_ms: None }
    };
    let (node, bridge) = ("n0".parse().expect("name"), "cni0".parse().expect("name"));
    NodeFile { node, bridge, mtu_pod: 1500, blocks: blocks.iter().map(block).collect() }
}

#[test]
fn the_plugin_is_offered_what_is_ours_and_not_on_its_way_back_and_not_overdue() {
    let mut blocks = Blocks::default();
    let (a, b) = ("10.244.0.0/28", "10.244.0.16/28");
    let all = [own(a, 3), own(b, 0)];
    let offered = |blocks: &mut Blocks, now| blocks.offered(&all, now).0.keys().copied().collect::<Vec<_>>();
    assert_eq!(offered(&mut blocks, 10), [p(a), p(b)]);
    blocks.retire(p(b));
    assert_eq!(offered(&mut blocks, 10), [p(a)]);
    // Its record is gone: what is claimed one day under the same name is another one.
    assert_eq!(blocks.offered(&all[..1], 10).0.len(), 1);
    assert_eq!(offered(&mut blocks, 10), [p(a), p(b)]);

    blocks.set_terms(Some([(p(a), 100)].into()));
    let (there, problems) = blocks.offered(&all, 99);
    assert_eq!(there, [(p(a), Some(100))].into());
    assert!(problems.len() == 1 && problems[0].subject == "block 10.244.0.16/28", "{problems:?}");
    assert_eq!(blocks.offered(&all, 100).0.len(), 0);
    blocks.set_terms(None);
    assert_eq!(blocks.offered(&all, 100), ([(p(a), None), (p(b), None)].into(), Vec::new()));
}

#[test]
fn a_wish_is_answered_when_a_block_more_is_served_or_none_can_be_had() {
    let mut blocks = Blocks::default();
    let (a, b) = ("10.244.0.0/28", "10.244.0.16/28");
    blocks.served(&node_file(&[a]));
    let wish = |blocks: &mut Blocks, known: &[&str]| {
        let pools = ["default".parse().expect("name")].into();
        let (sender, answer) = oneshot::channel();
        blocks.wish(BlockWish { pools, blocks: known.iter().map(|text| p(text)).collect() }, sender);
        answer
    };
    let waiting = |blocks: &Blocks| blocks.waiting().values().next().copied();
    assert_eq!(waiting(&blocks), None);
    let mut answers: Vec<_> = (0..3).map(|_| wish(&mut blocks, &[a])).collect();
    assert_eq!(waiting(&blocks), Some(Waiting { batch: 0, count: 3 }));
    assert_eq!(
        blocks.surplus(&[own(a, 0), own(b, 0)], Duration::from_secs(1)),
        None,
        "nothing is given back meanwhile"
    );
    blocks.served(&node_file(&[a]));
    assert!(answers[0].try_recv().is_err());
    // One has gone away.
    drop(answers.pop());
    blocks.refuse(&[]);
    assert_eq!(waiting(&blocks), Some(Waiting { batch: 0, count: 2 }));
    blocks.served(&node_file(&[a, b]));
    answers.iter_mut().for_each(|answer| assert_eq!(answer.try_recv(), Ok(Ok(()))));
    assert_eq!(wish(&mut blocks, &[a]).try_recv(), Ok(Ok(())), "it has only to look again");
    assert_eq!(waiting(&blocks), None);
    let mut answer = wish(&mut blocks, &[a, b]);
    assert_eq!(waiting(&blocks).map(|waiting| (waiting.batch > 0, waiting.count)), Some((true, 1)));
    blocks.refuse(&[Problem::new("pool other", "it is full")]);
    assert!(answer.try_recv().is_err());
    blocks.refuse(&[Problem::new("pool default", "it is full")]);
    assert_eq!(answer.try_recv(), Ok(Err("pool default: it is full".to_owned())));
    assert_eq!(waiting(&blocks), None);
}
