//! Ports of the host that lead to pods: for clients on the wire, on the host, in the pod itself and in its neighbours.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use loden_core::kernel::nft::{TABLE_PORTS, Table};
use loden_core::pod_tables;
use loden_linux::ledger::Ledger;
use loden_linux::netns::NetNs;
use loden_linux::nft::{Nft, Ownership};
use loden_linux::rt::route;
use loden_linux::spawn;
use serde_json::{Value, json};

use crate::host::{Host, answer};
use crate::wire::{Wire, send};

const PATIENCE: Duration = Duration::from_secs(3);

fn network(more: &Value) -> Value {
    let mut conf = json!({
        "bridge": "br1",
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/24" }], [{ "subnet": "fd07::/64" }]] },
    });
    if let (Value::Object(conf), Value::Object(more)) = (&mut conf, more) {
        conf.extend(more.clone());
    }
    conf
}

fn ports(list: &Value) -> Value {
    network(&json!({ "runtimeConfig": { "portMappings": list } }))
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect(text)
}

/// What a client in `from` is answered at `to` by the server in the pod: its name, and who it saw.
fn ask_tcp(pod: &NetNs, listen: &str, from: &NetNs, to: &str) -> Option<IpAddr> {
    // A program that another test is starting just now has the last one open until it begins.
    let until = Instant::now() + PATIENCE;
    let listener = loop {
        match pod.run(|| TcpListener::bind(listen)).expect("a thread") {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            bound => break bound.expect("bound"),
        }
    };
    listener.set_nonblocking(true).expect("set");
    // The first packet to a neighbour may be lost; it is sent again after a second (RFC 6298 section 2.1).
    let stream = from.run(|| TcpStream::connect_timeout(&at(to), PATIENCE).ok()).expect("a thread");
    let mut stream = stream?;
    let (mut accepted, client) = listener.accept().ok()?;
    accepted.set_nonblocking(false).expect("set");
    accepted.write_all(b"hello").expect("written");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut buf = [0; 5];
    stream.read_exact(&mut buf).ok()?;
    Some(client.ip().to_canonical())
}

fn table(host: &Host) -> Option<Table> {
    host.run_in(|| Nft::open(TABLE_PORTS, Ownership::Shared).expect("a socket").observe().expect("observed"))
}

/// How much is in the plugin's tables, of all pods.
pub fn elements(host: &Host) -> usize {
    let read = |name| Nft::open(name, Ownership::Shared).expect("a socket").observe().expect("observed");
    let tables = pod_tables::ALL.into_iter().filter_map(|table| host.run_in(|| read((table.frame)().name)));
    tables.flat_map(|table| table.sets).map(|(_, set)| set.elements.len()).sum()
}

/// The switch reaches the host's pods by nothing but the host's own addresses.
fn wired(host: &Host) -> Wire {
    Wire::new(host)
}

