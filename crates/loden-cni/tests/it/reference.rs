//! Faults that users of the reference plugins know, each shown not to be one of ours. Others stand where they belong: a port that two
//! pods ask for and flows of UDP that outlive one in `ports.rs`, torn files in `faults.rs`.

use loden_core::pod_tables::ALL;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::nft::{Nft, Ownership};
use loden_linux::rt::address;
use serde_json::{Value, json};

use crate::host::{Host, answer, reaches};
use crate::wire::Wire;

/// As which plugin, and with which keys besides the usual ones.
type Kind = (&'static str, Value);

fn kinds() -> [Kind; 5] {
    let port = json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] });
    [
        ("bridge", json!({ "bridge": "br1", "isGateway": true, "macspoofchk": true })),
        ("loden-cni", json!({ "attach": "bridge", "bridge": "br1", "macspoofchk": true, "runtimeConfig": port })),
        ("ptp", json!({})),
        ("loden-cni", json!({ "attach": "routed", "runtimeConfig": port })),
        ("loden-cni", json!({ "attach": "macvlan", "master": "eth0", "hostLink": "mv0", "runtimeConfig": port })),
    ]
}

/// A network with one address to give, and what a kind adds.
fn network(more: &Value) -> Value {
    let ranges = json!([[{ "subnet": "10.7.0.0/30" }], [{ "subnet": "fd07::/126", "rangeStart": "fd07::2", "rangeEnd": "fd07::2" }]]);
    let mut conf = json!({
        "cniVersion": "1.0.0", "ipMasq": true, "ipam": { "type": "host-local", "ranges": ranges },
    });
    if let (Value::Object(conf), Value::Object(more)) = (&mut conf, more) {
        conf.extend(more.clone());
    }
    conf
}

fn host() -> (Host, Wire) {
    let host = Host::new(&["10.1.0.0/24"]);
    let wire = Wire::new(&host);
    (host, wire)
}

/// All that may be left, but for bridges, which others may use by now.
fn left(host: &Host) -> Vec<String> {
    host.reap();
    let mut left = host.leftovers();
    left.retain(|name| name != "eth0" && name != "br1");
    left.extend(host.pod_routes().iter().map(|route| format!("route {}", route.prefix)));
    for table in ALL {
        let name = (table.frame)().name;
        let there = host.run_in(|| Nft::open(name, Ownership::Shared).expect("a socket").observe().expect("observed"));
        let elements = there.into_iter().flat_map(|table| table.sets).flat_map(|(_, set)| set.elements);
        left.extend(elements.map(|(element, _)| format!("{element} in {name}")));
    }
    left
}

#[test]
fn del_without_a_namespace_leaves_neither_rules_nor_addresses() {
    // Reference: only the address is released, rules for masquerading and senders leak (plugins #810).
    for (role, keys) in kinds() {
        let (host, _wire) = host();
        let conf = network(&keys);
        for pod in ["a", "b"] {
            host.pod(pod);
            host.call_as(role, "ADD", pod, &conf).unwrap_or_else(|error| panic!("{keys}, {pod}: {error:?}"));
            assert!(!left(&host).is_empty(), "{keys}");
            loden_linux::netns::remove(&host.netns_path(pod)).expect("removed");
            let text = host.conf("1.0.0", &json!({}));
            let gone = answer(&host.exec_as(role, "DEL", pod, text.as_bytes(), &[("CNI_NETNS", "")]));
            assert_eq!(gone, Ok(Value::Null), "{keys}");
            assert_eq!(left(&host), Vec::<String>::new(), "{role} {keys}");
        }
    }
}

