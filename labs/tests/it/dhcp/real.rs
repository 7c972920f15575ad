//! With a DHCP server of the field, dnsmasq.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use loden_linux::spawn;
use serde_json::{Value, json};

use super::wire::{Wire, of_pod};
use crate::support::{say, wait_for};

/// Ended with the test.
struct Dnsmasq {
    child: Child,
    dir: tempfile::TempDir,
}

impl Dnsmasq {
    fn start(wire: &Wire) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let mut command = Command::new("dnsmasq");
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=br0", "--bind-interfaces"])
            .args(["--dhcp-range=203.0.113.50,203.0.113.60,255.255.255.0,2m", "--dhcp-authoritative", "--no-ping"])
            .args(["--dhcp-option=option:router,203.0.113.1", "--dhcp-option=option:dns-server,203.0.113.53"])
            .args(["--dhcp-option=option:domain-search,lab.example,more.example", "--user=root", "--log-facility=-"])
            .arg(format!("--dhcp-leasefile={}", at("leases").display()))
            .arg(format!("--pid-file={}", at("pid").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("log")).expect("a log"));
        spawn::in_netns(&mut command, &wire.beyond, true).expect("the namespace");
        let child = command.spawn().expect("dnsmasq (Debian: apt-get install dnsmasq-base)");
        let server = Self { child, dir };
        wait_for("dnsmasq serves", || server.read("log").contains("DHCP, IP range"));
        server
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Leases in its file.
    fn leases(&self) -> usize {
        self.read("leases").lines().filter(|line| line.contains("203.0.113.")).count()
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn dnsmasq_gives_and_takes_back_by_macvlan_and_by_a_bridge() {
    let mut wire = Wire::new("dhcp-dnsmasq");
    let server = Dnsmasq::start(&wire);
    let macvlan = wire.conf(&json!({}), &json!({}));
    let provide = json!({ "provide": [{ "option": "host-name", "fromArg": "K8S_POD_NAME" }] });
    let bridge = wire.conf(&provide, &json!({ "attach": "bridge", "bridge": "lanbr" }));
    // A bridge that is there, with the wire as its port, as an administrator makes it for virtual machines.
    let mut results = Vec::new();
    for (name, conf) in [("m", &macvlan), ("m2", &macvlan)] {
        let pod = wire.pod(name);
        let began = Instant::now();
        let result = wire.call("ADD", name, conf).unwrap_or_else(|error| panic!("{error:?}: {}", server.read("log")));
        say(&format!("ADD by dnsmasq: {} ms", began.elapsed().as_millis()));
        assert_eq!(result["dns"]["search"], json!(["lab.example", "more.example"]));
        assert_eq!(of_pod(&pod).1, ["203.0.113.1"]);
        results.push((name, conf, result));
    }
    assert_eq!(server.leases(), 2, "{}", server.read("leases"));
    for (name, conf, result) in &results {
        assert_eq!(wire.check(name, conf, result), Ok(Value::Null));
        wire.call("DEL", name, conf).expect("detached");
    }
    wait_for("dnsmasq has them back", || server.leases() == 0);

    wire.bridge_lan("lanbr");
    let pod = wire.pod("b");
    let result = wire.call("ADD", "b", &bridge).unwrap_or_else(|error| panic!("{error:?}: {}", server.read("log")));
    assert_eq!(wire.check("b", &bridge, &result), Ok(Value::Null));
    assert_eq!(of_pod(&pod).1, ["203.0.113.1"]);
    let leases = server.read("leases");
    assert!(leases.contains(" b ") && server.leases() == 1, "by its name: {leases}");
    wire.call("DEL", "b", &bridge).expect("detached");
    wait_for("dnsmasq has it back", || server.leases() == 0);
    assert_eq!(wire.files(), Vec::<String>::new());
}
