//! Blocks that are lent, on a real etcd in flannel's layout: the wall clock is stepped by years under an agent that holds one, and an agent
//! is frozen until the term of its block has ended and another node has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use loden_core::cni::NodeFile;
use loden_lab::agent::Agent;
use loden_lab::{Lab, Topology};
use loden_linux::clock::boot_ms;
use loden_linux::run_dir::{RunDir, read_json};
use loden_linux::sysctl;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::drift::observe;
use crate::support::{Guard, SEGMENT, all_reach, binaries, say, stop, streams, wait_for};
use crate::takeover::flannel::Etcd;

/// The shortest that there is.
const TERM: Duration = Duration::from_secs(10);
const FORWARD: &str = "net/ipv4/ip_forward";

/// The etcd goes before the lab whose namespace it is in.
struct Scene {
    etcd: Etcd,
    lab: Guard,
}

/// Three hosts whose agents do not run yet, and flannel's configuration with blocks from `10.244.FIRST.0/24` to `10.244.LAST.0/24`.
fn up(name: &str, (first, last): (u8, u8)) -> Scene {
    let dir = Path::new("/run/loden-lab-test").join(format!("{name}-{}", std::process::id()));
    let hosts: String = (1..=3).map(|n| format!("[[host]]\nname = \"host{n}\"\nstarts = false\n")).collect();
    let store = format!("{}?term={}&ip_masq=true", Etcd::URL, TERM.as_secs());
    let text = format!("name = {name:?}\nstore = {store:?}\n{SEGMENT}{hosts}[[server]]\nname = \"etcd\"\n");
    let net_conf = format!(
        "{{\"Network\":\"10.244.0.0/16\",\"SubnetMin\":\"10.244.{first}.0\",\"SubnetMax\":\"10.244.{last}.0\",\
         \"Backend\":{{\"Type\":\"vxlan\"}}}}"
    );
    let mut etcd = None;
    let prepare = |lab: &Lab| {
        etcd.insert(Etcd::start(lab)).put("/coreos.com/network/config", &net_conf, false);
        Ok(())
    };
    let topology = Topology::parse(&text).expect("a topology");
    let lab = Lab::up_with(&topology, &dir, binaries(), false, &mut |_| {}, prepare).expect("the lab comes up");
    Scene { etcd: etcd.expect("it was started"), lab: Guard(lab) }
}

impl Scene {
    fn agent(&self, host: &str) -> Agent {
        self.lab.agent(host).expect("an agent")
    }

    /// What the plugin is told on a host.
    fn told(&self, host: &str) -> NodeFile {
        let file = RunDir::new(self.agent(host).run_dir()).node_file();
        read_json(&file).expect("it can be read").expect("it is there")
    }

    /// What etcd says of a block: who has it, if anybody, and the revision that made it so.
    fn owner(&self, block: &str) -> Option<(String, Value)> {
        let key = format!("/coreos.com/network/loden/block/{}", block.replace('/', "-"));
        let answer = self.etcd.ctl(&["get", "-w", "json", &key]).expect("read");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let revision = answer["kvs"].get(0)?["mod_revision"].clone();
        let owner: Value = serde_json::from_str(&self.etcd.get(&key)).ok()?;
        Some((owner["owner"].as_str()?.to_owned(), revision))
    }
}

/// A program whose wall clock is what a file says, and no other clock (Debian: package faketime).
struct Faked {
    preload: PathBuf,
    file: PathBuf,
}

impl Faked {
    fn new(lab: &Lab) -> Self {
        let preload = fs::read_dir("/usr/lib").expect("read").flatten();
        let preload = preload.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
        let faked =
            Self { preload: preload.expect("libfaketime is not installed"), file: lab.dir().join("wall-clock") };
        faked.step("+0d");
        faked
    }

    fn step(&self, offset: &str) {
        fs::write(&self.file, format!("{offset}\n")).expect("written");
    }