#[test]
fn everybody_reaches_a_port() {
    for (attach, br_netfilter) in [("bridge", 0), ("bridge", 1), ("routed", 0)] {
        let host = Host::new(&["10.1.0.0/24", "fd01::/64"]);
        for path in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            host.run_in(|| loden_linux::sysctl::write(path, br_netfilter)).expect("written");
        }
        let wire = wired(&host);
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            host.run_in(|| loden_linux::sysctl::write(path, 1)).expect("written");
        }
        if attach == "routed" {
            // The proxy answers for what the host has a way to.
            let mut w = loden_linux::netlink::Writer::default();
            let way = route::To::Gateway(host.link("eth0").index, "192.0.2.2".parse().expect("an address"));
            route::add_foreign(&mut w, "0.0.0.0/0".parse().expect("a prefix"), 0, way);
            send(host.ns(), &mut w);
        }
        let (pod, other) = (host.pod("a"), host.pod("b"));
        let mut conf = ports(&json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]));
        let object = conf.as_object_mut().expect("an object");
        object.remove("bridge");
        object.remove("ipam");
        object.insert("attach".to_owned(), attach.into());
        let result = host.call("ADD", "a", &conf).expect("attached");
        host.call("ADD", "b", &json!({ "attach": attach })).expect("attached");
        let asked = |from: &NetNs, to: &str, listen: &str| ask_tcp(&pod, listen, from, to);
        let wire_client: IpAddr = [192, 0, 2, 2].into();
        assert_eq!(asked(&wire.switch, "192.0.2.1:8080", "0.0.0.0:80"), Some(wire_client), "{attach}: its own address");
        let six = asked(&wire.switch, "[2001:db8::1]:8080", "[::]:80");
        assert_eq!(six, Some("2001:db8::2".parse().expect("an address")), "{attach}");
        for (what, from, to, listen) in [
            ("the host by its address", host.ns(), "192.0.2.1:8080", "0.0.0.0:80"),
            ("the host by its loopback address", host.ns(), "127.0.0.1:8080", "0.0.0.0:80"),
            ("the host in IPv6", host.ns(), "[2001:db8::1]:8080", "[::]:80"),
            ("the pod itself", &pod, "192.0.2.1:8080", "0.0.0.0:80"),
            ("the pod itself in IPv6", &pod, "[2001:db8::1]:8080", "[::]:80"),
            ("its neighbour", &other, "192.0.2.1:8080", "0.0.0.0:80"),
            ("its neighbour in IPv6", &other, "[2001:db8::1]:8080", "[::]:80"),
        ] {
            assert!(asked(from, to, listen).is_some(), "{attach}: {what}");
        }
        assert_eq!(asked(&wire.switch, "192.0.2.1:8081", "0.0.0.0:80"), None, "another port");
        let mut check = conf.clone();
        check["prevResult"] = result;
        assert_eq!(host.call("CHECK", "a", &check), Ok(Value::Null), "{attach}");
        host.call("DEL", "a", &json!({})).expect("detached");
        assert_eq!(elements(&host), 0, "{attach}");
        assert_eq!(asked(&wire.switch, "192.0.2.1:8080", "0.0.0.0:80"), None, "{attach}: it is gone");
    }
}

#[test]
fn nobody_gets_at_the_hosts_loopback_address_by_it() {
    let host = Host::new(&[]);
    let pod = host.pod("a");
    host.call("ADD", "a", &ports(&json!([{ "hostPort": 8080, "containerPort": 80 }]))).expect("attached");
    let secret = host.run_in(|| UdpSocket::bind("127.0.0.1:5555").expect("bound"));
    secret.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    let number = pod.run(|| {
        let socket = loden_linux::netlink::Socket::open(loden_linux::netlink::Protocol::Route).expect("a socket");
        loden_linux::rt::link::number_of(&socket, "eth0".parse().expect("a name")).expect("asked").expect("there")
    });
    pod.run(|| {
        // What a pod with the rights over its own network would do.
        for path in ["net/ipv4/conf/all/route_localnet", "net/ipv4/conf/eth0/route_localnet"] {
            loden_linux::sysctl::write(path, 1).expect("written");
        }
    })
    .expect("a thread");
    let mut w = loden_linux::netlink::Writer::default();
    let way = route::To::Gateway(number.expect("a thread"), "10.7.0.1".parse().expect("an address"));
    loden_linux::rt::link::set_up(&mut w, "lo".parse().expect("a name"), false);
    route::add_foreign(&mut w, "127.0.0.1/32".parse().expect("a prefix"), 0, way);
    send(&pod, &mut w);
    pod.run(|| UdpSocket::bind("0.0.0.0:0").expect("bound").send_to(b"knock", "127.0.0.1:5555"))
        .expect("a thread")
        .ok();
    assert!(secret.recv(&mut [0; 8]).is_err(), "it was let in");
}