#[test]
fn an_add_that_fails_with_its_link_made_leaves_neither_link_nor_address() {
    // Reference: the veth, the macvlan, and in most ways of ptp the address stay (plugins #29).
    for (role, keys) in kinds() {
        let (host, _wire) = host();
        host.pod("a");
        let mut conf = network(&keys);
        conf["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "203.0.113.9" }]);
        let (_, text) = host.call_as(role, "ADD", "a", &conf).expect_err("its gateway is out of reach");
        assert!(text.contains("route 10.9.0.0/16 of eth0 in the pod"), "{keys}: {text}");
        assert_eq!(left(&host), Vec::<String>::new(), "{role} {keys}");
        host.call_as(role, "ADD", "a", &network(&keys)).expect("the only address is free");
    }
}

#[test]
fn an_add_that_gets_no_address_leaves_no_link() {
    // Reference: the error is lost on its way to what would undo the link (macvlan, ptp).
    for (role, keys) in kinds() {
        let (host, _wire) = host();
        host.pod("a");
        host.pod("b");
        let mut conf = network(&keys);
        host.call_as(role, "ADD", "a", &conf).expect("the only address");
        let before = left(&host);
        conf["runtimeConfig"] = json!({});
        let (code, text) = host.call_as(role, "ADD", "b", &conf).expect_err("there is no other");
        assert!(code == 100 && text.contains("10.7.0.0/30"), "{keys}: {code} {text}");
        assert_eq!(left(&host), before, "{role} {keys}");
    }
}

#[test]
fn a_second_interface_in_one_network_is_an_attachment_of_its_own() {
    // Reference: names that are made of network and container alone collide.
    let (host, _wire) = host();
    let a = host.pod("a");
    let conf = |port: u16| {
        let ipam = json!({ "type": "host-local", "subnet": "10.7.0.0/24" });
        let ports = json!({ "portMappings": [{ "hostPort": port, "containerPort": 80 }] });
        let conf = network(
            &json!({ "attach": "bridge", "bridge": "br1", "macspoofchk": true, "ipam": ipam, "runtimeConfig": ports }),
        );
        host.conf("1.0.0", &conf)
    };
    let call = |verb, ifname, port| answer(&host.exec(verb, "a", conf(port).as_bytes(), &[("CNI_IFNAME", ifname)]));
    let first = call("ADD", "eth0", 8001).expect("attached");
    let alone = left(&host);
    let second = call("ADD", "net1", 8002).expect("attached");
    assert_eq!([&first["ips"][0]["address"], &second["ips"][0]["address"]], ["10.7.0.2/24", "10.7.0.3/24"]);
    assert_eq!(left(&host).len(), 2 * alone.len());
    // Both networks are to be the way out; the first one is, and CHECK knows.
    let mut previous: Value = serde_json::from_str(&conf(8002)).expect("JSON");
    previous["prevResult"] = second;
    let checked = host.exec("CHECK", "a", previous.to_string().as_bytes(), &[("CNI_IFNAME", "net1")]);
    assert_eq!(answer(&checked), Ok(Value::Null));
    call("DEL", "net1", 8002).expect("detached");
    assert_eq!(left(&host), alone);
    assert!(reaches(host.ns(), &a, "10.7.0.2".parse().expect("an address")));
    call("DEL", "eth0", 8001).expect("detached");
    assert_eq!(left(&host), Vec::<String>::new());
}

#[test]
fn ipv6_works_when_add_returns() {
    // Reference: seconds of duplicate address detection (Kubernetes #54651).
    for (role, keys) in kinds() {
        let (host, _wire) = host();
        let pod = host.pod("a");
        host.call_as(role, "ADD", "a", &network(&keys)).expect("attached");
        let seen = pod.run(|| {
            let mut w = Writer::default();
            address::list(&mut w);
            let mut socket = Socket::open(Protocol::Route).expect("a socket");
            socket.dump("addresses", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(address::parse(m.payload)))
        });
        let seen = seen.expect("a thread").expect("listed");
        let own = seen.iter().find(|seen| seen.net.addr().to_string() == "fd07::2").expect("the address");
        assert!(!own.is_tentative && !own.is_duplicate, "{keys}: {own:?}");
    }
}
