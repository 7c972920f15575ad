//! Following the attachments' files: what changes is heard of, and nothing that was there is lost.

use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use loden_agent::ledger::{Attached, follow};
use loden_core::model::Attachment;
use loden_linux::LinuxError;
use loden_linux::run_dir::RunDir;
use loden_testkit::user;

pub fn attachment(network: &str, container: &str) -> Attachment {
    let text = serde_json::json!({
        "key": { "network": network, "container": container, "ifname": "eth0" },
        "addresses": [{ "net": "10.244.0.5/24" }],
        "hostSide": "veth0123456789a",
        "attach": "bridge",
        "bridge": "cni0",
        "mac": "02:00:00:00:00:01",
        "mtu": 1450,
        "netns": "/run/netns/p",
        "complete": true,
    });
    serde_json::from_value(text).expect("an attachment")
}

/// Waits for a delivery that is as expected; what is delivered before it is only on the way there.
fn wait_for(deliveries: &Receiver<Attached>, what: &str, mut is_it: impl FnMut(&Attached) -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let delivered = deliveries.recv_timeout(left).unwrap_or_else(|error| panic!("{what}: {error}"));
        if is_it(&delivered) {
            return;
        }
    }
}

#[test]
fn every_change_of_a_file_is_heard_of() {
    let dir = tempfile::tempdir().expect("directory");
    follow_changes(&RunDir::new(dir.path()), 0);
}

/// The same, late, and with a word of why; which goes when there is an instance again.
#[test]
fn every_change_of_a_file_is_heard_of_without_inotify() {
    user::as_somebody(|| {
        let dir = tempfile::tempdir().expect("directory");
        let run_dir = RunDir::new(dir.path());
        let all = user::all_inotify_instances();
        let deliveries = follow_changes(&run_dir, 1);
        drop(all);
        wait_for(&deliveries, "an instance", |(_, bad)| bad.len() == 1);
        let began = Instant::now();
        for n in 0..5 {
            run_dir.put_attachment(&attachment("three", &format!("late{n}"))).expect("put");
            wait_for(&deliveries, "a late one", |(good, _)| good.len() == 200 + n);
        }
        // Each would take a second if it were looked for.
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    });
}

/// Changes of all sorts, each heard of. `deaf`: how many errors speak of inotify, in each delivery.
fn follow_changes(run_dir: &RunDir, deaf: usize) -> Receiver<Attached> {
    let is_about = |error: &LinuxError| {
        let text = error.to_string();
        text.contains("looked at every second") && text.contains("fs.inotify.max_user_instances")
    };
    let says = |(_, bad): &Attached| assert_eq!(bad.iter().filter(|error| is_about(error)).count(), deaf, "{bad:?}");
    run_dir.put_attachment(&attachment("one", "before")).expect("put");
    let (send, deliveries) = channel();
    follow(run_dir, move |now| drop(send.send(now))).expect("follow");
    wait_for(&deliveries, "what was there", |all| {
        says(all);
        all.0.len() == 1
    });

    for n in 0..200 {
        run_dir.put_attachment(&attachment("one", &format!("pod{n}"))).expect("put");
    }
    wait_for(&deliveries, "a burst", |(good, _)| good.len() == 201);
    run_dir.put_attachment(&attachment("two", "late")).expect("put");
    wait_for(&deliveries, "a new network", |(good, _)| good.len() == 202);

    let mut changed = attachment("one", "pod7");
    changed.mtu = 1400;
    run_dir.put_attachment(&changed).expect("put");
    wait_for(&deliveries, "a changed one", |(good, _)| good[&changed.key].mtu == 1400 && good.len() == 202);

    let file = run_dir.attachment_file(&changed.key).expect("file");
    let torn = file.with_file_name("torn.tmp");
    fs::write(&torn, "{").expect("write");
    fs::rename(&torn, &file).expect("rename");
    wait_for(&deliveries, "a torn one", |(good, bad)| good.len() == 201 && bad.len() == 1 + deaf);
    let elsewhere = file.with_file_name("other:eth0.json");
    fs::rename(run_dir.attachment_file(&attachment("one", "pod8").key).expect("file"), elsewhere).expect("rename");
    wait_for(&deliveries, "one in another's file", |(_, bad)| bad.len() == 2 + deaf);

    run_dir.remove_attachment(&changed.key).expect("remove");
    fs::remove_dir_all(run_dir.attachments_dir().join("two")).expect("remove");
    wait_for(&deliveries, "removals", |all| {
        says(all);
        all.0.len() == 199 && all.1.len() == 1 + deaf
    });
    deliveries
}
