//! Addresses by DHCP: the real agent and plugin, servers on a wire, and everything that can go wrong between them.

mod faults;
mod real;
mod server;
mod wire;

use std::net::Ipv4Addr;

use loden_core::dhcp::Held;
use rustix::process::Signal;
use serde_json::{Value, json};
use smoltcp::wire::DhcpMessageType::{Ack, Decline, Discover, Release, Request};

use crate::support::{say, wait_for};
use server::{Script, Server};
use wire::{SERVER, Wire, key, of_pod};

/// What the agent holds for a pod.
fn held(wire: &Wire, pod: &str) -> Held {
    wire.run_dir().lease(&key(pod)).expect("read").expect("a lease")
}

#[test]
fn a_pod_gets_all_that_the_server_says_and_the_server_what_the_configuration_does() {
    let mut wire = Wire::new("dhcp-all");
    let routes = [&[0, 203, 0, 113, 9][..], &[16, 10, 9, 203, 0, 113, 8], &[32, 198, 51, 100, 7, 0, 0, 0, 0]].concat();
    let script = Script::new(3600)
        .with(121, &routes)
        .with(15, b"lab.example")
        .with(119, b"\x03lab\x07example\x00\x04more\xc0\x04")
        .with(26, &1400_u16.to_be_bytes());
    let server = Server::start(&wire.beyond, "br0", SERVER, script);
    let pod = wire.pod("a");
    let ipam = json!({
        "provide": [{ "option": "host-name", "fromArg": "K8S_POD_NAME" }, { "option": "60", "value": "loden" }],
        "request": [{ "option": "42" }, { "option": "routers", "skipDefault": true }],
        "priority": 7, "routes": [{ "dst": "198.51.100.128/25", "gw": "203.0.113.77" }],
    });
    let conf = wire.conf(&ipam, &json!({}));
    let result = wire.call("ADD", "a", &conf).expect("attached");
    assert_eq!(result["ips"][0]["address"], "203.0.113.11/24");
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["203.0.113.53"], "domain": "lab.example", "search": ["lab.example", "more.example"] })
    );
    let routes = result["routes"].as_array().expect("routes");
    let of = |dst: &str| routes.iter().find(|route| route["dst"] == dst).map(|route| route["gw"].clone());
    assert_eq!(of("0.0.0.0/0"), Some(json!("203.0.113.9")), "classless routes go before the router: {routes:?}");
    assert_eq!(of("10.9.0.0/16"), Some(json!("203.0.113.8")));
    assert_eq!(of("198.51.100.7/32"), Some(Value::Null), "on the link");
    assert_eq!(of("198.51.100.128/25"), Some(json!("203.0.113.77")), "the configuration's own");
    assert_eq!(result["interfaces"][0]["mtu"], 1400);
    assert_eq!(wire.check("a", &conf, &result), Ok(Value::Null));
    assert_eq!(of_pod(&pod), (vec!["203.0.113.11/24".to_owned()], vec!["203.0.113.9".to_owned()]));

    let asked = &server.heard(Discover)[0];
    assert_eq!(asked.options[&61], b"\0a/lan/eth0");
    assert_eq!((&asked.options[&12][..], &asked.options[&60][..]), (&b"a"[..], &b"loden"[..]));
    assert!(asked.options[&55].contains(&42) && !asked.options[&55].contains(&3), "{:?}", asked.options[&55]);
    assert!(asked.options[&55].starts_with(&[121]));

    wire.call("DEL", "a", &conf).expect("detached");
    let released = server.heard(Release);
    assert_eq!(
        (released.len(), released[0].ciaddr, released[0].from),
        (1, [203, 0, 113, 11].into(), [203, 0, 113, 11].into())
    );
    assert_eq!((wire.files(), server.leased()), (Vec::new(), Vec::new()));
    wire.call("DEL", "a", &conf).expect("detached twice");
    assert_eq!(wire.problems(), Vec::<String>::new());
}

