//! The installer and the plugin's remains, with a real agent.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use loden_lab::Lab;
use loden_lab::pod::Call;
use loden_linux::netns::{self, NetNs};
use loden_linux::run_dir::RunDir;
use loden_linux::spawn;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{POOLS, SEGMENT, all_reach, hosts, up, wait_for};

fn installer(lab: &Lab, verb: &str, more: &[&str]) -> Command {
    let mut command = Command::new(&lab.binaries().loden_cni);
    command.arg(verb).args(more).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (option, dir) in [("--bin-dir", "bin"), ("--conf-dir", "net.d"), ("--run-dir", "host1/run")] {
        command.arg(option).arg(lab.dir().join(dir));
    }
    spawn::in_netns(&mut command, &lab.netns("host1").expect("netns"), false).expect("the host's namespace");
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn installed_when_the_agent_is_ready_and_gone_when_the_last_pod_is() {
    let lab = up("install", &[SEGMENT, &hosts(1, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    let (program, list) = (lab.dir().join("bin/loden-cni"), lab.dir().join("net.d/10-loden.conflist"));
    // What the dead agent left says that the node was ready once.
    agent.end(Signal::KILL).expect("it ends");
    let child = installer(&lab, "install", &["--timeout", "60"]).spawn().expect("it runs");
    wait_for("the program is put in", || program.exists());
    assert!(!list.exists());
    agent.start(&lab.binaries().lodend, false).expect("it starts");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && list.exists(), "{}", said(&output));
    // A runtime makes this configuration out of the list for the plugin that it names.
    let list: Value = serde_json::from_slice(&fs::read(&list).expect("read")).expect("JSON");
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = "1.1.0".into();
    let run = |verb: &str, pod: &str| call(&lab, &program, verb, pod, &conf);
    NetNs::create(&lab.netns_path("late")).expect("a pod");
    let added = run("ADD", "late");
    assert!(added.status.success(), "{added:?}");
    assert!(run("STATUS", "late").status.success());
    let refused = installer(&lab, "uninstall", &[]).output().expect("it ends");
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("loden/late/eth0"), "{}", said(&refused));
    all_reach(&lab);
    let child = installer(&lab, "uninstall", &["--drain-wait", "60"]).spawn().expect("it runs");
    for pod in lab.pods().iter().map(|pod| pod.name.as_str()).chain(["late"]) {
        assert!(run("DEL", pod).status.success(), "{pod}");
    }
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && said(&output).contains("lodend (process"), "{}", said(&output));
    assert!(!program.exists() && !lab.dir().join("net.d/10-loden.conflist").exists());
    // The agent's own is as it was; the kernel has changed the bridge's MTU with the last port, for a moment.
    wait_for("nothing left to do", || agent.plan().expect("a plan").text.is_empty());
    agent.end(Signal::TERM).expect("it ends");
    let output = installer(&lab, "uninstall", &[]).output().expect("it ends");
    assert!(output.status.success(), "{}", said(&output));
    assert!(crate::support::number(&lab, "host1", "cni0").is_none() && !agent.run_dir().exists());
}

fn call(lab: &Lab, plugin: &Path, verb: &str, pod: &str, conf: &Value) -> Output {
    let conf = conf.to_string();
    let (netns, path) = (lab.netns_path(pod), plugin.parent().expect("a directory"));
    let call = Call { plugin, verb, pod, ifname: "eth0", netns: &netns, path, conf: &conf };
    call.output(Some(&lab.netns("host1").expect("netns"))).expect("it runs")
}

#[test]
fn what_killed_plugins_left_goes_when_the_agent_starts() {
    let lab = up("remains", &[SEGMENT, &hosts(1, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    let run_dir = RunDir::new(agent.run_dir());
    let plugin = lab.binaries().loden_cni.clone();
    agent.end(Signal::KILL).expect("it ends");
    let kinds = [
        json!({}),
        json!({ "attach": "routed" }),
        json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } }),
    ];
    let mut incomplete = 0;
    for n in 0..60_u64 {
        let pod = format!("p{n}");
        NetNs::create(&lab.netns_path(&pod)).expect("a pod");
        let mut conf = kinds[n as usize % 3].clone();
        for (key, value) in
            [("name", "loden".into()), ("cniVersion", "1.1.0".into()), ("runDir", json!(run_dir.path()))]
        {
            conf[key] = value;
        }
        let text = conf.to_string();
        let mut command = Command::new(&plugin);
        command.env_clear().env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", &pod).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", lab.netns_path(&pod)).env("CNI_PATH", "/opt/cni/bin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        spawn::in_netns(&mut command, &lab.netns("host1").expect("netns"), false).expect("the host's namespace");
        let mut child = command.spawn().expect("it runs");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), text.as_bytes()).expect("written");
        // A walk over the whole of an ADD.
        std::thread::sleep(Duration::from_micros(n * 100));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let all = run_dir.attachments().good;
        incomplete += all.iter().filter(|there| !there.complete).count();
        // Those that were done belong to pods that live: their runtime says DEL. The port is the next one's.
        if all.iter().any(|there| there.complete && there.key.container == pod) {
            assert!(call(&lab, &plugin, "DEL", &pod, &conf).status.success());
        }
    }
    assert!(incomplete > 0, "no ADD was killed half-way");
    agent.start(&lab.binaries().lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    let kept = lab.pods().len();
    wait_for("what is unfinished goes", || run_dir.attachments().good.len() == kept);
    wait_for("marks go", || {
        let marks = fs::read_dir(run_dir.ipam_dir()).expect("listed").flatten();
        !marks.into_iter().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.ends_with(".add") || name.ends_with(".tmp")
        })
    });
    // A port that a killed one had opened is free, and so are links and routes: the agent finds nothing that is too much.
    wait_for("links go", || links(&lab) == kept);
    assert_eq!(agent.plan().expect("a plan").text, "");
    let conf = whole(&kinds[2], &run_dir);
    let added = call(&lab, &plugin, "ADD", "p0", &conf);
    assert!(added.status.success(), "{added:?}");
    all_reach(&lab);
    for n in 0..60 {
        netns::remove(&lab.netns_path(&format!("p{n}"))).expect("removed");
    }
}

