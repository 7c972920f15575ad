//! Each verb, on real namespaces.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Child;
use std::time::{Duration, Instant};

use loden_core::cni::Version;
use serde_json::{Value, json};

use crate::host::{Host, answer, key, reaches};

const DUAL: [&str; 2] = ["10.1.0.0/24", "fd01::/64"];

#[test]
fn two_pods_reach_each_other_in_both_families() {
    let host = Host::new(&DUAL);
    let (a, b) = (host.pod("a"), host.pod("b"));
    let addresses = |pod: &str| -> Vec<IpAddr> {
        let result = host.call("ADD", pod, &json!({})).expect("attached");
        let ips = result["ips"].as_array().expect("ips").clone();
        ips.iter()
            .map(|ip| ip["address"].as_str().expect("text").split('/').next().expect("ip").parse().expect("ip"))
            .collect()
    };
    addresses("a");
    for addr in addresses("b") {
        assert!(reaches(&a, &b, addr), "{addr}");
    }
}

#[test]
fn every_version_gets_its_shape_and_del_leaves_nothing() {
    let host = Host::new(&DUAL);
    for version in Version::ALL.map(Version::as_str) {
        host.pod(version);
        let conf = host.conf(version, &json!({}));
        let result = answer(&host.exec("ADD", version, conf.as_bytes(), &[])).expect(version);
        assert_eq!(result["cniVersion"], version);
        let is_old = version < "0.3.0";
        assert_eq!(result.get("ip4").is_some(), is_old, "{version}: {result}");
        assert_eq!(result.get("ips").is_some(), !is_old, "{version}");
        // Twice, the second time as a runtime does after the pod is gone: no namespace, no prevResult.
        for netns in [None, Some(("CNI_NETNS", ""))] {
            let gone = host.exec("DEL", version, conf.as_bytes(), netns.as_slice());
            assert!(gone.status.success() && gone.stdout.is_empty(), "{version}: {gone:?}");
        }
    }
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn del_of_what_never_was_and_with_another_configuration_succeeds() {
    let host = Host::new(&DUAL);
    assert_eq!(host.call("DEL", "nobody", &json!({})), Ok(Value::Null));
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    std::fs::remove_file(host.run_dir().node_file()).expect("removed");
    assert_eq!(host.call("DEL", "a", &json!({"mtu": 9, "somethingNew": {}})), Ok(Value::Null));
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn del_heeds_only_what_it_needs() {
    let host = Host::new(&DUAL);
    for more in [
        json!({ "attach": "another kind" }),
        json!({ "prevResult": "nonsense" }),
        json!({ "prevResult": { "cniVersion": "1.1.0", "ips": [{ "address": "nonsense" }] } }),
        json!({ "prevResult": { "cniVersion": "7.7.7" } }),
        json!({ "quarantineSeconds": "soon" }),
        json!({ "cni.dev/valid-attachments": 5, "runtimeConfig": null }),
    ] {
        host.pod("a");
        host.call("ADD", "a", &json!({})).expect("attached");
        assert_eq!(host.call("DEL", "a", &more), Ok(Value::Null), "{more}");
        loden_linux::netns::remove(&host.netns_path("a")).expect("removed");
        assert_eq!(host.run_dir().attachments().good.len(), 0, "{more}");
    }
}

#[test]
fn add_after_del_in_one_namespace_need_not_wait_for_the_reaper() {
    let host = Host::new(&DUAL);
    host.pod("a");
    for _ in 0..3 {
        host.call("ADD", "a", &json!({})).expect("attached");
        host.call("DEL", "a", &json!({})).expect("detached");
    }
    // Another network's interface takes the place of the parked one, too.
    let other = host.conf("1.1.0", &json!({ "name": "other" }));
    answer(&host.exec("ADD", "a", other.as_bytes(), &[])).expect("attached");
}

#[test]
fn a_namespace_without_ipv6_gets_it_where_it_gets_an_address() {
    let host = Host::new(&DUAL);
    let pod = host.pod("a");
    pod.run(|| {
        for part in ["all", "default"] {
            loden_linux::sysctl::write(&format!("net/ipv6/conf/{part}/disable_ipv6"), 1).expect("written");
        }
    })
    .expect("thread");
    let result = host.call("ADD", "a", &json!({})).expect("attached");
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(2));
    assert_eq!(host.call("CHECK", "a", &json!({ "prevResult": result })), Ok(Value::Null));
}

#[test]
fn status_does_not_wait_for_those_who_take_addresses() {
    let host = Host::new(&DUAL);
    let lock = host.run_dir().ipam_dir().join("lock");
    let _held = loden_linux::lock::FileLock::try_acquire(&lock).expect("a lock").expect("is free");
    assert_eq!(host.call("STATUS", "", &json!({})), Ok(Value::Null));
}

#[test]
fn an_error_speaks_the_version_of_the_configuration() {
    let host = Host::new(&DUAL);
    let output = host.exec("ADD", "a", br#"{"cniVersion":"0.3.1","name":"../x"}"#, &[]);
    let error: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&error["cniVersion"], &error["code"]), (&json!("0.3.1"), &json!(7)));
}

