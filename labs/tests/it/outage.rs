//! The datastore is away, and the agent is started again: on the view on disk, without a packet lost or a write to the kernel.

use std::fs;
use std::path::PathBuf;

use loden_core::api::ViewOrigin;
use loden_lab::Lab;
use loden_lab::probe::stream::Stream;
use loden_linux::rt::link;
use rustix::process::Signal;

use crate::drift::observe;
use crate::support::{POOLS, SEGMENT, all_reach, by_hand, hosts, say, stop, streams, up, wait_for};

/// The store's files, here and away.
fn files(lab: &Lab) -> Vec<(PathBuf, PathBuf)> {
    let away = lab.dir().join("away");
    fs::create_dir_all(&away).expect("a directory");
    ["loden.db", "loden.db-wal", "loden.db-shm"].map(|name| (lab.dir().join(name), away.join(name))).into()
}

/// What stands in the store's place meanwhile: it can be taken for no store.
fn take_away(lab: &Lab) {
    for (here, away) in files(lab) {
        if here.exists() {
            fs::rename(&here, &away).expect("moved");
        }
        fs::create_dir(&here).expect("made");
    }
}

fn bring_back(lab: &Lab) {
    for (here, away) in files(lab) {
        fs::remove_dir(&here).expect("removed");
        if away.exists() {
            fs::rename(&away, &here).expect("moved");
        }
    }
}

#[test]
fn an_agent_that_starts_while_the_store_is_away_loses_nothing_writes_nothing_and_serves_pods() {
    let lab = up("outage", &[SEGMENT, &hosts(2, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    all_reach(&lab);
    let running = streams(&lab, "host1", "host2");
    take_away(&lab);
    for _ in 0..3 {
        agent.end(Signal::KILL).expect("it ends");
        agent.start(&lab.binaries().lodend, false).expect("it starts");
        agent.wait_ready().expect("it gets ready");
        let status = agent.status().expect("a status");
        assert_eq!((status.store.view, status.store.up), (Some(ViewOrigin::Disk), false));
        assert_eq!(status.kernel.writes.values().sum::<u64>(), 0, "{:?}", status.kernel.writes);
        let says = |problem: &loden_core::view::Problem| problem.cause.contains("has not answered since the start");
        assert!(status.problems.iter().any(says), "{:?}", status.problems);
    }
    // New pods on a host whose agent was started again and on one whose agent goes on, both ways.
    let (one, two) = (lab.attach("host1", "late1").expect("a pod"), lab.attach("host2", "late2").expect("a pod"));
    let ns = |name: &str| lab.netns(name).expect("netns");
    for (from, to) in [(&one, &two), (&two, &one)] {
        for (_, addr) in to.addresses.iter() {
            wait_for("the new pods reach each other", || {
                let stream = Stream::start(&ns(&from.name), &ns(&to.name), addr, 200).expect("a stream");
                std::thread::sleep(std::time::Duration::from_millis(200));
                let report = stream.stop().expect("a report");
                report.sent > 0 && report.lost == 0
            });
        }
    }
    let (sent, lost) = stop(running);
    say(&format!("3 starts without the store: {lost} of {sent} packets lost"));
    assert_eq!(lost, 0);

    let before = observe(&lab, &[]);
    // A reboot: nothing of ours is in the kernel.
    agent.end(Signal::KILL).expect("it ends");
    for dev in ["flannel.1", "flannel-v6.1", "cni0"] {
        by_hand(&lab, "host1", |w| link::delete(w, dev.parse().expect("name")));
    }
    assert!(observe(&lab, &[]).len() < before.len());
    agent.start(&lab.binaries().lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    wait_for("everything is there again", || {
        let now = observe(&lab, &[]);
        let missing: Vec<_> = before.iter().filter(|(key, object)| now.get(*key) != Some(object)).collect();
        missing.is_empty() || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            say(&format!("{missing:?}"));
            false
        }
    });

    bring_back(&lab);
    let took = wait_for("the store is back", || {
        let status = agent.status().expect("a status");
        status.store.up && status.store.view == Some(ViewOrigin::Store)
    });
    say(&format!("the store is followed {:.1} s after it was back", took.as_secs_f64()));
    assert_eq!(agent.plan().expect("a plan").text, "");
    all_reach(&lab);
    [one, two].iter().for_each(|pod| lab.detach(pod).expect("detached"));
}
