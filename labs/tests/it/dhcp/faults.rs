//! Servers that are slow, hostile, contradictory or absent; agents and plugins that are killed.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use loden_linux::packet::{IPV4, PacketSocket};
use loden_linux::{netns, spawn};
use rustix::process::Signal;
use serde_json::{Value, json};
use smoltcp::wire::DhcpMessageType::{Decline, Discover, Release, Request};

use super::server::{Script, Server};
use super::wire::{SERVER, Wire, ifname, key, of_pod};
use crate::support::wait_for;

#[test]
fn without_a_server_it_is_said_how_long_it_was_tried_and_nothing_stays() {
    let mut wire = Wire::new("dhcp-none");
    let pod = wire.pod("a");
    let conf = wire.conf(&json!({ "timeoutSeconds": 2 }), &json!({}));
    let (code, text) = wire.call("ADD", "a", &conf).expect_err("there is no server");
    assert_eq!(code, 11);
    assert!(text.contains("no DHCP server has given an address to eth0 of the pod within 2 s"), "{text}");
    assert_eq!((wire.files(), of_pod(&pod).0), (Vec::new(), Vec::new()));
    let server = Server::start(&wire.beyond, "br0", SERVER, Script::new(60));
    wire.call("ADD", "a", &conf).expect("attached at the next try");
    wire.call("DEL", "a", &conf).expect("detached");
    assert_eq!(server.leased(), Vec::<Ipv4Addr>::new());
}

#[test]
fn without_an_agent_add_and_status_say_so_and_del_works() {
    let mut wire = Wire::new("dhcp-off");
    let server = Server::start(&wire.beyond, "br0", SERVER, Script::new(3600));
    let agent = wire.agent();
    for pod in ["a", "b"] {
        wire.pod(pod);
    }
    let conf = wire.conf(&json!({}), &json!({}));
    assert_eq!(wire.call("STATUS", "", &conf), Ok(Value::Null));
    let result = wire.call("ADD", "a", &conf).expect("attached");
    agent.end(Signal::KILL).expect("it ends");
    let (code, text) = wire.call("STATUS", "", &conf).expect_err("there is no agent");
    assert!(code == 50 && text.contains("lodend"), "{code} {text}");
    let (code, text) = wire.call("ADD", "b", &conf).expect_err("there is no agent");
    assert!(code == 11 && text.contains("lodend asks the server: it must run"), "{code} {text}");
    assert_eq!(wire.check("a", &conf, &result), Ok(Value::Null), "the lease still holds");

    wire.call("DEL", "a", &conf).expect("detached without an agent");
    netns::remove(&wire.lab.netns_path("a")).expect("removed");
    assert_eq!(wire.files().len(), 1, "the lease, for the next agent: {:?}", wire.files());
    assert_eq!(server.heard(Release).len(), 0);
    agent.start(&wire.lab.binaries().lodend, false).expect("it starts");
    wire.wait_clean();
    wait_for("it is given back from the host", || server.leased().is_empty());
    let released = server.heard(Release);
    assert_eq!((released.len(), released[0].ciaddr), (1, [203, 0, 113, 11].into()));
}

