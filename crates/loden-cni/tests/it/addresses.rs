//! Where addresses come from: ranges of a network's own, fixed ones, and those that somebody asks for.

use loden_core::kernel::PROTOCOL;
use loden_core::model::Family;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::route;
use serde_json::{Value, json};

use crate::host::{Host, answer};

fn with(ipam: Value) -> Value {
    json!({ "bridge": "br1", "ipam": ipam })
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("ips");
    ips.iter().map(|ip| ip["address"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn ranges_have_their_ends_gateways_and_alternatives() {
    let host = Host::new(&[]);
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.7.0.0/24", "rangeStart": "10.7.0.1", "rangeEnd": "10.7.0.3", "gateway": "10.7.0.2" },
                    { "subnet": "10.8.0.0/30" }]],
    });
    let given: Vec<String> = (0..3)
        .map(|n| {
            host.pod(&format!("p{n}"));
            // Two subnets of IPv4 on one bridge: each has its gateway only where the other may give way.
            let mut conf = with(ipam.clone());
            conf["isGateway"] = false.into();
            conf["isDefaultGateway"] = false.into();
            let result = host.call("ADD", &format!("p{n}"), &conf).expect("attached");
            addresses(&result).remove(0)
        })
        .collect();
    assert_eq!(given, ["10.7.0.1/24", "10.7.0.3/24", "10.8.0.2/30"]);
    host.pod("full");
    let (code, text) = host.call("ADD", "full", &with(ipam.clone())).expect_err("full");
    let words = "range 10.7.0.0/24 10.7.0.1-10.7.0.3 has no free address: 2 of 2 are in use";
    assert!(code == 100 && text.contains(words) && text.contains("range 10.8.0.0/30"), "{code} {text}");
    let (code, text) = host.call("STATUS", "", &with(ipam.clone())).expect_err("full");
    assert!(code == 50 && text.contains(words), "{code} {text}");
    host.call("DEL", "p1", &with(json!({}))).expect("detached");
    assert_eq!(host.call("STATUS", "", &with(ipam)), Ok(Value::Null));
}

#[test]
fn networks_do_not_share_their_ranges() {
    let host = Host::new(&["10.1.0.0/24"]);
    let ipam = json!({ "type": "host-local", "subnet": "10.1.0.0/24" });
    for (pod, conf, expected) in [
        ("a", json!({}), "10.1.0.2/24"),
        ("b", json!({ "name": "n1", "bridge": "br1", "ipam": ipam }), "10.1.0.2/24"),
        ("c", json!({ "name": "n2", "bridge": "br2", "ipam": ipam }), "10.1.0.2/24"),
        ("d", json!({ "name": "n2", "bridge": "br2", "ipam": ipam }), "10.1.0.3/24"),
        ("e", json!({}), "10.1.0.3/24"),
    ] {
        host.pod(pod);
        assert_eq!(addresses(&host.call("ADD", pod, &conf).expect(pod)), [expected], "{pod}");
    }
}

