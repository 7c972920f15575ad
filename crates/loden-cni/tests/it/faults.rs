//! Hostile input, and the plugin killed at every step.

use serde_json::json;

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

/// The points of ADD and DEL at which the plugin can be killed.
#[cfg(feature = "fault-points")]
const POINTS: [(&str, &str); 7] = [
    ("ADD", "add-begun"),
    ("ADD", "add-reserved"),
    ("ADD", "add-made"),
    ("ADD", "add-completed"),
    ("DEL", "del-begun"),
    ("DEL", "del-parked"),
    ("DEL", "del-freed"),
];

#[cfg(feature = "fault-points")]
#[test]
fn killed_at_any_point_a_del_a_gc_or_a_sweep_makes_it_clean() {
    for (verb, point) in POINTS {
        for cure in ["DEL", "GC", "sweep"] {
            let host = Host::new(&["10.1.0.0/24", "fd01::/64"]);
            host.pod("a");
            if verb == "DEL" {
                host.call("ADD", "a", &json!({})).expect("attached");
            }
            let conf = host.conf("1.1.0", &json!({}));
            let killed = host.exec(verb, "a", conf.as_bytes(), &[("LODEN_FAULT_POINT", point)]);
            assert!(!killed.status.success() && killed.stdout.is_empty(), "{point} was not reached: {killed:?}");
            match cure {
                "DEL" => drop(host.call("DEL", "a", &json!({})).expect(point)),
                "GC" => drop(host.call("GC", "", &json!({ "cni.dev/valid-attachments": [] })).expect(point)),
                // The agent sweeps what is unfinished; a whole attachment belongs to a pod that may live.
                _ => {
                    host.sweep();
                    if matches!(point, "add-completed" | "del-begun" | "del-parked") {
                        host.call("DEL", "a", &json!({})).expect(point);
                    }
                }
            }
            host.reap();
            assert_eq!(host.leftovers(), Vec::<String>::new(), "{point}, then {cure}");
            // Its address is free again: as many pods fit as ever did.
            let again = host.call("ADD", "a", &json!({}));
            assert!(again.is_ok(), "{point}, then {cure}: {again:?}");
        }
    }
}
