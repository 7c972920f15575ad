//! A cluster of flannel's, laid to the letter, changes hands host by host while packets flow: nothing is lost, no device is made anew.

mod carried;
pub mod flannel;
mod kubernetes;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use loden_core::model::Family;
use loden_lab::Topology;
use loden_lab::lab::Lab;
use loden_lab::pod::Pod;
use loden_lab::probe::stream::Stream;
use loden_lab::probe::{icmp, reach};
use rustix::process::Signal;

use crate::support::{Guard, SEGMENT, all_reach, binaries, number, say, stop, wait_for};
use flannel::{Etcd, Kind, Laid};
use kubernetes::Kubernetes;

const HOSTS: u8 = 3;

/// Who assigns subnets.
enum Manager {
    Etcd(Etcd),
    Kubernetes(Kubernetes),
}

impl Manager {
    fn etcd(&self) -> &Etcd {
        match self {
            Self::Etcd(etcd) => etcd,
            Self::Kubernetes(_) => panic!("this scene is one of Kubernetes"),
        }
    }

    /// What flanneld of a host has written.
    fn record(&self, host: &Laid) {
        match self {
            Self::Etcd(etcd) => etcd.put(&host.key(), &host.lease(), true),
            Self::Kubernetes(kubernetes) => kubernetes.record(host),
        }
    }

    /// What flanneld of other nodes sees has not changed.
    fn must_say(&self, host: &Laid) {
        match self {
            Self::Etcd(etcd) => assert_eq!(etcd.get(&host.key()), host.lease()),
            Self::Kubernetes(kubernetes) => {
                assert_eq!(kubernetes.annotations(host), host.annotations());
                wait_for("the node's condition", || kubernetes.condition(host)["status"] == "False");
            }
        }
    }

    fn command(&self, lab: &Lab, host: &Laid) -> Command {
        let mut command = host.flanneld(lab);
        match self {
            Self::Etcd(etcd) => etcd.complete(&mut command, lab, host),
            Self::Kubernetes(kubernetes) => kubernetes.complete(&mut command, lab, host),
        }
        command
    }
}

struct Scene {
    manager: Manager,
    laid: Vec<Laid>,
    lab: Guard,
}

fn over_etcd(lab: &Lab, net_conf: &str) -> Manager {
    let etcd = Etcd::start(lab);
    etcd.put("/coreos.com/network/config", net_conf, false);
    Manager::Etcd(etcd)
}

fn over_kubernetes(lab: &Lab, net_conf: &str) -> Manager {
    Manager::Kubernetes(Kubernetes::start(lab, net_conf))
}

type Start = fn(&Lab, &str) -> Manager;

/// Hosts with flannel's objects and a pod each, and what their flannelds wrote. No agent runs.
fn up(name: &str, kind: Kind, start: Start) -> Scene {
    let dir = Path::new("/run/loden-lab-test").join(format!("{name}-{}", std::process::id()));
    let hosts: String = (1..=HOSTS).map(|n| format!("[[host]]\nname = \"host{n}\"\nstarts = false\n")).collect();
    let text = format!("name = {name:?}\nstore = \"{}\"\n{SEGMENT}{hosts}[[server]]\nname = \"etcd\"\n", Etcd::URL);
    let topology = Topology::parse(&text).expect("a topology");
    let mut made = None;
    let prepare = |lab: &Lab| {
        let manager = start(lab, &kind.net_conf());
        let laid: Vec<Laid> = (1..=HOSTS).map(|n| Laid::new(kind, n)).collect();
        for host in &laid {
            manager.record(host);
            host.lay(lab);
            laid.iter().filter(|peer| peer.n != host.n).for_each(|peer| host.reach(lab, peer));
        }
        made = Some((manager, laid));
        Ok(())
    };
    let lab = Lab::up_with(&topology, &dir, binaries(), false, &mut |_| {}, prepare).expect("the lab comes up");
    let (manager, laid) = made.expect("it was laid");
    let mut lab = Guard(lab);
    let pods = laid.iter().map(|host| host.attach(&lab, &format!("host{}-old", host.n))).collect();
    lab.0.set_pods(pods);
    // flannel leaves duplicate-address detection on: in the first seconds nothing of IPv6 gets through.
    for (from, to) in pairs(&lab) {
        let ns = lab.netns(&from.name).expect("netns");
        for (_, addr) in to.addresses.iter() {
            wait_for("flannel", || ns.run(|| icmp::echo(addr, 56)).expect("a thread").is_ok());
        }
    }
    Scene { manager, laid, lab }
}

