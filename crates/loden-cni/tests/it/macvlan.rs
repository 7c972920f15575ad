//! Macvlan: who reaches whom in each mode, with a switch outside whose port sends back (hairpin) or does not.

use std::net::IpAddr;
use std::time::Duration;

use loden_core::kernel::default_priority;
use loden_core::kernel::link::Port;
use loden_core::model::{Family, Mac, Prefix, SourceChange};
use loden_linux::ledger::Ledger;
use loden_linux::macvlan;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::NetNs;
use loden_linux::rt::{link, route};
use serde_json::{Value, json};

use crate::host::{Host, answer, key, reaches_within};
use crate::wire::{Wire, send};

fn conf(mode: &str, addr: &str) -> Value {
    json!({
        "attach": "macvlan", "master": "eth0", "mode": mode,
        "ipam": { "type": "static", "addresses": [{ "address": format!("192.0.2.{addr}/24") }, { "address": format!("2001:db8::{addr}/64") }] },
    })
}

fn ips(last: u8) -> [IpAddr; 2] {
    [IpAddr::from([192, 0, 2, last]), format!("2001:db8::{last}").parse().expect("an address")]
}

/// Whether `from` reaches `to`, which bears the addresses that end so, in both families; as `expected`, or not.
fn both(from: &NetNs, to: &NetNs, last: u8, expected: bool) -> bool {
    let patience = Duration::from_millis(if expected { 5000 } else { 300 });
    ips(last).into_iter().all(|addr| reaches_within(from, to, addr, patience) == expected)
}

/// What can be reached from a pod, and whether.
const PLACES: [&str; 4] = ["another pod", "the switch", "the master's address", "the host's own macvlan"];

/// Who reaches whom: for each mode and with hairpin at the switch's port off and on, the places in that order. `None`: there is no
/// such place. The host's own macvlan is one of mode bridge, and asks; the pods ask in the other columns. In mode source everybody
/// is listed; a broadcast of one of them that the switch sends back goes to who lists it and to no one else
/// (`macvlan_handle_frame`, drivers/net/macvlan.c), so that nobody asks the master for its Ethernet address.
const TABLE: [(&str, bool, [Option<bool>; 4]); 10] = [
    ("bridge", false, [Some(true), Some(true), Some(false), Some(true)]),
    ("bridge", true, [Some(true), Some(true), Some(true), Some(true)]),
    ("private", false, [Some(false), Some(true), Some(false), Some(false)]),
    ("private", true, [Some(false), Some(true), Some(false), Some(false)]),
    ("vepa", false, [Some(false), Some(true), Some(false), Some(false)]),
    ("vepa", true, [Some(true), Some(true), Some(true), Some(true)]),
    ("passthru", false, [None, Some(true), Some(false), None]),
    ("passthru", true, [None, Some(true), Some(false), None]),
    ("source", false, [Some(false), Some(true), Some(false), Some(false)]),
    ("source", true, [Some(true), Some(true), Some(false), Some(true)]),
];

