//! A host whose `lan0` leads to a segment with a DHCP server.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Output;

use loden_core::kernel::NO_GROUP;
use loden_core::kernel::link::{Bridge, Link, LinkKind, Port};
use loden_core::model::AttachmentKey;
use loden_lab::agent::Agent;
use loden_lab::pod::Call;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::{self, NetNs};
use loden_linux::rt::link::{self, VethEnd};
use loden_linux::rt::{address, route};
use loden_linux::run_dir::RunDir;
use serde_json::{Value, json};

use crate::support::{Guard, POOLS, SEGMENT, hosts, up};

/// The server's own address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

pub struct Wire {
    /// Beyond the host: its bridge `br0` bears [`SERVER`].
    pub beyond: NetNs,
    made: Vec<String>,
    pub lab: Guard,
}

impl Wire {
    pub fn new(name: &str) -> Self {
        let lab = up(name, &[SEGMENT, &hosts(1, ""), POOLS].concat());
        let beyond = NetNs::create(&lab.netns_path("beyond")).expect("a namespace");
        let wire = Self { beyond, made: vec!["beyond".to_owned()], lab };
        let mut w = Writer::default();
        let bridge = LinkKind::Bridge(Bridge { mcast_snooping: false, vlan_filtering: false });
        link::create(&mut w, ifname("br0"), &link_of(bridge), None, None);
        send(&wire.beyond, &mut w);
        wire.connect(&wire.host(), "lan0", "port");
        let br0 = number(&wire.beyond, "br0");
        link::set_up(&mut w, ifname("br0"), true);
        address::add(&mut w, "203.0.113.1/24".parse().expect("a net"), br0);
        send(&wire.beyond, &mut w);
        wire
    }

    /// A link from a namespace to the segment.
    pub fn connect(&self, ns: &NetNs, dev: &str, port: &str) {
        let mut w = Writer::default();
        let end = |name| VethEnd { name, mtu: 1500, mac: None, group: NO_GROUP, master: None };
        let far = self.beyond.as_fd().as_raw_fd().cast_unsigned();
        link::create_veth(&mut w, end(ifname(dev)), end(ifname(port)), far);
        link::set_up(&mut w, ifname(dev), true);
        send(ns, &mut w);
        link::set_master(&mut w, ifname(port), number(&self.beyond, "br0"));
        link::set_up(&mut w, ifname(port), true);
        send(&self.beyond, &mut w);
    }

    /// Makes a bridge on the host, with `lan0` as its port.
    pub fn bridge_lan(&self, name: &str) {
        let mut w = Writer::default();
        let bridge = LinkKind::Bridge(Bridge { mcast_snooping: false, vlan_filtering: false });
        link::create(&mut w, ifname(name), &link_of(bridge), None, None);
        send(&self.host(), &mut w);
        link::set_up(&mut w, ifname(name), true);
        link::set_master(&mut w, ifname("lan0"), number(&self.host(), name));
        send(&self.host(), &mut w);
    }

    /// Another machine on the segment.
    pub fn neighbour(&mut self, name: &str, net: &str) -> NetNs {
        let ns = self.pod(name);
        self.connect(&ns, "eth0", name);
        let mut w = Writer::default();
        address::add(&mut w, net.parse().expect("a net"), number(&ns, "eth0"));
        send(&ns, &mut w);
        ns
    }

    pub fn host(&self) -> NetNs {
        self.lab.netns("host1").expect("a host")
    }

    pub fn agent(&self) -> Agent {
        self.lab.agent("host1").expect("an agent")
    }

    pub fn run_dir(&self) -> RunDir {
        RunDir::new(self.agent().run_dir())
    }

    pub fn pod(&mut self, name: &str) -> NetNs {
        self.made.push(name.to_owned());
        NetNs::create(&self.lab.netns_path(name)).expect("a namespace")
    }

