//! The plugin stopped between any two steps: killed, asked to end, or held while others come by.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loden_linux::fault::POINTS;
use loden_linux::{netns, pod};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::chained::{THEIRS, eth0, read, tc, theirs};
use crate::delegates::Plugins;
use crate::host::{Host, answer};
use crate::ports::elements;
use crate::wire::Wire;

/// One address for pods in IPv4: what leaks is missed at the next ADD.
const TINY: [&str; 2] = ["10.1.0.0/30", "fd01::/126"];

/// A way to attach a pod.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Bridge,
    Routed,
    Macvlan,
    /// By the bridge, with ports of the host and its senders looked at.
    Ports,
    /// Ports alone, behind another plugin.
    Portmap,
    /// A bound on the rate alone, behind another plugin.
    Bandwidth,
    /// Settings alone, behind another plugin.
    Tuning,
    /// By the bridge, with addresses of another plugin.
    Delegated,
    /// Beside the wire, with an address by DHCP.
    Leased,
}

const BEHIND: [Way; 3] = [Way::Portmap, Way::Bandwidth, Way::Tuning];

const PODS: [Way; 6] = [Way::Bridge, Way::Routed, Way::Macvlan, Way::Ports, Way::Delegated, Way::Leased];

/// By which verb a point is come by, and with which attachments; `None`: the tests of the installer have a row for it.
fn row(point: &str) -> Option<(&'static str, &'static [Way])> {
    match point {
        "add-begun" | "add-marked" | "add-counted" | "add-reserved" | "add-linked" | "add-host-set" | "add-made"
        | "add-completed" => Some(("ADD", &PODS)),
        "add-delegated" => Some(("ADD", &[Way::Delegated])),
        "add-leased" | "add-addressed" => Some(("ADD", &[Way::Leased])),
        "add-part-asked" | "add-part-made" => Some(("ADD", &BEHIND)),
        "add-ports-open" => Some(("ADD", &[Way::Bridge, Way::Macvlan, Way::Ports])),
        "del-begun" | "del-leased" | "del-parked" | "del-freed" => Some(("DEL", &PODS)),
        "del-part-taken" => Some(("DEL", &BEHIND)),
        "del-ports-closed" | "del-forgotten" => {
            Some(("DEL", &[Way::Bridge, Way::Routed, Way::Macvlan, Way::Ports, Way::Portmap, Way::Delegated]))
        }
        "gc-detached" => Some(("GC", &PODS)),
        "file-written" | "file-placed" | "link-written" | "link-placed" | "original-linked" | "uninstall-closed"
        | "uninstall-removed" => None,
        _ => panic!("the point {point} has no row"),
    }
}

/// A host with a pod, and what a runtime says of it.
struct Scene {
    // It goes before the host whose socket it has.
    agent: Option<Agent>,
    host: Host,
    plugins: Plugins,
    wire: Option<Wire>,
    way: Way,
    conf: String,
}

