//! Pods by containerd: what a kubelet asks of it, and when things go wrong.

use std::net::{IpAddr, SocketAddr};

use rustix::process::Signal;
use serde_json::json;

use super::containerd::{Containerd, Release, host_port};
use super::cri::Cri;
use super::cri::messages::SANDBOX_READY;
use super::node::{Cluster, page};
use crate::support::wait_for;

/// The lab of one test: two hosts, and containerd on both.
fn cluster(name: &str, release: Release) -> Cluster {
    Cluster::up(&format!("{release:?}-{name}"), 2)
}

/// Pods of two containers that share their stack; across hosts, by ports of the host, with limits; each goes wholly.
#[test]
fn pods_of_two_containers_reach_each_other_and_go_wholly() {
    let release = Release::asked();
    let cluster = cluster("pods", release);
    let [near, far] = [0, 1].map(|n| Containerd::new(&cluster.nodes[n], release));
    [&near, &far].iter().for_each(|runtime| runtime.configure(release.newest(), &[]));
    let before = [&near, &far].map(|runtime| runtime.node.footprint());
    assert_eq!(near.cri.network_ready().expect("a status"), (true, String::new()));

    let mut config = near.pod("a");
    config.port_mappings.push(host_port(18080));
    let a = near.run(config);
    let (web, side) = (near.serve(&a), near.idle(&a));
    let mut config = far.pod("b");
    config.annotations = [("kubernetes.io/ingress-bandwidth", "8M"), ("kubernetes.io/egress-bandwidth", "8M")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let b = far.run(config);
    let other = far.idle(&b);

    // What the runtime says of a pod is what the plugin wrote down, and what both of its containers see.
    for (runtime, pod) in [(&near, &a), (&far, &b)] {
        let attachment = runtime.node.attachment(&pod.id);
        assert!(attachment.complete);
        assert_eq!(attachment.pod.as_deref(), Some(format!("labs/{}", pod.config.hostname).as_str()));
        assert_eq!(runtime.cri.addresses(&pod.id), attachment.ips().collect::<Vec<_>>());
        assert_eq!(attachment.ips().filter(IpAddr::is_ipv4).count(), 1);
        assert_eq!(attachment.ips().filter(IpAddr::is_ipv6).count(), 1);
    }
    let seen = [&web, &side].map(|container| near.cri.exec(container, &["ip", "addr"]).expect("ip addr"));
    assert_eq!(seen[0], seen[1]);
    let addresses = near.cri.addresses(&a.id);
    addresses.iter().for_each(|addr| assert!(seen[0].contains(&format!("inet{} {addr}/", v6(addr))), "{}", seen[0]));
    assert!(seen[0].contains("lo: <LOOPBACK,UP"), "{}", seen[0]);

    // The annotations are token buckets at both ends of the pod's link, one a direction.
    let host_side = far.node.attachment(&b.id).host_side.expect("a host's end").to_string();
    let netns = far.node.attachment(&b.id).netns;
    let buckets = [
        far.node.run("tc", &["qdisc", "show", "dev", &host_side]),
        far.node.run("nsenter", &[&format!("--net={netns}"), "tc", "qdisc", "show", "dev", "eth0"]),
    ];
    for bucket in buckets.map(|said| said.expect("tc")) {
        assert!(bucket.contains("tbf") && bucket.contains("rate 8Mbit"), "{bucket}");
    }

    // From the other container of the pod by the loopback address, and from the other host's pod.
    wait_for("the server listens", || page(&near.node.netns(), (addresses[0], 80)).is_ok());
    let ask = |runtime: &Containerd<'_>, container: &str, at: SocketAddr| {
        let command = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} {}", at.ip(), at.port());
        let answer = runtime.cri.exec(container, &["sh", "-c", &command]);
        answer.map(|answer| answer.lines().last().unwrap_or_default().to_owned())
    };
    assert_eq!(ask(&near, &side, ([127, 0, 0, 1], 80).into()), Ok("a".to_owned()));
    addresses.iter().for_each(|addr| assert_eq!(ask(&far, &other, (*addr, 80).into()), Ok("a".to_owned())));

    // The port of the host: from the host itself, from another one, from outside, from pods here and there.
    let hosts = cluster.lab.hosts();
    for host in hosts[0].addresses.iter().map(|(_, addr)| addr) {
        for from in ["host1", "host2", "outside"] {
            let from = cluster.lab.netns(from).expect("a namespace");
            assert_eq!(page(&from, (host, 18080)), Ok("a".to_owned()));
        }
        assert_eq!(ask(&far, &other, (host, 18080).into()), Ok("a".to_owned()));
        assert_eq!(ask(&near, &side, (host, 18080).into()), Ok("a".to_owned()));
    }
    assert_eq!(page(&near.node.netns(), ([127, 0, 0, 1], 18080)), Ok("a".to_owned()));

    // Stopped, stopped again, removed, removed again: DEL comes with the namespace, and then without it or what ADD said.
    for (runtime, pod) in [(&near, &a), (&far, &b)] {
        runtime.cri.stop(&pod.id).expect("stopped");
        runtime.end(pod);
        runtime.cri.remove(&pod.id).expect("removed again");
        assert_eq!(runtime.node.calls_about(&pod.id), ["ADD", "DEL", "DEL!", "DEL!"]);
    }
    for (runtime, before) in [&near, &far].into_iter().zip(&before) {
        runtime.node.is_again(before);
    }
}