/// The pods, each with each other one.
fn pairs(lab: &Lab) -> Vec<(&Pod, &Pod)> {
    let all = lab.pods().iter().flat_map(|from| lab.pods().iter().map(move |to| (from, to)));
    all.filter(|(from, to)| from.name != to.name).collect()
}

impl Scene {
    /// Streams both ways in all families between the pods of all hosts.
    fn streams(&self) -> Vec<Stream> {
        let mut streams = Vec::new();
        for (from, to) in pairs(&self.lab) {
            let (near, far) = (self.lab.netns(&from.name).expect("netns"), self.lab.netns(&to.name).expect("netns"));
            streams
                .extend(to.addresses.iter().map(|(_, addr)| Stream::start(&near, &far, addr, 300).expect("a stream")));
        }
        streams
    }

    /// What must stay of a host: its devices by number and Ethernet address.
    fn devices(&self, host: &str) -> Vec<(String, Option<u32>, String)> {
        ["cni0", "flannel.1", "flannel-v6.1"]
            .into_iter()
            .map(|dev| (dev.to_owned(), number(&self.lab, host, dev), flannel::mac(&self.lab, host, dev)))
            .collect()
    }

    /// Starts the agent under flanneld's name, and waits until nothing is left to do.
    fn take_over(&self, host: &Laid) {
        let name = host.name();
        let before = self.devices(&name);
        let began = Instant::now();
        let agent = self.lab.agent(&name).expect("an agent");
        agent.start_by(self.manager.command(&self.lab, host), false).expect("it starts");
        agent.wait_ready().expect("it gets ready");
        wait_for("its peers", || {
            let status = agent.status().expect("a status");
            status.kernel.pending == 0
                && status.peers.iter().filter(|peer| peer.objects > 0 && peer.missing == 0).count() == 2
        });
        if began.elapsed() > Duration::from_secs(5) {
            let log = std::fs::read_to_string(self.lab.dir().join(&name).join("lodend.log")).expect("a log");
            say(&format!("{name}: {:.1} s\n{log}", began.elapsed().as_secs_f64()));
        }
        let status = agent.status().expect("a status");
        let blocks: Vec<String> = status.blocks.iter().map(|block| block.cidr.to_string()).collect();
        assert_eq!(blocks, host.blocks(), "{name}");
        assert_eq!(self.devices(&name), before, "{name}");
        assert!(status.kernel.failing.is_empty(), "{:?}", status.kernel.failing);
        assert_eq!(agent.plan().expect("a plan").text, "");
        let left = host.left(&self.lab);
        assert!(left.is_empty(), "{name}: {left:#?}");
        let env = std::fs::read_to_string(host.subnet_file(&self.lab)).expect("subnet.env");
        assert_eq!(env, host.subnet_env());
        self.manager.must_say(host);
    }
}

/// What `/healthz` or `/readyz` answers at the port that flanneld's flag gives.
fn health(lab: &Lab, path: &str) -> String {
    let script = format!("busybox wget -qSO- http://127.0.0.1:8081/{path} 2>&1 || true");
    flannel::run(lab, "host1", &script)
}

fn is_ok(answer: &str) -> bool {
    answer.contains("HTTP/1.1 200")
}