#[test]
fn who_asks_for_an_address_gets_it_by_whichever_way() {
    let host = Host::new(&["10.1.0.0/24", "fd01::/64"]);
    let ask = |pod: &str, more: &Value, args: &str| {
        host.pod(pod);
        let conf = host.conf("1.1.0", more);
        answer(&host.exec("ADD", pod, conf.as_bytes(), &[("CNI_ARGS", args)])).map(|result| addresses(&result))
    };
    let annotations = json!({ "loden.dev/ips": "10.1.0.13, fd01::13", "loden.dev/mac": "02:00:00:00:00:13" });
    for (pod, more, args, expected) in [
        ("a", json!({ "runtimeConfig": { "ips": ["10.1.0.10/24"] } }), "", ["10.1.0.10/24", "fd01::2/64"]),
        ("b", json!({ "args": { "cni": { "ips": ["10.1.0.11", "fd01::11"] } } }), "", ["10.1.0.11/24", "fd01::11/64"]),
        ("c", json!({}), "IgnoreUnknown=1;IP=10.1.0.12", ["10.1.0.12/24", "fd01::3/64"]),
        (
            "d",
            json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations } }),
            "",
            ["10.1.0.13/24", "fd01::13/64"],
        ),
    ] {
        assert_eq!(ask(pod, &more, args).expect(pod), expected, "{pod}");
    }
    let (code, text) =
        ask("e", &json!({ "runtimeConfig": { "ips": ["10.1.0.10"] } }), "K8S_POD_NAME=me").expect_err("it is taken");
    assert!(code == 100 && text.contains("taken by attachment net/a/eth0"), "{code} {text}");
    let (code, text) = ask("f", &json!({ "runtimeConfig": { "ips": ["10.9.0.1"] } }), "").expect_err("it is outside");
    assert!(code == 100 && text.contains("lies in none of 10.1.0.0/24"), "{code} {text}");
    let (code, text) = ask("g", &json!({}), "IP=nonsense").expect_err("it is none");
    assert!(code == 4 && text.contains("nonsense"), "{code} {text}");
    let (code, text) = ask("h", &json!({}), "SOMETHING=1;IP=10.1.0.50").expect_err("not known");
    assert!(code == 4 && text.contains("SOMETHING") && text.contains("IgnoreUnknown"), "{code} {text}");
    let (code, text) = ask("i", &json!({ "runtimeConfig": { "ips": ["10.1.0.1"] } }), "").expect_err("the gateway's");
    assert!(code == 100, "{code} {text}");
    // All or nothing: that the IPv4 address was free does not help when the IPv6 one is not.
    let both = json!({ "runtimeConfig": { "ips": ["10.1.0.77", "fd01::11"] } });
    assert_eq!(ask("j", &both, "").expect_err("one is taken").0, 100);
    let (pod, one) = ("k", json!({ "runtimeConfig": { "ips": ["10.1.0.77"] } }));
    assert_eq!(ask(pod, &one, "").expect("free")[0], "10.1.0.77/24");
}

#[test]
fn an_ethernet_address_is_given_by_the_last_who_asks() {
    let host = Host::new(&["10.1.0.0/24"]);
    let mac = |pod: &str, more: &Value, args: &str| {
        host.pod(pod);
        let conf = host.conf("1.1.0", more);
        let result = answer(&host.exec("ADD", pod, conf.as_bytes(), &[("CNI_ARGS", args)])).expect("attached");
        result["interfaces"][2]["mac"].as_str().expect("a text").to_owned()
    };
    let runtime = json!({ "mac": "02:00:00:00:00:03" });
    let all = json!({ "mac": "02:00:00:00:00:01", "args": { "cni": { "mac": "02:00:00:00:00:02" } }, "runtimeConfig": runtime });
    assert_eq!(mac("a", &all, "MAC=02:00:00:00:00:00"), "02:00:00:00:00:03");
    assert_eq!(mac("b", &json!({}), "MAC=02:00:00:00:00:04"), "02:00:00:00:00:04");
}

#[test]
fn what_is_reserved_is_given_only_to_who_asks() {
    let host = Host::new(&[]);
    let ipam = json!({ "type": "host-local", "subnet": "10.7.0.0/28", "reserved": ["10.7.0.2", "10.7.0.4/30"] });
    let next = |pod: &str, more: Value| {
        host.pod(pod);
        let mut conf = with(ipam.clone());
        conf["runtimeConfig"] = more;
        addresses(&host.call("ADD", pod, &conf).expect(pod)).remove(0)
    };
    assert_eq!(next("a", json!({})), "10.7.0.3/28");
    assert_eq!(next("b", json!({})), "10.7.0.8/28");
    assert_eq!(next("c", json!({ "ips": ["10.7.0.5"] })), "10.7.0.5/28");
}