#[test]
fn a_port_is_at_one_address_where_it_is_asked_for_there() {
    let host = Host::new(&[]);
    let wire = wired(&host);
    let (one, all) = (host.pod("one"), host.pod("all"));
    let list = json!([{ "hostPort": 8080, "containerPort": 80, "hostIP": "192.0.2.1" }]);
    host.call("ADD", "one", &ports(&list)).expect("attached");
    host.call("ADD", "all", &ports(&json!([{ "hostPort": 8080, "containerPort": 80, "hostIP": "::" }])))
        .expect("attached");
    assert!(ask_tcp(&one, "0.0.0.0:80", &wire.switch, "192.0.2.1:8080").is_some());
    assert!(ask_tcp(&one, "[::]:80", &wire.switch, "[2001:db8::1]:8080").is_none());
    assert!(ask_tcp(&all, "[::]:80", &wire.switch, "[2001:db8::1]:8080").is_some());
    assert!(ask_tcp(&one, "0.0.0.0:80", host.ns(), "127.0.0.1:8080").is_none(), "that is another address");
}

#[test]
fn a_port_that_leads_to_another_is_refused_by_name_and_nothing_is_left() {
    let host = Host::new(&[]);
    for pod in ["a", "b"] {
        host.pod(pod);
    }
    let list = json!([{ "hostPort": 8080, "containerPort": 80 }, { "hostPort": 8443, "containerPort": 443 }]);
    host.call("ADD", "a", &ports(&list)).expect("attached");
    let before = elements(&host);
    let second = json!([{ "hostPort": 9000, "containerPort": 90 }, { "hostPort": 8443, "containerPort": 443 }]);
    let (code, text) = host.call("ADD", "b", &ports(&second)).expect_err("it is taken");
    assert_eq!(code, 102, "{text}");
    assert!(text.contains("port 8443/tcp of the host is asked for and leads to attachment net/a/eth0"), "{text}");
    assert_eq!(elements(&host), before);
    assert_eq!(host.run_dir().attachments().good.len(), 1);
    // The same number of another protocol is another port.
    let udp = json!([{ "hostPort": 8443, "containerPort": 443, "protocol": "UDP" }]);
    host.call("ADD", "b", &ports(&udp)).expect("attached");
    for pod in ["a", "b"] {
        host.call("DEL", pod, &json!({})).expect("detached");
        host.call("DEL", pod, &json!({})).expect("twice");
    }
    assert_eq!(elements(&host), 0);
}

#[test]
fn a_client_of_udp_that_goes_on_sending_is_led_to_who_has_the_port_now() {
    let host = Host::new(&[]);
    let wire = wired(&host);
    let client = wire.switch.run(|| UdpSocket::bind("192.0.2.2:4000").expect("bound")).expect("a thread");
    let ask = |patience| {
        client.set_read_timeout(Some(patience)).expect("set");
        client.send_to(b"?", "192.0.2.1:5353").expect("sent");
        let mut buf = [0; 8];
        client.recv(&mut buf).ok().map(|len| String::from_utf8_lossy(&buf[..len]).into_owned())
    };
    // Before anybody has the port a flow to the host itself comes to be.
    let listener = host.run_in(|| UdpSocket::bind("0.0.0.0:5353").expect("bound"));
    assert_eq!(ask(Duration::from_millis(200)), None);
    drop(listener);
    for name in ["first", "second"] {
        let pod = host.pod(name);
        let list = json!([{ "hostPort": 5353, "containerPort": 53, "protocol": "udp" }]);
        host.call("ADD", name, &ports(&list)).expect("attached");
        let server = pod.run(|| UdpSocket::bind("0.0.0.0:53").expect("bound")).expect("a thread");
        server.set_read_timeout(Some(PATIENCE)).expect("set");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buf = [0; 8];
                if let Ok((_, from)) = server.recv_from(&mut buf) {
                    server.send_to(name.as_bytes(), from).expect("sent");
                }
            });
            assert_eq!(ask(PATIENCE).as_deref(), Some(name));
        });
        host.call("DEL", name, &json!({})).expect("detached");
    }
}

