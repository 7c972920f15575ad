//! Blocks grow with the pods that come at once, and go back when they have gone.

use std::time::{Duration, Instant};

use loden_core::cni::{Success, Version};
use loden_core::model::{Prefix, Record};
use loden_lab::Lab;
use loden_lab::probe::stream::Stream;
use loden_linux::netns::{self, NetNs};
use loden_linux::run_dir::RunDir;
use rustix::process::Signal;
use serde_json::{Map, Value};

use crate::support::{SEGMENT, all_reach, hosts, say, stop, streams, up, wait_for};

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

/// Who reads flannel's file takes addresses of it without a word to the agent.
#[test]
fn the_block_that_subnet_env_names_never_goes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("subnet.env");
    // The highest goes first, else.
    let env =
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.255.241/28\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    std::fs::write(&file, env).expect("written");
    let keys = format!("[host.agent]\nblock_idle_seconds = 1\nsubnet_file = {:?}\n", file.display().to_string());
    let lab = up("named", &[SEGMENT, &hosts(1, &keys), POOL].concat());
    let agent = lab.agent("host1").expect("an agent");
    let blocks = || -> Vec<String> {
        agent.status().expect("a status").blocks.iter().map(|block| block.cidr.to_string()).collect()
    };
    assert_eq!(blocks(), ["10.244.255.240/28"]);
    let attached: Vec<_> = (1..13).map(|n| lab.attach("host1", &format!("more{n}")).expect("attached")).collect();
    wait_for("a further block", || blocks().len() == 2);
    assert_eq!(std::fs::read_to_string(&file).expect("there"), env);
    attached.iter().chain(lab.pods()).for_each(|pod| lab.detach(pod).expect("detached"));
    wait_for("the further one's going back", || blocks().len() == 1);
    assert_eq!(blocks(), ["10.244.255.240/28"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(blocks(), ["10.244.255.240/28"]);
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

/// Pods come and go, blocks are claimed and given back all the time, and the agent is killed in between, anywhere.
#[test]
fn an_agent_that_is_killed_anywhere_leaves_no_pod_without_its_block() {
    let two = |n: usize| format!("[[host]]\nname = \"host{n}\"\npods = 1\n[host.agent]\nblock_idle_seconds = 1\n");
    let lab = up("block-kills", &[SEGMENT, &two(1), &two(2), POOL].concat());
    let agent = lab.agent("host1").expect("an agent");
    // What is lost while neighbours are found out for the first time is not what is looked for.
    all_reach(&lab);
    let running = streams(&lab, "host1", "host2");
    let names: &[String] = &(0..20).map(|n| format!("wave{n}")).collect::<Vec<_>>();
    names.iter().for_each(|name| drop(NetNs::create(&lab.netns_path(name)).expect("a namespace")));
    let plugin = &|verb, name: &str| lab.cni(verb, "host1", name, &Map::new()).expect("it is executed");
    let (mut attached, mut most, mut least) = (0, 0, usize::MAX);
    for n in 0..12_u64 {
        attached += std::thread::scope(|scope| {
            // Some fail: their agent was killed while they waited. A runtime would come again.
            let wave = |verb| {
                std::thread::scope(|wave| {
                    let calls: Vec<_> =
                        names.iter().map(|name| wave.spawn(|| plugin(verb, name).status.success())).collect();
                    calls.into_iter().filter_map(|call| call.join().ok()).filter(|is_done| *is_done).count()
                })
            };
            let waves = scope.spawn(move || {
                let attached = wave("ADD");
                assert_eq!(wave("DEL"), names.len());
                attached
            });
            // Here and not in a thread: an agent of a lab ends with the thread that has started it.
            for kill in 0.. {
                std::thread::sleep(Duration::from_micros(20_000 + (n * 7919 + kill * 104_729) % 180_000));
                if waves.is_finished() {
                    break;
                }
                agent.end(Signal::KILL).expect("it ends");
                agent.start(&lab.binaries().lodend, false).expect("it starts");
            }
            waves.join().expect("no panic")
        });
        agent.wait_ready().expect("it gets ready");
        wait_for("its answer", || agent.status().is_ok_and(|status| status.store.up));
        most = most.max(agent.status().expect("a status").blocks.len());
        if n % 4 == 3 {
            wait_for("all are given back but one", || agent.status().expect("a status").blocks.len() == 1);
            least = 1;
        }
        is_consistent(&lab, "host1");
    }
    let (sent, lost) = stop(running);
    say(&format!(
        "{attached} of {} were attached, {least} to {most} blocks, {lost} of {sent} packets lost",
        12 * names.len()
    ));
    assert!(attached > 60 && most > 1, "both have to be seen");
    assert_eq!(lost, 0);
    names.iter().for_each(|name| netns::remove(&lab.netns_path(name)).expect("removed"));
}

/// Every address that a pod has is of a block that the store says is the host's.
fn is_consistent(lab: &Lab, host: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listing =
        runtime.block_on(async { loden_store::open(&lab.store_url()).await.expect("the store").list().await });
    let owned: Vec<Prefix> = listing
        .expect("listed")
        .entries
        .into_iter()
        .filter_map(|entry| match entry.record {
            Record::Block(block) if block.owner.as_str() == host => Some(block.cidr),
            _ => None,
        })
        .collect();
    let run_dir = RunDir::new(lab.agent(host).expect("an agent").run_dir());
    for attachment in run_dir.attachments().good {
        for addr in attachment.ips() {
            assert!(
                owned.iter().any(|block| block.contains(addr)),
                "{}: {addr} is in none of {owned:?}",
                attachment.key
            );
        }
    }
}
