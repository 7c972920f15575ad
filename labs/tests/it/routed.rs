//! Routed pods: their hosts' side is kept right, and survives its agent.

use loden_core::attach;
use loden_core::kernel::{Key, Object};
use loden_core::model::Attachment;
use loden_lab::Lab;
use loden_linux::rt::{address, link, route};
use loden_linux::run_dir::RunDir;
use loden_linux::sysctl;
use rustix::process::Signal;

use crate::drift::{observe, set_mac};
use crate::support::{Guard, POOLS, SEGMENT, all_reach, by_hand, hosts, number, stop, streams, up, wait_for};

const ROUTED: &str = "[plugin]\nattach = \"routed\"\n";

fn lab(name: &str) -> Guard {
    up(name, &[SEGMENT, &hosts(2, ""), POOLS, ROUTED].concat())
}

/// The attachment of host1's pod.
fn attachment(lab: &Lab) -> Attachment {
    let mut found = RunDir::new(lab.dir().join("host1/run")).attachments().good;
    assert_eq!(found.len(), 1);
    found.remove(0)
}

#[test]
fn they_reach_everybody_without_a_bridge_between() {
    let lab = lab("routed-pods");
    all_reach(&lab);
    let agent = lab.agent("host1").expect("an agent");
    wait_for("nothing left to do", || agent.plan().expect("a plan").text.is_empty());
}

#[test]
fn what_the_host_holds_for_a_pod_is_repaired_and_named() {
    let lab = lab("routed-drift");
    let agent = lab.agent("host1").expect("an agent");
    let attachment = attachment(&lab);
    let dev = attachment.host_side.expect("a host's end");
    all_reach(&lab);
    let before = observe(&lab, &[dev]);
    let index = number(&lab, "host1", dev.as_str()).expect("a link");
    let in_host =
        |work: &(dyn Fn() -> Option<i64> + Sync)| lab.netns("host1").expect("netns").run(work).expect("thread");
    let objects = attach::host_objects(&attachment);
    assert!(objects.len() > 6, "{objects:?}");
    for (key, object, _) in &objects {
        let last = agent.events(0).expect("events").last().map_or(0, |event| event.seq);
        match (key, object) {
            (Key::DeviceSysctl(dev, which), Object::Sysctl(value)) => {
                let path = which.path(*dev);
                in_host(&|| sysctl::write(&path, 3 - value).map(|()| None).expect("written"));
                wait_for(&key.to_string(), || in_host(&|| sysctl::read(&path).expect("read")) == Some(*value));
            }
            (Key::Address(_, net), _) => by_hand(&lab, "host1", |w| address::delete(w, *net, index)),
            (Key::Route(prefix, priority), _) => by_hand(&lab, "host1", |w| route::delete(w, *prefix, *priority)),
            _ => panic!("{key}: how is that broken?"),
        }
        wait_for(&key.to_string(), || observe(&lab, &[dev]) == before);
        wait_for("an event that names it", || {
            let of_it = |event: &loden_core::api::Event| event.sort == "repair" && event.object == key.to_string();
            agent.events(last).expect("events").iter().any(of_it)
        });
    }
    by_hand(&lab, "host1", |w| set_mac(w, dev.as_str()));
    wait_for("the gateway's Ethernet address", || observe(&lab, &[dev]) == before);
    by_hand(&lab, "host1", |w| link::set_up(w, dev, false));
    wait_for("the host's end up", || observe(&lab, &[dev]) == before);
    all_reach(&lab);
}

#[test]
fn their_agent_may_die_and_come_back_without_a_packet_lost_or_a_write() {
    let lab = lab("routed-kill");
    let agent = lab.agent("host1").expect("an agent");
    all_reach(&lab);
    let running = streams(&lab, "host1", "host2");
    for _ in 0..3 {
        agent.end(Signal::KILL).expect("it ends");
        agent.start(&lab.binaries().lodend, false).expect("it starts");
        agent.wait_ready().expect("it gets ready");
        assert_eq!(agent.status().expect("a status").kernel.writes.values().sum::<u64>(), 0);
    }
    let (sent, lost) = stop(running);
    assert!(sent > 0);
    assert_eq!(lost, 0);
}

#[test]
fn a_pod_that_comes_and_goes_while_the_agent_is_away_leaves_nothing() {
    let lab = lab("routed-away");
    let agent = lab.agent("host1").expect("an agent");
    all_reach(&lab);
    wait_for("nothing left to do", || agent.plan().expect("a plan").text.is_empty());
    let before = observe(&lab, &[]);
    agent.end(Signal::KILL).expect("it ends");
    let pod = lab.attach("host1", "guest").expect("attached");
    lab.detach(&pod).expect("detached");
    agent.start(&lab.binaries().lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    wait_for("the parked end reaped", || observe(&lab, &[]) == before);
    all_reach(&lab);
}