    fn complete(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.preload).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        for setting in ["FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"] {
            command.env(setting, "1");
        }
    }
}

/// The year that the last line of an agent's log was written in, by its wall clock.
fn last_year(lab: &Lab, host: &str) -> i32 {
    let log = fs::read_to_string(lab.dir().join(host).join("lodend.log")).expect("a log");
    let line = log.lines().last().expect("a line");
    line.trim_start_matches(|c: char| !c.is_ascii_digit()).get(..4).and_then(|year| year.parse().ok()).expect(line)
}

#[test]
fn a_wall_clock_that_is_stepped_by_years_ends_no_term() {
    let mut scene = up("clock", (1, 200));
    let faked = Faked::new(&scene.lab);
    let (agent, lodend) = (scene.agent("host1"), scene.lab.binaries().lodend.clone());
    let mut command = Command::new(&lodend);
    command.arg("--config").arg(agent.config());
    faked.complete(&mut command);
    agent.start_by(command, false).expect("it starts");
    for host in ["host2", "host3"] {
        scene.agent(host).start(&lodend, false).expect("it starts");
    }
    for host in ["host1", "host2", "host3"] {
        scene.agent(host).wait_ready().expect("it gets ready");
    }
    let pods = ["host1", "host2"].map(|host| scene.lab.attach(host, &format!("{host}-pod")).expect("attached"));
    scene.lab.0.set_pods(pods.into());
    wait_for("the hosts know how to reach each other", || {
        ["host1", "host2", "host3"].iter().all(|host| {
            let peers = scene.agent(host).status().expect("a status").peers;
            peers.len() == 2 && peers.iter().all(|peer| peer.objects > 0 && peer.missing == 0)
        })
    });
    all_reach(&scene.lab);
    let block = scene.told("host1").blocks[0].cidr;
    let owner = scene.owner(&block.to_string());
    assert_eq!(owner.as_ref().expect("taken").0, "host1");
    let this_year = last_year(&scene.lab, "host1");

    for (offset, year) in [("+365d", this_year + 1), ("-365d", this_year - 1), ("+0d", this_year)] {
        let (before, writes) = (observe(&scene.lab, &[]), agent.status().expect("a status").kernel.writes);
        let seen = agent.events(0).expect("events").last().map_or(0, |event| event.seq);
        let until = scene.told("host1").blocks[0].until_ms.expect("it is lent");
        let running = streams(&scene.lab, "host1", "host2");
        faked.step(offset);
        // Long enough for a term that is not renewed to end, here and in etcd.
        let began = Instant::now();
        while began.elapsed() < TERM * 3 / 2 {
            let (told, now) = (scene.told("host1"), boot_ms());
            assert!(told.serves(block, now), "{offset}: {told:?}");
            let until = told.blocks[0].until_ms.expect("it is lent");
            assert!(until <= now + 10_000, "{offset}: no longer than a term: {told:?} at {now}");
            thread::sleep(Duration::from_millis(20));
        }
        let now = scene.told("host1").blocks[0].until_ms.expect("it is lent");
        assert!(now >= until + 10_000, "{offset}: it was renewed: {until} {now}");
        assert_eq!(scene.owner(&block.to_string()), owner, "{offset}: nobody has written it");
        // Who computes checksums is found out whenever a peer answers, and has nothing to do with it.
        let events = agent.events(seen).expect("events").into_iter().filter(|event| event.sort != "offload");
        assert_eq!(events.collect::<Vec<_>>(), [], "{offset}");
        let status = agent.status().expect("a status");
        assert!(status.ready && status.store.up && status.problems.is_empty(), "{offset}: {:?}", status.problems);
        assert_eq!((observe(&scene.lab, &[]), status.kernel.writes), (before, writes), "{offset}");

        let pod = scene.lab.attach("host1", "late").expect("a pod gets an address");
        assert!(pod.addresses.v4.is_some_and(|addr| block.contains(addr)), "{offset}: {:?}", pod.addresses);
        scene.lab.detach(&pod).expect("detached");
        let (sent, lost) = stop(running);
        say(&format!("the wall clock at {offset}: {lost} of {sent} packets lost"));
        assert_eq!(lost, 0);
        // What it repairs it dates by the wall clock, which shows that that was stepped.
        let ns = scene.lab.netns("host1").expect("netns");
        ns.run(|| sysctl::write(FORWARD, 0)).expect("entered").expect("written");
        wait_for("the repair", || ns.run(|| sysctl::read(FORWARD)).expect("entered") == Ok(Some(1)));
        wait_for("the step", || last_year(&scene.lab, "host1") == year);
    }
}

