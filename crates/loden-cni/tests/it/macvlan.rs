//! Macvlan: who reaches whom in each mode, with a switch outside whose port sends back (hairpin) or does not.

use std::net::IpAddr;
use std::time::Duration;

use loden_core::kernel::link::Port;
use loden_core::model::Mac;
use loden_linux::macvlan;
use loden_linux::netns::NetNs;
use loden_linux::rt::link;
use serde_json::{Value, json};

use crate::host::{Host, answer, reaches_within};
use crate::wire::Wire;

fn conf(mode: &str, addr: &str) -> Value {
    json!({
        "attach": "macvlan", "master": "eth0", "mode": mode,
        "ipam": { "type": "static", "addresses": [{ "address": format!("192.0.2.{addr}/24") }, { "address": format!("2001:db8::{addr}/64") }] },
    })
}

fn ips(last: u8) -> [IpAddr; 2] {
    [IpAddr::from([192, 0, 2, last]), format!("2001:db8::{last}").parse().expect("an address")]
}

/// Whether `from` reaches `to`, which bears the addresses that end so, in both families; as `expected`, or not.
fn both(from: &NetNs, to: &NetNs, last: u8, expected: bool) -> bool {
    let patience = Duration::from_millis(if expected { 5000 } else { 300 });
    ips(last).into_iter().all(|addr| reaches_within(from, to, addr, patience) == expected)
}

#[test]
fn who_reaches_whom_in_each_mode() {
    // Mode, hairpin on the switch's port, then: pod to pod, pod to switch, pod to the master's address.
    let table = [
        ("bridge", false, [true, true, false]),
        ("bridge", true, [true, true, true]),
        ("private", false, [false, true, false]),
        ("private", true, [false, true, false]),
        ("vepa", false, [false, true, false]),
        ("vepa", true, [true, true, true]),
    ];
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    for mode in ["bridge", "private", "vepa"] {
        let pods = ["21", "22"].map(|addr| {
            let pod = host.pod(addr);
            host.call("ADD", addr, &conf(mode, addr)).expect("attached");
            pod
        });
        for (_, hairpin, expected) in table.iter().filter(|(of, ..)| *of == mode) {
            wire.set_port(Port { hairpin: *hairpin, isolated: false });
            let [pod, switch, master] = *expected;
            assert!(both(&pods[0], &pods[1], 22, pod), "{mode}, hairpin {hairpin}: to a pod");
            assert!(both(&pods[0], &wire.switch, 2, switch), "{mode}, hairpin {hairpin}: to the switch");
            assert!(both(&pods[0], host.ns(), 1, master), "{mode}, hairpin {hairpin}: to the master");
        }
        for addr in ["21", "22"] {
            host.call("DEL", addr, &conf(mode, addr)).expect("detached");
            loden_linux::netns::remove(&host.netns_path(addr)).expect("removed");
        }
    }
    assert_eq!(host.leftovers(), ["eth0"]);
}

#[test]
fn the_host_reaches_its_pods_by_a_macvlan_of_its_own() {
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    let mut with = conf("bridge", "21");
    with["hostLink"] = "mv0".into();
    let pod = host.pod("21");
    let result = host.call("ADD", "21", &with).expect("attached");
    assert_eq!(host.call("CHECK", "21", &json!({ "prevResult": result })), Ok(Value::Null));
    assert!(both(host.ns(), &pod, 21, true), "host to pod");
    assert!(both(&pod, host.ns(), 1, true), "pod to the host's own address");
    assert!(both(&pod, &wire.switch, 2, true), "pod to the wire");
    assert!(both(host.ns(), &wire.switch, 2, true), "host to the wire");
    assert_eq!(host.pod_routes().len(), 2);
    host.call("DEL", "21", &json!({})).expect("detached");
    assert_eq!(host.pod_routes(), Vec::new());
}