impl Scene {
    fn new(way: Way) -> Self {
        let (host, plugins) = (Host::new(&TINY), Plugins::new());
        let wire = matches!(way, Way::Macvlan | Way::Leased).then(|| Wire::new(&host));
        let agent = (way == Way::Leased).then(|| Agent::start(&host));
        let pod = host.pod("a");
        let ports = json!([{ "hostPort": 8080, "containerPort": 80 }, { "hostPort": 53, "containerPort": 53, "protocol": "udp" }]);
        let one =
            json!({ "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/30" }], [{ "subnet": "fd07::/126" }]] });
        let conf = match way {
            Way::Bridge => json!({}),
            Way::Routed => json!({ "attach": "routed" }),
            Way::Macvlan => json!({ "attach": "macvlan", "master": "eth0", "hostLink": "mv0", "ipam": one }),
            Way::Leased => json!({ "attach": "macvlan", "master": "eth0", "ipam": { "type": "dhcp" } }),
            Way::Ports => {
                json!({ "runtimeConfig": { "portMappings": ports }, "ipMasq": true, "macspoofchk": true })
            }
            Way::Portmap => json!({
                "runtimeConfig": { "portMappings": ports },
                "prevResult": { "cniVersion": "1.1.0", "ips": [{ "address": "10.9.0.2/24" }] },
            }),
            Way::Bandwidth => json!({
                "ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000,
                "prevResult": theirs(&host, &pod),
            }),
            Way::Tuning => json!({
                "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" }, "mtu": 1400, "promisc": true,
                "mac": "02:00:00:00:00:07", "prevResult": theirs(&host, &pod),
            }),
            Way::Delegated => {
                let lease = plugins.path().join("lease");
                let result =
                    json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.9.0.2/24", "gateway": "10.9.0.1" }] });
                plugins.script(
                    "theirs",
                    &format!(
                        "case $CNI_COMMAND in ADD) touch {lease}; echo '{result}';; DEL) rm -f {lease};; esac",
                        lease = lease.display()
                    ),
                );
                json!({ "bridge": "cni0", "isGateway": false, "isDefaultGateway": false, "ipam": { "type": "theirs" } })
            }
        };
        let conf = host.conf("1.1.0", &conf);
        Self { host, plugins, agent, wire, way, conf }
    }

    fn role(&self) -> &'static str {
        match self.way {
            Way::Portmap => "portmap",
            Way::Bandwidth => "bandwidth",
            Way::Tuning => "tuning",
            _ => "loden-cni",
        }
    }

    fn begin(&self, verb: &str, variables: &[(&str, &str)]) -> Child {
        let conf = match verb {
            "GC" => self.conf.replacen('{', r#"{"cni.dev/valid-attachments":[],"#, 1),
            _ => self.conf.clone(),
        };
        let path = format!("{}:/usr/bin:/bin", self.plugins.path().display());
        let usual = [("CNI_PATH", path.as_str()), ("PATH", "/usr/bin:/bin")];
        let variables: Vec<_> = usual.iter().chain(variables).copied().collect();
        self.host.begin_as(self.role(), verb, "a", conf.as_bytes(), &variables)
    }

    fn exec(&self, verb: &str, variables: &[(&str, &str)]) -> Output {
        self.begin(verb, variables).wait_with_output().expect("the plugin ends")
    }

    fn call(&self, verb: &str) -> Result<Value, (u64, String)> {
        answer(&self.exec(verb, &[]))
    }

    /// Everything that could be left of the pod.
    fn left(&self) -> Vec<String> {
        self.host.reap();
        let mut left = self.host.leftovers();
        left.retain(|name| name != "eth0" || self.wire.is_none());
        left.extend(self.agent.iter().flat_map(Agent::leases));
        left.extend((elements(&self.host) > 0).then(|| "elements of tables".to_owned()));
        left.extend(self.host.pod_routes().iter().map(|route| format!("{route:?}")));
        left.extend(self.plugins.path().join("lease").exists().then(|| "the address of another plugin".to_owned()));
        if matches!(self.way, Way::Bandwidth | Way::Tuning) {
            left.retain(|name| name != THEIRS);
            left.extend(changed(&self.host));
            return left;
        }
        let (ns, eth0) = (netns::NetNs::open(&self.host.netns_path("a")), "eth0".parse().expect("a name"));
        let is_there = ns.is_ok_and(|ns| pod::exists_in(&ns, eth0).expect("asked"));
        left.extend(is_there.then(|| "eth0 in the pod".to_owned()));
        left
    }

    /// That nothing is left, and as much room as there ever was.
    fn is_clean(&self, what: &str) {
        assert_eq!(self.left(), Vec::<String>::new(), "{what}");
        for verb in ["ADD", "DEL"] {
            let done = self.call(verb);
            assert!(done.is_ok(), "{what}: then {verb}: {done:?}");
        }
        assert_eq!(self.left(), Vec::<String>::new(), "{what}, the next ADD and DEL");
    }
}

/// What is not as another plugin made it of its pod's link.
fn changed(host: &Host) -> Option<String> {
    let pod = netns::NetNs::open(&host.netns_path("a")).expect("the pod's namespace");
    let seen = eth0(&pod);
    let is = format!(
        "{}{}{} {} {:?} {}",
        tc(host.ns(), THEIRS),
        tc(&pod, "eth0"),
        seen.link.mtu,
        seen.is_promiscuous,
        seen.link.mac,
        read(&pod, "net/ipv4/conf/eth0/arp_filter")
    );
    let mac = "02:00:00:00:09:02".parse::<loden_core::model::Mac>().ok();
    let was = format!("qdisc noqueue 0: root refcnt 2 \nqdisc noqueue 0: root refcnt 2 \n1500 false {mac:?} 0");
    (is != was).then_some(is)
}

fn stopped(point: &str, signal: &str) -> [(&'static str, String); 2] {
    [("LODEN_FAULT_POINT", point.to_owned()), ("LODEN_FAULT_SIGNAL", signal.to_owned())]
}

/// All points of pods, with each attachment that comes by it; several at a time, since the kernel mostly waits for itself.
fn each(work: impl Fn(&'static str, &'static str, Way) + Sync) {
    let rows = POINTS.into_iter().filter_map(|point| Some((point, row(point)?)));
    let all: Vec<_> = rows.flat_map(|(point, (verb, ways))| ways.iter().map(move |way| (point, verb, *way))).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((point, verb, way)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(point, verb, *way);
                }
            });
        }
    });
}