#[test]
fn a_second_add_names_the_first() {
    let host = Host::new(&DUAL);
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    let (code, text) = host.call("ADD", "a", &json!({})).expect_err("it is attached");
    assert_eq!(code, 4);
    assert!(text.contains("10.1.0.2"), "{text}");
}

#[test]
fn check_names_what_is_wrong() {
    let host = Host::new(&DUAL);
    let pod = host.pod("a");
    let result = host.call("ADD", "a", &json!({})).expect("attached");
    let previous = json!({ "prevResult": result });
    assert_eq!(host.call("CHECK", "a", &previous), Ok(Value::Null));
    assert_eq!(host.call("CHECK", "a", &json!({})).expect_err("no prevResult").0, 7);
    pod.run(|| {
        use loden_linux::netlink::{Protocol, Socket, Writer};
        let mut w = Writer::default();
        // The pod's interface is the second of its namespace.
        loden_linux::rt::address::delete(&mut w, "10.1.0.2/24".parse().expect("net"), 2);
        Socket::open(Protocol::Route).expect("socket").batch(&mut w).expect("batch").remove(0).expect("deleted");
    })
    .expect("thread");
    let (code, text) = host.call("CHECK", "a", &previous).expect_err("an address is missing");
    assert_eq!(code, 101);
    assert!(text.contains("address 10.1.0.2/24 is missing on eth0 in the pod"), "{text}");
    assert!(text.contains("route 0.0.0.0/0 via 10.1.0.1 is missing in the pod"), "{text}");
}

#[test]
fn check_looks_at_the_host_and_at_the_files_too() {
    let host = Host::new(&DUAL);
    host.pod("a");
    let result = host.call("ADD", "a", &json!({})).expect("attached");
    let conf = host.conf("1.1.0", &json!({ "prevResult": result }));
    let check = |netns: &str| {
        let variables = [("CNI_NETNS", netns)];
        let given = if netns.is_empty() { &[][..] } else { &variables };
        answer(&host.exec("CHECK", "a", conf.as_bytes(), given)).map_err(|(code, text)| {
            assert_eq!(code, 101, "{text}");
            text
        })
    };
    assert_eq!(check(""), Ok(Value::Null));
    let text = check("/nowhere").expect_err("the namespace has gone");
    assert!(text.contains("the pod has gone: network namespace /nowhere"), "{text}");
    host.run_in(|| loden_linux::veth::park(&key("a")).expect("parked"));
    let text = check("").expect_err("no port");
    assert!(text.contains("is no port of bridge cni0") && text.contains("is down on the host"), "{text}");
    host.reap();
    let text = check("").expect_err("no link");
    assert!(text.contains("is missing on the host") && text.contains("eth0 is missing in the pod"), "{text}");
    std::fs::remove_file(host.attachment_file("a")).expect("removed");
    let text = check("").expect_err("no attachment");
    assert!(text.contains("there is no attachment net/a/eth0"), "{text}");
}