/// Readiness goes back when the file that others read cannot be written, and comes again (flanneld stays ready once it was).
fn readiness_follows_subnet_env(scene: &Scene) {
    let (lab, host) = (&scene.lab, &scene.laid[0]);
    assert!(is_ok(&health(lab, "healthz")) && is_ok(&health(lab, "readyz")), "{}", health(lab, "readyz"));
    let file = host.subnet_file(lab);
    std::fs::remove_file(&file).expect("removed");
    std::fs::create_dir(&file).expect("in its place");
    // The next round comes with the next pod.
    let pod = lab.attach_with("host1", "host1-more", &host.plugin_keys(lab)).expect("attached");
    wait_for("not ready", || !is_ok(&health(lab, "readyz")));
    let problems = lab.agent("host1").expect("an agent").status().expect("a status").problems;
    assert!(problems.iter().any(|problem| problem.subject == "subnet.env"), "{problems:?}");
    assert!(is_ok(&health(lab, "healthz")));
    std::fs::remove_dir(&file).expect("removed");
    lab.cni("DEL", "host1", &pod.name, &host.plugin_keys(lab)).expect("executed");
    wait_for("ready", || is_ok(&health(lab, "readyz")));
    assert_eq!(std::fs::read_to_string(&file).expect("written"), host.subnet_env());
}