    /// A macvlan's configuration with keys over the usual ones.
    pub fn conf(&self, ipam: &Value, more: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "lan", "type": "loden-cni", "attach": "macvlan", "master": "lan0",
            "runDir": self.run_dir().path(), "ipam": { "type": "dhcp" },
        });
        merge(&mut conf["ipam"], ipam);
        merge(&mut conf, more);
        conf
    }

    pub fn output(&self, verb: &str, pod: &str, conf: &Value) -> Output {
        let plugin = &self.lab.binaries().loden_cni;
        let (netns, path) = (self.lab.netns_path(pod), plugin.parent().expect("a directory"));
        let call = Call { plugin, verb, pod, ifname: "eth0", netns: &netns, path, conf: &conf.to_string() };
        call.output(Some(&self.host())).expect("the plugin runs")
    }

    /// The JSON, or the error's code and words.
    pub fn call(&self, verb: &str, pod: &str, conf: &Value) -> Result<Value, (u64, String)> {
        let output = self.output(verb, pod, conf);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() {
            return Ok(value);
        }
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        Err((value["code"].as_u64().unwrap_or(0), format!("{} {}", text("msg"), text("details"))))
    }

    /// CHECK with the result of the ADD.
    pub fn check(&self, pod: &str, conf: &Value, result: &Value) -> Result<Value, (u64, String)> {
        let mut conf = conf.clone();
        conf["prevResult"] = result.clone();
        self.call("CHECK", pod, &conf)
    }

    /// The problems of leases in the agent's status.
    pub fn problems(&self) -> Vec<String> {
        let problems = self.agent().status().expect("a status").problems;
        problems.iter().filter(|p| p.subject.starts_with("address of")).map(ToString::to_string).collect()
    }

    /// Files of leases and attachments.
    pub fn files(&self) -> Vec<String> {
        let names = |dir| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let run_dir = self.run_dir();
        let all = names(run_dir.leases_dir()).chain(names(run_dir.attachments_dir().join("lan")));
        all.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// Waits until nothing is left of any pod.
    pub fn wait_clean(&self) {
        crate::support::wait_for("nothing is left", || self.files().is_empty());
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in &self.made {
            let _ = netns::remove(&self.lab.netns_path(name));
        }
    }
}

/// The IPv4 addresses of a pod's eth0, and the gateways of its default routes.
pub fn of_pod(pod: &NetNs) -> (Vec<String>, Vec<String>) {
    let look = || {
        let mut socket = Socket::open(Protocol::Route).expect("a socket");
        let number = link::number_of(&socket, ifname("eth0")).expect("asked").unwrap_or(0);
        let mut w = Writer::default();
        address::list(&mut w);
        let nets = socket.dump("addresses", &mut w, Vec::new, |all: &mut Vec<String>, m| {
            let seen = address::parse(m.payload).filter(|seen| seen.index == number && seen.net.addr().is_ipv4());
            all.extend(seen.map(|seen| seen.net.to_string()));
        });
        let routes = route::read(&mut socket, loden_core::model::Family::V4, 0).expect("routes");
        let default = routes.iter().filter(|route| route.prefix.len() == 0);
        let gateways = default.filter_map(|route| match route.to {
            Some(route::To::Gateway(_, gateway)) => Some(gateway.to_string()),
            _ => None,
        });
        (nets.expect("addresses"), gateways.collect())
    };
    pod.run(look).expect("a thread")
}

pub fn key(pod: &str) -> AttachmentKey {
    AttachmentKey { network: "lan".to_owned(), container: pod.to_owned(), ifname: ifname("eth0") }
}

pub fn ifname(name: &str) -> loden_core::model::IfName {
    name.parse().expect("a name")
}

fn merge(target: &mut Value, source: &Value) {
    if let (Value::Object(target), Value::Object(source)) = (target, source) {
        target.extend(source.clone());
    }
}

fn link_of(kind: LinkKind) -> Link {
    Link { kind, mtu: 1500, mac: None, up: true, master: None, port: Port::default(), group: 0 }
}

fn number(ns: &NetNs, dev: &str) -> u32 {
    let found = ns.run(|| link::number_of(&Socket::open(Protocol::Route).expect("a socket"), ifname(dev)));
    found.expect("a thread").expect("asked").expect("there")
}

fn send(ns: &NetNs, w: &mut Writer) {
    let results = ns.run(|| Socket::open(Protocol::Route).expect("a socket").batch(w).expect("a batch"));
    results.expect("a thread").into_iter().for_each(|result| result.expect("done"));
    w.clear();
}