#[test]
fn a_pod_that_has_gone_without_a_del_is_collected_and_one_that_lives_is_not() {
    let lab = up("abandoned", &[SEGMENT, &hosts(1, "agent = { resync_seconds = 5 }"), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    let run_dir = RunDir::new(agent.run_dir());
    let plugin = lab.binaries().loden_cni.clone();
    let kinds = [json!({}), json!({ "attach": "routed" })];
    for (pod, kind) in ["gone0", "gone1"].into_iter().zip(&kinds) {
        NetNs::create(&lab.netns_path(pod)).expect("a pod");
        assert!(call(&lab, &plugin, "ADD", pod, &whole(kind, &run_dir)).status.success());
        netns::remove(&lab.netns_path(pod)).expect("removed");
    }
    wait_for("they are collected", || run_dir.attachments().good.len() == lab.pods().len());
    let events = agent.events(0).expect("events");
    for pod in ["gone0", "gone1"] {
        let names_it = |object: &str| object.contains(&format!("loden/{pod}/eth0"));
        assert!(events.iter().any(|event| event.sort == "sweep" && names_it(&event.object)), "{pod}");
        // The runtime may still come.
        assert!(call(&lab, &plugin, "DEL", pod, &whole(&kinds[0], &run_dir)).status.success());
    }
    all_reach(&lab);
}

/// What a runtime makes of a list's plugin.
fn whole(plugin: &Value, run_dir: &RunDir) -> Value {
    let mut conf = plugin.clone();
    for (key, value) in [("name", json!("loden")), ("cniVersion", json!("1.1.0")), ("runDir", json!(run_dir.path()))] {
        conf[key] = value;
    }
    conf
}

/// The hosts' ends of pods' links.
fn links(lab: &Lab) -> usize {
    use loden_linux::netlink::{Protocol, Socket, Writer};
    use loden_linux::rt::link;
    let count = || {
        let mut w = Writer::default();
        link::list(&mut w);
        let mut socket = Socket::open(Protocol::Route).expect("a socket");
        socket.dump(
            "links",
            &mut w,
            || 0,
            |count, message| {
                let seen = link::parse(message.payload);
                *count += usize::from(seen.is_some_and(|seen| {
                    seen.name.as_str().starts_with("veth") || seen.name.as_str().starts_with("cali")
                }));
            },
        )
    };
    lab.netns("host1").expect("netns").run(count).expect("a thread").expect("links")
}