/// Containerd is killed while pods run, and while the plugin does; pods stay, and what is half made goes.
#[test]
fn a_killed_containerd_finds_its_pods_again_and_what_is_half_made_goes() {
    let release = Release::asked();
    let cluster = cluster("kills", release);
    let node = &cluster.nodes[0];
    let runtime = Containerd::new(node, release);
    runtime.configure(release.newest(), &[]);
    let before = node.footprint();
    let pod = runtime.run(runtime.pod("a"));
    let web = runtime.serve(&pod);
    let addresses = runtime.cri.addresses(&pod.id);
    let far = cluster.lab.netns("host2").expect("a namespace");
    let answers = || addresses.iter().all(|addr| page(&far, (*addr, 80)) == Ok("a".to_owned()));
    wait_for("the server listens", answers);

    let with_one = node.footprint();
    let dead = runtime.kill();
    assert!(answers());
    let runtime = Containerd::start_again(dead);
    assert_eq!(runtime.cri.sandbox(&pod.id).expect("a pod").state, SANDBOX_READY);
    assert_eq!(runtime.cri.addresses(&pod.id), addresses);
    assert!(runtime.cri.is_running(&web) && answers());
    assert_eq!(runtime.cri.exec(&web, &["cat", "/www/index.html"]), Ok("a\n".to_owned()));
    assert_eq!(node.footprint(), with_one);
    assert_eq!(node.calls_about(&pod.id), ["ADD"]);

    // The plugin goes on, and undoes what it has made: nobody is left to hear of it.
    node.hold();
    let dead = std::thread::scope(|scope| {
        let cri = Cri::at(&node.dir.join("containerd.sock"));
        let config = runtime.pod("b");
        let asked = scope.spawn(move || cri.run(config));
        wait_for("the second ADD", || node.calls().iter().filter(|[verb, ..]| verb == "ADD").count() == 2);
        let dead = runtime.kill();
        assert!(asked.join().expect("a thread").is_err());
        dead
    });
    node.let_go();
    node.is_quiet();
    node.is_again(&with_one);
    let runtime = Containerd::start_again(dead);
    let half = runtime.cri.sandboxes().into_iter().filter(|sandbox| sandbox.id != pod.id);
    for sandbox in half {
        runtime.cri.stop(&sandbox.id).expect("stopped");
        runtime.cri.remove(&sandbox.id).expect("removed");
    }
    node.is_again(&with_one);
    assert!(answers());
    runtime.end(&pod);
    node.is_again(&before);
}

