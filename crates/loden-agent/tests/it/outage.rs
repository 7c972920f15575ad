//! The datastore is away, and the agent starts.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;

use loden_core::api::ViewOrigin;
use loden_core::model::Record;
use loden_store::{Expect, Store};
use loden_testkit::FakeKernel;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::cluster::{listing, vxlan};
use crate::double::{Agent, Double};

async fn settled(dir: &Path, store: &Double) -> FakeKernel {
    let mut agent = Agent::start(dir, store, FakeKernel::new("eth0"));
    agent.settle().await;
    let mut kernel = agent.reconciler.kernel().clone();
    assert!(kernel.objects.len() > 10);
    kernel.writes.clear();
    kernel
}

#[tokio::test]
async fn an_agent_that_starts_meanwhile_runs_on_the_view_on_disk_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(listing(4, &vxlan())).await;
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    // Something that comes behind the listing is on disk, too.
    let Some(Record::Node(mut node)) = store.record("node/n2").await else { panic!("it is there") };
    node.underlay.v4 = Some([192, 0, 2, 77].into());
    store.memory.put(Record::Node(node), Expect::Any, None).await.expect("written");
    store
        .memory
        .delete(&"n4".parse().map(loden_core::model::Key::Node).expect("name"), Expect::Any)
        .await
        .expect("gone");
    agent.until("the change", |agent| agent.heard.iter().any(|heard| heard.starts_with("Delete"))).await;
    agent.settle().await;
    let mut kernel = agent.reconciler.kernel().clone();
    kernel.writes.clear();
    drop(agent);

    store.set_away(true);
    let mut again = Agent::start(dir.path(), &store, kernel.clone());
    again.until("the view on disk", |agent| agent.heard.iter().any(|heard| heard == "remembered")).await;
    (0..5).for_each(|_| again.turn());
    assert_eq!(again.reconciler.kernel().writes.len(), 0);
    assert_eq!(again.reconciler.kernel().objects, kernel.objects);
    assert!(again.reconciler.facts().mtu_pod.is_some(), "pods can be served");
    assert!(!again.reconciler.is_alive(&"n0".parse().expect("name")), "nobody has shown signs of life");
    {
        let health = again.health.borrow();
        assert_eq!((health.view, health.up), (Some(ViewOrigin::Disk), false));
    }
    assert!(
        again.problems().contains("has not answered since the start; running on the view on disk"),
        "{}",
        again.problems()
    );

    // A reboot during the outage: the kernel is empty, and everything is there again.
    drop(again);
    let mut rebooted = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    rebooted.until("everything", |agent| agent.reconciler.kernel().objects == kernel.objects).await;

    store.set_away(false);
    rebooted.until("the store", |agent| agent.health.borrow().view == Some(ViewOrigin::Store)).await;
    rebooted.settle().await;
    assert_eq!(rebooted.reconciler.kernel().objects, kernel.objects);
    assert!(!rebooted.problems().contains("view"), "{}", rebooted.problems());
    assert_eq!(rebooted.heard.iter().filter(|heard| *heard == "remembered").count(), 1);
}

#[tokio::test]
async fn a_store_that_says_nothing_is_not_waited_for_and_one_that_answers_is_not_forestalled() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(listing(2, &vxlan())).await;
    let kernel = settled(dir.path(), &store).await;
    let mut prompt = Agent::start(dir.path(), &store, kernel.clone());
    prompt.settle().await;
    assert!(!prompt.heard.iter().any(|heard| heard == "remembered"));
    drop(prompt);
    store.silent.store(true, Ordering::Relaxed);
    let mut agent = Agent::start(dir.path(), &store, kernel);
    agent.until("the view on disk", |agent| agent.heard.iter().any(|heard| heard == "remembered")).await;
    assert_eq!(agent.reconciler.kernel().writes.len(), 0);
}

