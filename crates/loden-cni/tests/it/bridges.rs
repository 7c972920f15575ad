//! Bridges that a network's configuration names: made where they are missing, with the options of the reference plugin.

use std::net::IpAddr;
use std::time::Duration;

use loden_core::attach;
use loden_core::kernel::NO_GROUP;
use loden_core::kernel::link::{Bridge, Link, LinkKind, Port};
use loden_core::model::Mac;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::{address, link};
use serde_json::{Value, json};

use crate::host::{Host, answer, key, reaches, reaches_within};

/// A network of its own, which needs no agent.
fn network(more: &Value) -> Value {
    let mut conf = json!({
        "bridge": "br1", "isGateway": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/24" }], [{ "subnet": "fd07::/64" }]],
                  "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] },
    });
    if let (Value::Object(conf), Value::Object(more)) = (&mut conf, more) {
        conf.extend(more.clone());
    }
    conf
}

fn no_agent() -> Host {
    let host = Host::new(&[]);
    std::fs::remove_file(host.run_dir().node_file()).expect("removed");
    host
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

#[test]
fn pods_of_a_bridge_of_their_own_need_no_agent() {
    let host = no_agent();
    let (a, b) = (host.pod("a"), host.pod("b"));
    let result = host.call("ADD", "a", &network(&json!({}))).expect("attached");
    host.call("ADD", "b", &network(&json!({}))).expect("attached");
    assert_eq!(result["ips"][0], json!({ "address": "10.7.0.2/24", "gateway": "10.7.0.1", "interface": 2 }));
    assert_eq!(result["interfaces"][0]["name"], "br1");
    for addr in ["10.7.0.3", "fd07::3"] {
        assert!(reaches(&a, &b, ip(addr)), "{addr}");
    }
    for addr in ["10.7.0.1", "fd07::1"] {
        assert!(reaches(&a, host.ns(), ip(addr)), "{addr}");
    }
    assert_eq!(host.call("CHECK", "a", &network(&json!({ "prevResult": result }))), Ok(Value::Null));
    let forwarding = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].map(|path| (path, 1));
    for (path, value) in forwarding.into_iter().chain([("net/ipv6/conf/br1/accept_ra", 0)]) {
        assert_eq!(host.run_in(|| loden_linux::sysctl::read(path)).expect("read"), Some(value), "{path}");
    }
    for pod in ["a", "b"] {
        host.call("DEL", pod, &network(&json!({}))).expect("detached");
    }
    host.reap();
    assert_eq!(host.leftovers(), ["br1"], "the bridge stays: others may use it by now");
    // A bridge that is there is used as it is.
    host.call("ADD", "a", &network(&json!({}))).expect("attached");
}

#[test]
fn the_bridge_keeps_its_address_as_pods_come_and_go() {
    let host = no_agent();
    let mac = |host: &Host| host.link("br1").link.mac;
    host.pod("a");
    host.call("ADD", "a", &network(&json!({}))).expect("attached");
    let before = mac(&host);
    for pod in ["b", "c", "d"] {
        host.pod(pod);
        host.call("ADD", pod, &network(&json!({}))).expect("attached");
        assert_eq!(mac(&host), before);
    }
}

#[test]
fn another_address_of_the_bridge_is_a_fault_unless_it_is_to_give_way() {
    let host = no_agent();
    host.pod("a");
    host.call("ADD", "a", &network(&json!({}))).expect("attached");
    host.pod("b");
    let other = json!({ "type": "host-local", "subnet": "10.8.0.0/24" });
    let (_, text) = host.call("ADD", "b", &network(&json!({ "name": "n8", "ipam": other }))).expect_err("it differs");
    assert!(text.contains("bears 10.7.0.1/24") && text.contains("forceAddress"), "{text}");
    assert_eq!(host.run_dir().attachments().good.len(), 1);
    host.call("ADD", "b", &network(&json!({ "name": "n8", "ipam": other, "forceAddress": true }))).expect("attached");
    let number = host.link("br1").index;
    let addresses = host.run_in(|| {
        let mut w = Writer::default();
        address::list(&mut w);
        Socket::open(Protocol::Route).expect("a socket").dump("list", &mut w, Vec::new, |all: &mut Vec<_>, m| {
            all.extend(
                address::parse(m.payload).filter(|a| a.index == number && a.is_global).map(|a| a.net.to_string()),
            );
        })
    });
    let mut addresses = addresses.expect("listed");
    addresses.sort();
    assert_eq!(addresses, ["10.8.0.1/24", "fd07::1/64"]);
}

#[test]
fn options_of_ports_are_set_checked_and_true() {
    let host = no_agent();
    let with = network(&json!({ "portIsolation": true, "hairpinMode": true, "mtu": 1400 }));
    let (a, b) = (host.pod("a"), host.pod("b"));
    let result = host.call("ADD", "a", &with).expect("attached");
    host.call("ADD", "b", &with).expect("attached");
    let [dev, _] = attach::host_sides(&key("a"));
    let seen = host.link(dev.as_str()).link;
    assert_eq!((seen.port, seen.mtu), (Port { hairpin: true, isolated: true }, 1400));
    assert_eq!(result["interfaces"][2]["mtu"], 1400);
    assert!(!reaches_within(&a, &b, ip("10.7.0.3"), Duration::from_millis(300)), "they are isolated");
    assert!(reaches(&a, host.ns(), ip("10.7.0.1")), "the bridge itself is not");
    host.run_in(|| {
        let mut w = Writer::default();
        link::set_port(&mut w, dev, Port::default());
        link::set_mtu(&mut w, dev, 1300);
        Socket::open(Protocol::Route).expect("a socket").batch(&mut w).expect("a batch");
    });
    let mut previous = with.clone();
    previous["prevResult"] = result;
    let (_, text) = host.call("CHECK", "a", &previous).expect_err("two faults");
    assert!(text.contains("settings as a port") && text.contains("MTU 1300"), "{text}");
}

