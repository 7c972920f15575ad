//! Bandwidth and settings of a pod: made with its interface, or by a plugin behind the one that made it, loden's or another's.

use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use loden_core::attach;
use loden_core::kernel::NO_GROUP;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::NetNs;
use loden_linux::rt::link::{self, VethEnd};
use loden_linux::{spawn, sysctl};
use serde_json::{Value, json};

use crate::host::{Host, answer, key};
use crate::wire::Wire;

/// The host's end of a link that another plugin made.
pub const THEIRS: &str = "vth9";

/// A pod that another plugin has attached: its interface, and what that plugin says of it.
pub fn theirs(host: &Host, pod: &NetNs) -> Value {
    let mac = |last| Some(loden_core::model::Mac([2, 0, 0, 0, 9, last]));
    let end = |name: &str, last| VethEnd {
        name: name.parse().expect("a name"),
        mtu: 1500,
        mac: mac(last),
        group: NO_GROUP,
        master: None,
    };
    let mut w = Writer::default();
    link::create_veth(&mut w, end(THEIRS, 1), end("eth0", 2), pod.as_fd().as_raw_fd().cast_unsigned());
    link::set_up(&mut w, THEIRS.parse().expect("a name"), true);
    send(host.ns(), &mut w);
    link::set_up(&mut w, "eth0".parse().expect("a name"), true);
    send(pod, &mut w);
    json!({
        "cniVersion": "1.1.0", "somethingElse": 7,
        "interfaces": [{ "name": "br9" }, { "name": THEIRS }, { "name": "eth0", "mac": "02:00:00:00:09:02", "mtu": 1500, "sandbox": "/x" }],
        "ips": [{ "address": "10.9.0.2/24", "interface": 2 }],
    })
}

fn send(ns: &NetNs, w: &mut Writer) {
    ns.run(|| {
        for result in Socket::open(Protocol::Route).expect("a socket").batch(w).expect("a batch") {
            result.expect("done");
        }
    })
    .expect("a thread");
    w.clear();
}