/// ADDs that fail, at the plugin and behind it, leave nothing and say why.
#[test]
fn an_add_that_fails_says_why_and_leaves_nothing() {
    let release = Release::asked();
    let cluster = cluster("fails", release);
    let node = &cluster.nodes[0];
    let runtime = Containerd::new(node, release);
    runtime.configure(release.newest(), &[]);
    let before = node.footprint();

    // A port that another pod has.
    let mut config = runtime.pod("a");
    config.port_mappings.push(host_port(18080));
    let pod = runtime.run(config.clone());
    let with_one = node.footprint();
    config.metadata = runtime.pod("b").metadata;
    let refused = runtime.cri.run(config).expect_err("the port is taken").message().to_owned();
    assert!(refused.contains("18080") && refused.contains("labs/a"), "{refused}");
    node.is_again(&with_one);

    // A plugin behind this one.
    let failing = json!({ "type": "failing", "runDir": "/none" });
    node.put_program(
        "failing",
        "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
         echo '{\"cniVersion\":\"1.0.0\",\"code\":100,\"msg\":\"this one always fails\"}'\nexit 1\n",
    );
    runtime.configure(release.newest(), std::slice::from_ref(&failing));
    let refused = runtime.cri.run(runtime.pod("c")).expect_err("the plugin fails").message().to_owned();
    assert!(refused.contains("this one always fails"), "{refused}");
    node.is_again(&with_one);
    runtime.configure(release.newest(), &[]);

    runtime.end(&pod);
    node.is_again(&before);
    assert_eq!(runtime.cri.sandboxes(), []);
}

/// A pod under each version of the protocol.
#[test]
fn each_version_that_it_speaks() {
    let release = Release::asked();
    let cluster = cluster("versions", release);
    let node = &cluster.nodes[0];
    let runtime = Containerd::new(node, release);
    let before = node.footprint();
    let all = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    for version in all.into_iter().filter(|version| *version <= release.newest()) {
        runtime.configure(version, &[]);
        let pod = runtime.run(runtime.pod("a"));
        assert_eq!(runtime.cri.addresses(&pod.id), node.attachment(&pod.id).ips().collect::<Vec<_>>(), "{version}");
        runtime.end(&pod);
        assert_eq!(node.calls_about(&pod.id), ["ADD", "DEL", "DEL!"], "{version}");
        node.is_again(&before);
    }
}

/// From version 1.1.0 on STATUS is asked for at each status of the runtime: the network is ready when the agent has made the node ready.
#[test]
fn status_is_asked_for_where_the_protocol_has_it() {
    let release = Release::asked();
    let cluster = cluster("ready", release);
    let node = &cluster.nodes[0];
    let runtime = Containerd::new(node, release);
    runtime.configure(release.newest(), &[]);
    let asks = release.newest() >= "1.1.0";
    let asked = || node.calls().iter().filter(|[verb, ..]| verb == "STATUS").count();
    let before = asked();
    for n in 1..=3 {
        assert_eq!(runtime.cri.network_ready().expect("a status"), (true, String::new()));
        assert_eq!(asked(), if asks { before + n } else { 0 });
    }
    // As after a reboot, before the agent is there.
    let agent = cluster.lab.agent(&node.host).expect("an agent");
    agent.end(Signal::TERM).expect("it ends");
    std::fs::remove_file(node.run_dir().node_file()).expect("removed");
    let (is_ready, cause) = runtime.cri.network_ready().expect("a status");
    assert_eq!((is_ready, cause.contains("the node is not ready for pods yet")), (!asks, asks), "{cause}");
    let refused = runtime.cri.run(runtime.pod("early")).expect_err("the node is not ready").message().to_owned();
    assert!(refused.contains("the node is not ready for pods yet") && refused.contains("lodend"), "{refused}");
    agent.start(&cluster.lab.binaries().lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    wait_for("the network is ready", || runtime.cri.network_ready().expect("a status").0);
    let pod = runtime.run(runtime.pod("a"));
    assert_eq!(node.calls_about(&pod.id), ["ADD"]);
    runtime.end(&pod);
}

fn v6(addr: &IpAddr) -> &'static str {
    if addr.is_ipv6() { "6" } else { "" }
}
