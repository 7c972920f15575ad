//! What is refused, and what goes on all the same.

use std::process::Command;

use loden_core::kernel::link::{Link, LinkKind, Port, Vxlan};
use loden_core::model::Vni;
use loden_linux::rt::link;
use loden_linux::spawn;
use rustix::process::Signal;

use crate::support::{POOLS, SEGMENT, all_reach, by_hand, hosts, number, up, wait_for};

#[test]
fn a_second_agent_on_a_host_is_refused_and_the_first_goes_on() {
    let lab = up("second", &[SEGMENT, &hosts(1, ""), POOLS].concat());
    let mut command = Command::new(&lab.binaries().lodend);
    command.arg("--config").arg(lab.dir().join("host1/lodend.toml"));
    spawn::in_netns(&mut command, &lab.netns("host1").expect("netns"), true).expect("in the host");
    let output = command.output().expect("it ends");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("there can be only one on a host"), "{words}");
    let agent = lab.agent("host1").expect("an agent");
    let pid = agent.pid().expect("it runs").as_raw_nonzero().to_string();
    assert!(words.contains(&pid), "{words}");
    assert!(agent.status().expect("a status").ready);
}

#[test]
fn a_foreign_device_of_our_name_is_left_alone_and_named() {
    let lab = up("foreign", &[SEGMENT, &hosts(2, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    agent.end(Signal::KILL).expect("it ends");
    let eth0 = number(&lab, "host1", "eth0");
    by_hand(&lab, "host1", |w| {
        let name = "flannel.1".parse().expect("name");
        link::delete(w, name);
        let kind = LinkKind::Vxlan(Vxlan {
            group: None,
            reports_misses: false,
            most_entries: 0,
            vni: Vni::new(1).expect("vni"),
            underlay: None,
            local: Some([192, 0, 2, 1].into()),
            port: 4789,
            learning: true,
            gbp: false,
        });
        link::create(
            w,
            name,
            &Link { kind, mtu: 1400, mac: None, up: true, master: None, port: Port::default(), group: 0 },
            eth0,
            None,
        );
    });
    let made = number(&lab, "host1", "flannel.1");
    agent.start(&lab.binaries().lodend, false).expect("it starts");
    wait_for("a problem that names the device", || {
        agent.status().is_ok_and(|status| {
            status
                .problems
                .iter()
                .any(|p| p.subject == "link flannel.1" && p.cause.contains("its UDP port is 4789, wanted is 8472"))
        })
    });
    assert_eq!(number(&lab, "host1", "flannel.1"), made);
    // Removed by the operator, it is made as wanted at once.
    by_hand(&lab, "host1", |w| link::delete(w, "flannel.1".parse().expect("name")));
    wait_for("the agent's own device", || number(&lab, "host1", "flannel.1").is_some_and(|n| Some(n) != made));
    wait_for("nothing pending", || agent.status().is_ok_and(|status| status.kernel.pending == 0));
    all_reach(&lab);
}

#[test]
fn host_gw_refuses_a_peer_that_is_not_on_the_segment_by_name() {
    let topology = "[[segment]]\nname = \"a\"\nv4 = \"192.0.2.0/24\"\n[[segment]]\nname = \"b\"\nv4 = \"203.0.113.0/24\"\n\
                    [[host]]\nname = \"host1\"\npods = 1\n[[host]]\nname = \"host2\"\npods = 1\n\
                    [[host]]\nname = \"host3\"\nsegment = \"b\"\npods = 1\n\
                    [[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nbackend = { type = \"host-gw\" }\n";
    let lab = up("hostgw", topology);
    let status = lab.agent("host1").expect("an agent").status().expect("a status");
    let peer = |name: &str| status.peers.iter().find(|peer| peer.node.as_str() == name).expect("a peer");
    assert!(
        peer("host3").problems.iter().any(|p| p.contains("203.0.113.3 is not on-link on eth0")),
        "{:?}",
        peer("host3")
    );
    assert_eq!((peer("host2").missing, peer("host2").problems.len()), (0, 0));
}

#[test]
fn a_store_that_vanishes_changes_nothing_and_is_found_again() {
    let lab = up("store", &[SEGMENT, &hosts(2, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    let files = ["", "-wal", "-shm"].map(|suffix| format!("loden.db{suffix}"));
    let elsewhere = lab.dir().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a directory");
    for file in &files {
        std::fs::rename(lab.dir().join(file), elsewhere.join(file)).expect("moved away");
    }
    wait_for("the error in the status", || {
        agent.status().is_ok_and(|status| !status.store.up && status.store.error.is_some())
    });
    all_reach(&lab);
    assert_eq!(agent.plan().expect("a plan").steps, 0);
    // A new, empty store in its place is not taken for it.
    agent.end(Signal::KILL).expect("it ends");
    agent.start(&lab.binaries().lodend, false).expect("it starts");
    wait_for("that it is another store", || {
        agent.status().is_ok_and(|status| status.store.error.is_some_and(|e| e.contains("another one")))
    });
    all_reach(&lab);
    for file in &files {
        std::fs::rename(elsewhere.join(file), lab.dir().join(file)).expect("moved back");
    }
    wait_for("the store again", || agent.status().is_ok_and(|status| status.store.up && status.ready));
    all_reach(&lab);
}
