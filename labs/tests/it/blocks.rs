//! Blocks grow with the pods that come at once, and go back when they have gone.

use std::time::{Duration, Instant};

use loden_core::cni::{Success, Version};
use loden_core::model::Prefix;
use loden_lab::probe::stream::Stream;
use loden_linux::netns::{self, NetNs};
use serde_json::{Map, Value};

use crate::support::{SEGMENT, hosts, say, stop, up, wait_for};

/// Pods that come at once. A /28 has 13 addresses for pods.
const PODS: usize = 500;
const POOL: &str =
    "[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nblock_len = 28\nbackend = { type = \"vxlan\" }\n";

#[test]
fn five_hundred_pods_at_once_all_get_an_address_and_their_blocks_go_back_when_they_have_gone() {
    let agents = "pods = 1\n[host.agent]\nblock_idle_seconds = 5\n";
    let two = |n: usize| format!("[[host]]\nname = \"host{n}\"\n{agents}\n");
    let lab = up("blocks", &[SEGMENT, &two(1), &two(2), POOL].concat());
    let agent = lab.agent("host1").expect("an agent");
    let blocks = || agent.status().expect("a status").blocks;
    let first: Vec<Prefix> = blocks().iter().map(|block| block.cidr).collect();
    assert_eq!(first.len(), 1);

    let names: Vec<String> = (0..PODS).map(|n| format!("burst{n}")).collect();
    names.iter().for_each(|name| drop(NetNs::create(&lab.netns_path(name)).expect("a namespace")));
    let plugin = |verb, name: &str| lab.cni(verb, "host1", name, &Map::new()).expect("it is executed");
    let began = Instant::now();
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = names.iter().map(|name| scope.spawn(|| plugin("ADD", name))).collect();
        calls.into_iter().map(|call| call.join().expect("no panic")).collect()
    });
    let took = began.elapsed();
    let mut addresses = Vec::new();
    for output in &outputs {
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert!(output.status.success(), "{answer}");
        let result = Success::parse(&answer, Version::V1_1_0).expect("a result");
        addresses.extend(result.ips.iter().map(|ip| ip.address.addr()));
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), PODS, "each has one, and no two the same");
    let there = blocks();
    say(&format!("{PODS} pods at once: {:.1} s, {} blocks of 13 addresses", took.as_secs_f64(), there.len()));
    assert!(there.len() >= PODS.div_ceil(13) && there.len() <= PODS.div_ceil(13) + 15, "{}", there.len());

    // One of them stays, and is talked to while the blocks around its own go back.
    let stays = outputs.iter().zip(&names).max_by_key(|(output, _)| {
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["ips"][0]["address"].as_str().map(str::to_owned)
    });
    let (output, stays) = stays.expect("there are some");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let addr = Success::parse(&answer, Version::V1_1_0).expect("a result").ips[0].address.addr();
    std::thread::scope(|scope| {
        for name in names.iter().filter(|name| *name != stays) {
            scope.spawn(|| plugin("DEL", name));
        }
    });
    let (near, far) = (lab.netns("host2-pod1").expect("netns"), lab.netns(stays).expect("netns"));
    let other =
        lab.pods().iter().find(|pod| pod.name == "host2-pod1").expect("a pod").addresses.v4.expect("an address");
    let to = Stream::start(&near, &far, addr, 500).expect("a stream");
    let running = vec![to, Stream::start(&far, &near, other, 500).expect("a stream")];
    let before = blocks().len();
    assert!(before > 20, "{before}: they go back only while they are looked at");
    let began = Instant::now();
    let mut left = usize::MAX;
    while left > 2 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
        left = blocks().len();
    }
    let (sent, lost) = stop(running);
    let took = began.elapsed().as_secs_f64();
    say(&format!(
        "{} of {} blocks are given back after {took:.1} s; {lost} of {sent} packets lost",
        there.len() - left,
        there.len()
    ));
    let mine = blocks();
    assert!(mine.iter().any(|block| block.cidr.contains(addr)), "{addr} is in use: {mine:?}");
    assert!(left <= 2, "{mine:?}");
    assert_eq!(lost, 0);
    // Peers route to none of them any more.
    wait_for("host2 knows", || {
        let status = lab.agent("host2").expect("an agent").status().expect("a status");
        status.peers.iter().all(|peer| peer.blocks.len() == mine.len())
    });
    plugin("DEL", stays);
    names.iter().for_each(|name| netns::remove(&lab.netns_path(name)).expect("removed"));
}

#[test]
fn a_pool_that_has_no_block_more_is_named_to_the_runtime() {
    let pool = POOL.replace("10.244.0.0/16", "10.244.0.0/28");
    let lab = up("no-blocks", &[SEGMENT, &hosts(1, ""), &pool].concat());
    let attached: Vec<_> = (1..13).map(|n| lab.attach("host1", &format!("more{n}")).expect("there is room")).collect();
    let began = Instant::now();
    let error = lab.attach("host1", "late").expect_err("there is none").to_string();
    say(&format!("{:.1} s: {error}", began.elapsed().as_secs_f64()));
    assert!(error.contains("1 blocks of /28 are all taken in 10.244.0.0/28"), "{error}");
    lab.agent("host1").expect("an agent").end(rustix::process::Signal::KILL).expect("it ends");
    let began = Instant::now();
    NetNs::create(&lab.netns_path("alone")).expect("a namespace");
    let output = lab.cni("ADD", "host1", "alone", &Map::new()).expect("it is executed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && text.contains("does not answer"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(3), "nobody is there to be waited for");
    attached.iter().for_each(|pod| lab.detach(pod).expect("detached"));
    ["late", "alone"].iter().for_each(|name| netns::remove(&lab.netns_path(name)).expect("removed"));
}
