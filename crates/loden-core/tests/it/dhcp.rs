//! The DHCP client, transition by transition, and what a lease makes of an attachment.

use std::net::Ipv4Addr;

use loden_core::cni::{Code, IpamSource, NetConf, Role, Verb};
use loden_core::dhcp::client::{Action, Client, Kind, Message, Reply, Way};
use loden_core::dhcp::{Dns, FOREVER, Lease, LeaseRequest, Terms};
use loden_core::model::{Attachment, Mac, PodRoute, RouteExtras};
use proptest::prelude::*;
use serde_json::json;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const BY: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn terms(last: u8, server: Ipv4Addr, lease_s: u32) -> Terms {
    Terms {
        net: format!("192.0.2.{last}/24").parse().expect("a net"),
        router: Some(SERVER),
        routes: Vec::new(),
        dns: Dns::default(),
        mtu: None,
        server,
        lease_s,
        renewal_s: None,
        rebinding_s: None,
    }
}

fn nak(server: Option<Ipv4Addr>) -> Reply {
    Reply::Nak { server, text: Some("no".to_owned()) }
}

fn sent(actions: &[Action]) -> Vec<Message> {
    let message = |action: &Action| match action {
        Action::Send(message) => Some(*message),
        _ => None,
    };
    actions.iter().filter_map(message).collect()
}

