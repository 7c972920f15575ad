//! A run directory that cannot be written: the error names the file, nothing is left, and no address is lost.

use serde_json::{Value, json};

use crate::host::{Host, key};
use crate::small_disk::Disk;

fn attach(n: u32) -> Value {
    match n % 3 {
        0 => json!({}),
        1 => json!({ "attach": "routed" }),
        _ => json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } }),
    }
}

/// A host whose run directory is a file system of its own.
fn host() -> (Host, Disk) {
    let host = Host::new(&[]);
    let disk = Disk::new(host.run_dir().path(), 32);
    host.run_dir().make().expect("made");
    host.write_node(&["10.1.0.0/30", "fd01::/126"]);
    (host, disk)
}

#[test]
fn full_at_any_write_an_add_leaves_nothing_and_loses_no_address() {
    for variant in 0..3 {
        let mut refusals = 0;
        // From no page at all up to as many as an ADD needs: each of its writes is the first one to fail.
        for pages in 0..32 {
            let (host, disk) = host();
            host.pod("a");
            disk.fill(pages);
            let added = host.call("ADD", "a", &attach(variant));
            if let Err((code, text)) = &added {
                refusals += 1;
                assert!(text.contains("No space left on device"), "{pages} pages: {code} {text}");
                assert!(text.contains(host.run_dir().path().to_str().expect("text")), "{pages} pages: {text}");
            }
            if added.is_ok() {
                assert!(refusals > 2, "{refusals} writes failed");
                break;
            }
            // Without room nothing can be removed by writing either: it must have gone by itself.
            assert_eq!(host.leftovers(), Vec::<String>::new(), "{pages} pages");
            assert_eq!(
                host.call("GC", "", &json!({ "cni.dev/valid-attachments": [] })),
                Ok(Value::Null),
                "{pages} pages"
            );
            disk.empty();
            host.call("ADD", "a", &attach(variant)).expect("its addresses are free");
            assert!(pages < 31, "it never succeeds");
        }
    }
}

#[test]
fn a_pod_can_go_though_the_disk_is_full() {
    for variant in 0..3 {
        let (host, disk) = host();
        host.pod("a");
        host.call("ADD", "a", &attach(variant)).expect("attached");
        disk.fill(0);
        host.call("DEL", "a", &json!({})).expect("detached");
        host.call("DEL", "a", &json!({})).expect("twice");
        disk.empty();
        host.reap();
        assert_eq!(host.leftovers(), Vec::<String>::new());
        host.call("ADD", "a", &attach(variant)).expect("its addresses are free");
    }
}

#[test]
fn a_read_only_run_directory_is_named_and_a_del_is_done_when_it_can_be() {
    let (host, disk) = host();
    for pod in ["a", "b"] {
        host.pod(pod);
    }
    host.call("ADD", "a", &json!({})).expect("attached");
    disk.set_read_only(true);
    let (_, text) = host.call("ADD", "b", &json!({})).expect_err("nothing can be written");
    assert!(text.contains("Read-only file system") && text.contains("/run/"), "{text}");
    let (_, text) = host.call("DEL", "a", &json!({})).expect_err("nothing can be removed");
    assert!(text.contains("Read-only file system"), "{text}");
    // The address is still its: it may not be given to another.
    assert!(host.run_dir().attachment(&key("a")).expect("read").is_some());
    disk.set_read_only(false);
    host.call("DEL", "a", &json!({})).expect("detached");
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
    host.call("ADD", "b", &json!({})).expect("attached");
}