#[tokio::test]
async fn a_view_that_is_damaged_or_another_stores_is_not_used() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Double::with(listing(2, &vxlan())).await;
    let kernel = settled(dir.path(), &store).await;
    let whole = fs::read(dir.path().join("view")).expect("there");
    store.set_away(true);

    fs::write(dir.path().join("store-id"), "another").expect("written");
    let mut agent = Agent::start(dir.path(), &store, kernel.clone());
    agent.until("a failure", |agent| agent.health.borrow().error.is_some()).await;
    agent.turn();
    assert_eq!((agent.heard.len(), agent.reconciler.synced()), (0, false), "{:?}", agent.heard);
    drop(agent);

    fs::write(dir.path().join("store-id"), "one").expect("written");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] = b'\n';
    fs::write(dir.path().join("view"), &damaged).expect("written");
    let mut agent = Agent::start(dir.path(), &store, kernel.clone());
    agent.until("a failure", |agent| agent.health.borrow().error.is_some()).await;
    agent.turn();
    assert!(!agent.reconciler.synced());
    let (path, problems) = (dir.path().join("view.damaged"), agent.problems());
    assert!(problems.contains("line") && problems.contains(&path.display().to_string()), "{problems}");
    assert_eq!(fs::read(&path).expect("kept"), damaged);
    store.set_away(false);
    agent.settle().await;
    assert_eq!(agent.reconciler.kernel().writes.len(), 0);
    assert!(dir.path().join("view").exists() && !agent.problems().contains("view"), "{}", agent.problems());

    // A line that was cut short is what the kernel has not heard of.
    drop(agent);
    store.set_away(true);
    let mut torn = whole;
    torn.extend_from_slice(b"{\"delete\":{\"key\":{\"no");
    fs::write(dir.path().join("view"), &torn).expect("written");
    let mut agent = Agent::start(dir.path(), &store, kernel);
    agent.until("the view on disk", |agent| agent.reconciler.synced()).await;
    assert_eq!(agent.reconciler.kernel().writes.len(), 0);
}

/// A file system of 16 pages of 4 KiB.
struct Disk<'a>(&'a Path);

impl Disk<'_> {
    fn on(path: &Path) -> Disk<'_> {
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(c"size=64k,mode=0755")).expect("this test needs root");
        Disk(path)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_disk_that_gets_full_is_told_and_the_agent_goes_on() {
    let dir = tempfile::tempdir().expect("directory");
    let _disk = Disk::on(dir.path());
    let store = Double::with(listing(2, &vxlan())).await;
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    agent.settle().await;
    assert_eq!(agent.problems(), "");
    let (view, filler) = (dir.path().join("view"), dir.path().join("filler"));
    assert!(view.exists());
    let mut file = fs::File::create(&filler).expect("made");
    while file.write_all(&[0; 512]).is_ok() {}
    // Changes of a peer, until the last page is full, too.
    let Some(Record::Node(mut node)) = store.record("node/n2").await else { panic!("it is there") };
    for n in 0..40 {
        node.labels.insert("n".to_owned(), n.to_string());
        store.memory.put(Record::Node(node.clone()), Expect::Any, None).await.expect("written");
    }
    agent.until("it is told", |agent| agent.problems().contains("the view on disk: ")).await;
    agent.settle().await;
    assert!(agent.problems().contains("No space left on device"), "{}", agent.problems());
    assert!(!view.exists(), "one that lacks changes would have the kernel put back");
    let seen = |agent: &Agent| agent.reconciler.view().nodes[&node.name].labels.get("n").cloned();
    assert_eq!(seen(&agent).as_deref(), Some("39"), "the agent goes on");

    // With room again it is written anew at the next listing.
    fs::remove_file(&filler).expect("removed");
    store.set_away(true);
    agent.until("it is away", |agent| !agent.health.borrow().up).await;
    store.set_away(false);
    agent.settle().await;
    assert!(view.exists() && agent.problems().is_empty(), "{}", agent.problems());
}