fn shape(actions: &[Action]) -> String {
    let one = |action: &Action| match action {
        Action::Send(message) => format!("{:?} {:?}", message.kind, message.way),
        Action::Probe(addr) => format!("probe {addr}"),
        Action::Hold(lease) => format!("hold {}", lease.terms.net),
        Action::Lose(text) => format!("lose: {text}"),
        Action::Note(text) => format!("note: {text}"),
    };
    actions.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Goes to a time step by step, and gives what was done, with when.
fn until(client: &mut Client, from_ms: u64, to_ms: u64) -> Vec<(u64, Vec<Action>)> {
    let (mut all, mut now) = (Vec::new(), from_ms);
    while client.due_ms() <= to_ms {
        now = now.max(client.due_ms());
        all.push((now, client.tick(now)));
        assert!(client.due_ms() > now, "time passes");
    }
    all
}

/// A client that holds an address since `now`.
fn bound(now: u64, lease_s: u32) -> Client {
    let mut client = Client::new(now, 1, None);
    let xid = sent(&client.tick(now))[0].xid;
    assert_eq!(shape(&client.hear(now, xid, &Reply::Offer(terms(9, SERVER, lease_s)), Some(BY))), "Request Broadcast");
    assert_eq!(shape(&client.hear(now, xid, &Reply::Ack(terms(9, SERVER, lease_s)), Some(BY))), "probe 192.0.2.9");
    assert_eq!(client.probed(), Some(Ipv4Addr::new(192, 0, 2, 9)));
    assert_eq!(shape(&client.tick(now + 100)), "hold 192.0.2.9/24");
    client
}

#[test]
fn an_address_is_had_in_two_exchanges_and_a_probe() {
    let client = bound(5000, 3600);
    let lease = client.lease().expect("a lease");
    assert_eq!((lease.begun_ms, lease.server_mac), (5000, Some(BY)));
    assert_eq!(lease.renewals_ms(), Some((5000 + 1_800_000, 5000 + 3_150_000)));
    assert_eq!(lease.end_ms(), Some(3_605_000));
    assert!(client.due_ms() <= 1_805_000 && client.due_ms() >= 1_805_000 - 1_800_000 / 16, "{}", client.due_ms());
    assert_eq!(bound(0, FOREVER).due_ms(), u64::MAX);
}

#[test]
fn nobody_answers_and_it_is_asked_again_with_growing_pauses() {
    let mut client = Client::new(0, 3, Some(OTHER));
    let asked = until(&mut client, 0, 600_000);
    let times: Vec<u64> = asked.iter().map(|(at, _)| *at).collect();
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (n, pause) in pauses.iter().enumerate() {
        let meant = 1000_u64 << n.min(6);
        assert!(pause.abs_diff(meant) <= meant / 8, "{n}: {pause} of {meant}");
    }
    assert!(pauses.len() > 8);
    for (at, actions) in &asked {
        let message = sent(actions)[0];
        assert_eq!((message.kind, message.way, message.asks_for), (Kind::Discover, Way::Broadcast, Some(OTHER)));
        assert_eq!(u64::from(message.secs), at / 1000);
    }
}

#[test]
fn what_is_not_for_it_changes_nothing() {
    let mut client = Client::new(0, 1, None);
    let xid = sent(&client.tick(0))[0].xid;
    let ours = |client: &Client| client.clone();
    let offer = Reply::Offer(terms(9, SERVER, 60));
    let ack = Reply::Ack(terms(9, SERVER, 60));
    let before = ours(&client);
    for (what, xid, reply) in [
        ("another transaction", xid ^ 1, &offer),
        ("an ACK of nothing", xid, &ack),
        ("a NAK of nothing", xid, &nak(None)),
    ] {
        assert_eq!(client.hear(1, xid, reply, None), Vec::new(), "{what}");
        assert_eq!(client, before, "{what}");
    }
    client.hear(1, xid, &offer, None);
    let before = ours(&client);
    for (what, reply) in [
        ("a second offer", Reply::Offer(terms(8, OTHER, 60))),
        ("an ACK of one that was not chosen", Reply::Ack(terms(9, OTHER, 60))),
        ("a NAK of one that was not chosen", nak(Some(OTHER))),
    ] {
        assert_eq!(client.hear(2, xid, &reply, None), Vec::new(), "{what}");
        assert_eq!(client, before, "{what}");
    }
    let mut client = bound(0, 60);
    let before = ours(&client);
    assert_eq!(client.in_use(200, Ipv4Addr::new(192, 0, 2, 9), BY), Vec::new(), "it is not being probed any more");
    assert_eq!(client, before);
}

#[test]
fn unsound_terms_are_passed_over() {
    let sound = terms(9, SERVER, 60);
    assert_eq!(sound.fault(), None);
    let with = |net: &str| Terms { net: net.parse().expect("a net"), ..sound.clone() };
    assert_eq!(with("192.0.2.9/32").fault(), None);
    assert_eq!(with("192.0.2.8/31").fault(), None);
    for (bad, part) in [
        (with("0.0.0.0/24"), "none that a host can have"),
        (with("127.0.0.1/8"), "none that a host can have"),
        (with("224.0.0.9/24"), "none that a host can have"),
        (with("255.255.255.255/24"), "none that a host can have"),
        (with("192.0.2.0/24"), "its subnet's own"),
        (with("192.0.2.255/24"), "that of all hosts"),
        (with("192.0.2.9/0"), "mask is empty"),
        (Terms { lease_s: 0, ..sound.clone() }, "ends at once"),
        (Terms { server: Ipv4Addr::UNSPECIFIED, ..sound.clone() }, "the server has no address"),
    ] {
        let fault = bad.fault().expect("a fault");
        assert!(fault.contains(part), "{bad:?}: {fault}");
        let mut client = Client::new(0, 1, None);
        let xid = sent(&client.tick(0))[0].xid;
        assert!(shape(&client.hear(1, xid, &Reply::Offer(bad.clone()), None)).starts_with("note"));
        let xid = sent(&client.tick(client.due_ms()))[0].xid;
        client.hear(2000, xid, &Reply::Offer(sound.clone()), None);
        let unsound = Terms { server: SERVER, ..bad.clone() };
        if unsound.fault().is_some() {
            assert!(shape(&client.hear(2001, xid, &Reply::Ack(unsound), None)).starts_with("note"), "{bad:?}");
        }
        assert_eq!(shape(&client.hear(2002, xid, &Reply::Ack(sound.clone()), None)), "probe 192.0.2.9", "{bad:?}");
    }
}

#[test]
fn refused_requests_and_taken_addresses_begin_anew_after_a_pause() {
    let mut client = Client::new(0, 1, Some(OTHER));
    let mut now = 0;
    for (round, pause) in [1000, 10_000, 10_000].into_iter().enumerate() {
        let xid = sent(&client.tick(now))[0].xid;
        client.hear(now, xid, &Reply::Offer(terms(9, SERVER, 60)), None);
        let actions = if round % 2 == 0 {
            client.hear(now, xid, &nak(Some(SERVER)), None)
        } else {
            client.hear(now, xid, &Reply::Ack(terms(9, SERVER, 60)), None);
            let actions = client.in_use(now, Ipv4Addr::new(192, 0, 2, 9), BY);
            let decline = sent(&actions)[0];
            assert_eq!((decline.kind, decline.server), (Kind::Decline, Some(SERVER)));
            assert_eq!(decline.asks_for, Some(Ipv4Addr::new(192, 0, 2, 9)));
            actions
        };
        assert!(matches!(actions.last(), Some(Action::Note(_))), "{actions:?}");
        assert_eq!(client.due_ms(), now + pause, "round {round}");
        assert_eq!(client.lease(), None);
        now += pause;
    }
    assert_eq!(sent(&client.tick(now))[0].asks_for, None, "what was refused is not wished for again");
}

#[test]
fn a_server_that_falls_silent_after_its_offer_is_left() {
    let mut client = Client::new(0, 1, None);
    let xid = sent(&client.tick(0))[0].xid;
    client.hear(0, xid, &Reply::Offer(terms(9, SERVER, 60)), None);
    let done = until(&mut client, 0, 10_000);
    let kinds: Vec<Kind> = done.iter().flat_map(|(_, actions)| sent(actions)).map(|message| message.kind).collect();
    assert_eq!(kinds[..3], [Kind::Request, Kind::Request, Kind::Discover]);
    assert!(done.iter().flat_map(|(_, actions)| sent(actions)).all(|m| (m.kind == Kind::Request) == (m.xid == xid)));
}

#[test]
fn a_lease_is_renewed_with_its_server_then_with_any_and_lost_at_its_end() {
    let mut client = bound(0, 3600);
    let done = until(&mut client, 100, 3_600_000);
    let shapes: Vec<String> = done.iter().map(|(_, actions)| shape(actions)).collect();
    let direct = "Request Server(192.0.2.1)";
    assert!(shapes.iter().filter(|shape| *shape == direct).count() >= 3, "{shapes:#?}");
    let silent = shapes.iter().position(|shape| shape.starts_with("note")).expect("it is said");
    assert!(shapes[silent].ends_with("Request Rebind"), "{}", shapes[silent]);
    assert_eq!(done[silent].0, 3_150_000);
    assert!(shapes[silent + 1..shapes.len() - 1].iter().all(|shape| shape == "Request Rebind"), "{shapes:#?}");
    let (at, last) = done.last().expect("an end");
    assert_eq!(*at, 3_600_000);
    assert_eq!(shape(last), "lose: the lease ran out: 192.0.2.1 did not renew it, nor did another; Discover Broadcast");
    assert_eq!(sent(last)[0].asks_for, Some(Ipv4Addr::new(192, 0, 2, 9)), "the same is wished for");
    for (_, actions) in &done[..done.len() - 1] {
        let message = sent(actions)[0];
        assert_eq!((message.has, message.asks_for, message.server), (Some([192, 0, 2, 9].into()), None, None));
    }
}

#[test]
fn renewals_are_granted_and_refused() {
    // When, who answers, and what comes of it.
    let other = Reply::Ack(terms(8, SERVER, 60));
    for (at, reply, expected) in [
        (2_000_000, Reply::Ack(terms(9, SERVER, 7200)), "hold 192.0.2.9/24"),
        (2_000_000, nak(Some(SERVER)), "lose: 192.0.2.1 does not renew the lease: \"no\""),
        (2_000_000, nak(Some(OTHER)), ""),
        (2_000_000, other.clone(), ""),
        (3_200_000, Reply::Ack(terms(9, OTHER, 7200)), "hold 192.0.2.9/24"),
        (3_200_000, nak(Some(OTHER)), "lose: 192.0.2.2 does not renew the lease: \"no\""),
        (3_200_000, other, ""),
    ] {
        let mut client = bound(0, 3600);
        let done = until(&mut client, 100, at);
        let (asked_ms, actions) = done.last().expect("a renewal");
        let xid = sent(actions)[0].xid;
        assert_eq!(shape(&client.hear(at, xid, &reply, None)), expected, "{reply:?} at {at}");
        match expected.split(' ').next() {
            Some("hold") => {
                let lease = client.lease().expect("a lease");
                assert_eq!((lease.begun_ms, lease.server_mac), (*asked_ms, Some(BY)), "it counts from the request");
            }
            Some("lose:") => assert_eq!((client.lease(), client.due_ms()), (None, at + 1000)),
            _ => assert!(client.lease().is_some()),
        }
    }
}

#[test]
fn an_agent_that_starts_again_goes_on_where_time_is() {
    let lease = bound(0, 3600).lease().cloned().expect("a lease");
    for (now, expected) in [
        (1_000_000, ""),
        (2_000_000, "Request Server(192.0.2.1)"),
        (3_200_000, "note: 192.0.2.1 has not renewed the lease: every server is asked now; Request Rebind"),
        (
            9_000_000,
            "note: 192.0.2.1 has not renewed the lease: every server is asked now; \
             lose: the lease ran out: 192.0.2.1 did not renew it, nor did another; Discover Broadcast",
        ),
    ] {
        let mut client = Client::resumed(now, 7, lease.clone());
        assert_eq!(shape(&client.tick(now)), expected, "at {now}");
    }
}

#[test]
fn times_of_the_server_count_when_they_are_in_order() {
    let lease = |renewal_s, rebinding_s| Lease {
        terms: Terms { renewal_s, rebinding_s, ..terms(9, SERVER, 1000) },
        begun_ms: 0,
        server_mac: None,
    };
    for (renewal_s, rebinding_s, expected) in [
        (Some(100), Some(200), (100_000, 200_000)),
        (Some(200), Some(100), (500_000, 875_000)),
        (Some(100), Some(1000), (500_000, 875_000)),
        (Some(0), Some(100), (500_000, 875_000)),
        (Some(100), None, (500_000, 875_000)),
    ] {
        assert_eq!(lease(renewal_s, rebinding_s).renewals_ms(), Some(expected));
    }
}

#[test]
fn a_lease_is_applied_and_taken_off() {
    let request: LeaseRequest = serde_json::from_value(json!({
        "key": { "network": "n", "container": "c", "ifname": "eth0" }, "netns": "/n", "mac": "02:00:00:00:00:01",
        "request": [], "timeoutS": 10, "priority": 5, "mtuIsOpen": true,
        "routes": [{ "prefix": "10.0.0.0/8" }, { "prefix": "0.0.0.0/0", "gateway": "192.0.2.200", "priority": 5 }],
    }))
    .expect("a request");
    let there: Attachment = serde_json::from_value(json!({
        "key": request.key, "complete": true, "addresses": [], "attach": "macvlan", "master": "eth1", "mode": "bridge",
        "mac": "02:00:00:00:00:01", "mtu": 1500, "netns": "/n", "isLeased": true,
    }))
    .expect("an attachment");
    let far = "198.51.100.1".parse().ok();
    let route = |prefix: &str, gateway, priority| PodRoute {
        prefix: prefix.parse().expect("a prefix"),
        gateway,
        priority,
        extras: RouteExtras::default(),
    };
    let mut lease = Lease { terms: terms(9, SERVER, 60), begun_ms: 0, server_mac: None };
    let router = Some(SERVER.into());
    let asked = [route("10.0.0.0/8", router, 0), route("0.0.0.0/0", "192.0.2.200".parse().ok(), 5)];
    let applied = request.applied(Some(&lease), &there);
    assert_eq!(applied.routes, asked, "the configuration's default route goes before the server's");
    assert_eq!((applied.addresses[0].gateway, applied.mtu), (router, 1500));
    for (mtu, expected) in [(1400, 1400), (9000, 1500), (68, 1500)] {
        lease.terms.mtu = Some(mtu);
        assert_eq!(request.applied(Some(&lease), &there).mtu, expected, "{mtu}");
    }
    lease.terms.routes = vec![route("172.16.0.0/12", far, 0), route("203.0.113.0/24", None, 0)];
    let expected = [
        route("203.0.113.0/24", None, 5),
        route("198.51.100.1/32", None, 5),
        route("172.16.0.0/12", far, 5),
        asked[0],
        asked[1],
    ];
    let applied = request.applied(Some(&lease), &there);
    assert_eq!(applied.routes, expected, "what is on the link, then what is behind it");
    let off = request.applied(None, &applied);
    assert_eq!((off.addresses.len(), off.routes.len()), (0, 0));
    assert_eq!(request.client_id(), b"\0c/n/eth0");
}

#[test]
fn keys_of_the_reference_plugin_are_heeded_or_refused_by_name() {
    let parse = |ipam: serde_json::Value| {
        let mut conf = json!({ "cniVersion": "1.0.0", "name": "n", "attach": "macvlan", "ipam": { "type": "dhcp" } });
        conf["ipam"].as_object_mut().expect("an object").extend(ipam.as_object().expect("an object").clone());
        NetConf::parse(conf.to_string().as_bytes(), Verb::Add, Role::Loden)
    };
    let dhcp = |ipam| match parse(ipam).expect("sound").make.expect("ADD makes").ipam.source {
        IpamSource::Dhcp(conf) => conf,
        other => panic!("{other:?}"),
    };
    let usual = dhcp(json!({}));
    assert_eq!((usual.timeout_s, usual.priority, usual.provide.len()), (10, 0, 0));
    assert_eq!(usual.request[..3], [121, 1, 3], "RFC 3442: classless routes before routers");
    let skipped =
        json!({ "request": [{ "option": "routers", "skipDefault": true }, { "option": "42" }, { "option": "6" }] });
    let request = dhcp(skipped).request;
    assert!(!request.contains(&3) && request.ends_with(&[42, 6]), "{request:?}");
    for (ipam, named) in [
        (json!({ "provide": [{ "option": "53", "value": "x" }] }), "`ipam.provide[0].option` is \"53\""),
        (json!({ "provide": [{ "option": "12" }] }), "`value` or `fromArg`"),
        (json!({ "provide": [{ "option": "12", "value": "x".repeat(256) }] }), "at most 255 bytes"),
        (json!({ "provide": [{ "value": "x" }] }), "`ipam.provide[0].option`"),
        (json!({ "request": [{ "option": "256" }] }), "`ipam.request[0].option` is \"256\""),
        (json!({ "request": [{ "option": "gateway" }] }), "an option's name or number"),
        (json!({ "timeoutSeconds": 0 }), "1 to 100 seconds"),
        (json!({ "timeoutSeconds": 101 }), "1 to 100 seconds"),
    ] {
        let error = parse(ipam.clone()).expect_err("not sound");
        assert!(error.code == Code::InvalidConfig && error.to_string().contains(named), "{ipam}: {error}");
    }
}

proptest! {
    /// Whatever is heard and whenever: it never stands still, never holds what it was not given, and loses only what it held.
    #[test]
    fn any_order_of_events_is_survived(
        seed: u64,
        events in proptest::collection::vec((0_u64..5_000_000, 0_u8..8, 1_u8..5, any::<bool>()), 1..60),
    ) {
        let (mut now, mut held) = (0, None);
        let mut client = Client::new(now, seed, None);
        let mut xid = 0;
        for (pass, what, last, is_first) in events {
            now += pass;
            let server = if is_first { SERVER } else { OTHER };
            let mut actions = client.tick(now);
            xid = sent(&actions).last().map_or(xid, |message| message.xid);
            actions.extend(match what {
                0..3 => client.hear(now, xid, &Reply::Offer(terms(last, server, 3600)), None),
                3..6 => client.hear(now, xid, &Reply::Ack(terms(last, server, 3600)), None),
                6 => client.hear(now, xid, &nak(Some(server)), None),
                _ => client.in_use(now, Ipv4Addr::new(192, 0, 2, last), BY),
            });
            for action in &actions {
                match action {
                    Action::Hold(lease) => {
                        prop_assert!(held.is_none_or(|held| held == lease.terms.net));
                        held = Some(lease.terms.net);
                    }
                    Action::Lose(_) => prop_assert!(held.take().is_some()),
                    _ => {}
                }
            }
            let _ = client.tick(now);
            prop_assert!(client.due_ms() > now);
            if client.probed().is_none() {
                prop_assert_eq!(client.lease().map(|lease| lease.terms.net), held);
            }
        }
    }
}
