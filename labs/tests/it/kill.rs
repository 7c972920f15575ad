//! The agent is killed, again and again, under traffic.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{POOLS, SEGMENT, all_reach, hosts, say, stop, streams, up};

#[test]
fn fifty_kills_lose_nothing_and_fifty_starts_write_nothing() {
    let lab = up("kills", &[SEGMENT, &hosts(2, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    let running = streams(&lab, "host1", "host2");
    let mut writes = 0;
    for n in 0..50_u64 {
        agent.end(Signal::KILL).expect("it ends");
        assert!(agent.pid().is_none());
        agent.start(&lab.binaries().lodend, false).expect("it starts");
        // Killed at points all over its start and after it: a walk through 0 to 30 ms in odd steps.
        thread::sleep(Duration::from_micros(n * 7919 % 30_000));
        if n % 10 == 9 {
            agent.wait_ready().expect("it gets ready");
            writes += agent.status().expect("a status").kernel.writes.values().sum::<u64>();
        }
    }
    agent.wait_ready().expect("it gets ready");
    let (sent, lost) = stop(running);
    say(&format!("50 kills: {lost} of {sent} packets lost, {writes} writes in the starts that were asked"));
    assert_eq!((lost, writes), (0, 0));
    all_reach(&lab);
}

#[test]
fn nodes_that_come_and_go_while_the_agent_is_off_leave_no_trace() {
    let lab = up("off", &[SEGMENT, &hosts(3, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    agent.end(Signal::KILL).expect("it ends");
    // host3 moves to another backend's port while host1 does not look.
    lab.apply_pools(&POOLS.replace("\"vxlan\"", "\"vxlan\", vni = 7")).expect("applied");
    thread::sleep(Duration::from_millis(300));
    agent.start(&lab.binaries().lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    crate::support::wait_for("the old network goes", || {
        lab.hosts().iter().all(|host| crate::support::number(&lab, &host.name, "flannel.1").is_none())
    });
    assert_eq!(agent.plan().expect("a plan").text, "");
    all_reach(&lab);
}
