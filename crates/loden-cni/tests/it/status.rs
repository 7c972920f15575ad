//! STATUS tells the truth, and waits for nobody.

use std::os::unix::net::{UnixListener, UnixStream};

use loden_linux::lock::FileLock;
use loden_linux::netlink::Writer;
use loden_linux::rt::link;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use serde_json::{Value, json};

use crate::host::Host;
use crate::wire::{Wire, send};

const BLOCKS: [&str; 1] = ["10.1.0.0/30"];

fn status(host: &Host, more: &Value) -> Result<(), (u64, String)> {
    host.call("STATUS", "", more).map(drop)
}

fn refused(host: &Host, more: &Value) -> (u64, String) {
    status(host, more).expect_err("no ADD can be served")
}

fn set_up(host: &Host, up: bool) {
    let mut w = Writer::default();
    link::set_up(&mut w, "cni0".parse().expect("a name"), up);
    send(host.ns(), &mut w);
}

#[test]
fn a_node_that_was_never_ready_is_not_available() {
    let host = Host::new(&BLOCKS);
    assert_eq!(status(&host, &json!({})), Ok(()));
    std::fs::write(host.run_dir().node_file(), "torn").expect("written");
    assert_eq!(refused(&host, &json!({})).0, 50);
    std::fs::remove_file(host.run_dir().node_file()).expect("removed");
    let (code, text) = refused(&host, &json!({}));
    assert!(code == 50 && text.contains("node.json: is not there"), "{code} {text}");
    std::fs::remove_dir_all(host.run_dir().path()).expect("removed");
    assert_eq!(refused(&host, &json!({})).0, 50);
    assert!(!host.run_dir().path().exists(), "asking makes nothing");
}

#[test]
fn a_node_without_a_free_address_is_not_available_and_its_pods_are_well() {
    let host = Host::new(&BLOCKS);
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    let (code, text) = refused(&host, &json!({}));
    assert!(code == 50 && text.contains("10.1.0.0/30"), "{code} {text}");
    host.write_node(&[]);
    assert_eq!(refused(&host, &json!({})).0, 50);
}

#[test]
fn a_bridge_that_is_down_or_missing_limits_the_pods_that_are_there() {
    let host = Host::new(&["10.1.0.0/24"]);
    set_up(&host, false);
    let (code, text) = refused(&host, &json!({}));
    assert!(code == 50 && text.contains("bridge cni0 is down"), "nobody is limited: {code} {text}");
    set_up(&host, true);
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    assert_eq!(status(&host, &json!({})), Ok(()), "it needs no agent");
    set_up(&host, false);
    let (code, text) = refused(&host, &json!({}));
    assert!(code == 51 && text.contains("1 pods are limited"), "{code} {text}");
    assert!(text.contains("does not answer at") && text.contains("agent.sock: start it"), "{text}");
    let _agent = UnixListener::bind(host.run_dir().agent_socket()).expect("bound");
    let (code, text) = refused(&host, &json!({}));
    assert!(code == 51 && text.contains("lodend makes it right"), "{code} {text}");
    host.run_in(|| loden_linux::veth::delete("cni0".parse().expect("a name")).expect("deleted"));
    let (code, text) = refused(&host, &json!({}));
    assert!(code == 51 && text.contains("bridge cni0 is not there"), "{code} {text}");
    // Routed pods need none, nor do those on a bridge that the plugin makes.
    assert_eq!(status(&host, &json!({ "attach": "routed" })), Ok(()));
    let own = json!({ "bridge": "br1", "ipam": { "type": "host-local", "subnet": "10.7.0.0/24" } });
    assert_eq!(status(&host, &own), Ok(()));
}

#[test]
fn a_macvlans_master_that_has_gone_limits_its_pods() {
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    let conf =
        json!({ "attach": "macvlan", "master": "eth0", "ipam": { "type": "host-local", "subnet": "10.7.0.0/24" } });
    host.pod("a");
    host.call("ADD", "a", &conf).expect("attached");
    assert_eq!(status(&host, &conf), Ok(()));
    host.run_in(|| loden_linux::veth::delete("eth0".parse().expect("a name")).expect("deleted"));
    let (code, text) = refused(&host, &conf);
    assert!(code == 51 && text.contains("eth0"), "{code} {text}");
    host.call("DEL", "a", &conf).expect("detached");
    assert_eq!(refused(&host, &conf).0, 50);
    drop(wire);
}

#[test]
fn neither_a_held_lock_nor_an_agent_that_hangs_holds_it_up() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.run_dir().make().expect("made");
    // Whoever waited for one of these would wait longer than this test may take.
    let _held = FileLock::try_acquire(&host.run_dir().ipam_dir().join("lock")).expect("asked").expect("free");
    let fd = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    bind(&fd, &SocketAddrUnix::new(host.run_dir().agent_socket()).expect("an address")).expect("bound");
    listen(&fd, 0).expect("listening");
    // Its queue is full: one more that connects waits until somebody is taken in, which nobody is.
    let _first = UnixStream::connect(host.run_dir().agent_socket()).expect("connected");
    assert_eq!(status(&host, &json!({})), Ok(()));
    set_up(&host, false);
    let (code, text) = refused(&host, &json!({}));
    assert!(code == 50 && text.contains("lodend makes it right"), "{code} {text}");
}

#[test]
fn a_del_does_not_wait_for_an_agent_that_hangs() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    let fd = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    bind(&fd, &SocketAddrUnix::new(host.run_dir().agent_socket()).expect("an address")).expect("bound");
    listen(&fd, 0).expect("listening");
    let _first = UnixStream::connect(host.run_dir().agent_socket()).expect("connected");
    host.call("DEL", "a", &json!({})).expect("detached");
    assert_eq!(host.links().len(), 1, "parked, for the agent to delete");
}