/// What `tc` shows of a link.
pub fn tc(ns: &NetNs, dev: &str) -> String {
    let mut command = Command::new("tc");
    spawn::in_netns(command.args(["-d", "qdisc", "show", "dev", dev]), ns, true).expect("a namespace");
    let output = command.output().expect("tc");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn by_tc(ns: &NetNs, args: &[&str]) {
    let mut command = Command::new("tc");
    spawn::in_netns(command.args(args), ns, true).expect("a namespace");
    assert!(command.status().expect("tc").success(), "{args:?}");
}

fn behind(conf: &Value, previous: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = previous.clone();
    conf["cniVersion"] = "1.1.0".into();
    conf
}

fn bandwidth(ingress: u64, egress: u64) -> Value {
    json!({ "runtimeConfig": { "bandwidth": {
        "IngressRate": ingress, "IngressBurst": u32::MAX, "EgressRate": egress, "EgressBurst": u32::MAX } } })
}

/// The host's end of a pod that loden attached.
fn host_side(pod: &str, place: usize) -> String {
    attach::host_sides(&key(pod))[place].to_string()
}

pub fn read(ns: &NetNs, path: &str) -> String {
    ns.run(|| sysctl::read_text(path).expect("read").expect("there")).expect("a thread")
}

pub fn eth0(ns: &NetNs) -> link::Seen {
    let read = || link::read(&mut Socket::open(Protocol::Route).expect("a socket"), "eth0".parse().expect("a name"));
    ns.run(read).expect("a thread").expect("read").expect("there")
}

#[test]
fn both_directions_are_bounded_in_one_process() {
    for (way, place) in [("bridge", 0), ("routed", 1)] {
        let host = Host::new(&["10.1.0.0/24", "fd01::/64"]);
        let pod = host.pod("a");
        let mut conf = bandwidth(10_000_000, 40_000_000_000);
        conf["attach"] = way.into();
        let result = host.call("ADD", "a", &conf).expect("attached");
        let dev = host_side("a", place);
        // The burst is of 10 ms, and what waits of 25 ms: without the burst, as tc reckons, of 15 ms.
        let (there, here) = (tc(host.ns(), &dev), tc(&pod, "eth0"));
        assert!(there.starts_with("qdisc tbf 4c: root"), "{there}");
        for words in ["rate 10Mbit", "burst 12500b", "lat 15ms", "linklayer ethernet"] {
            assert!(there.contains(words), "{way}: {words}: {there}");
        }
        assert!(here.contains("qdisc tbf 4c: root") && here.contains("rate 40Gbit"), "{way}: {here}");
        let check = |what: &str| {
            let mut conf = conf.clone();
            conf["prevResult"] = result.clone();
            host.call("CHECK", "a", &conf).map_err(|(code, text)| {
                assert_eq!(code, 101, "{what}: {text}");
                text
            })
        };
        assert_eq!(check("as made"), Ok(Value::Null));
        by_tc(&pod, &["qdisc", "del", "dev", "eth0", "root"]);
        let text = check("taken off by the pod").expect_err("it is gone");
        assert!(text.contains("from the pod (egress)") && !text.contains("ingress"), "{text}");
        by_tc(
            host.ns(),
            &[
                "qdisc", "change", "dev", &dev, "handle", "4c:", "root", "tbf", "rate", "20mbit", "burst", "12500",
                "limit", "31250",
            ],
        );
        let text = check("changed on the host").expect_err("it is another");
        assert!(text.contains("(ingress)") && text.contains("20000000 bit/s, not of 10000000"), "{text}");
        for _ in 0..2 {
            host.call("DEL", "a", &json!({})).expect("detached");
        }
        host.reap();
        assert_eq!(host.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn a_rate_of_zero_is_none_and_a_burst_without_rate_is_refused() {
    let host = Host::new(&["10.1.0.0/24"]);
    let pod = host.pod("a");
    let burst = json!({ "runtimeConfig": { "bandwidth": { "ingressBurst": 8000 } } });
    let (code, text) = host.call("ADD", "a", &burst).expect_err("a burst of what");
    assert!(code == 7 && text.contains("`ingressBurst` is 8000") && text.contains("`ingressRate`"), "{code} {text}");
    host.call("ADD", "a", &bandwidth(0, 1_000_000)).expect("attached");
    assert!(tc(host.ns(), &host_side("a", 0)).contains("noqueue"));
    assert!(tc(&pod, "eth0").contains("rate 1Mbit burst 5856b"), "{}", tc(&pod, "eth0"));
}

#[test]
fn a_macvlan_is_bounded_in_the_one_direction_that_can_be() {
    let host = Host::new(&[]);
    let _wire = Wire::new(&host);
    let pod = host.pod("a");
    let conf = |ingress, egress| {
        let mut conf = bandwidth(ingress, egress);
        conf["attach"] = "macvlan".into();
        conf["master"] = "eth0".into();
        conf
    };
    let (code, text) = host.call("ADD", "a", &conf(1_000_000, 0)).expect_err("no end on the host");
    assert!(code == 2 && text.contains("`ingressRate`") && text.contains("macvlan"), "{code} {text}");
    let result = host.call("ADD", "a", &conf(0, 1_000_000)).expect("attached");
    assert!(tc(&pod, "eth0").contains("rate 1Mbit"));
    // A plugin behind it has no other way either.
    let previous = behind(&json!({ "ingressRate": 8000, "ingressBurst": 80000 }), &result);
    let (code, text) = host.call_as("bandwidth", "ADD", "a", &previous).expect_err("no end on the host");
    assert!(code == 2 && text.contains("`ingressRate`"), "{code} {text}");
    host.call("DEL", "a", &json!({})).expect("detached");
}

#[test]
fn bandwidth_behind_bridge_and_ptp_of_loden() {
    let host = Host::new(&[]);
    for (role, conf) in [("bridge", json!({ "bridge": "br1" })), ("ptp", json!({}))] {
        let pod = host.pod(role);
        let mut conf = conf;
        conf["ipam"] = json!({ "type": "host-local", "subnet": "10.7.0.0/24" });
        let made = host.call_as(role, "ADD", role, &conf).expect("attached");
        let bounded = behind(
            &json!({ "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": u32::MAX }),
            &made,
        );
        let dev = host_side(role, 0);
        for _ in 0..2 {
            // A second ADD of the same changes nothing.
            let result = host.call_as("bandwidth", "ADD", role, &bounded).expect("bounded");
            assert_eq!(result["interfaces"], made["interfaces"], "{role}");
            assert!(tc(host.ns(), &dev).contains("rate 8Mbit burst 100000b"), "{}", tc(host.ns(), &dev));
            assert!(tc(&pod, "eth0").contains("rate 4Mbit burst 6056b"), "{}", tc(&pod, "eth0"));
        }
        assert_eq!(host.call_as("bandwidth", "CHECK", role, &bounded), Ok(Value::Null));
        by_tc(host.ns(), &["qdisc", "del", "dev", &dev, "root"]);
        let (_, text) = host.call_as("bandwidth", "CHECK", role, &bounded).expect_err("it is gone");
        assert!(text.contains("towards the pod (ingress)"), "{text}");
        for _ in 0..2 {
            host.call_as("bandwidth", "DEL", role, &bounded).expect("given back");
            assert!(tc(&pod, "eth0").contains("noqueue"), "{}", tc(&pod, "eth0"));
        }
        let (_, text) = host.call_as("bandwidth", "CHECK", role, &bounded).expect_err("nothing is written down");
        assert!(text.contains("nothing of it is written down"), "{text}");
        host.call_as(role, "DEL", role, &conf).expect("detached");
    }
    host.reap();
    assert_eq!(host.leftovers(), ["br1"]);
}

#[test]
fn bandwidth_behind_a_plugin_of_others() {
    let host = Host::new(&[]);
    let pod = host.pod("a");
    let result = theirs(&host, &pod);
    let conf = behind(&bandwidth(8_000_000, 4_000_000), &result);
    assert_eq!(host.call_as("bandwidth", "ADD", "a", &conf), Ok(result.clone()));
    assert!(tc(host.ns(), THEIRS).contains("rate 8Mbit") && tc(&pod, "eth0").contains("rate 4Mbit"));
    assert_eq!(host.call_as("bandwidth", "CHECK", "a", &conf), Ok(Value::Null));
    // DEL with the names alone; the second finds nothing.
    for _ in 0..2 {
        host.call_as("bandwidth", "DEL", "a", &json!({})).expect("given back");
        assert!(tc(host.ns(), THEIRS).contains("noqueue") && tc(&pod, "eth0").contains("noqueue"));
        assert_eq!(host.leftovers(), [THEIRS]);
    }
    // GC of a pod that nobody lists gives back as well.
    host.call_as("bandwidth", "ADD", "a", &conf).expect("bounded");
    host.call_as("bandwidth", "GC", "", &json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [] }))
        .expect("collected");
    assert!(tc(host.ns(), THEIRS).contains("noqueue") && tc(&pod, "eth0").contains("noqueue"));
    // What somebody else has put there is theirs, now and at DEL; nothing of an ADD that meets it stays.
    by_tc(&pod, &["qdisc", "add", "dev", "eth0", "root", "handle", "7:", "pfifo"]);
    let (_, text) = host.call_as("bandwidth", "ADD", "a", &conf).expect_err("it is taken");
    assert!(text.contains("somebody else's") && text.contains("tc qdisc del dev eth0 root"), "{text}");
    assert!(tc(host.ns(), THEIRS).contains("noqueue"));
    assert!(tc(&pod, "eth0").contains("pfifo 7:"));
    assert_eq!(host.leftovers(), [THEIRS]);
    // Of two links the one that is named is meant: another plugin's result that names none of the host's leaves only one direction.
    let mut unnamed = result;
    unnamed["interfaces"][1]["name"] = "other".into();
    let (code, text) =
        host.call_as("bandwidth", "ADD", "a", &behind(&bandwidth(8000, 0), &unnamed)).expect_err("not named");
    assert!(code == 2 && text.contains("`ingressRate`"), "{code} {text}");
}

#[test]
fn sysctls_of_a_pod_in_one_process() {
    let host = Host::new(&["10.1.0.0/24", "fd01::/64"]);
    let pod = host.pod("a");
    let conf = json!({ "sysctl": {
        "net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": 512, "net.ipv4.ip_local_port_range": "2000 3000",
        "net/ipv4/ip_local_reserved_ports": "" } });
    let result = host.call("ADD", "a", &conf).expect("attached");
    assert_eq!(read(&pod, "net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(read(&pod, "net/core/somaxconn"), "512");
    assert_eq!(host.run_in(|| sysctl::read_text("net/core/somaxconn").expect("read")).as_deref(), Some("4096"));
    let mut check = conf.clone();
    check["prevResult"] = result;
    assert_eq!(host.call("CHECK", "a", &check), Ok(Value::Null), "blanks between numbers do not count");
    pod.run(|| sysctl::write("net/core/somaxconn", 100).expect("written")).expect("a thread");
    let (_, text) = host.call("CHECK", "a", &check).expect_err("it is another");
    assert!(text.contains("sysctl net/core/somaxconn is \"100\" in the pod, not \"512\""), "{text}");
    host.call("DEL", "a", &json!({})).expect("detached");
    host.reap();
    for (key, words) in [
        ("kernel.core_pattern", "below `net.`"),
        ("net/../kernel/core_pattern", "is no name in it"),
        ("net.ipv4.no_such_thing", "net/ipv4/no_such_thing"),
    ] {
        let (_, text) = host.call("ADD", "a", &json!({ "sysctl": { key: "1" } })).expect_err(key);
        assert!(text.contains(words), "{key}: {text}");
        assert_eq!(host.leftovers(), Vec::<String>::new(), "{key}");
    }
}

#[test]
fn settings_are_made_and_come_back() {
    let host = Host::new(&[]);
    let pod = host.pod("a");
    let result = theirs(&host, &pod);
    let before = eth0(&pod);
    let conf = behind(
        &json!({
            "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.route.flush": "1" }, "mac": "02:00:00:00:00:07", "mtu": 1400,
            "promisc": true, "allmulti": true, "txQLen": 77,
        }),
        &result,
    );
    let mut expected = result.clone();
    expected["interfaces"][2]["mac"] = "02:00:00:00:00:07".into();
    expected["interfaces"][2]["mtu"] = 1400.into();
    assert_eq!(host.call_as("tuning", "ADD", "a", &conf), Ok(expected.clone()));
    let seen = eth0(&pod);
    assert_eq!(seen.link.mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:07"));
    assert_eq!((seen.link.mtu, seen.tx_queue_len), (1400, Some(77)));
    assert!(seen.is_promiscuous && seen.is_all_multicast);
    assert_eq!(read(&pod, "net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(host.call_as("tuning", "CHECK", "a", &behind(&conf, &expected)), Ok(Value::Null));
    // A second plugin of the kind goes on top: what was there before the first comes back.
    let second = behind(&json!({ "mtu": 1300 }), &expected);
    host.call_as("tuning", "ADD", "a", &second).expect("set");
    assert_eq!(eth0(&pod).link.mtu, 1300);
    let mut w = Writer::default();
    link::set_promiscuous(&mut w, "eth0".parse().expect("a name"), false);
    link::set_tx_queue_len(&mut w, "eth0".parse().expect("a name"), 5);
    send(&pod, &mut w);
    let (_, text) = host.call_as("tuning", "CHECK", "a", &second).expect_err("others");
    for words in [
        "promiscuous mode of eth0 is false in the pod, not true",
        "transmit queue length of eth0 is 5 in the pod, not 77",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    for _ in 0..2 {
        host.call_as("tuning", "DEL", "a", &json!({})).expect("given back");
        let seen = eth0(&pod);
        assert_eq!((seen.link.mtu, seen.link.mac), (1500, before.link.mac));
        assert!(!seen.is_all_multicast);
        assert_eq!(seen.tx_queue_len, Some(5), "what somebody changed since is theirs");
        assert_eq!(read(&pod, "net/ipv4/conf/eth0/arp_filter"), "0");
        assert_eq!(host.leftovers(), [THEIRS]);
    }
    // One that is refused leaves nothing changed.
    let wrong = behind(&json!({ "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" }, "mtu": 20 }), &result);
    let (_, text) = host.call_as("tuning", "ADD", "a", &wrong).expect_err("no MTU");
    assert!(text.contains("MTU 20 of eth0 in the pod"), "{text}");
    assert_eq!(read(&pod, "net/ipv4/conf/eth0/arp_filter"), "0");
    assert_eq!(host.leftovers(), [THEIRS]);
}

#[test]
fn tuning_behind_bridge_of_loden() {
    let host = Host::new(&[]);
    let pod = host.pod("a");
    let bridge = json!({ "bridge": "br1", "ipam": { "type": "host-local", "subnet": "10.7.0.0/24" } });
    let made = host.call_as("bridge", "ADD", "a", &bridge).expect("attached");
    let mac = eth0(&pod).link.mac;
    let tuning = json!({
        "mac": "02:00:00:00:00:01", "runtimeConfig": { "mac": "02:00:00:00:00:02" },
        "args": { "cni": { "mac": "02:00:00:00:00:03", "mtu": 1400 } },
    });
    let conf = host.conf("1.1.0", &behind(&tuning, &made));
    let output = host.exec_as("tuning", "ADD", "a", conf.as_bytes(), &[("CNI_ARGS", "MAC=02:00:00:00:00:04")]);
    let result = answer(&output).expect("set");
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:03", "what args ask for goes last");
    assert_eq!(eth0(&pod).link.mtu, 1400);
    // Bridge finds its pod as tuning left it.
    assert_eq!(host.call_as("bridge", "CHECK", "a", &behind(&bridge, &result)), Ok(Value::Null));
    host.call_as("tuning", "DEL", "a", &behind(&tuning, &result)).expect("given back");
    assert_eq!((eth0(&pod).link.mac, eth0(&pod).link.mtu), (mac, 1500));
    host.call_as("bridge", "DEL", "a", &behind(&bridge, &result)).expect("detached");
    // Without the pod's namespace there is nothing to bring back.
    let made = host.call_as("bridge", "ADD", "a", &bridge).expect("attached");
    host.call_as("tuning", "ADD", "a", &behind(&tuning, &made)).expect("set");
    drop(pod);
    loden_linux::netns::remove(&host.netns_path("a")).expect("removed");
    host.call_as("tuning", "DEL", "a", &behind(&tuning, &made)).expect("given back");
    host.call_as("bridge", "DEL", "a", &bridge).expect("detached");
    host.reap();
    assert_eq!(host.leftovers(), ["br1"]);
}

#[test]
fn the_hosts_list_restricts_sysctls() {
    // In a mount namespace of its own: the list is at one place on every host.
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    let conf = |key: &str| host.conf("1.1.0", &json!({ "sysctl": { key: "1" } }));
    for (list, key, words) in [
        ("^net\\\\.ipv4\\\\.conf\\\\.IFNAME\\\\.[a-z_]*$", "net.ipv4.conf.IFNAME.arp_filter", None),
        ("^net\\\\.ipv4\\\\.conf\\\\.IFNAME\\\\.[a-z_]*$", "net.ipv4.ip_forward", Some("the host allows only")),
        ("(", "net.ipv4.ip_forward", Some("which is no expression")),
        ("", "net.ipv4.ip_forward", Some("the host allows only")),
    ] {
        let script = format!(
            "mount -t tmpfs tmpfs /etc && mkdir -p /etc/cni/tuning && printf '{list}\\n' > /etc/cni/tuning/allowlist.conf && exec {}",
            env!("CARGO_BIN_EXE_loden-cni")
        );
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["-m", "sh", "-c", &script]);
        let child = host.begin_command(command, "ADD", "a", conf(key).as_bytes(), &[("PATH", "/usr/bin:/bin")]);
        let output = child.wait_with_output().expect("the plugin ends");
        match words {
            None => drop(answer(&output).expect(key)),
            Some(words) => {
                let (code, text) = answer(&output).expect_err(key);
                assert!(code == 7 && text.contains(words), "{list}: {code} {text}");
            }
        }
        host.call("DEL", "a", &json!({})).expect("detached");
        host.reap();
    }
}