fn changes_hands(name: &str, kind: Kind, start: Start) {
    let mut scene = up(name, kind, start);
    let running = scene.streams();
    std::thread::sleep(Duration::from_millis(300));
    for host in &scene.laid {
        scene.take_over(host);
    }
    let (sent, lost) = stop(running);
    say(&format!("{name}: {lost} of {sent} packets lost while {HOSTS} hosts changed hands"));
    all_reach(&scene.lab);

    // New pods beside the old, by loden's own plugin.
    let mut pods: Vec<Pod> = scene.lab.pods().to_vec();
    for host in &scene.laid {
        let pod = scene.lab.attach_with(&host.name(), &format!("{}-new", host.name()), &host.plugin_keys(&scene.lab));
        let pod = pod.expect("attached");
        assert!(pods.iter().all(|old| old.addresses != pod.addresses), "{pod:?} {pods:?}");
        pods.push(pod);
    }
    scene.lab.0.set_pods(pods);
    all_reach(&scene.lab);

    // The old ones go by loden's plugin, and their addresses are free again.
    let (old, new): (Vec<Pod>, Vec<Pod>) = scene.lab.pods().iter().cloned().partition(|pod| pod.name.ends_with("-old"));
    for (pod, host) in old.iter().zip(&scene.laid) {
        let output = scene.lab.cni("DEL", &pod.host, &pod.name, &host.plugin_keys(&scene.lab)).expect("executed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(host.given(&scene.lab), Vec::<String>::new());
    }
    scene.lab.0.set_pods(new);
    all_reach(&scene.lab);
    readiness_follows_subnet_env(&scene);
    // An agent that starts again finds all as it should be.
    let agent = scene.lab.agent("host1").expect("an agent");
    agent.end(Signal::TERM).expect("it ends");
    agent.start_by(scene.manager.command(&scene.lab, &scene.laid[0]), false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    assert_eq!(agent.status().expect("a status").kernel.writes.values().sum::<u64>(), 0);
    if let Manager::Kubernetes(kubernetes) = &scene.manager {
        assert!(kubernetes.double.log().refused.is_empty(), "{:?}", kubernetes.double.log().refused);
    }
    assert_eq!(lost, 0);
}

#[test]
fn vxlan() {
    changes_hands("takeover-vxlan", Kind::Vxlan, over_etcd);
}

#[test]
fn vxlan_of_both_families() {
    changes_hands("takeover-dual", Kind::VxlanDualStack, over_etcd);
}

#[test]
fn host_gw() {
    changes_hands("takeover-host-gw", Kind::HostGw, over_etcd);
}

/// By the DaemonSet with the program swapped: its arguments, its variables, its role.
#[test]
fn in_kubernetes() {
    changes_hands("takeover-k8s", Kind::VxlanDualStack, over_kubernetes);
}

/// One host stays flannel's: it reaches loden's pods by what loden's agents write for it.
#[test]
fn a_mixed_cluster() {
    let scene = up("takeover-mixed", Kind::Vxlan, over_etcd);
    let stays = &scene.laid[2];
    for host in &scene.laid[..2] {
        scene.take_over(host);
    }
    // host2 is set up anew: its devices are gone, and what it publishes then is what flanneld of host3 acts by.
    let gone = scene.lab.agent("host2").expect("an agent");
    gone.end(Signal::TERM).expect("it ends");
    flannel::run(&scene.lab, "host2", "ip link delete flannel.1");
    gone.start_by(scene.manager.command(&scene.lab, &scene.laid[1]), false).expect("it starts");
    gone.wait_ready().expect("it gets ready");
    let read = || scene.manager.etcd().get(&scene.laid[1].key());
    wait_for("its new VTEP", || read() != scene.laid[1].lease());
    let lease = read();
    let told = scene.laid[1].told_by(&serde_json::from_str(&lease).expect("JSON"));
    assert_ne!(told.mac, scene.laid[1].mac);
    assert_eq!(told.lease(), lease, "byte for byte as flanneld writes it");
    stays.reach(&scene.lab, &told);
    let pods_alone = |probes: Vec<reach::Probe>| -> Vec<reach::Probe> {
        let is_pod = |name: &str| name.ends_with("-old");
        probes.into_iter().filter(|probe| is_pod(&probe.from) && is_pod(&probe.to)).collect()
    };
    let probes = pods_alone(reach::all(&scene.lab).expect("probes"));
    let faults: Vec<_> = probes.iter().filter(|probe| probe.fault.is_some()).collect();
    assert!(probes.len() == 18 && faults.is_empty(), "{}\n{faults:#?}", reach::table(&probes));

    // flanneld of host3 comes up anew with another VTEP, as it does without a stored address: loden's hosts follow.
    let renewed = Laid { mac: "0e:00:00:00:00:99".to_owned(), ..stays.clone() };
    flannel::run(&scene.lab, "host3", "ip link delete flannel.1");
    renewed.lay_vtep(&scene.lab, Family::V4);
    renewed.reach(&scene.lab, &scene.laid[0]);
    renewed.reach(&scene.lab, &told);
    scene.manager.etcd().put(&renewed.key(), &renewed.lease(), true);
    wait_for("the new VTEP", || {
        let probes = pods_alone(reach::all(&scene.lab).expect("probes"));
        probes.iter().all(|probe| probe.fault.is_none())
    });
    // Its lease is withdrawn: so are its routes.
    scene.manager.etcd().delete(&renewed.key());
    wait_for("the end of host3", || {
        let status = scene.lab.agent("host1").expect("an agent").status().expect("a status");
        status.kernel.pending == 0
            && status.peers.iter().all(|peer| peer.blocks.iter().all(|b| b.to_string() != "10.244.3.0/24"))
    });
    assert!(!flannel::run(&scene.lab, "host1", "ip route").contains("10.244.3.0/24"));
}

/// Back to flannel, as the book says it: the agent ends, its records go, flanneld finds its lease and its devices.
#[test]
fn a_host_goes_back() {
    let scene = up("takeover-back", Kind::Vxlan, over_etcd);
    for host in &scene.laid[..2] {
        scene.take_over(host);
    }
    let running = scene.streams();
    std::thread::sleep(Duration::from_millis(200));
    let (back, other) = (&scene.laid[0], scene.lab.agent("host2").expect("an agent"));
    scene.lab.agent("host1").expect("an agent").end(Signal::TERM).expect("it ends");
    for key in ["block/10.244.1.0-24", "node/host1", "lease/host1"] {
        scene.manager.etcd().delete(&format!("/coreos.com/network/loden/{key}"));
    }
    wait_for("flannel's node", || {
        let status = other.status().expect("a status");
        let has_block = |node: &str| {
            status.peers.iter().any(|peer| peer.node.as_str() == node && !peer.blocks.is_empty() && peer.missing == 0)
        };
        has_block("192.0.2.1") && !has_block("host1") && status.kernel.pending == 0
    });
    // What flanneld does when it starts: it keeps the device that fits, and writes its entries over those that there are.
    scene.laid.iter().filter(|peer| peer.n != back.n).for_each(|peer| back.reach(&scene.lab, peer));
    flannel::run(&scene.lab, "host1", "nft delete table inet loden");
    let routes = flannel::run(&scene.lab, "host1", "ip route");
    assert!(!routes.contains("proto 76") && routes.contains("10.244.2.0/24 via 10.244.2.0"), "{routes}");
    let (sent, lost) = stop(running);
    say(&format!("back: {lost} of {sent} packets lost"));
    assert_eq!(scene.manager.etcd().get(&back.key()), back.lease());
    assert_eq!(lost, 0);
}