#[test]
fn who_reaches_whom_in_each_mode() {
    let mut faults = Vec::new();
    for mode in ["bridge", "private", "vepa", "passthru", "source"] {
        let host = Host::new(&[]);
        let wire = Wire::new(&host);
        let pod = attach(&host, &wire, mode, 21).expect("attached");
        let other = attach(&host, &wire, mode, 22);
        assert_eq!(other.is_err(), mode == "passthru", "it takes the master whole: {other:?}");
        for (hairpin, row) in rows(mode) {
            wire.set_port(Port { hairpin, isolated: false });
            let places = [(other.as_ref().ok(), 22), (Some(&wire.switch), 2), (Some(host.ns()), 1)];
            for ((to, last), (place, expected)) in places.into_iter().zip(PLACES.iter().zip(row)) {
                assert_eq!(to.is_some(), expected.is_some(), "{mode}: {place}");
                if let Some((to, expected)) = to.zip(expected)
                    && !both(&pod, to, last, expected)
                {
                    faults.push(format!("{mode}, hairpin {hairpin}: {place}, not {expected}"));
                }
            }
        }
        faults.extend(from_the_hosts_own(mode));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn rows(mode: &str) -> impl Iterator<Item = (bool, [Option<bool>; 4])> {
    TABLE.into_iter().filter(move |(of, ..)| *of == mode).map(|(_, hairpin, row)| (hairpin, row))
}

/// Attaches a pod; in mode `source` all that there are here are listed.
fn attach(host: &Host, wire: &Wire, mode: &str, last: u8) -> Result<NetNs, (u64, String)> {
    let mac = |last: u8| Mac([2, 0, 0, 0, 0, last]);
    let mut conf = conf(mode, &last.to_string());
    if mode != "passthru" {
        conf["mac"] = json!(mac(last));
    }
    if mode == "source" {
        let on_host = host.links().into_iter().filter(|name| name == "eth0" || name == "mv0");
        let on_host = on_host.filter_map(|name| host.link(&name).link.mac);
        conf["sources"] = json!(on_host.chain([wire.mac(), mac(21), mac(22)]).collect::<Vec<_>>());
    }
    let pod = host.pod(&last.to_string());
    host.call("ADD", &last.to_string(), &conf).map(|_| pod)
}

/// The last column, on a host where another network's pod has brought the host's own macvlan.
fn from_the_hosts_own(mode: &str) -> Vec<String> {
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    let mut first = conf("bridge", "20");
    first["hostLink"] = "mv0".into();
    host.pod("20");
    host.call("ADD", "20", &first).expect("attached");
    let pod = attach(&host, &wire, mode, 21);
    let mut faults = Vec::new();
    for (hairpin, row) in rows(mode) {
        assert_eq!(pod.is_ok(), row[3].is_some(), "{mode}: {pod:?}");
        wire.set_port(Port { hairpin, isolated: false });
        if let Some((pod, expected)) = pod.as_ref().ok().zip(row[3])
            && !through_host_link(&host, || both(host.ns(), pod, 21, expected))
        {
            faults.push(format!("{mode}, hairpin {hairpin}: {}, not {expected}", PLACES[3]));
        }
    }
    faults
}

/// Does something while the host's way to the pod 21 is its own macvlan.
fn through_host_link<T: Send>(host: &Host, work: impl FnOnce() -> T + Send) -> T {
    let number = host.link("mv0").index;
    let routes = ips(21).map(|addr| (Prefix::host(addr), default_priority(Family::of(addr))));
    let mut w = Writer::default();
    for (prefix, priority) in routes {
        route::add(&mut w, prefix, priority, route::To::Link(number), true);
    }
    send(host.ns(), &mut w);
    let came = work();
    for (prefix, priority) in routes {
        route::delete(&mut w, prefix, priority);
    }
    send(host.ns(), &mut w);
    came
}

#[test]
fn the_host_reaches_its_pods_by_a_macvlan_of_its_own() {
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    let mut with = conf("bridge", "21");
    with["hostLink"] = "mv0".into();
    let pod = host.pod("21");
    let result = host.call("ADD", "21", &with).expect("attached");
    assert_eq!(host.call("CHECK", "21", &json!({ "prevResult": result })), Ok(Value::Null));
    assert!(both(host.ns(), &pod, 21, true), "host to pod");
    assert!(both(&pod, host.ns(), 1, true), "pod to the host's own address");
    assert!(both(&pod, &wire.switch, 2, true), "pod to the wire");
    assert!(both(host.ns(), &wire.switch, 2, true), "host to the wire");
    assert_eq!(host.pod_routes().len(), 2);
    host.call("DEL", "21", &json!({})).expect("detached");
    assert_eq!(host.pod_routes(), Vec::new());
}

#[test]
fn a_passed_through_interface_is_taken_whole() {
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    let pod = host.pod("21");
    let before = host.link("eth0").link.mac.expect("an address");
    let result = host.call("ADD", "21", &conf("passthru", "21")).expect("attached");
    assert_eq!(result["interfaces"][0]["mac"], before.to_string());
    assert!(both(&pod, &wire.switch, 2, true));
    host.pod("22");
    let (_, text) = host.call("ADD", "22", &conf("bridge", "22")).expect_err("it is taken");
    assert!(text.contains("passthru may have it whole"), "{text}");
    let (_, text) = host.call("ADD", "22", &conf("passthru", "22")).expect_err("it is taken");
    assert!(text.contains("eth0 has another macvlan already; mode passthru takes it whole"), "{text}");
    host.call("DEL", "21", &json!({})).expect("detached");
    let mut own = conf("passthru", "21");
    own["mac"] = "02:00:00:00:00:77".into();
    host.call("ADD", "21", &own).expect("attached");
    assert_eq!(host.link("eth0").link.mac, Some(Mac([2, 0, 0, 0, 0, 0x77])), "the master's follows the pod's");
    assert!(both(&pod, &wire.switch, 2, true));
}

#[test]
fn only_listed_senders_come_in_and_the_list_changes_live() {
    let host = Host::new(&[]);
    let wire = Wire::new(&host);
    let pod = host.pod("21");
    let sender = wire.mac();
    let mut listed = conf("source", "21");
    listed["sources"] = json!([sender]);
    host.call("ADD", "21", &listed).expect("attached");
    let other = Mac([2, 0, 0, 0, 0, 9]);
    let ledger = Ledger::new(host.run_dir());
    let change = |change| host.run_in(|| ledger.change_sources(&key("21"), &change)).expect("changed");
    assert!(both(&wire.switch, &pod, 21, true), "it is listed");
    for (how, list, reaches) in [
        (SourceChange::Set(vec![other]), vec![other], false),
        (SourceChange::Add(vec![sender]), sorted(&[other, sender]), true),
        (SourceChange::Remove(vec![sender]), vec![other], false),
        (SourceChange::Set(Vec::new()), vec![], false),
        (SourceChange::Add(vec![sender, sender]), vec![sender], true),
        (SourceChange::None, vec![sender], true),
    ] {
        assert_eq!(change(how), list);
        assert!(both(&wire.switch, &pod, 21, reaches), "{list:?}");
    }
    let seen = pod.run(|| macvlan::read(&mut Socket::open(Protocol::Route).expect("a socket"), key("21").ifname));
    let seen = seen.expect("a thread").expect("asked").expect("a macvlan");
    assert_eq!(seen.sources.into_iter().collect::<Vec<_>>(), [sender]);
}

fn sorted(list: &[Mac]) -> Vec<Mac> {
    let mut list = list.to_vec();
    list.sort();
    list
}

#[test]
fn a_list_that_somebody_else_changed_is_named_and_put_right_by_the_same_change() {
    let host = Host::new(&[]);
    let _wire = Wire::new(&host);
    let pod = host.pod("21");
    let [a, b] = [1, 2].map(|last| Mac([2, 0, 0, 0, 0, last]));
    let mut listed = conf("source", "21");
    listed["sources"] = json!([a]);
    listed["bcqueuelen"] = 2000.into();
    let result = host.call("ADD", "21", &listed).expect("attached");
    let mut previous = listed.clone();
    previous["prevResult"] = result;
    let check = || host.call("CHECK", "21", &previous);
    assert_eq!(check(), Ok(Value::Null));
    // As of a command that was killed before it had written the list down.
    macvlan::set_sources(&pod, key("21").ifname, &[b]).expect("set");
    let (code, text) = check().expect_err("the list differs");
    assert_eq!(code, 101);
    for words in [format!("does not let in {a}, which is listed"), format!("lets in {b}, which is not listed")] {
        assert!(text.contains(&words), "{text}");
    }
    let ledger = Ledger::new(host.run_dir());
    let change = |pod: &str, change| host.run_in(|| ledger.change_sources(&key(pod), &change));
    change("21", SourceChange::Set(vec![b])).expect("made again");
    assert_eq!(check(), Ok(Value::Null));
    // What is not to be had is said, and nothing has changed.
    let text = |pod, how| change(pod, how).expect_err("refused").to_string();
    assert!(text("99", SourceChange::None).contains("there is no attachment net/99/eth0"));
    assert!(text("21", SourceChange::Add(vec![Mac([0xff; 6])])).contains("list of senders of eth0"));
    host.pod("22");
    host.call("ADD", "22", &conf("bridge", "22")).expect("attached");
    assert!(text("22", SourceChange::Add(vec![a])).contains("is no macvlan in mode \"source\""));
    assert_eq!(check(), Ok(Value::Null));
    loden_linux::netns::remove(&host.netns_path("21")).expect("removed");
    assert!(text("21", SourceChange::Add(vec![a])).contains("the pod of attachment net/21/eth0 has gone"));
    assert_eq!(change("21", SourceChange::None).expect("what is written down"), [b]);
}

#[test]
fn pods_share_the_hosts_own_macvlan_and_the_last_takes_it_along() {
    let host = Host::new(&[]);
    let _wire = Wire::new(&host);
    let with = |addr: &str, link: &str| {
        let mut conf = conf("bridge", addr);
        conf["hostLink"] = link.into();
        conf
    };
    let add = |addr: &str, link: &str| {
        host.pod(addr);
        host.call("ADD", addr, &with(addr, link)).expect("attached");
    };
    let links = |host: &Host| host.links().into_iter().filter(|name| name != "eth0").collect::<Vec<_>>();
    // One that somebody else made is used, and stays.
    let ip = |args: &[&str]| {
        let mut command = std::process::Command::new("ip");
        loden_linux::spawn::in_netns(command.args(args), host.ns(), true).expect("the host's namespace");
        assert!(command.status().expect("ip").success(), "{args:?}");
    };
    ip(&["link", "add", "theirs", "link", "eth0", "type", "macvlan", "mode", "bridge"]);
    ip(&["link", "set", "theirs", "up"]);
    for addr in ["21", "22"] {
        add(addr, "mv0");
    }
    add("23", "theirs");
    let before = host.link("mv0").index;
    host.call("DEL", "21", &json!({})).expect("detached");
    assert_eq!(host.link("mv0").index, before, "the other pod uses it");
    host.call("DEL", "23", &json!({})).expect("detached");
    host.call("DEL", "22", &json!({})).expect("detached");
    assert_eq!(links(&host), ["theirs"]);
    // By GC, and by the sweep of what a killed ADD left.
    add("24", "mv0");
    host.call("GC", "", &json!({ "cni.dev/valid-attachments": [] })).expect("collected");
    assert_eq!(links(&host), ["theirs"]);
    add("25", "mv0");
    std::fs::remove_file(host.attachment_file("25")).expect("lost");
    host.sweep();
    assert_eq!(links(&host), ["theirs"]);
    // An ADD that fails after it.
    host.pod("26");
    let mut taken = with("26", "mv0");
    taken["ipam"]["addresses"] = json!([{ "address": "192.0.2.26/24" }]);
    taken["ipam"]["routes"] = json!([{ "dst": "10.0.0.0/8", "gw": "203.0.113.9" }]);
    let (_, text) = host.call("ADD", "26", &taken).expect_err("its gateway is out of reach");
    assert!(text.contains("route 10.0.0.0/8 of eth0 in the pod"), "{text}");
    assert_eq!(links(&host), ["theirs"]);
}

#[test]
fn a_master_that_is_down_or_gone_is_named() {
    let host = Host::new(&[]);
    let _wire = Wire::new(&host);
    host.pod("21");
    let mut with = conf("bridge", "21");
    with["hostLink"] = "mv0".into();
    let result = host.call("ADD", "21", &with).expect("attached");
    let mut previous = with.clone();
    previous["prevResult"] = result;
    let check = || host.call("CHECK", "21", &previous).expect_err("it is broken").1;
    let eth0 = "eth0".parse().expect("a name");
    let mut w = Writer::default();
    link::set_up(&mut w, eth0, false);
    send(host.ns(), &mut w);
    assert!(check().contains("the macvlan's master eth0 is down"), "{}", check());
    link::delete(&mut w, eth0);
    send(host.ns(), &mut w);
    let text = check();
    for words in
        ["the macvlan's master eth0 is gone", "mv0, the host's own macvlan, is missing", "eth0 is missing in the pod"]
    {
        assert!(text.contains(words), "{text}");
    }
    host.call("DEL", "21", &json!({})).expect("detached, though nothing is left");
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn what_does_not_fit_is_said() {
    let host = Host::new(&[]);
    let _wire = Wire::new(&host);
    host.pod("21");
    let refused = |key: &str, value: Value| {
        let mut with = conf("bridge", "21");
        with[key] = value;
        host.call("ADD", "21", &with).expect_err(key)
    };
    for (key, value, code, words) in [
        ("master", json!("eth9"), 7, "master eth9: there is no such interface"),
        ("mtu", json!(9000), 7, "more than the 1500 of eth0"),
        ("mode", json!("l2"), 7, "\"vepa\""),
        ("sources", json!(["02:00:00:00:00:01"]), 7, "belongs to the mode \"source\""),
    ] {
        let (is, text) = refused(key, value);
        assert!(is == code && text.contains(words), "{key}: {is} {text}");
    }
    // Without a master it is that of the default route, and there is none.
    let mut with = conf("bridge", "21");
    with.as_object_mut().expect("an object").remove("master");
    let (_, text) = host.call("ADD", "21", &with).expect_err("no default route");
    assert!(text.contains("no default route"), "{text}");
    assert_eq!(host.leftovers(), ["eth0"]);
}

#[test]
fn the_master_may_be_in_the_pod() {
    let host = Host::new(&["10.1.0.0/24"]);
    let pod = host.pod("21");
    host.call("ADD", "21", &json!({})).expect("eth0 by the bridge");
    let mut inner = conf("bridge", "21");
    inner["linkInContainer"] = true.into();
    let inner = host.conf("1.1.0", &inner);
    answer(&host.exec("ADD", "21", inner.as_bytes(), &[("CNI_IFNAME", "net1")])).expect("net1 beside it");
    let seen = pod.run(|| {
        let mut socket = loden_linux::netlink::Socket::open(loden_linux::netlink::Protocol::Route).expect("a socket");
        link::read(&mut socket, "net1".parse().expect("a name")).expect("asked")
    });
    assert_eq!(seen.expect("a thread").expect("there").link.kind.name(), "macvlan");
    answer(&host.exec("DEL", "21", inner.as_bytes(), &[("CNI_IFNAME", "net1")])).expect("detached");
    host.call("DEL", "21", &json!({})).expect("detached");
    host.reap();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