#[test]
fn what_an_agent_finds_torn_or_in_anothers_place_harms_nobody() {
    let mut wire = Wire::new("dhcp-torn");
    let server = Server::start(&wire.beyond, "br0", SERVER, Script::new(6));
    let agent = wire.agent();
    wire.pod("a");
    wire.pod("b");
    let conf = wire.conf(&json!({}), &json!({}));
    let result = wire.call("ADD", "a", &conf).expect("attached");
    wire.call("ADD", "b", &conf).expect("attached");
    agent.end(Signal::KILL).expect("it ends");
    std::fs::write(wire.run_dir().lease_file(&key("a")), "{").expect("torn");
    std::fs::write(wire.run_dir().leases_dir().join("x.json.1.tmp"), "{").expect("unfinished");
    // The path of b's namespace leads to another pod, with an eth0 of its own.
    netns::remove(&wire.lab.netns_path("b")).expect("removed");
    let stranger = wire.neighbour("b", "203.0.113.250/24");
    agent.start(&wire.lab.binaries().lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    let (code, text) = wire.check("a", &conf, &result).expect_err("its lease is unknown");
    assert!(code == 101 && text.contains("nobody holds a DHCP lease for it"), "{text}");
    wait_for("what cannot be renewed is said", || {
        wire.problems().iter().any(|problem| problem.contains("leads to the network namespace of another"))
    });
    wait_for("the lease ends", || wire.problems().iter().any(|problem| problem.contains("it has none")));
    assert_eq!(of_pod(&stranger).0, ["203.0.113.250/24"], "nobody has touched the stranger");
    for pod in ["a", "b"] {
        wire.call("DEL", pod, &conf).expect("detached");
    }
    wire.wait_clean();
    assert_eq!(server.heard(Discover).len(), 2);
}

#[test]
fn refusals_slowness_and_other_pods_addresses_are_got_over() {
    let mut wire = Wire::new("dhcp-odd");
    let server = Server::start(&wire.beyond, "br0", SERVER, Script::new(3600));
    let conf = wire.conf(&json!({}), &json!({}));
    for pod in ["nak", "slow", "taken", "wish", "other"] {
        wire.pod(pod);
    }
    server.change(|script| script.naks = 1);
    wire.call("ADD", "nak", &conf).expect("attached");
    assert_eq!(server.heard(Discover).len(), 2, "from the beginning after a refusal");

    server.change(|script| script.delay = Duration::from_millis(1500));
    wire.call("ADD", "slow", &conf).expect("attached");
    server.change(|script| script.delay = Duration::ZERO);

    // Somebody has the next address already, whom the server does not know.
    let next = *server.leased().iter().max().expect("leases");
    let next = Ipv4Addr::from(u32::from(next) + 1);
    let _squatter = wire.neighbour("squatter", &format!("{next}/24"));
    let result = wire.call("ADD", "taken", &conf).expect("attached");
    assert_ne!(result["ips"][0]["address"], format!("{next}/24"));
    let declined = server.heard(Decline);
    assert_eq!(declined.len(), 1);
    assert_eq!(declined[0].options[&50], next.octets());

    let mut wish = conf.clone();
    wish["runtimeConfig"] = json!({ "ips": ["203.0.113.200"] });
    let (code, text) = wire.call("ADD", "wish", &wish).expect_err("the server gives another");
    assert!(code == 100 && text.contains("203.0.113.200 is asked for"), "{code} {text}");
    assert_eq!(server.heard(Discover).last().expect("one").options[&50], [203, 0, 113, 200]);
    assert_eq!(server.leased().len(), 3, "what was leased and not wanted is given back");

    let mut ptp = conf.clone();
    ptp["attach"] = "routed".into();
    let (code, text) = wire.call("ADD", "other", &ptp).expect_err("no segment");
    assert!(code == 7 && text.contains("shares no segment"), "{code} {text}");
    // GC of those that the runtime does not know any more.
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "slow", "ifname": "eth0" }]);
    wire.call("GC", "", &gc).expect("collected");
    wait_for("only one is left", || server.leased().len() == 1 && wire.files().len() == 2);
    wire.call("DEL", "slow", &conf).expect("detached");
}

#[test]
fn of_two_servers_one_is_chosen_and_the_other_hears_it() {
    let mut wire = Wire::new("dhcp-two");
    let one = Server::start(&wire.beyond, "br0", SERVER, Script::new(3600));
    let beside = wire.neighbour("beside", "203.0.113.2/24");
    let mut script = Script::new(3600);
    script.pool = (111..160).map(|last| Ipv4Addr::new(203, 0, 113, last)).collect();
    let two = Server::start(&beside, "eth0", Ipv4Addr::new(203, 0, 113, 2), script);
    let conf = wire.conf(&json!({}), &json!({}));
    wire.pod("a");
    let result = wire.call("ADD", "a", &conf).expect("attached");
    wait_for("both have heard the choice", || one.heard(Request).len() == 1 && two.heard(Request).len() == 1);
    wait_for("one has leased", || one.leased().len() + two.leased().len() == 1);
    let leased = [one.leased(), two.leased()].concat()[0];
    assert_eq!(result["ips"][0]["address"], format!("{leased}/24"));
    wire.call("DEL", "a", &conf).expect("detached");
    wait_for("it is given back", || one.leased().len() + two.leased().len() == 0);
}

