//! What comes in by standard input and goes out by standard output, when the other end does not behave.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use loden_linux::spawn;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::host::{Host, answer};

/// The plugin with a runtime's variables. Signals that whoever runs the tests has ignored (a shell does with SIGINT what it puts in the
/// background, `nohup` with SIGHUP) are what a process gets otherwise: the plugin ignores none and inherits all.
fn plugin(host: &Host, verb: &str) -> Command {
    let mut command = Command::new("/usr/bin/env");
    command.args(["--default-signal=TERM,INT,HUP", env!("CARGO_BIN_EXE_loden-cni")]);
    command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "a").env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", host.netns_path("a")).env("CNI_PATH", "/opt/cni/bin");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn::in_netns(&mut command, host.ns(), true).expect("the host's namespace");
    command
}

#[test]
fn a_large_configuration_works() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    let large = json!({ "somebodyElses": "y".repeat(1 << 20), "list": vec![json!({ "k": [1, 2, 3] }); 10_000] });
    host.call("ADD", "a", &large).expect("attached");
    assert_eq!(host.call("STATUS", "a", &large), Ok(Value::Null));
    host.call("DEL", "a", &large).expect("detached");
}

#[test]
fn odd_json_has_its_codes() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    let good = host.conf("1.1.0", &json!({}));
    let with = |more: &str| good.replacen('{', &format!("{{{more},"), 1);
    let nested = |depth: usize| format!("\"x\":{}{}", "[".repeat(depth), "]".repeat(depth));
    for (what, stdin, code) in [
        ("nested as deep as anybody does", with(&nested(100)), 0),
        ("nested to break the stack", with(&nested(1_000_000)), 6),
        ("a number that no machine holds", with("\"x\":1e999"), 6),
        ("a number that is no MTU", with("\"mtu\":99999999999999999999999999"), 7),
        ("a number below zero", with("\"mtu\":-1"), 7),
        ("half a number", with("\"mtu\":1400.5"), 7),
        // The last one counts, as in the reference library.
        ("a key twice", with("\"name\":\"../x\""), 0),
        ("half a character", with("\"x\":\"\\ud800\""), 6),
        ("a zero byte in a name", good.replace("\"net\"", "\"n\\u0000et\""), 7),
        ("two objects", format!("{good}{good}"), 6),
    ] {
        let given = answer(&host.exec("ADD", "a", stdin.as_bytes(), &[]));
        assert_eq!(given.as_ref().map_or_else(|error| error.0, |_| 0), code, "{what}: {given:?}");
        host.call("DEL", "a", &json!({})).expect(what);
    }
    let output = host.exec("ADD", "a", b"{\"name\":\"\xff\"}", &[]);
    assert_eq!(answer(&output).map_err(|error| error.0), Err(6), "no UTF-8");
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn input_without_an_end_is_stopped() {
    let host = Host::new(&["10.1.0.0/24"]);
    let zero = File::open("/dev/zero").expect("open");
    let output = plugin(&host, "ADD").stdin(zero).output().expect("it ends");
    let (code, text) = answer(&output).expect_err("it has no end");
    assert!(code == 6 && text.contains("more than 16 MiB"), "{code} {text}");
}

#[test]
fn input_that_never_comes_is_waited_for_until_a_signal() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut child = plugin(&host, "ADD").stdin(Stdio::piped()).spawn().expect("it runs");
        std::thread::sleep(Duration::from_millis(30));
        assert!(child.try_wait().expect("asked").is_none());
        kill_process(Pid::from_child(&child), signal).expect("sent");
        let ended = child.wait().expect("it ends");
        assert_eq!(ended.signal(), Some(signal.as_raw()));
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn what_nobody_hears_of_is_undone() {
    let host = Host::new(&["10.1.0.0/30"]);
    host.pod("a");
    for conf in [
        json!({}),
        json!({ "attach": "routed" }),
        json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } }),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        // The runtime has gone before the answer comes.
        drop(reader);
        let mut command = plugin(&host, "ADD");
        let mut child = command.stdin(Stdio::piped()).stdout(writer).spawn().expect("it runs");
        drop(command);
        let mut stdin = child.stdin.take().expect("stdin");
        std::io::Write::write_all(&mut stdin, host.conf("1.1.0", &conf).as_bytes()).expect("written");
        drop(stdin);
        let mut said = String::new();
        child.stderr.take().expect("stderr").read_to_string(&mut said).expect("text");
        assert_eq!(child.wait().expect("it ends").code(), Some(1), "no signal (SIGPIPE) ended it: {said}");
        assert!(said.contains("Broken pipe") && said.contains("undone"), "{said}");
        host.reap();
        assert_eq!(host.leftovers(), Vec::<String>::new());
        assert_eq!(host.pod_routes(), Vec::new());
        // A refusal that nobody hears is one all the same, and so is a DEL's silence.
        host.call("ADD", "a", &conf).expect("its address is free");
        host.call("DEL", "a", &json!({})).expect("detached");
    }
}
