//! A cluster over etcd: three members that ask for certificates, of which one dies, two are away for a minute, one is replaced.

mod members;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use loden_lab::{Lab, Topology};
use serde_json::Map;

use crate::support::{Guard, POOLS, SEGMENT, all_reach, binaries, hosts, say, stop, streams, wait_for};
use members::{Members, Place};

/// Servers have the addresses behind the hosts'.
const PLACES: [Place; 4] =
    [("etcd1", "192.0.2.4"), ("etcd2", "192.0.2.5"), ("etcd3", "192.0.2.6"), ("etcd4", "192.0.2.7")];

/// A pool more: what the agents hear of it through the datastore.
const MORE: &str = "[[pool]]\nname = \"more\"\ncidr = \"10.99.0.0/16\"\nbackend = { type = \"vxlan\" }\n";

/// The members go before the lab whose namespaces they are in.
struct Scene {
    members: Members,
    lab: Guard,
}

fn up(name: &str) -> Scene {
    let dir = Path::new("/run/loden-lab-test").join(format!("{name}-{}", std::process::id()));
    let servers: String = PLACES.iter().map(|(name, _)| format!("[[server]]\nname = {name:?}\n")).collect();
    let store = format!("name = {name:?}\nstore = {:?}\n", Members::url(&dir, &PLACES));
    let topology = [store.as_str(), SEGMENT, &hosts(3, ""), &servers, POOLS].concat();
    let topology = Topology::parse(&topology).expect("a topology");
    let mut members = None;
    let prepare = |lab: &Lab| members.insert(Members::new(lab, &PLACES)).begin(3);
    let lab = Lab::up_with(&topology, &dir, binaries(), false, &mut |_| {}, prepare).expect("the lab comes up");
    Scene { members: members.expect("they were started"), lab: Guard(lab) }
}

/// That something written now reaches every kernel, and how long that takes.
fn follows(lab: &Lab, pools: &str, count: usize) -> Duration {
    let began = Instant::now();
    lab.apply_pools(pools).expect("applied");
    wait_for("what was written", || {
        lab.hosts().iter().all(|host| {
            let status = lab.agent(&host.name).expect("an agent").status().expect("a status");
            status.pools.len() == count && status.blocks.len() == count && status.kernel.pending == 0
        })
    });
    began.elapsed()
}

#[test]
fn a_leader_that_is_killed_is_not_missed() {
    let Scene { mut members, lab } = up("etcd-leader");
    all_reach(&lab);
    let running = streams(&lab, "host1", "host2");
    for round in 0..2 {
        let leader = members.leader();
        members.kill(leader);
        let more = [POOLS, MORE].concat();
        let (pools, count) = if round == 0 { (more.as_str(), 3) } else { (POOLS, 2) };
        let took = follows(&lab, pools, count);
        say(&format!(
            "leader {} killed: what is written then is in all kernels after {} ms",
            PLACES[leader].0,
            took.as_millis()
        ));
        members.start(leader);
    }
    let (sent, lost) = stop(running);
    say(&format!("{lost} of {sent} packets lost"));
    assert_eq!(lost, 0);
    all_reach(&lab);
}

#[test]
fn without_a_majority_for_a_minute_everything_goes_on() {
    let Scene { mut members, lab } = up("etcd-majority");
    let running = streams(&lab, "host1", "host2");
    let until = Instant::now() + Duration::from_secs(60);
    members.kill(0);
    members.kill(1);
    wait_for("the agents' notice", || {
        lab.hosts().iter().all(|host| {
            let status = lab.agent(&host.name).expect("an agent").status().expect("a status");
            !status.store.up && status.ready
        })
    });
    let mut pods = Vec::new();
    for (n, host) in lab.hosts().iter().enumerate() {
        pods.push(
            lab.attach_with(&host.name, &format!("late-{n}"), &Map::new()).expect("attached without the datastore"),
        );
    }
    all_reach(&lab);
    thread::sleep(until.saturating_duration_since(Instant::now()));
    members.start(0);
    members.start(1);
    members.wait_until_served();
    let began = Instant::now();
    let took = follows(&lab, &[POOLS, MORE].concat(), 3);
    say(&format!(
        "back: what is written then is in all kernels after {} ms ({} ms with the wait)",
        took.as_millis(),
        began.elapsed().as_millis()
    ));
    let (sent, lost) = stop(running);
    say(&format!("{lost} of {sent} packets lost"));
    assert_eq!(lost, 0);
    all_reach(&lab);
    pods.iter().for_each(|pod| lab.detach(pod).expect("detached"));
}

#[test]
fn a_member_is_replaced() {
    let Scene { mut members, lab } = up("etcd-replace");
    let running = streams(&lab, "host1", "host2");
    members.kill(2);
    members.replace(2, 3);
    // The two former ones cannot carry it without the new one.
    members.kill(0);
    let took = follows(&lab, &[POOLS, MORE].concat(), 3);
    say(&format!(
        "a member replaced, another killed: what is written then is in all kernels after {} ms",
        took.as_millis()
    ));
    let (sent, lost) = stop(running);
    assert_eq!(lost, 0, "of {sent}");
    all_reach(&lab);
}
