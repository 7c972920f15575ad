//! A macvlan's list of senders, changed by an operator while traffic flows.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use loden_core::model::Mac;
use loden_lab::Lab;
use loden_lab::probe::stream::Stream;
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::rt::link;
use serde_json::Value;

use crate::support::{POOLS, SEGMENT, binaries, stop, up, wait_for};

const TOPOLOGY: &str = r#"
[[host]]
name = "host1"
pods = 1
[[host]]
name = "host2"
[[host]]
name = "host3"
[plugin]
attach = "macvlan"
master = "eth0"
mode = "source"
[plugin.ipam]
type = "host-local"
ranges = [
  [{ subnet = "192.0.2.0/24", rangeStart = "192.0.2.128" }],
  [{ subnet = "2001:db8:0:2::/64", rangeStart = "2001:db8:0:2::8000" }],
]
"#;

/// `loden macvlan sources` on host1: its output, or what it says of a failure.
fn sources(lab: &Lab, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(binaries().loden);
    command.arg("--run-dir").arg(lab.dir().join("host1/run")).args(["macvlan", "sources"]).args(args);
    let output = command.output().expect("loden");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn mac(lab: &Lab, host: &str) -> Mac {
    let read = || link::read(&mut Socket::open(Protocol::Route).expect("a socket"), "eth0".parse().expect("a name"));
    let seen = lab.netns(host).expect("netns").run(read).expect("a thread").expect("asked").expect("there");
    seen.link.mac.expect("an address")
}

#[test]
fn a_sender_is_let_in_and_kept_out_while_another_loses_nothing() {
    let lab = up("macvlan-sources", &[SEGMENT, POOLS, TOPOLOGY].concat());
    let (other, listed) = (mac(&lab, "host2").to_string(), mac(&lab, "host3").to_string());
    let pod = &lab.pods()[0];
    let key = format!("loden/{}/eth0", pod.name);
    assert_eq!(sources(&lab, &[&key]).expect("shown"), "nobody's frames are let in\n");
    assert_eq!(sources(&lab, &[&key, "--set", &listed]).expect("set"), format!("{listed}\n"));
    let netns = |name: &str| lab.netns(name).expect("netns");
    // The third host is listed throughout, in both families.
    let streams: Vec<Stream> = (pod.addresses.iter())
        .map(|(_, addr)| Stream::start(&netns("host3"), &netns(&pod.name), addr, 1000).expect("a stream"))
        .collect();
    for (_, addr) in pod.addresses.iter() {
        comes_and_goes(&lab, addr, &key, &other);
    }
    let (sent, lost) = stop(streams);
    assert!(sent > 100 && lost == 0, "{lost} of {sent} lost");
    let json = sources(&lab, &["-o", "json", &key]).expect("shown");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json, serde_json::json!({ "attachment": key, "sources": [listed] }));
    // The pod is gone.
    let wrong = sources(&lab, &["loden/nobody/eth0", "--add", &other]).expect_err("no such pod");
    assert!(wrong.contains("there is no attachment loden/nobody/eth0"), "{wrong}");
    lab.detach(pod).expect("detached");
    let gone = sources(&lab, &[&key, "--add", &other]).expect_err("it is detached");
    assert!(gone.contains("there is no attachment"), "{gone}");
}

/// The second host sends all the while; what arrives follows the list.
fn comes_and_goes(lab: &Lab, addr: IpAddr, key: &str, sender: &str) {
    let pod = &lab.pods()[0].name;
    let any: IpAddr = if addr.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let bind = |place: &str| {
        lab.netns(place).expect("netns").run(|| UdpSocket::bind((any, 0))).expect("a thread").expect("bound")
    };
    let (inbound, outbound) = (bind(pod), bind("host2"));
    let port = inbound.local_addr().expect("an address").port();
    inbound.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
    let (is_over, arrived) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // Without a neighbour's answer the kernel says that there is no such host.
                let _ = outbound.send_to(b"?", (addr, port));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                if inbound.recv(&mut [0; 8]).is_ok() {
                    arrived.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let count = || arrived.load(Ordering::Relaxed);
            for _ in 0..2 {
                sources(lab, &[key, "--add", sender]).expect("added");
                let before = count();
                wait_for("what the new sender sends", || count() > before + 20);
                sources(lab, &[key, "--remove", sender]).expect("removed");
                // What was under way when the command ended has arrived by now.
                std::thread::sleep(Duration::from_millis(100));
                let before = count();
                std::thread::sleep(Duration::from_millis(200));
                assert_eq!(count(), before, "{addr}: nothing comes from who is no longer listed");
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