#[test]
fn a_passed_through_interface_is_taken_whole() {
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    let pod = host.pod("21");
    let before = host.link("eth0").link.mac.expect("an address");
    let result = host.call("ADD", "21", &conf("passthru", "21")).expect("attached");
    assert_eq!(result["interfaces"][0]["mac"], before.to_string());
    assert!(both(&pod, &wire.switch, 2, true));
    host.pod("22");
    let (_, text) = host.call("ADD", "22", &conf("bridge", "22")).expect_err("it is taken");
    assert!(text.contains("passthru may have it whole"), "{text}");
    host.call("DEL", "21", &json!({})).expect("detached");
    let mut own = conf("passthru", "21");
    own["mac"] = "02:00:00:00:00:77".into();
    host.call("ADD", "21", &own).expect("attached");
    assert_eq!(host.link("eth0").link.mac, Some(Mac([2, 0, 0, 0, 0, 0x77])), "the master's follows the pod's");
    assert!(both(&pod, &wire.switch, 2, true));
}

#[test]
fn only_listed_senders_come_in_and_the_list_changes_live() {
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    let pod = host.pod("21");
    let sender = wire.mac();
    let mut listed = conf("source", "21");
    listed["sources"] = json!([sender]);
    host.call("ADD", "21", &listed).expect("attached");
    let ifname = "eth0".parse().expect("a name");
    assert!(both(&wire.switch, &pod, 21, true), "it is listed");
    macvlan::set_sources(&pod, ifname, &[Mac([2, 0, 0, 0, 0, 9])]).expect("set");
    assert!(both(&wire.switch, &pod, 21, false), "another is");
    macvlan::set_sources(&pod, ifname, &[Mac([2, 0, 0, 0, 0, 9]), sender]).expect("set");
    assert!(both(&wire.switch, &pod, 21, true), "both are");
    macvlan::set_sources(&pod, ifname, &[]).expect("set");
    assert!(both(&wire.switch, &pod, 21, false), "nobody is");
}

#[test]
fn what_does_not_fit_is_said() {
    let host = Host::new(&[]);
    let _wire = Wire::new(&host);
    host.pod("21");
    let refused = |key: &str, value: Value| {
        let mut with = conf("bridge", "21");
        with[key] = value;
        host.call("ADD", "21", &with).expect_err(key)
    };
    for (key, value, code, words) in [
        ("master", json!("eth9"), 7, "master eth9: there is no such interface"),
        ("mtu", json!(9000), 7, "more than the 1500 of eth0"),
        ("mode", json!("l2"), 7, "\"vepa\""),
        ("sources", json!(["02:00:00:00:00:01"]), 7, "belongs to the mode \"source\""),
    ] {
        let (is, text) = refused(key, value);
        assert!(is == code && text.contains(words), "{key}: {is} {text}");
    }
    // Without a master it is that of the default route, and there is none.
    let mut with = conf("bridge", "21");
    with.as_object_mut().expect("an object").remove("master");
    let (_, text) = host.call("ADD", "21", &with).expect_err("no default route");
    assert!(text.contains("no default route"), "{text}");
    assert_eq!(host.leftovers(), ["eth0"]);
}

#[test]
fn the_master_may_be_in_the_pod() {
    let host = Host::new(&["10.1.0.0/24"]);
    let pod = host.pod("21");
    host.call("ADD", "21", &json!({})).expect("eth0 by the bridge");
    let mut inner = conf("bridge", "21");
    inner["linkInContainer"] = true.into();
    let inner = host.conf("1.1.0", &inner);
    answer(&host.exec("ADD", "21", inner.as_bytes(), &[("CNI_IFNAME", "net1")])).expect("net1 beside it");
    let seen = pod.run(|| {
        let mut socket = loden_linux::netlink::Socket::open(loden_linux::netlink::Protocol::Route).expect("a socket");
        link::read(&mut socket, "net1".parse().expect("a name")).expect("asked")
    });
    assert_eq!(seen.expect("a thread").expect("there").link.kind.name(), "macvlan");
    answer(&host.exec("DEL", "21", inner.as_bytes(), &[("CNI_IFNAME", "net1")])).expect("detached");
    host.call("DEL", "21", &json!({})).expect("detached");
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
