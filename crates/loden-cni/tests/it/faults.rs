//! Hostile input, and the plugin killed at every step.

use std::time::{Duration, SystemTime};

use loden_core::cni::{self, Environment, HostFacts, NetConf, Role, Verb};
use loden_core::model::AttachmentKey;
use loden_linux::ledger::Ledger;
use serde_json::{Value, json};

use crate::host::{Host, answer};

#[test]
fn hostile_input_has_its_code_and_leaves_nothing() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    let good = host.conf("1.0.0", &json!({}));
    let large = format!(r#"{{"cniVersion":"1.0.0","name":"net","x":"{}"}}"#, "y".repeat(1 << 20));
    let own = host.netns_path("host");
    let own = own.to_str().expect("text");
    type Case<'a> = (&'a str, &'a [u8], &'a [(&'a str, &'a str)], u64);
    let cases: [Case<'_>; 12] = [
        ("empty input", b"", &[], 6),
        ("no JSON", b"{", &[], 6),
        ("a list", b"[]", &[], 6),
        ("a future version", br#"{"cniVersion":"2.0.0","name":"net"}"#, &[], 1),
        ("no name", br#"{"cniVersion":"1.0.0"}"#, &[], 7),
        ("a name that leads out", br#"{"cniVersion":"1.0.0","name":"../net"}"#, &[], 7),
        ("a container that leads out", good.as_bytes(), &[("CNI_CONTAINERID", "../../x")], 4),
        ("an interface with a slash", good.as_bytes(), &[("CNI_IFNAME", "a/b")], 4),
        ("a verb that is none", good.as_bytes(), &[("CNI_COMMAND", "ADD; rm -rf /")], 4),
        ("no such namespace", good.as_bytes(), &[("CNI_NETNS", "/nowhere")], 8),
        ("a file that is no namespace", good.as_bytes(), &[("CNI_NETNS", "/proc/version")], 8),
        ("the host's own namespace", good.as_bytes(), &[("CNI_NETNS", own)], 8),
    ];
    for (what, stdin, variables, code) in cases {
        let refused = answer(&host.exec("ADD", "a", stdin, variables)).expect_err(what);
        assert_eq!(refused.0, code, "{what}: {}", refused.1);
    }
    // A megabyte of keys that nobody knows is no fault; that there is no run directory by this configuration is.
    assert_eq!(answer(&host.exec("ADD", "a", large.as_bytes(), &[])).map_err(|e| e.0), Err(11));
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn an_add_that_fails_undoes_itself() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    host.pod("b");
    host.run_in(|| loden_linux::veth::delete("cni0".parse().expect("name")).expect("deleted"));
    let (_, text) = host.call("ADD", "a", &json!({})).expect_err("there is no bridge");
    assert!(text.contains("bridge cni0") && text.contains("lodend makes it"), "{text}");
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn an_interface_that_is_there_is_left_alone() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    let other = host.conf("1.1.0", &json!({ "name": "other" }));
    let (code, text) = answer(&host.exec("ADD", "a", other.as_bytes(), &[])).expect_err("eth0 is there");
    assert!(code == 4 && text.contains("the pod has an interface eth0 already"), "{code} {text}");
    assert_eq!(host.links().len(), 1);
    assert_eq!(host.run_dir().attachments().good.len(), 1);
}

#[test]
fn names_that_read_alike_when_joined_are_two_attachments() {
    let host = Host::new(&["10.1.0.0/24"]);
    let conf = host.conf("1.1.0", &json!({}));
    let call = |verb, pod, ifname| answer(&host.exec(verb, pod, conf.as_bytes(), &[("CNI_IFNAME", ifname)]));
    host.pod("x");
    host.pod("x.eth0");
    call("ADD", "x", "eth0.10").expect("attached");
    call("DEL", "x.eth0", "10").expect("nothing to do");
    assert_eq!(host.run_dir().attachments().good.len(), 1);
    call("ADD", "x.eth0", "10").expect("attached");
    assert_eq!(host.run_dir().attachments().good.len(), 2);
}

#[test]
fn an_address_that_only_the_state_counts_comes_back() {
    // As after a kill between the removal of the attachment's file and the writing of the block's state.
    let host = Host::new(&["10.1.0.0/30"]);
    host.pod("a");
    for cure in ["ADD", "sweep"] {
        host.call("ADD", "a", &json!({})).expect(cure);
        std::fs::remove_file(host.attachment_file("a")).expect("removed");
        host.call("DEL", "a", &json!({})).expect("detached");
        if cure == "sweep" {
            host.sweep();
        }
        assert_eq!(host.call("STATUS", "", &json!({})), Ok(Value::Null), "{cure}");
        host.call("ADD", "a", &json!({})).expect(cure);
        host.call("DEL", "a", &json!({})).expect(cure);
    }
}

#[test]
fn torn_files_keep_no_pod_from_going_and_give_no_address_twice() {
    let host = Host::new(&["10.1.0.0/24"]);
    for pod in ["a", "b", "c"] {
        host.pod(pod);
    }
    host.call("ADD", "a", &json!({})).expect("attached");
    host.call("ADD", "b", &json!({})).expect("attached");
    std::fs::write(host.attachment_file("a"), "").expect("torn");
    // The state is whole: it says which addresses are in use.
    let result = host.call("ADD", "c", &json!({})).expect("attached");
    assert_eq!(result["ips"][0]["address"], "10.1.0.4/24");
    host.call("DEL", "c", &json!({})).expect("detached");
    // Now nothing says which address is a's.
    std::fs::write(host.run_dir().ipam_dir().join("10.1.0.0_24.range"), "").expect("torn");
    let (_, text) = host.call("ADD", "c", &json!({})).expect_err("it could be a's address");
    assert!(text.contains("a:eth0.json") && text.contains("DEL that attachment"), "{text}");
    host.call("DEL", "b", &json!({})).expect("detached");
    host.call("GC", "", &json!({ "cni.dev/valid-attachments": [] })).expect("collected");
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
    host.call("ADD", "c", &json!({})).expect("attached");
}

#[test]
fn an_add_does_not_outlive_the_del_that_came_meanwhile() {
    let host = Host::new(&["10.1.0.0/24"]);
    let ledger = Ledger::new(host.run_dir());
    let node = std::fs::read(host.run_dir().node_file()).expect("node.json");
    let facts = HostFacts { node: serde_json::from_slice(&node).expect("node.json"), ..HostFacts::default() };
    let conf =
        NetConf::parse(host.conf("1.1.0", &json!({})).as_bytes(), Verb::Add, Role::Loden).expect("a configuration");
    let variables = |name: &str| (name == "CNI_COMMAND").then(|| "VERSION".to_owned());
    let environment = Environment::read(variables).expect("variables");
    let (container, ifname) = ("a".to_owned(), "eth0".parse().expect("a name"));
    let key = AttachmentKey { network: "net".to_owned(), container, ifname };
    let draft = cni::draft(key, &conf.make.expect("ADD makes"), &environment, &facts).expect("a draft");
    let mut reservation = ledger.reserve(&draft, 0).expect("reserved");
    host.call("DEL", "a", &json!({})).expect("detached");
    let error = ledger.complete(&mut reservation).expect_err("its addresses are free");
    assert!(error.to_string().contains("removed by a DEL"), "{error}");
    drop(reservation);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_wall_clock_that_is_set_changes_no_quarantine() {
    let host = Host::new(&["10.1.0.0/30"]);
    host.pod("a");
    let rest = |seconds: u32| json!({ "quarantineSeconds": seconds });
    host.call("ADD", "a", &json!({})).expect("attached");
    host.call("DEL", "a", &json!({})).expect("detached");
    // What a clock that was set leaves behind is times of files: long ago, and to come.
    let day = Duration::from_secs(24 * 3600);
    for time in [SystemTime::UNIX_EPOCH + day, SystemTime::UNIX_EPOCH + day * 60_000] {
        for entry in std::fs::read_dir(host.run_dir().ipam_dir()).expect("listed").flatten() {
            let file = std::fs::File::options().write(true).open(entry.path()).expect("open");
            file.set_modified(time).expect("set");
        }
        let (code, text) = host.call("ADD", "a", &rest(3600)).expect_err("its address rests");
        assert!(code == 100 && text.contains("10.1.0.0/30"), "{code} {text}");
    }
    host.call("ADD", "a", &rest(0)).expect("it need not rest");
}