#[test]
fn gc_heeds_the_list_and_no_list_is_not_an_empty_one() {
    let host = Host::new(&DUAL);
    for pod in ["a", "b"] {
        host.pod(pod);
        host.call("ADD", pod, &json!({})).expect("attached");
    }
    host.call("GC", "", &json!({})).expect("collected");
    assert_eq!(host.run_dir().attachments().good.len(), 2);
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "b", "ifname": "eth0" }] });
    host.call("GC", "", &valid).expect("collected");
    let left: Vec<_> = host.run_dir().attachments().good.iter().map(|a| a.key.container.clone()).collect();
    assert_eq!(left, ["b"]);
    host.call("GC", "", &json!({ "cni.dev/valid-attachments": [] })).expect("collected");
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn status_tells_the_truth_and_exhaustion_says_who_has_what() {
    let host = Host::new(&["10.1.0.0/30"]);
    assert_eq!(host.call("STATUS", "", &json!({})), Ok(Value::Null));
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    let full = "block 10.1.0.0/30 has no free address: 1 of 1 are in use";
    let (code, text) = host.call("STATUS", "", &json!({})).expect_err("full");
    assert!(code == 50 && text.contains(full), "{code} {text}");
    host.pod("b");
    let (code, text) = host.call("ADD", "b", &json!({})).expect_err("full");
    assert!(code == 100 && text.contains(full), "{code} {text}");
    assert_eq!(host.run_dir().attachments().good.len(), 1);
    std::fs::remove_file(host.run_dir().node_file()).expect("removed");
    assert_eq!(host.call("STATUS", "", &json!({})).expect_err("not ready").0, 50);
    assert_eq!(host.call("ADD", "b", &json!({})).expect_err("not ready").0, 11);
}

#[test]
fn version_asks_for_nothing() {
    let host = Host::new(&DUAL);
    let output =
        host.exec("VERSION", "", br#"{"cniVersion":"1.0.0"}"#, &[("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy")]);
    let result = answer(&output).expect("versions");
    assert_eq!(result["supportedVersions"].as_array().map(Vec::len), Some(7));
    let about = host.exec("", "", b"", &[]);
    assert!(about.status.success() && about.stdout.is_empty() && !about.stderr.is_empty());
}

#[test]
fn three_hundred_at_once_wait_behind_one_lock_and_get_three_hundred_addresses() {
    let host = Host::new(&["10.1.0.0/23", "fd01::/64"]);
    let pods: Vec<String> = (0..300).map(|n| format!("p{n}")).collect();
    pods.iter().for_each(|pod| drop(host.pod(pod)));
    let conf = host.conf("1.1.0", &json!({}));
    let lock = host.run_dir().ipam_dir().join("lock");
    let held = loden_linux::lock::FileLock::try_acquire(&lock).expect("a lock").expect("is free");
    let children: Vec<_> = pods.iter().map(|pod| host.begin("ADD", pod, conf.as_bytes(), &[])).collect();
    // Each leaves its mark just before it comes to the lock.
    let deadline = Instant::now() + Duration::from_secs(50);
    while host.leftovers().iter().filter(|left| left.ends_with(".add")).count() < pods.len() {
        assert!(Instant::now() < deadline, "not all came to the lock");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(held);
    let result = |child: Child| answer(&child.wait_with_output().expect("the plugin ends")).expect("attached");
    let results: Vec<Value> = children.into_iter().map(result).collect();
    let distinct: BTreeSet<String> = results
        .iter()
        .flat_map(|result| result["ips"].as_array().expect("ips"))
        .map(|ip| ip["address"].to_string())
        .collect();
    assert_eq!(distinct.len(), 600);
}