#[test]
fn killed_at_any_point_a_del_makes_it_clean() {
    killed("DEL");
}

#[test]
fn killed_at_any_point_a_gc_makes_it_clean() {
    killed("GC");
}

#[test]
fn killed_at_any_point_the_agents_sweep_makes_it_clean() {
    killed("sweep");
}

fn killed(cure: &str) {
    each(|point, verb, way| {
        let what = format!("{way:?} killed at {point}, then {cure}");
        let scene = Scene::new(way);
        if verb != "ADD" {
            scene.call("ADD").expect(&what);
        }
        let killed = scene.exec(verb, &[("LODEN_FAULT_POINT", point)]);
        assert!(!killed.status.success() && killed.stdout.is_empty(), "{what}: it was not reached: {killed:?}");
        if cure == "sweep" {
            scene.host.sweep();
            // The agent sweeps what is unfinished; a whole attachment belongs to a pod that may live.
            if scene.host.run_dir().attachments().good.iter().any(|there| there.complete) {
                scene.call("DEL").expect(&what);
            }
        } else {
            scene.call(cure).expect(&what);
        }
        scene.host.sweep();
        scene.is_clean(&what);
    });
}

#[test]
fn asked_to_end_at_any_point_it_finishes_first() {
    each(|point, verb, way| {
        // Each of them at a third of the points.
        let place = POINTS.iter().position(|other| *other == point).unwrap_or_default() + way as usize;
        let signal = ["TERM", "INT", "HUP"][place % 3];
        let what = format!("{way:?}: {signal} at {point}");
        let scene = Scene::new(way);
        if verb != "ADD" {
            scene.call("ADD").expect(&what);
        }
        let variables = stopped(point, signal);
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let output = scene.exec(verb, &variables);
        if way == Way::Delegated && output.status.signal().is_some() {
            // Another plugin may take as long as it likes: meanwhile it is not put off. What is left is what a killed one leaves.
            scene.call("DEL").expect(&what);
        } else {
            assert!(output.status.success(), "{what}: {output:?}");
        }
        if verb == "ADD" {
            scene.call("DEL").expect(&what);
        }
        scene.is_clean(&what);
    });
}

/// Begins a verb and waits until it stands still at the point.
fn held(scene: &Scene, verb: &str, point: &str) -> (Child, Pid) {
    let variables = stopped(point, "STOP");
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let child = scene.begin(verb, &variables);
    let pid = Pid::from_child(&child);
    let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).expect("waited").expect("a status");
    assert!(status.stopped(), "{point}: it was not reached");
    (child, pid)
}

fn let_go(child: Child, pid: Pid) -> Output {
    kill_process(pid, Signal::CONT).expect("it goes on");
    child.wait_with_output().expect("it ends")
}

#[test]
fn a_sweep_leaves_an_add_in_flight_alone() {
    each(|point, verb, way| {
        if verb != "ADD" {
            return;
        }
        let what = format!("{way:?}: a sweep while ADD is at {point}");
        let scene = Scene::new(way);
        let (child, pid) = held(&scene, "ADD", point);
        let output = std::thread::scope(|scope| {
            let sweep = scope.spawn(|| scene.host.sweep());
            // At some points ADD holds the lock that a sweep waits for.
            for _ in 0..50 {
                if sweep.is_finished() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let output = let_go(child, pid);
            assert_eq!(sweep.join().expect("swept"), 0, "{what}");
            output
        });
        answer(&output).expect(&what);
        assert!(scene.host.run_dir().attachments().good.iter().all(|there| there.complete), "{what}");
        scene.call("DEL").expect(&what);
        scene.is_clean(&what);
    });
}

#[test]
fn a_namespace_that_goes_while_its_pod_is_attached_leaves_nothing_for_long() {
    for way in PODS {
        for point in ["add-begun", "add-reserved", "add-linked", "add-made"] {
            let what = format!("{way:?}: the namespace goes at {point}");
            let scene = Scene::new(way);
            let (child, pid) = held(&scene, "ADD", point);
            netns::remove(&scene.host.netns_path("a")).expect("removed");
            // The plugin has it open, so that it lives until that ends; the runtime learns of its pod's end by itself, and says DEL.
            answer(&let_go(child, pid)).expect(&what);
            scene.call("DEL").expect(&what);
            scene.host.pod("a");
            // The kernel takes a namespace apart when it comes to it; until then its macvlan has its Ethernet address beside the master.
            let until = Instant::now() + Duration::from_secs(20);
            while scene.call("ADD").is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            scene.call("DEL").expect(&what);
            scene.is_clean(&what);
        }
    }
}