#[test]
fn hostile_answers_are_passed_over() {
    let mut wire = Wire::new("dhcp-hostile");
    let server = Server::start(&wire.beyond, "br0", SERVER, Script::new(3600));
    let conf = wire.conf(&json!({}), &json!({}));
    type Bend = (&'static str, fn(&mut Vec<u8>));
    let bends: [Bend; 9] = [
        ("cut short", |bytes| bytes.truncate(120)),
        ("of another transaction", |bytes| bytes[4] ^= 1),
        ("to another pod", |bytes| bytes[28] ^= 2),
        ("a client's", |bytes| bytes[0] = 1),
        ("without the magic", |bytes| bytes[236] = 0),
        ("with options past its end", |bytes| {
            bytes.truncate(246);
            bytes[243..246].copy_from_slice(&[51, 200, 0]);
        }),
        ("of no type", |bytes| bytes[242] = 99),
        ("with the address of all", |bytes| bytes[16..20].fill(255)),
        ("with the subnet's own address", |bytes| bytes[19] = 0),
    ];
    for (n, (what, bend)) in bends.into_iter().enumerate() {
        server.change(|script| script.bend = Some(bend));
        let name = format!("p{n}");
        let pod = wire.pod(&name);
        let result = wire.call("ADD", &name, &conf).unwrap_or_else(|error| panic!("a reply {what}: {error:?}"));
        let net = result["ips"][0]["address"].as_str().expect("an address").to_owned();
        assert!(net.starts_with("203.0.113.1"), "a reply {what}: {net}");
        assert_eq!(of_pod(&pod).0, [net], "a reply {what}");
        wire.call("DEL", &name, &conf).expect("detached");
    }
    // Frames with wrong checksums and lengths, a flood of them while the pod asks.
    server.change(|script| script.bend = None);
    let raw = wire.beyond.run(|| PacketSocket::open_on(ifname("br0"), IPV4).expect("raw frames")).expect("a thread");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let pod = wire.pod("flood");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0_usize;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut frame = vec![0xff; 42 + n % 300];
                frame[12..34].copy_from_slice(&[
                    8, 0, 0x45, 0, 1, 0x40, 0, 0, 0, 0, 64, 17, 0xb9, 0xee, 203, 0, 113, 1, 255, 255, 255, 255,
                ]);
                frame[34..42].copy_from_slice(&[0, 67, 0, 68, 1, 0x2c, 0xab, 0xcd]);
                let _ = raw.send(&frame);
                n += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let result = wire.call("ADD", "flood", &conf);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        result.expect("attached");
    });
    assert_eq!(of_pod(&pod).0.len(), 1);
    wire.call("DEL", "flood", &conf).expect("detached");
    assert_eq!((wire.files(), server.leased()), (Vec::new(), Vec::new()));
}

#[test]
fn plugins_and_agents_killed_at_any_moment_leave_no_lease() {
    let mut wire = Wire::new("dhcp-kills");
    let server = Server::start(&wire.beyond, "br0", SERVER, Script::new(3600));
    let conf = wire.conf(&json!({ "timeoutSeconds": 3 }), &json!({}));
    wire.pod("a");
    let agent = wire.agent();
    // An ADD takes about 120 ms: a hundred of them are the probe.
    for n in 0..24_u64 {
        let moment = Duration::from_micros(n * 6000);
        if n % 3 == 2 {
            // The agent goes away under the plugin, which undoes all it did, or had its answer before.
            let added = std::thread::scope(|scope| {
                let add = scope.spawn(|| wire.call("ADD", "a", &conf));
                std::thread::sleep(moment);
                agent.end(Signal::KILL).expect("it ends");
                add.join().expect("it ends")
            });
            agent.start(&wire.lab.binaries().lodend, false).expect("it starts");
            agent.wait_ready().expect("it gets ready");
            if let Ok(result) = added {
                assert_eq!(wire.check("a", &conf, &result), Ok(Value::Null));
                wire.call("DEL", "a", &conf).expect("detached");
            }
        } else {
            let killed = kill_add(&wire, &conf, moment);
            if n % 3 == 0 || killed {
                wire.call("DEL", "a", &conf).expect("detached");
            }
        }
        wire.wait_clean();
        assert!(!wire.run_dir().lease_file(&key("a")).exists());
        let result = wire.call("ADD", "a", &conf).unwrap_or_else(|error| panic!("after {moment:?}: {error:?}"));
        assert_eq!(wire.check("a", &conf, &result), Ok(Value::Null));
        wire.call("DEL", "a", &conf).expect("detached");
    }
    wait_for("every address is given back", || server.leased().is_empty());
}

/// Begins an ADD and kills it; whether it had come to its end.
fn kill_add(wire: &Wire, conf: &Value, moment: Duration) -> bool {
    use std::io::Write;
    let plugin = &wire.lab.binaries().loden_cni;
    let mut command = Command::new(plugin);
    command
        .env_clear()
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/x")])
        .env("CNI_NETNS", wire.lab.netns_path("a"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    spawn::in_netns(&mut command, &wire.host(), true).expect("the host");
    let mut child = command.spawn().expect("the plugin");
    let _ = child.stdin.take().expect("stdin").write_all(conf.to_string().as_bytes());
    std::thread::sleep(moment);
    child.kill().expect("killed");
    child.wait_with_output().expect("it ends").status.success()
}