#[test]
fn a_table_that_somebody_flushed_is_made_again_with_everybodys_ports() {
    let host = Host::new(&[]);
    for pod in ["a", "b", "c"] {
        host.pod(pod);
    }
    let one = |port: u16| ports(&json!([{ "hostPort": port, "containerPort": 80 }]));
    host.call("ADD", "a", &one(8001)).expect("attached");
    let wanted = table(&host).expect("a table");
    let nft = |args: &[&str]| {
        let mut command = Command::new("nft");
        spawn::in_netns(command.args(args), host.ns(), true).expect("the host's namespace");
        assert!(command.status().expect("nft").success());
    };
    nft(&["flush", "ruleset"]);
    assert_eq!(table(&host), None);
    host.call("ADD", "b", &one(8002)).expect("attached");
    assert_eq!(elements(&host), 12, "a's as well: a port and a way back in each family");
    // What the agent does as soon as it hears of it.
    let ledger = Ledger::new(host.run_dir());
    let repair = || host.run_in(|| ledger.repair_tables()).expect("repaired");
    assert_eq!(repair(), [], "nothing is to be done");
    nft(&["flush", "chain", "inet", TABLE_PORTS.name, "incoming"]);
    nft(&["delete", "element", "inet", TABLE_PORTS.name, "ports_v4", "{ tcp . 8001 }"]);
    nft(&["add", "element", "inet", TABLE_PORTS.name, "ports_v4", "{ tcp . 1 : 10.7.0.9 . 1 }"]);
    assert_eq!((repair(), repair()), (vec![TABLE_PORTS], Vec::new()));
    host.call("DEL", "b", &json!({})).expect("detached");
    assert_eq!(table(&host), Some(wanted));
    // A table that is gone keeps no pod from going.
    nft(&["flush", "ruleset"]);
    host.call("DEL", "a", &json!({})).expect("detached");
}

#[test]
fn what_the_table_says_is_what_nft_shows() {
    let host = Host::new(&[]);
    host.pod("a");
    let list = json!([{ "hostPort": 8001, "containerPort": 80 }, { "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1" }]);
    let mut conf = ports(&list);
    conf["ipMasq"] = true.into();
    host.call("ADD", "a", &conf).expect("attached");
    let mut command = Command::new("nft");
    command.args(["list", "table", "inet", TABLE_PORTS.name]);
    spawn::in_netns(&mut command, host.ns(), true).expect("the host's namespace");
    let shown = String::from_utf8(command.output().expect("nft").stdout).expect("text");
    for words in ["tcp . 8001 : 10.7.0.2 . 80", "127.0.0.1 . udp . 53 : 10.7.0.2 . 5353", "elements = { 10.7.0.2 }"] {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
}

#[test]
fn packets_to_the_outside_take_the_hosts_address_where_that_is_asked_for() {
    let host = Host::new(&[]);
    let wire = wired(&host);
    let server = wire.switch.run(|| UdpSocket::bind("[::]:4000").expect("bound")).expect("a thread");
    server.set_read_timeout(Some(PATIENCE)).expect("set");
    let from = |pod: &NetNs, to: &str| {
        pod.run(|| {
            let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            UdpSocket::bind(any).expect("bound").send_to(b"hello", to).expect("sent");
        })
        .expect("a thread");
        server.recv_from(&mut [0; 8]).expect("received").1.ip().to_canonical()
    };
    let (hidden, shown) = (host.pod("hidden"), host.pod("shown"));
    let result = host.call("ADD", "hidden", &network(&json!({ "ipMasq": true }))).expect("attached");
    host.call("ADD", "shown", &network(&json!({}))).expect("attached");
    for (to, own, pods) in
        [("192.0.2.2:4000", "192.0.2.1", "10.7.0.3"), ("[2001:db8::2]:4000", "2001:db8::1", "fd07::3")]
    {
        assert_eq!(from(&hidden, to).to_string(), own);
        assert_eq!(from(&shown, to).to_string(), pods);
    }
    let conf = host.conf("1.1.0", &network(&json!({ "prevResult": result })));
    assert_eq!(answer(&host.exec("CHECK", "hidden", conf.as_bytes(), &[])), Ok(Value::Null));
    host.call("DEL", "hidden", &json!({})).expect("detached");
    assert_eq!(elements(&host), 0);
}
