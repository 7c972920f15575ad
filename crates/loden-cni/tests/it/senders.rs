//! `macspoofchk`: a port of a bridge takes in frames from its pod's own Ethernet address alone.

use std::process::Command;
use std::time::Duration;

use loden_core::attach;
use loden_core::kernel::nft::{TABLE_SENDERS, Table};
use loden_core::model::Mac;
use loden_linux::ledger::Ledger;
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::netns::NetNs;
use loden_linux::nft::{Nft, Ownership};
use loden_linux::packet::{self, PacketSocket};
use loden_linux::rt::link;
use loden_linux::spawn;
use serde_json::{Value, json};

use crate::host::{Host, key, reaches};
use crate::ports::elements;

/// For local experiments (IEEE 802): nobody else's frames have it.
const PROTOCOL: [u8; 2] = [0x88, 0xb5];
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 0x66]);
const BROADCAST: Mac = Mac([0xff; 6]);

fn network(check: bool) -> Value {
    json!({
        "bridge": "br1", "isGateway": true, "macspoofchk": check,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/24" }], [{ "subnet": "fd07::/64" }]] },
    })
}

fn listen(ns: &NetNs, dev: &str) -> PacketSocket {
    let name = dev.parse().expect("a name");
    let open = || {
        let number = link::number_of(&Socket::open(Protocol::Route).expect("a socket"), name).expect("asked");
        PacketSocket::open(number.expect("there"), packet::ALL).expect("a packet socket")
    };
    ns.run(open).expect("a thread")
}

/// Sends a frame from each of the addresses, and then one from `own`, whose arrival ends the wait: frames do not overtake each
/// other. Gives the senders of those that came through.
fn senders(pod: &NetNs, listener: &PacketSocket, from: &[Mac], own: Mac) -> Vec<Mac> {
    let socket = listen(pod, "eth0");
    for (last, mac) in from.iter().map(|mac| (0, mac)).chain([(1, &own)]) {
        let frame = [&BROADCAST.0[..], &mac.0, &PROTOCOL, &[last; 46]].concat();
        socket.send(&frame).expect("sent");
    }
    let mut seen = Vec::new();
    loop {
        let frame = listener.receive(Duration::from_secs(5)).expect("received").expect("the last frame comes");
        if frame.is_sent || frame.bytes.get(12..14) != Some(&PROTOCOL) {
            continue;
        }
        if frame.bytes[14] == 1 {
            return seen;
        }
        seen.push(Mac(frame.bytes[6..12].try_into().expect("six bytes")));
    }
}

fn mac_of(result: &Value) -> Mac {
    result["interfaces"][2]["mac"].as_str().expect("an address").parse().expect("an address")
}

fn table(host: &Host) -> Option<Table> {
    host.run_in(|| Nft::open(TABLE_SENDERS, Ownership::Shared).expect("a socket").observe().expect("observed"))
}

fn nft(host: &Host, args: &[&str]) -> String {
    let mut command = Command::new("nft");
    spawn::in_netns(command.args(args), host.ns(), true).expect("the host's namespace");
    let output = command.output().expect("nft");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn frames_from_another_ethernet_address_get_nowhere() {
    let host = Host::new(&[]);
    let (a, b, free) = (host.pod("a"), host.pod("b"), host.pod("free"));
    let own = mac_of(&host.call("ADD", "a", &network(true)).expect("attached"));
    let others = mac_of(&host.call("ADD", "b", &network(true)).expect("attached"));
    let unchecked = mac_of(&host.call("ADD", "free", &network(false)).expect("attached"));
    assert_eq!(elements(&host), 4, "a port and its sender, twice");
    let (to_pod, to_host) = (listen(&b, "eth0"), listen(host.ns(), "br1"));
    for listener in [&to_pod, &to_host] {
        assert_eq!(senders(&a, listener, &[OTHER, own, others], own), [own], "made up, its own, its neighbour's");
        assert_eq!(senders(&free, listener, &[OTHER], unchecked), [OTHER], "nobody asked for that");
    }
    for addr in ["10.7.0.3", "fd07::3"] {
        assert!(reaches(&a, &b, addr.parse().expect("an address")), "{addr}");
    }
    assert!(reaches(&a, host.ns(), "10.7.0.1".parse().expect("an address")));
    let shown = nft(&host, &["list", "table", "bridge", TABLE_SENDERS.name]);
    let [dev, _] = attach::host_sides(&key("a"));
    for words in [&format!("\"{dev}\" . {own}"), "iifname @checked iifname . ether saddr != @own counter packets 4 "] {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
}

#[test]
fn a_flushed_table_is_named_made_again_and_left_without_a_trace() {
    let host = Host::new(&[]);
    let a = host.pod("a");
    let result = host.call("ADD", "a", &network(true)).expect("attached");
    let own = mac_of(&result);
    let wanted = table(&host).expect("a table");
    let mut previous = network(true);
    previous["prevResult"] = result;
    let check = || host.call("CHECK", "a", &previous);
    assert_eq!(check(), Ok(Value::Null));
    let ledger = Ledger::new(host.run_dir());
    let repair = || host.run_in(|| ledger.repair_tables()).expect("repaired");
    let listener = listen(host.ns(), "br1");
    for (broken, words) in [
        (vec!["flush", "chain", "bridge", TABLE_SENDERS.name, "incoming"], "chain incoming of nft table bridge"),
        (vec!["flush", "set", "bridge", TABLE_SENDERS.name, "checked"], "is missing in checked of nft table bridge"),
        (vec!["flush", "ruleset"], "nft table bridge loden_senders is missing"),
    ] {
        nft(&host, &broken);
        assert_eq!(senders(&a, &listener, &[OTHER], own), [OTHER], "{broken:?}");
        let (code, text) = check().expect_err("it is broken");
        assert!(code == 101 && text.contains(words), "{text}");
        assert_eq!((repair(), repair()), (vec![TABLE_SENDERS], Vec::new()), "as the agent does");
        assert_eq!(table(&host).as_ref(), Some(&wanted));
        assert_eq!(senders(&a, &listener, &[OTHER], own), []);
    }
    // The runtime has removed the namespace, and says nothing of it.
    loden_linux::netns::remove(&host.netns_path("a")).expect("removed");
    let conf = host.conf("1.1.0", &network(false));
    let gone = host.exec("DEL", "a", conf.as_bytes(), &[("CNI_NETNS", "")]);
    assert!(gone.status.success(), "{gone:?}");
    assert_eq!(elements(&host), 0);
    assert_eq!(host.leftovers(), ["br1"]);
}
