//! VLANs of a bridge's ports. Most kernels keep them apart; where one does not, `cargo xtask kernel` runs these tests under one
//! that does.

use serde_json::{Value, json};

use crate::host::Host;

fn network(more: &Value) -> Value {
    let mut conf = json!({
        "bridge": "br1", "isGateway": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/24" }], [{ "subnet": "fd07::/64" }]] },
    });
    if let (Value::Object(conf), Value::Object(more)) = (&mut conf, more) {
        conf.extend(more.clone());
    }
    conf
}

#[test]
fn what_is_no_vlan_is_refused() {
    let host = Host::new(&[]);
    host.pod("a");
    for (keys, words) in [
        (json!({ "vlan": 4095 }), "`vlan` is 4095: a VLAN from 0 to 4094"),
        (json!({ "vlan": -1 }), "`vlan` is -1"),
        (json!({ "vlanTrunk": [{ "id": 0 }] }), "`vlanTrunk[0].id` is 0: a VLAN from 1"),
        (json!({ "vlanTrunk": [{ "minID": 20, "maxID": 10 }] }), "the lower one first"),
        (json!({ "vlanTrunk": [{ "minID": 20 }] }), "{minID, maxID}"),
        (json!({ "vlan": 5, "vlanTrunk": [{ "minID": 1, "maxID": 10 }] }), "a list without 5"),
        (json!({ "vlan": 1005, "bridge": "abcdefghijk" }), "too long for the gateway of a VLAN"),
    ] {
        let (code, text) = host.call("ADD", "a", &network(&keys)).expect_err("no VLAN");
        assert!(code == 7 && text.contains(words), "{keys}: {code} {text}");
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_bridge_that_keeps_none_apart_is_left_as_it_is() {
    let host = Host::new(&[]);
    host.pod("a");
    host.pod("b");
    host.call("ADD", "a", &network(&json!({ "vlan": 0 }))).expect("none is asked for");
    let links = host.links();
    let (code, text) = host.call("ADD", "b", &network(&json!({ "vlan": 5 }))).expect_err("it is another's");
    assert!(code == 2 && text.contains("bridge br1: it does not keep VLANs apart"), "{code} {text}");
    assert_eq!(host.links(), links);
    assert_eq!(host.run_dir().attachments().good.len(), 1);
}

#[cfg(not(feature = "vlan-filtering"))]
#[test]
fn a_kernel_without_them_says_so_and_keeps_nothing() {
    let host = Host::new(&[]);
    host.pod("a");
    for keys in [json!({ "vlan": 5 }), json!({ "vlanTrunk": [{ "id": 5 }] })] {
        let (code, text) = host.call("ADD", "a", &network(&keys)).expect_err("the kernel has none");
        assert!(code == 2 && text.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{code} {text}");
        assert_eq!(host.leftovers(), Vec::<String>::new());
    }
}

#[cfg(feature = "vlan-filtering")]
mod kept_apart {
    use std::net::IpAddr;
    use std::time::Duration;

    use loden_core::attach;
    use loden_linux::netlink::{Protocol, Socket, Writer};
    use loden_linux::netns::NetNs;
    use loden_linux::packet::{self, PacketSocket};
    use loden_linux::rt::link;
    use loden_linux::rt::vlan::{self, Membership};

    use super::*;
    use crate::host::{key, reaches, reaches_within};

    const ACCESS: Membership = Membership { is_access: true, untagged: true };
    const TAGGED: Membership = Membership { is_access: false, untagged: false };
    const KEPT: Membership = Membership { is_access: false, untagged: true };

    fn in_vlan(vlan: u16) -> Value {
        let net = json!({ "subnet": format!("10.{vlan}.0.0/24") });
        let net6 = json!({ "subnet": format!("fd{vlan:02}::/64") });
        network(&json!({
            "name": format!("net{vlan}"), "vlan": vlan, "preserveDefaultVlan": false,
            "ipam": { "type": "host-local", "ranges": [[net], [net6]] },
        }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn number(host: &Host, dev: &str) -> u32 {
        host.link(dev).index
    }

    fn memberships(host: &Host, dev: &str) -> Vec<(u16, Membership)> {
        let number = number(host, dev);
        let read = || vlan::read(&mut Socket::open(Protocol::Route).expect("a socket"), number).expect("read");
        host.run_in(read).into_iter().collect()
    }

    fn port(network: &str, pod: &str) -> String {
        let key = loden_core::model::AttachmentKey { network: network.to_owned(), ..key(pod) };
        attach::host_sides(&key)[0].to_string()
    }

    #[test]
    fn pods_of_one_vlan_reach_each_other_and_no_others() {
        let host = Host::new(&[]);
        let [a, b, c] = [("a", 5), ("b", 5), ("c", 6)].map(|(name, vlan)| {
            let pod = host.pod(name);
            host.call("ADD", name, &in_vlan(vlan)).expect("attached");
            pod
        });
        for addr in ["10.5.0.3", "fd05::3"] {
            assert!(reaches(&a, &b, ip(addr)), "{addr}");
        }
        for (pod, addrs) in [(&a, ["10.5.0.1", "fd05::1"]), (&c, ["10.6.0.1", "fd06::1"])] {
            for addr in addrs {
                assert!(reaches(pod, host.ns(), ip(addr)), "the gateway {addr}");
            }
        }
        // On the same segment it would be reached: the address is taken for one of the link's own.
        for (net, far) in [("10.6.0.9/24", "10.6.0.2"), ("fd06::9/64", "fd06::2")] {
            a.run(|| {
                let mut socket = Socket::open(Protocol::Route).expect("a socket");
                let eth0 = link::number_of(&socket, "eth0".parse().expect("a name")).expect("asked").expect("there");
                let mut w = Writer::default();
                loden_linux::rt::address::add(&mut w, net.parse().expect("a net"), eth0);
                socket.batch(&mut w).expect("a batch").into_iter().for_each(|result| result.expect("added"));
            })
            .expect("a thread");
            assert!(!reaches_within(&a, &c, ip(far), Duration::from_millis(500)), "{far} is in another VLAN");
        }
        assert_eq!(memberships(&host, &port("net5", "a")), [(5, ACCESS)]);
        assert_eq!(memberships(&host, &port("net6", "c")), [(6, ACCESS)]);
        for (pod, vlan) in [("a", 5), ("b", 5), ("c", 6)] {
            host.call("DEL", pod, &in_vlan(vlan)).expect("detached");
        }
        host.reap();
        let mut left = host.leftovers();
        left.retain(|name| !name.starts_with("vlan"));
        left.sort();
        assert_eq!(left, ["br1", "br1.5", "br1.6"], "the bridge and its gateways stay");
    }

    #[test]
    fn the_usual_vlan_is_kept_unless_it_is_told_otherwise_and_check_looks() {
        let host = Host::new(&[]);
        host.pod("a");
        host.pod("b");
        let with = network(&json!({ "vlan": 5, "vlanTrunk": [{ "id": 10 }, { "minID": 20, "maxID": 22 }] }));
        let result = host.call("ADD", "a", &with).expect("attached");
        let names: Vec<_> =
            result["interfaces"].as_array().expect("a list").iter().map(|i| i["name"].clone()).collect();
        assert_eq!(names, ["br1", &port("net", "a"), "eth0", "br1.5"]);
        let trunk = [(10, TAGGED), (20, TAGGED), (21, TAGGED), (22, TAGGED)];
        assert_eq!(memberships(&host, &port("net", "a")), [&[(1, KEPT), (5, ACCESS)][..], &trunk].concat());
        let mut previous = with.clone();
        previous["prevResult"] = result;
        assert_eq!(host.call("CHECK", "a", &previous), Ok(Value::Null));
        let of_a = number(&host, &port("net", "a"));
        host.run_in(|| {
            let mut w = Writer::default();
            vlan::leave(&mut w, of_a, 21);
            Socket::open(Protocol::Route).expect("a socket").batch(&mut w).expect("a batch");
        });
        let (code, text) = host.call("CHECK", "a", &previous).expect_err("it has left one");
        assert!(code == 101 && text.contains("is not in VLAN 21 as it should be"), "{text}");
        let alone = network(&json!({ "vlanTrunk": [{ "id": 7 }], "preserveDefaultVlan": false, "isGateway": false }));
        host.call("ADD", "b", &alone).expect("attached");
        assert_eq!(memberships(&host, &port("net", "b")), [(7, TAGGED)]);
    }

    #[test]
    fn a_trunk_carries_tags() {
        let host = Host::new(&[]);
        let (a, b) = (host.pod("a"), host.pod("b"));
        let alone = |more: Value| {
            let mut conf = network(&json!({ "isGateway": false, "preserveDefaultVlan": false }));
            conf.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            conf
        };
        host.call("ADD", "a", &alone(json!({ "vlanTrunk": [{ "minID": 7, "maxID": 9 }] }))).expect("attached");
        host.call("ADD", "b", &alone(json!({ "vlan": 8 }))).expect("attached");
        let open = |pod: &NetNs| {
            let open = || {
                let socket = Socket::open(Protocol::Route).expect("a socket");
                let eth0 = link::number_of(&socket, "eth0".parse().expect("a name")).expect("asked").expect("there");
                PacketSocket::open(eth0, packet::ALL).expect("a packet socket")
            };
            pod.run(open).expect("a thread")
        };
        let (trunk, access) = (open(&a), open(&b));
        // Tags of three VLANs; only the middle one is the other pod's, which gets it without a tag.
        for vlan in [7_u8, 8, 9] {
            let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x81, 0, 0, vlan], &[0x88, 0xb5], &[vlan; 46]].concat();
            trunk.send(&frame).expect("sent");
        }
        let mut seen = Vec::new();
        while let Some(frame) = access.receive(Duration::from_millis(500)).expect("received") {
            if !frame.is_sent && frame.bytes.get(12..14) == Some(&[0x88, 0xb5]) {
                seen.push(frame.bytes[14]);
            }
        }
        assert_eq!(seen, [8]);
    }
}
