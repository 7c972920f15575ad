//! The plugin killed at moments that nobody chose.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::host::{Host, answer};

/// One IPv4 address and two IPv6 ones: what leaks is missed at the next ADD.
const TINY: [&str; 2] = ["10.1.0.0/30", "fd01::/126"];
/// A moment every so many microseconds, past the end of a whole ADD.
const STEP: u64 = 70;
const MOMENTS: u64 = 60;

#[test]
fn killed_at_any_moment_nothing_stays_and_no_address_is_lost() {
    kill_at_any_moment("bridge");
}

#[test]
fn a_routed_pods_routes_do_not_stay_either() {
    let host = kill_at_any_moment("routed");
    assert_eq!(host.pod_routes(), Vec::new());
}

fn kill_at_any_moment(attach: &str) -> Host {
    let host = Host::new(&TINY);
    host.pod("a");
    let attach = json!({ "attach": attach });
    let conf = host.conf("1.1.0", &attach);
    for (verb, moment) in ["ADD", "DEL"].into_iter().flat_map(|verb| (0..MOMENTS).map(move |n| (verb, n * STEP))) {
        let what = format!("{verb} killed after {moment} us");
        if verb == "DEL" {
            host.call("ADD", "a", &attach).expect(&what);
        }
        let mut killed = host.begin(verb, "a", conf.as_bytes(), &[]);
        std::thread::sleep(Duration::from_micros(moment));
        killed.kill().expect(&what);
        killed.wait().expect(&what);
        let cure = if (moment / STEP).is_multiple_of(2) { "DEL" } else { "GC" };
        host.call(cure, "a", &json!({ "cni.dev/valid-attachments": [] })).expect(&what);
        host.reap();
        host.sweep();
        assert_eq!(host.leftovers(), Vec::<String>::new(), "{what}, then {cure}");
        host.call("ADD", "a", &attach).expect(&what);
        host.call("DEL", "a", &json!({})).expect(&what);
    }
    host
}

/// Thirteen addresses for twenty pods.
const RANGE: &str = "10.5.0.0/28";
const ROUNDS: u64 = 10;
const WORKERS: u64 = 5;
const STEPS: u64 = 12;

/// Comes and goes with four pods, and kills some of the calls; gives the addresses that pods of its have for certain.
fn come_and_go(host: &Host, conf: &str, worker: u64, round: u64) -> BTreeMap<String, String> {
    // Lots that fall the same every time (Marsaglia's xorshift).
    let mut lots = 0x9e37_79b9_7f4a_7c15 ^ (round * WORKERS + worker + 1);
    let mut below = |end: u64| {
        lots ^= lots << 13;
        lots ^= lots >> 7;
        lots ^= lots << 17;
        lots % end
    };
    let mut have = BTreeMap::new();
    for _ in 0..STEPS {
        let pod = format!("w{worker}p{}", below(4));
        let verb = if below(3) > 0 { "ADD" } else { "DEL" };
        let mut child = host.begin_as("host-local", verb, &pod, conf.as_bytes(), &[]);
        let is_killed = below(2) == 0;
        if is_killed {
            std::thread::sleep(Duration::from_micros(below(4000)));
            child.kill().expect("killed");
        }
        let output = child.wait_with_output().expect("the plugin ends");
        match (verb, answer(&output)) {
            ("ADD", Ok(result)) => {
                let addr = result["ips"][0]["address"].as_str().expect("an address").to_owned();
                have.insert(pod, addr);
            }
            // Attached already, or none is free.
            ("ADD", Err((4 | 100, _))) => {}
            ("DEL", Ok(_)) => drop(have.remove(&pod)),
            // Ended by the signal, perhaps behind its answer.
            (_, Err(_)) if is_killed && output.status.code().is_none() => drop(have.remove(&pod)),
            (_, Err(error)) => panic!("{verb} of {pod}: {error:?}, round {round}"),
            (_, Ok(_)) => {}
        }
    }
    have
}

#[test]
fn many_at_once_killed_or_not_no_address_is_held_twice_and_none_is_lost() {
    let host = Host::new(&["10.1.0.0/24"]);
    let conf = host.conf("1.0.0", &json!({ "ipam": { "type": "host-local", "ranges": [[{ "subnet": RANGE }]] } }));
    for round in 0..ROUNDS {
        let have: BTreeMap<String, String> = std::thread::scope(|scope| {
            let begin = |worker| {
                let (host, conf) = (&host, &conf);
                scope.spawn(move || come_and_go(host, conf, worker, round))
            };
            let workers: Vec<_> = (0..WORKERS).map(begin).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
        });
        host.sweep();
        let there = host.run_dir().attachments();
        assert!(there.unreadable.is_empty(), "{:?}", there.unreadable);
        let mut holders = BTreeMap::new();
        for attachment in &there.good {
            let addr = attachment.addresses[0].net.to_string();
            let other = holders.insert(addr, attachment.key.container.clone());
            assert_eq!(other, None, "an address is held twice, round {round}");
        }
        for (pod, addr) in have {
            assert_eq!(holders.get(&addr), Some(&pod), "{addr}, round {round}");
        }
    }
    for attachment in host.run_dir().attachments().good {
        let gone = host.begin_as("host-local", "DEL", &attachment.key.container, conf.as_bytes(), &[]);
        answer(&gone.wait_with_output().expect("the plugin ends")).expect("detached");
    }
    let add = |n| host.begin_as("host-local", "ADD", &format!("last{n}"), conf.as_bytes(), &[]).wait_with_output();
    let more = (0..).map_while(|n| answer(&add(n).expect("the plugin ends")).ok()).count();
    assert_eq!(more, 13);
}
