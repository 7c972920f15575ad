//! Routed pods: no bridge, one address alone, a gateway that nobody bears.

use std::net::IpAddr;

use loden_core::attach;
use loden_core::kernel::DeviceSysctl;
use loden_core::model::Prefix;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::NetNs;
use loden_linux::rt::{link, neighbour, route};
use loden_linux::sysctl;
use serde_json::{Value, json};

use crate::host::{Host, key, reaches};

/// A host that forwards, and that has a way to everywhere: the proxy answers for what is behind it.
fn host() -> Host {
    let host = Host::new(&["10.1.0.0/24", "fd01::/64"]);
    host.run_in(|| {
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            sysctl::write(path, 1).expect("written");
        }
        let mut w = Writer::default();
        let to = route::To::Gateway(2, "10.1.0.77".parse().expect("an address"));
        route::add_foreign(&mut w, "0.0.0.0/0".parse().expect("a prefix"), 0, to);
        let mut socket = Socket::open(Protocol::Route).expect("a socket");
        socket.batch(&mut w).expect("a batch").into_iter().for_each(|result| result.expect("a default route"));
    });
    host
}

fn attach(host: &Host, pod: &str) -> (NetNs, Value) {
    let netns = host.pod(pod);
    (netns, host.call("ADD", pod, &json!({ "attach": "routed" })).expect("attached"))
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().expect("ips");
    let addr = |ip: &Value| ip["address"].as_str().expect("text").split('/').next().expect("an address").to_owned();
    ips.iter().map(|ip| addr(ip).parse().expect("an address")).collect()
}

#[test]
fn two_pods_reach_each_other_through_the_host_alone() {
    let host = host();
    let ((a, first), (b, second)) = (attach(&host, "a"), attach(&host, "b"));
    for addr in addresses(&second) {
        assert!(reaches(&a, &b, addr), "{addr}");
    }
    for addr in addresses(&first) {
        assert!(reaches(&b, &a, addr), "{addr}");
    }
    // What the pod has learned of its gateway is the host's end, in both families.
    let seen = a.run(|| {
        let mut w = Writer::default();
        let mut all = Vec::new();
        for family in loden_core::model::Family::ALL {
            w.clear();
            neighbour::list(&mut w, family);
            let mut socket = Socket::open(Protocol::Route).expect("a socket");
            let read = |all: &mut Vec<_>, m: loden_linux::netlink::Message<'_>| all.extend(neighbour::parse(m.payload));
            all.extend(socket.dump("neighbours", &mut w, Vec::new, read).expect("neighbours"));
        }
        all
    });
    let seen = seen.expect("a thread");
    for gateway in ["169.254.1.1", "fe80::ecee:eeff:feee:eeee"] {
        let wanted = neighbour::Entry::Neighbour(gateway.parse().expect("an address"), Some(attach::ROUTED_HOST_MAC));
        assert!(seen.iter().any(|entry| entry.entry == wanted), "{gateway}: {seen:?}");
    }
}

#[test]
fn the_result_says_what_is_there() {
    let host = host();
    let (_a, result) = attach(&host, "a");
    let interfaces = result["interfaces"].as_array().expect("interfaces");
    let name = interfaces[0]["name"].as_str().expect("a name");
    assert!(interfaces.len() == 2 && name.starts_with("cali") && name.len() == 15, "{result}");
    assert_eq!(interfaces[0]["mac"], "ee:ee:ee:ee:ee:ee");
    assert_eq!(result["ips"][0], json!({ "address": "10.1.0.2/32", "gateway": "169.254.1.1", "interface": 1 }));
    assert_eq!(
        result["ips"][1],
        json!({ "address": "fd01::2/128", "gateway": "fe80::ecee:eeff:feee:eeee", "interface": 1 })
    );
    assert_eq!(
        result["routes"],
        json!([
            { "dst": "169.254.1.1/32" },
            { "dst": "0.0.0.0/0", "gw": "169.254.1.1" },
            { "dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee" },
        ])
    );
}

#[test]
fn check_names_what_the_host_lacks_and_del_takes_all_of_it_along() {
    let host = host();
    let (_a, result) = attach(&host, "a");
    let check = || host.call("CHECK", "a", &json!({ "attach": "routed", "prevResult": result }));
    assert_eq!(check(), Ok(Value::Null));
    let [_, dev] = attach::host_sides(&key("a"));
    host.run_in(|| {
        let mut w = Writer::default();
        let addr = addresses(&result)[0];
        route::delete(&mut w, Prefix::host(addr), 0);
        Socket::open(Protocol::Route).expect("a socket").batch(&mut w).expect("a batch");
        sysctl::write(&DeviceSysctl::ProxyArp.path(dev), 0).expect("written");
    });
    let (code, text) = check().expect_err("two faults");
    assert_eq!(code, 101);
    assert!(text.contains("route 10.1.0.2/32 is not as it should be"), "{text}");
    assert!(text.contains("proxy_arp is not as it should be"), "{text}");
    // The configuration has changed since; DEL needs none of it.
    assert_eq!(host.call("DEL", "a", &json!({ "attach": "bridge" })), Ok(Value::Null));
    let number = host.run_in(|| link::number_of(&Socket::open(Protocol::Route).expect("a socket"), dev));
    assert!(number.expect("asked").is_none(), "nobody else would delete it: there is no agent");
    assert_eq!(host.pod_routes(), Vec::new());
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
