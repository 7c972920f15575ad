//! In the place of the reference plugins: their configurations, their results, and lists of several of them.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use loden_linux::netlink::{Protocol, Socket};
use loden_linux::rt::link;
use serde_json::{Value, json};

use crate::host::{Host, reaches};

fn no_agent() -> Host {
    let host = Host::new(&[]);
    std::fs::remove_file(host.run_dir().node_file()).expect("removed");
    host
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn previous(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

#[test]
fn bridge_has_the_defaults_of_bridge() {
    let host = no_agent();
    // No gateway, no default route unless asked for; without `ipam` an interface alone.
    let ipam = json!({ "type": "host-local", "subnet": "10.7.0.0/24" });
    let plain = json!({ "type": "bridge", "bridge": "br1", "ipam": ipam });
    let a = host.pod("a");
    let result = host.call_as("bridge", "ADD", "a", &plain).expect("attached");
    assert_eq!(result["ips"][0], json!({ "address": "10.7.0.2/24", "gateway": "10.7.0.1", "interface": 2 }));
    assert!(result.get("routes").is_none(), "{result}");
    assert_eq!(host.call_as("bridge", "CHECK", "a", &previous(&plain, &result)), Ok(Value::Null));
    host.pod("l2");
    let result = host.call_as("bridge", "ADD", "l2", &json!({ "type": "bridge", "bridge": "br1" })).expect("attached");
    assert!(result.get("ips").is_none(), "{result}");
    let mut gateway = plain.clone();
    gateway["isDefaultGateway"] = true.into();
    host.pod("b");
    let result = host.call_as("bridge", "ADD", "b", &gateway).expect("attached");
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "10.7.0.1" }]));
    assert!(reaches(&a, host.ns(), ip("10.7.0.1")), "the bridge bears it");
    for pod in ["a", "l2", "b"] {
        host.call_as("bridge", "DEL", pod, &plain).expect("detached");
    }
    assert_eq!(host.leftovers(), ["br1"], "without an agent DEL deletes what it parks");
}

#[test]
fn ptp_is_a_wire_to_the_host() {
    let host = no_agent();
    let conf = json!({
        "type": "ptp",
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/24" }], [{ "subnet": "fd07::/64" }]],
                  "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] },
    });
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        host.run_in(|| loden_linux::sysctl::write(path, 1)).expect("written");
    }
    let (a, b) = (host.pod("a"), host.pod("b"));
    let result = host.call_as("ptp", "ADD", "a", &conf).expect("attached");
    host.call_as("ptp", "ADD", "b", &conf).expect("attached");
    assert_eq!(result["ips"][0], json!({ "address": "10.7.0.2/24", "gateway": "10.7.0.1", "interface": 1 }));
    for addr in ["10.7.0.3", "fd07::3"] {
        assert!(reaches(&a, &b, ip(addr)), "{addr}: by the host");
    }
    for addr in ["10.7.0.1", "fd07::1"] {
        assert!(reaches(&a, host.ns(), ip(addr)), "{addr}: the host itself");
    }
    assert_eq!(host.call_as("ptp", "CHECK", "a", &previous(&conf, &result)), Ok(Value::Null));
    for pod in ["a", "b"] {
        host.call_as("ptp", "DEL", pod, &conf).expect("detached");
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
    assert_eq!(host.pod_routes(), Vec::new());
}

