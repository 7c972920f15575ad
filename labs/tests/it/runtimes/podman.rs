//! podman, with networks of its CNI backend.

use std::fs;
use std::net::IpAddr;

use serde_json::Value;

use super::image;
use super::node::{Cluster, Node, page, said};
use crate::support::wait_for;

/// podman on a host.
struct Podman<'a> {
    node: &'a Node,
    root: String,
}

impl<'a> Podman<'a> {
    fn new(node: &'a Node) -> Self {
        let text = CONF.replace("$DIR", &node.dir.display().to_string());
        fs::write(node.dir.join("containers.conf"), text).expect("written");
        let text = STORAGE.replace("$DIR", &node.dir.display().to_string());
        fs::write(node.dir.join("storage.conf"), text).expect("written");
        // An overlay: what containers write is not in it afterwards.
        let root = format!("{}:O", image::root(&node.dir).display());
        Self { node, root }
    }

    fn call(&self, args: &[&str]) -> Result<String, String> {
        let mut command = self.node.command("podman");
        command
            .args(args)
            .env("CONTAINERS_CONF", self.node.dir.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.node.dir.join("storage.conf"));
        said(&mut command).map(|said| said.trim().to_owned())
    }

    /// Runs a container; gives its ID.
    fn run(&self, name: &str, options: &[&str], command: &[&str]) -> String {
        let first = ["run", "-d", "--name", name, "--cgroup-parent", &self.node.cgroup];
        let all = [&first, options, &["--rootfs", &self.root], command].concat();
        self.call(&all).expect("podman run")
    }

    fn exec(&self, name: &str, command: &str) -> Result<String, String> {
        self.call(&["exec", name, "/bin/sh", "-c", command])
    }

    /// The network of a container, as podman tells of it.
    fn network(&self, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.call(&["inspect", name]).expect("inspect")).expect("JSON");
        all[0]["NetworkSettings"]["Networks"]["loden"].clone()
    }

    fn address(&self, name: &str) -> IpAddr {
        let network = self.network(name);
        network["IPAddress"].as_str().and_then(|addr| addr.parse().ok()).unwrap_or_else(|| panic!("{network}"))
    }

    /// The addresses that the plugin gave, which must be those that podman tells of: when it cannot use the list of plugins it takes a
    /// network of its own without a word.
    fn checked(&self, name: &str, id: &str) -> IpAddr {
        let attachment = self.node.attachment(id);
        let addr = self.address(name);
        assert!(attachment.ips().any(|ip| ip == addr), "{addr} is not of {attachment:?}");
        addr
    }

    fn remove(&self, names: &[&str]) {
        self.call(&[&["rm", "-f", "-t", "0"], names].concat()).expect("podman rm");
    }
}

#[test]
fn each_version_that_it_speaks() {
    let cluster = Cluster::up("podman-versions", 1);
    let node = &cluster.nodes[0];
    let podman = Podman::new(node);
    let before = node.footprint();
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        node.put_conflist(version, &[]);
        let id = podman.run("a", &[], &["/bin/sleep", "1000000"]);
        podman.checked("a", &id);
        podman.remove(&["a"]);
        assert_eq!(node.calls_about(&id), ["ADD", "DEL"], "{version}");
        node.is_again(&before);
    }
}

#[test]
fn ports_addresses_and_reloads() {
    let cluster = Cluster::up("podman", 1);
    let node = &cluster.nodes[0];
    node.put_conflist("1.0.0", &[]);
    let podman = Podman::new(node);
    let before = node.footprint();
    let id = podman.run("web", &["-p", "18080:80"], &image::serve("web"));
    let other = podman.run("other", &[], &["/bin/sleep", "1000000"]);
    let addr = podman.checked("web", &id);
    podman.checked("other", &other);
    let with_both = node.footprint();

    let outside = cluster.lab.netns("outside").expect("a namespace");
    let host = cluster.lab.hosts()[0].addresses.v4.expect("an address");
    let bridge = node.attachment(&id).addresses[0].gateway.expect("a gateway");
    let all_reach = |addr: IpAddr| {
        let is_well = |answer: Result<String, String>| answer.as_deref() == Ok("web");
        wait_for("the server listens", || is_well(page(&node.netns(), (addr, 80))));
        assert_eq!(page(&node.netns(), ([127, 0, 0, 1], 18080)).as_deref(), Ok("web"), "by the loopback address");
        assert_eq!(page(&node.netns(), (bridge, 18080)).as_deref(), Ok("web"), "by the bridge's address");
        assert_eq!(page(&outside, (host, 18080)).as_deref(), Ok("web"), "from outside");
        // From a neighbour on the same bridge, and from itself.
        for from in ["other", "web"] {
            for (addr, port) in [(addr, 80), (bridge, 18080), (host, 18080)] {
                let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {addr} {port}");
                let answer = podman.exec(from, &ask).expect("nc");
                assert_eq!(answer.lines().last(), Some("web"), "from {from} to {addr}:{port}");
            }
        }
    };
    all_reach(addr);

    // Detached and attached again while it runs: what it had it has.
    podman.call(&["network", "reload", "web"]).expect("reload");
    assert_eq!(podman.checked("web", &id), addr);
    assert_eq!(node.footprint().len(), with_both.len());
    all_reach(addr);

    podman.call(&["restart", "-t", "0", "web"]).expect("restart");
    all_reach(podman.checked("web", &id));
    assert_eq!(node.calls_about(&id), ["ADD", "DEL", "ADD", "DEL", "ADD"]);

    // An address and an Ethernet address of one's own choice.
    let wanted = match addr {
        IpAddr::V4(addr) => IpAddr::V4((u32::from(addr) ^ 0x40).into()),
        IpAddr::V6(addr) => IpAddr::V6((u128::from(addr) ^ 0x40).into()),
    };
    let options = ["--ip", &wanted.to_string(), "--mac-address", "02:00:00:00:76:01"];
    let chosen = podman.run("chosen", &options, &["/bin/sleep", "1000000"]);
    assert_eq!(podman.checked("chosen", &chosen), wanted);
    assert_eq!(node.attachment(&chosen).mac.to_string(), "02:00:00:00:76:01");
    assert_eq!(podman.network("chosen")["MacAddress"].as_str(), Some("02:00:00:00:76:01"));
    let twice =
        ["run", "-d", "--name", "twice", "--ip", &wanted.to_string(), "--rootfs", &podman.root, "/bin/sleep", "9"];
    let refused = podman.call(&twice).expect_err("it is taken");
    assert!(refused.contains(&wanted.to_string()) && refused.contains("taken by"), "{refused}");

    podman.remove(&["web", "other", "chosen", "twice"]);
    node.is_again(&before);
}

const CONF: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["$DIR/bin"]
network_config_dir = "$DIR/net.d"
default_network = "loden"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "$DIR/libpod"
"#;

const STORAGE: &str = r#"
[storage]
driver = "overlay"
graphroot = "$DIR/storage"
runroot = "$DIR/storage-run"
"#;