#[test]
fn a_lease_outlives_its_agent_and_a_server_that_is_away() {
    let mut wire = Wire::new("dhcp-renew");
    let server = Server::start(&wire.beyond, "br0", SERVER, Script::new(8));
    let pod = wire.pod("a");
    let conf = wire.conf(&json!({}), &json!({}));
    let result = wire.call("ADD", "a", &conf).expect("attached");
    let renewals = || server.heard(Request).into_iter().filter(|heard| !heard.ciaddr.is_unspecified()).count();
    let agent = wire.agent();

    wait_for("a renewal", || renewals() == 1);
    let asked = server.heard(Request).pop().expect("a request");
    assert_eq!((asked.ciaddr, asked.from), ([203, 0, 113, 11].into(), [203, 0, 113, 11].into()), "from the pod itself");
    assert!(!asked.options.contains_key(&50) && !asked.options.contains_key(&54), "RFC 2131 table 5: {asked:?}");

    agent.end(Signal::KILL).expect("it ends");
    agent.start(&wire.lab.binaries().lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
    let before = held(&wire, "a").lease.expect("a lease");
    wait_for("a renewal by the next agent", || renewals() >= 2);
    wait_for("it is written down", || held(&wire, "a").lease.is_some_and(|lease| lease.begun_ms > before.begun_ms));
    assert_eq!((server.heard(Discover).len(), server.heard(Ack).len()), (1, 0), "nothing began anew");
    assert_eq!(wire.check("a", &conf, &result), Ok(Value::Null));

    server.change(|script| script.answers.clear());
    wait_for("that it is away is said", || wire.problems().iter().any(|p| p.contains("has not renewed the lease")));
    assert_eq!(of_pod(&pod).0, ["203.0.113.11/24"], "the lease still holds");
    server.change(|script| script.answers = vec![Discover, Request]);
    wait_for("it is well again", || wire.problems().is_empty());
    assert_eq!(of_pod(&pod).0, ["203.0.113.11/24"]);
    assert_eq!(server.heard(Discover).len(), 1, "it was renewed with any server that would, before its end");
    wire.call("DEL", "a", &conf).expect("detached");
    assert_eq!(wire.files(), Vec::<String>::new());
}

#[test]
fn new_terms_reach_the_pod_and_a_lost_address_leaves_it() {
    let mut wire = Wire::new("dhcp-terms");
    let server = Server::start(&wire.beyond, "br0", SERVER, Script::new(6));
    let pod = wire.pod("a");
    let conf = wire.conf(&json!({}), &json!({}));
    let result = wire.call("ADD", "a", &conf).expect("attached");

    server.change(|script| *script = script.clone().with(3, &[203, 0, 113, 2]).with(1, &[255, 255, 255, 128]));
    wait_for("another router and mask", || {
        of_pod(&pod) == (vec!["203.0.113.11/25".to_owned()], vec!["203.0.113.2".to_owned()])
    });
    server.change(|script| *script = script.clone().with(6, &[203, 0, 113, 54]));
    wait_for("other name servers are said", || wire.problems().iter().any(|p| p.contains("only a new pod gets them")));

    // The server takes it away, and gives nothing at first.
    server.change(|script| (script.naks, script.answers) = (1, vec![Request]));
    wait_for("the address leaves the pod", || of_pod(&pod).0.is_empty());
    let is_said = |problem: &String| problem.contains("pod lab/a") && problem.contains("does not renew");
    wait_for("why is said", || wire.problems().iter().any(is_said));
    let (code, text) = wire.check("a", &conf, &result).expect_err("it has no address");
    assert!(code == 101 && text.contains("the DHCP lease is lost"), "{text}");
    // An agent that starts now goes on asking.
    let agent = wire.agent();
    agent.end(Signal::KILL).expect("it ends");
    agent.start(&wire.lab.binaries().lodend, false).expect("it starts");
    server.change(|script| {
        (script.answers, script.pool) = (vec![Discover, Request], vec![Ipv4Addr::new(203, 0, 113, 99)])
    });
    wait_for("another address", || {
        of_pod(&pod) == (vec!["203.0.113.99/25".to_owned()], vec!["203.0.113.2".to_owned()])
    });
    wait_for("the attachment says so too", || {
        let there = wire.run_dir().attachment(&key("a")).expect("read").expect("there");
        there.addresses.first().is_some_and(|address| address.net.to_string() == "203.0.113.99/25")
    });
    agent.wait_ready().expect("it gets ready");
    wait_for("it is an event", || {
        let events = agent.events(0).expect("events");
        events.iter().any(|event| event.sort == "dhcp" && event.text.contains("203.0.113.99/25"))
    });

    // And one that runs out because nobody renews it.
    server.change(|script| script.answers.clear());
    wait_for("the lease's end", || of_pod(&pod).0.is_empty());
    wait_for("why is said", || wire.problems().iter().any(|problem| problem.contains("the lease ran out")));
    server.change(|script| script.answers = vec![Discover, Request]);
    wait_for("it is back", || of_pod(&pod).0 == ["203.0.113.99/25"]);
    wire.call("DEL", "a", &conf).expect("detached");
    assert_eq!(wire.files(), Vec::<String>::new());
    say(&format!(
        "{} DISCOVERs, {} REQUESTs, {} DECLINEs",
        server.heard(Discover).len(),
        server.heard(Request).len(),
        server.heard(Decline).len()
    ));
}