#[test]
fn a_pods_interface_may_be_left_to_others() {
    let host = no_agent();
    host.pod("a");
    let with = network(&json!({ "disableContainerInterface": true }));
    let result = host.call("ADD", "a", &with).expect("attached");
    assert!(result.get("ips").is_none() && result.get("routes").is_none(), "{result}");
    let previous = network(&json!({ "disableContainerInterface": true, "prevResult": result }));
    assert_eq!(host.call("CHECK", "a", &previous), Ok(Value::Null));
}

#[test]
fn promiscuous_is_set_and_what_excludes_each_other_is_refused() {
    let host = no_agent();
    host.pod("a");
    let both = network(&json!({ "promiscMode": true, "hairpinMode": true }));
    let (code, text) = host.call("ADD", "a", &both).expect_err("both");
    assert!(code == 7 && text.contains("exclude each other"), "{text}");
    host.call("ADD", "a", &network(&json!({ "promiscMode": true }))).expect("attached");
    assert!(host.link("br1").is_promiscuous);
    let (code, text) = host.call("ADD", "b", &network(&json!({ "ipMasqBackend": "pf" }))).expect_err("unknown");
    assert!(code == 7 && text.contains("ipMasqBackend"), "{text}");
}

#[test]
fn a_second_network_gives_a_pod_a_second_interface() {
    let host = no_agent();
    let a = host.pod("a");
    host.call("ADD", "a", &network(&json!({}))).expect("attached");
    let second = network(
        &json!({ "name": "n8", "bridge": "br8", "ipam": { "type": "host-local", "subnet": "10.8.0.0/24", "routes": [{ "dst": "10.9.0.0/16" }] } }),
    );
    let conf = host.conf("1.0.0", &second);
    let result = answer(&host.exec("ADD", "a", conf.as_bytes(), &[("CNI_IFNAME", "net1")])).expect("attached");
    assert_eq!(result["routes"], json!([{ "dst": "10.9.0.0/16", "gw": "10.8.0.1" }]));
    let b = host.pod("b");
    answer(&host.exec("ADD", "b", conf.as_bytes(), &[])).expect("attached");
    assert!(reaches(&a, &b, ip("10.8.0.3")));
}

#[test]
fn an_address_that_a_neighbour_has_is_found_out_where_that_is_asked_for() {
    let host = no_agent();
    host.pod("a");
    host.pod("b");
    let fixed = |name: &str, detects: bool| {
        let ipam = json!({ "type": "static", "addresses": [{ "address": "fd07::5/64" }] });
        network(&json!({ "name": name, "enabledad": detects, "isGateway": false, "ipam": ipam }))
    };
    let result = host.call("ADD", "a", &fixed("n1", true)).expect("nobody else has it");
    let mut previous = fixed("n1", true);
    previous["prevResult"] = result;
    assert_eq!(host.call("CHECK", "a", &previous), Ok(Value::Null));
    // Another network, so that nothing but the wire knows.
    let (_, text) = host.call("ADD", "b", &fixed("n2", true)).expect_err("a has it");
    assert!(text.contains("address fd07::5/64 on eth0 in the pod: another interface on the link has it"), "{text}");
    assert_eq!(host.run_dir().attachments().good.len(), 1);
    host.call("ADD", "b", &fixed("n2", false)).expect("nobody asks");
}

#[test]
fn a_bridge_of_somebody_else_is_used_and_stays() {
    let host = no_agent();
    host.pod("a");
    let mac = Mac([2, 0, 0, 0, 0, 0x17]);
    host.run_in(|| {
        let mut w = Writer::default();
        let name = "br1".parse().expect("a name");
        let bridge = Link {
            kind: LinkKind::Bridge(Bridge::default()),
            mtu: 1500,
            mac: Some(mac),
            up: true,
            master: None,
            port: Port::default(),
            group: NO_GROUP,
        };
        link::create(&mut w, name, &bridge, None, None);
        link::set_up(&mut w, name, true);
        Socket::open(Protocol::Route).expect("a socket").batch(&mut w).expect("a batch");
    });
    let before = host.link("br1");
    host.call("ADD", "a", &network(&json!({}))).expect("attached");
    let seen = host.link("br1");
    assert_eq!((seen.index, seen.link.mac, seen.link.group), (before.index, Some(mac), 0));
    host.call("DEL", "a", &network(&json!({}))).expect("detached");
    host.call("GC", "", &network(&json!({ "cni.dev/valid-attachments": [] }))).expect("collected");
    host.sweep();
    assert_eq!(host.leftovers(), ["br1"]);
}