#[test]
fn addresses_for_another_plugin() {
    let host = no_agent();
    let conf = json!({ "type": "bridge", "ipam": { "type": "host-local", "subnet": "10.7.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] } });
    host.pod("a");
    let result = host.call_as("host-local", "ADD", "a", &conf).expect("given");
    assert_eq!(
        result,
        json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.7.0.2/24", "gateway": "10.7.0.1" }],
                "routes": [{ "dst": "0.0.0.0/0" }], "dns": {} })
    );
    assert_eq!(host.call_as("host-local", "CHECK", "a", &previous(&conf, &result)), Ok(Value::Null));
    assert_eq!(host.links(), Vec::<String>::new());
    let (_, text) = host.call_as("host-local", "ADD", "a", &conf).expect_err("it has one");
    assert!(text.contains("10.7.0.2"), "{text}");
    for _ in 0..2 {
        assert_eq!(host.call_as("host-local", "DEL", "a", &conf), Ok(Value::Null));
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
    assert_eq!(host.call_as("host-local", "CHECK", "a", &previous(&conf, &result)).expect_err("gone").0, 101);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "nameserver 10.7.0.53\nsearch x y\n").expect("written");
    let mut with = conf.clone();
    with["ipam"]["resolvConf"] = file.path().to_str().into();
    let result = host.call_as("host-local", "ADD", "a", &with).expect("given");
    assert_eq!(result["dns"], json!({ "nameservers": ["10.7.0.53"], "search": ["x", "y"] }));
    assert_eq!(host.call_as("host-local", "DEL", "a", &with), Ok(Value::Null));
    with["ipam"]["resolvConf"] = "/nowhere".into();
    assert_eq!(host.call_as("host-local", "ADD", "a", &with).map_err(|error| error.0), Err(5));
    let fixed = json!({ "type": "bridge", "ipam": { "type": "static", "addresses": [{ "address": "10.7.0.9/24" }], "dns": { "nameservers": ["10.7.0.53"] } } });
    let result = host.call_as("static", "ADD", "a", &fixed).expect("given");
    assert_eq!(result["ips"], json!([{ "address": "10.7.0.9/24" }]));
    assert_eq!(result["dns"], json!({ "nameservers": ["10.7.0.53"] }));
}

#[test]
fn a_list_of_bridge_and_portmap() {
    let host = no_agent();
    let pod = host.pod("a");
    let bridge = json!({ "type": "bridge", "bridge": "br1", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.7.0.0/24" } });
    let portmap = json!({
        "type": "portmap", "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
    });
    let made = host.call_as("bridge", "ADD", "a", &bridge).expect("attached");
    let result = host.call_as("portmap", "ADD", "a", &previous(&portmap, &made)).expect("opened");
    assert_eq!(result, made, "what changes nothing of the result passes it on");
    let listener = pod.run(|| TcpListener::bind("0.0.0.0:80").expect("bound")).expect("a thread");
    let connects = |to: &str| {
        let to = to.parse().expect(to);
        host.run_in(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok())
    };
    assert!(connects("10.7.0.1:8080") && connects("127.0.0.1:8080"));
    assert_eq!(host.call_as("portmap", "CHECK", "a", &previous(&portmap, &result)), Ok(Value::Null));
    let (_, text) = host.call_as("portmap", "ADD", "a", &portmap).expect_err("it stands behind another");
    assert!(text.contains("prevResult"), "{text}");
    // In reverse order, each twice.
    for _ in 0..2 {
        host.call_as("portmap", "DEL", "a", &previous(&portmap, &result)).expect("closed");
        assert!(!connects("10.7.0.1:8080"));
    }
    assert_eq!(host.run_dir().attachments().good.len(), 1, "the bridge's part is still there");
    host.call_as("bridge", "DEL", "a", &previous(&bridge, &result)).expect("detached");
    assert_eq!(host.leftovers(), ["br1"]);
    drop(listener);
}

#[test]
fn portmap_behind_a_plugin_of_others() {
    let host = no_agent();
    host.pod("a");
    let result = json!({
        "cniVersion": "1.0.0", "somethingElse": 7,
        "interfaces": [{ "name": "br9" }, { "name": "veth7" }, { "name": "eth0", "sandbox": "/x" }],
        "ips": [{ "address": "10.9.0.2/24", "interface": 2 }],
    });
    let portmap =
        json!({ "type": "portmap", "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } });
    assert_eq!(host.call_as("portmap", "ADD", "a", &previous(&portmap, &result)), Ok(result));
    assert_eq!(host.run_dir().attachments().good.len(), 1);
    host.call_as("portmap", "DEL", "a", &portmap).expect("closed");
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn loopback_is_set_up() {
    let host = no_agent();
    let pod = host.pod("a");
    let conf = json!({ "cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback" });
    let result = host.call_as("loopback", "ADD", "a", &conf).expect("set up");
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["ips"][0], json!({ "version": "4", "interface": 0, "address": "127.0.0.1/8" }));
    let is_up = pod.run(|| {
        let seen = link::read(&mut Socket::open(Protocol::Route).expect("a socket"), "lo".parse().expect("a name"));
        seen.expect("asked").expect("there").link.up
    });
    assert!(is_up.expect("a thread"));
    assert_eq!(host.call_as("loopback", "DEL", "a", &conf), Ok(Value::Null));
}