#[test]
fn fixed_addresses_are_given_as_they_are_and_once() {
    let host = Host::new(&[]);
    let ipam = json!({
        "type": "static", "routes": [{ "dst": "10.20.0.0/16" }, { "dst": "10.30.0.0/16", "gw": "10.7.0.99" }],
        "addresses": [{ "address": "10.7.0.50/24", "gateway": "10.7.0.1" }, { "address": "fd07::50/64" }],
    });
    host.pod("a");
    let result = host.call("ADD", "a", &with(ipam.clone())).expect("attached");
    assert_eq!(addresses(&result), ["10.7.0.50/24", "fd07::50/64"]);
    assert_eq!(
        result["routes"],
        json!([{ "dst": "10.20.0.0/16", "gw": "10.7.0.1" }, { "dst": "10.30.0.0/16", "gw": "10.7.0.99" }])
    );
    host.pod("b");
    let (code, text) = host.call("ADD", "b", &with(ipam.clone())).expect_err("it is taken");
    assert!(code == 100 && text.contains("10.7.0.50 is asked for and taken by attachment net/a/eth0"), "{text}");
    let mut other = with(ipam);
    other["runtimeConfig"] = json!({ "ips": ["10.7.0.51/24", "fd07::51/64"] });
    assert_eq!(addresses(&host.call("ADD", "b", &other).expect("attached")), ["10.7.0.51/24", "fd07::51/64"]);
}

#[test]
fn ranges_that_do_not_do_are_refused_with_the_reason() {
    let host = Host::new(&[]);
    for (ipam, words) in [
        (json!({ "type": "host-local" }), "at least one range"),
        (json!({ "type": "host-local", "subnet": "10.7.0.5/24" }), "10.7.0.0/24"),
        (json!({ "type": "host-local", "subnet": "10.7.0.0/31" }), "has no address for a pod"),
        (json!({ "type": "host-local", "subnet": "10.7.0.0/24", "rangeStart": "10.8.0.1" }), "is no range"),
        (
            json!({ "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/24" }], [{ "subnet": "10.7.0.0/25" }]] }),
            "overlap",
        ),
        (
            json!({ "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/24" }, { "subnet": "fd07::/64" }]] }),
            "one family",
        ),
        (json!({ "type": "static", "addresses": [{ "address": "10.7.0.5" }] }), "with its length"),
        (json!({ "type": "nonsense" }), "\"host-local\""),
    ] {
        host.pod("a");
        let (code, text) = host.call("ADD", "a", &with(ipam.clone())).expect_err(words);
        assert!(code == 7 && text.contains(words), "{ipam}: {code} {text}");
        loden_linux::netns::remove(&host.netns_path("a")).expect("removed");
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn routes_have_their_tables_priorities_and_sizes() {
    let host = Host::new(&[]);
    let pod = host.pod("a");
    let routes = json!([
        { "dst": "0.0.0.0/0", "mtu": 1300, "advmss": 1200, "priority": 50 },
        { "dst": "198.51.100.0/24", "gw": "10.7.0.9", "table": 1000 },
        { "dst": "203.0.113.0/24", "table": 77, "scope": 0 },
    ]);
    let conf = with(json!({ "type": "host-local", "subnet": "10.7.0.0/24", "routes": routes }));
    let result = host.call("ADD", "a", &conf).expect("attached");
    assert_eq!(
        result["routes"],
        json!([
            { "dst": "0.0.0.0/0", "gw": "10.7.0.1", "priority": 50, "mtu": 1300, "advmss": 1200 },
            { "dst": "198.51.100.0/24", "gw": "10.7.0.9", "table": 1000 },
            { "dst": "203.0.113.0/24", "gw": "10.7.0.1", "table": 77, "scope": 0 },
        ])
    );
    let seen = pod.run(|| {
        let mut socket = Socket::open(Protocol::Route).expect("a socket");
        route::read_all(&mut socket, Family::V4, PROTOCOL).expect("routes")
    });
    let mut seen: Vec<_> = seen.expect("a thread").iter().map(|r| (r.table, r.priority, r.mtu, r.advmss)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(77, 0, None, None), (254, 50, Some(1300), Some(1200)), (1000, 0, None, None)]);
    let mut check = conf.clone();
    check["prevResult"] = result;
    assert_eq!(host.call("CHECK", "a", &check), Ok(Value::Null));
    pod.run(|| {
        let mut w = Writer::default();
        route::delete(&mut w, "0.0.0.0/0".parse().expect("a prefix"), 50);
        Socket::open(Protocol::Route).expect("a socket").batch(&mut w).expect("a batch");
    })
    .expect("a thread");
    let (_, text) = host.call("CHECK", "a", &check).expect_err("a route is missing");
    assert!(text.contains("route 0.0.0.0/0 via 10.7.0.1 is missing in the pod"), "{text}");
}
