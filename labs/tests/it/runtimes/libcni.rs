//! libcni, which all runtimes call plugins by, and cnitool, its program: the only callers of CHECK and GC that there are.

use std::io::Write;
use std::process::Stdio;

use loden_core::model::Attachment;
use serde_json::{Value, json};

use super::go;
use super::node::{Cluster, Node, said};

/// A namespace of the node's by `ip netns`, as a person makes one.
fn pod(node: &Node, name: &str) -> String {
    node.run("ip", &["netns", "add", name]).expect("ip netns");
    format!("/run/netns/{name}")
}

fn cnitool(node: &Node, verb: &str, netns: &str) -> Result<String, String> {
    let mut command = node.command(go::program("cnitool"));
    command.args([verb, "loden", netns]).env("NETCONFPATH", node.conf_dir()).env("CNI_PATH", node.bin_dir());
    said(&mut command)
}

/// Calls a verb by libcni, with a cache of that name; gives the result, or the error.
fn libcni(node: &Node, cache: &str, verb: &str, more: Value) -> Result<Value, Value> {
    let mut request = json!({
        "verb": verb, "network": "loden", "confDir": node.conf_dir(), "binDir": node.bin_dir(),
        "cacheDir": node.dir.join(cache),
    });
    if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
        request.extend(more);
    }
    let mut command = node.command(go::program("libcni-call"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("libcni-call");
    child.stdin.take().expect("its input").write_all(request.to_string().as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("an answer");
    if answer["error"].is_null() { Ok(answer["result"].clone()) } else { Err(answer["error"].clone()) }
}

fn containers(node: &Node) -> Vec<String> {
    let mut all: Vec<String> = node.attachments().into_iter().map(|attachment| attachment.key.container).collect();
    all.sort();
    all
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("addresses");
    ips.iter().map(|ip| ip["address"].as_str().expect("an address").to_owned()).collect()
}

fn nets(attachment: &Attachment) -> Vec<String> {
    attachment.addresses.iter().map(|address| address.net.to_string()).collect()
}

#[test]
fn cnitool_calls_every_verb() {
    let cluster = Cluster::up("cnitool", 1);
    let node = &cluster.nodes[0];
    let before = node.footprint();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        node.put_conflist(version, &[]);
        let name = format!("pod-{version}");
        let netns = pod(node, &name);
        if version == "1.1.0" {
            cnitool(node, "status", &netns).expect("STATUS");
        }
        let result = cnitool(node, "add", &netns).expect("ADD");
        let result: Value = serde_json::from_str(&result).expect("a result");
        let all = node.attachments();
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!((result["cniVersion"].as_str(), addresses(&result)), (Some(version), nets(&all[0])));
        cnitool(node, "check", &netns).expect("CHECK");
        // Somebody takes an address away.
        let lost = nets(&all[0]).remove(0);
        node.run("ip", &["-n", &name, "address", "del", &lost, "dev", "eth0"]).expect("ip address");
        let found = cnitool(node, "check", &netns).expect_err("it is not there any more");
        assert!(found.contains(&lost) && found.contains("is not as ADD made it"), "{found}");
        cnitool(node, "del", &netns).expect("DEL");
        cnitool(node, "del", &netns).expect("DEL, a second time");
        let calls = node.calls_about(&all[0].key.container);
        assert_eq!(calls, ["ADD", "CHECK", "CHECK", "DEL", "DEL"], "{version}");
        node.run("ip", &["netns", "del", &name]).expect("ip netns");
        node.is_again(&before);
    }
}

#[test]
fn garbage_is_what_a_list_leaves_out_and_without_a_list_nothing() {
    let cluster = Cluster::up("gc", 1);
    let node = &cluster.nodes[0];
    node.put_conflist("1.1.0", &[]);
    let before = node.footprint();
    libcni(node, "a", "version", json!({})).expect("VERSION");
    for (cache, name) in [("a", "p1"), ("a", "p2"), ("b", "p3")] {
        let more = json!({ "container": name, "netns": pod(node, name) });
        let result = libcni(node, cache, "add", more.clone()).expect("ADD");
        assert_eq!(addresses(&result), nets(&node.attachment(name)));
        libcni(node, cache, "check", more).expect("CHECK");
    }
    let netns = pod(node, "p4");
    cnitool(node, "add", &netns).expect("ADD");
    assert_eq!(node.attachments().len(), 4);

    // libcni deletes what it knows itself; the plugin is told of no list, and what others attached stays.
    cnitool(node, "gc", &netns).expect("GC");
    assert_eq!(containers(node), ["p1", "p2", "p3"]);
    // Of those that the list leaves out libcni knows p2 alone.
    let valid = json!({ "valid": [{ "containerID": "p1", "ifname": "eth0" }] });
    libcni(node, "a", "gc", valid).expect("GC");
    assert_eq!(containers(node), ["p1"]);
    assert_eq!(node.calls_about("p2"), ["ADD", "CHECK", "DEL"]);
    assert_eq!(node.calls_about("p3"), ["ADD", "CHECK"]);
    libcni(node, "a", "check", json!({ "container": "p1", "netns": "/run/netns/p1" })).expect("CHECK");
    // A list, and nothing in it.
    libcni(node, "b", "gc", json!({ "valid": [] })).expect("GC");
    assert_eq!(containers(node), Vec::<String>::new());
    assert_eq!(node.calls_about("p1"), ["ADD", "CHECK", "CHECK"]);
    assert_eq!(node.calls_about("-"), ["VERSION", "GC!", "GC!", "GC!"]);
    node.is_again(&before);
}

#[test]
fn status_tells_why_no_pod_can_be_attached() {
    let cluster = Cluster::up("status", 1);
    let node = &cluster.nodes[0];
    node.put_conflist("1.1.0", &[]);
    libcni(node, "a", "status", json!({})).expect("STATUS");
    let file = node.run_dir().node_file();
    std::fs::rename(&file, file.with_extension("away")).expect("renamed");
    let error = libcni(node, "a", "status", json!({})).expect_err("the node is not ready");
    assert_eq!((error["code"].as_u64(), error["msg"].as_str()), (Some(50), Some("the node is not ready for pods yet")));
    assert!(error["details"].as_str().is_some_and(|details| details.contains("lodend")), "{error}");
    std::fs::rename(file.with_extension("away"), file).expect("renamed");
    libcni(node, "a", "status", json!({})).expect("STATUS");
}