#[test]
fn an_agent_that_was_frozen_past_the_end_of_its_term_gives_no_address_of_what_another_has_now() {
    let scene = up("frozen", (7, 7));
    let (agent, lodend) = (scene.agent("host1"), scene.lab.binaries().lodend.clone());
    agent.start(&lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    let old = scene.lab.attach("host1", "old").expect("attached");
    let block = scene.told("host1").blocks[0].cidr;
    assert_eq!(block.to_string(), "10.244.7.0/24");

    let process = agent.pid().expect("it lives");
    kill_process(process, Signal::STOP).expect("frozen");
    let began = Instant::now();
    // The only block that there is.
    let other = scene.agent("host2");
    other.start(&lodend, false).expect("it starts");
    wait_for("it waits for a block", || {
        let exhausted = |problem: &loden_core::view::Problem| problem.cause.contains("are all taken");
        other.status().is_ok_and(|status| status.problems.iter().any(exhausted))
    });
    assert_eq!(scene.owner("10.244.7.0/24").expect("taken").0, "host1", "its term has not ended");
    wait_for("the end of the term", || scene.owner("10.244.7.0/24").is_some_and(|(owner, _)| owner == "host2"));
    // The plugin needs no agent to know, and knows it no later than the datastore.
    assert!(!scene.told("host1").serves(block, boot_ms()), "{:?}", scene.told("host1"));
    let took = began.elapsed();
    other.wait_ready().expect("it has a block");
    say(&format!("{:.1} s after the freeze the other node has the block", took.as_secs_f64()));
    assert!(took > TERM / 4, "a term was waited for: {took:?}");
    let taken = scene.lab.attach("host2", "new").expect("the new owner gives addresses");
    assert!(taken.addresses.v4.is_some_and(|addr| block.contains(addr)), "{:?}", taken.addresses);

    // An agent that is frozen is not waited for for ever.
    let refused = scene.lab.attach("host1", "early").expect_err("no address").to_string();
    say(&format!("while it is frozen: {refused}"));

    kill_process(process, Signal::CONT).expect("woken");
    let began = Instant::now();
    let mut tries = 0;
    while began.elapsed() < Duration::from_secs(3) {
        tries += 1;
        let refused = scene.lab.attach("host1", &format!("late{tries}")).expect_err("no address").to_string();
        if tries == 1 {
            say(&format!("after it was woken: {refused}"));
        }
        // At first as fast as can be.
        thread::sleep(Duration::from_millis(if tries < 10 { 0 } else { 100 }));
    }
    assert_eq!(scene.told("host1").blocks, [], "the plugin is not told of it any more");
    assert_eq!(scene.owner("10.244.7.0/24").expect("taken").0, "host2");
    let problems = agent.status().expect("a status").problems;
    let says = |problem: &&loden_core::view::Problem| {
        problem.subject == "block 10.244.7.0/24"
            && problem.cause.contains("node host2 owns")
            && problem.cause.contains("cut off")
    };
    assert_eq!(problems.iter().filter(says).count(), 1, "{problems:?}");
    say(&format!("{tries} pods were refused; {}", problems.iter().find(says).expect("there")));
    scene.lab.detach(&old).expect("detached");
    wait_for("nothing is said any more", || {
        agent.status().expect("a status").problems.iter().all(|problem| !says(&problem))
    });
}
