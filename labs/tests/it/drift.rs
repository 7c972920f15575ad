//! Every kind of object is changed by hand, and made right again; what others made beside it stays.

use std::collections::BTreeSet;

use loden_core::api::Event;
use loden_core::kernel::nft::{TABLE_PORTS, TABLE_SENDERS};
use loden_core::kernel::{Kernel, Key, Object, Observed, Scope, Sort};
use loden_core::model::IfName;
use loden_lab::Lab;
use loden_linux::netlink::Writer;
use loden_linux::nft::{Nft, Ownership};
use loden_linux::rt::{address, link, neighbour, nexthop, route};
use loden_linux::{LinuxKernel, sysctl};
use rustix::process::Signal;

use crate::support::{POOLS, SEGMENT, all_reach, by_hand, hosts, number, say, up, wait_for};

/// All of host1's but the nftables table, which only its owner can look at without taking it over.
pub fn observe(lab: &Lab, more: &[IfName]) -> Observed {
    let sorts: BTreeSet<Sort> =
        [Sort::Link, Sort::Address, Sort::Nexthop, Sort::Neighbour, Sort::Fdb, Sort::Route].into();
    let links = ["cni0", "flannel.1", "flannel-v6.1"].map(dev);
    let links = links.into_iter().chain(more.iter().copied()).collect();
    let scope = Scope { sorts, links, ..Scope::default() };
    let seen = lab.netns("host1").expect("netns").run(|| LinuxKernel::open().expect("kernel").observe(&scope));
    seen.expect("a thread").expect("observed")
}

fn dev(name: &str) -> IfName {
    name.parse().expect("name")
}

#[test]
fn each_kind_of_drift_is_repaired_and_named_and_foreign_things_stay() {
    let lab = up("drift", &[SEGMENT, &hosts(2, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    foreign(&lab);
    let before = observe(&lab, &[]);
    let index = |name: &str| number(&lab, "host1", name).expect("a link");
    let (vtep, bridge) = (index("flannel.1"), index("cni0"));
    let find = |wanted: fn(&Key, &Object) -> bool| {
        before
            .iter()
            .find(|(key, object)| wanted(key, object))
            .map(|(key, object)| (*key, object.clone()))
            .expect("there")
    };
    let (route_key, _) = find(|key, _| matches!(key, Key::Route(prefix, _) if prefix.network().is_ipv4()));
    let (neighbour_key, _) = find(|key, _| matches!(key, Key::Neighbour(..)));
    let (fdb_key, _) = find(|key, _| matches!(key, Key::Fdb(dev, _) if dev.as_str() == "flannel.1"));
    let (address_key, _) =
        find(|key, _| matches!(key, Key::Address(dev, net) if dev.as_str() == "cni0" && net.addr().is_ipv4()));

    type Break<'a> = (&'a str, Box<dyn Fn(&mut Writer) + Send + Sync + 'a>);
    let breaks: Vec<Break<'_>> = vec![
        (
            "route deleted",
            Box::new(move |w| {
                if let Key::Route(prefix, priority) = route_key {
                    route::delete(w, prefix, priority)
                }
            }),
        ),
        ("nexthop deleted", Box::new(|w| nexthop::delete(w, nexthop_id(&lab)))),
        (
            "neighbour deleted",
            Box::new(|w| {
                if let Key::Neighbour(dev, addr) = neighbour_key {
                    neighbour::delete(w, index(dev.as_str()), addr)
                }
            }),
        ),
        (
            "FDB entry deleted",
            Box::new(move |w| {
                if let Key::Fdb(_, mac) = fdb_key {
                    neighbour::delete_fdb(w, vtep, mac)
                }
            }),
        ),
        (
            "address deleted",
            Box::new(move |w| {
                if let Key::Address(_, net) = address_key {
                    address::delete(w, net, bridge)
                }
            }),
        ),
        ("VTEP device down", Box::new(|w| link::set_up(w, dev("flannel.1"), false))),
        ("bridge down", Box::new(|w| link::set_up(w, dev("cni0"), false))),
        ("MTU changed", Box::new(|w| link::set_mtu(w, dev("flannel.1"), 1300))),
        ("MAC changed", Box::new(|w| set_mac(w, "flannel.1"))),
        ("VTEP device deleted", Box::new(|w| link::delete(w, dev("flannel.1")))),
        ("bridge deleted", Box::new(|w| link::delete(w, dev("cni0")))),
    ];
    let mut times = Vec::new();
    for (what, break_it) in &breaks {
        let last = agent.events(0).expect("events").last().map_or(0, |event| event.seq);
        by_hand(&lab, "host1", break_it);
        let took = wait_for(what, || observe(&lab, &[]) == before);
        times.push((took.as_secs_f64() * 1000.0, *what));
        wait_for("an event that names it", || {
            agent.events(last).expect("events").iter().any(|event| event.sort == "repair" && !event.object.is_empty())
        });
        all_reach(&lab);
    }
    let path = "net/ipv4/conf/flannel.1/rp_filter";
    lab.netns("host1").expect("netns").run(|| sysctl::write(path, 1)).expect("thread").expect("written");
    let read = || lab.netns("host1").expect("netns").run(|| sysctl::read(path)).expect("thread").expect("read");
    times.push((wait_for("sysctl", || read() == Some(2)).as_secs_f64() * 1000.0, "sysctl changed"));

    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    times.iter().for_each(|(ms, what)| say(&format!("{what:24} repaired after {ms:7.1} ms")));
    say(&format!("median {:.1} ms, worst {:.1} ms", times[times.len() / 2].0, times[times.len() - 1].0));
    assert!(foreign_is_there(&lab));
    let after = agent.status().expect("a status");
    assert_eq!((after.kernel.pending, after.kernel.failing.len()), (0, 0));
}

/// The table is owned: while the agent lives the kernel keeps others from it, and what they do while it is away is undone when
/// it is back.
#[test]
fn a_flushed_table_is_kept_or_made_again_and_foreign_tables_stay() {
    let lab = up("flushed", &[SEGMENT, &hosts(1, ""), POOLS].concat());
    let agent = lab.agent("host1").expect("an agent");
    let nft = |words: &str| {
        let args = ["-c".to_owned(), format!("nft {words} >/dev/null 2>&1")];
        lab.exec("host1", "sh", &args).expect("sh") == 0
    };
    assert!(nft("list ruleset"), "nft is installed by `cargo xtask test`");
    assert!(!nft("delete table inet loden"));
    assert!(!nft("flush table inet loden"));
    assert!(nft("flush ruleset"), "the kernel passes over tables that others own");
    assert!(nft("list table inet loden"));
    assert_eq!(agent.plan().expect("a plan").text, "");
    all_reach(&lab);

    assert!(nft("add table inet foreign"));
    for by_hand in ["flush table inet loden", "delete table inet loden"] {
        agent.end(Signal::KILL).expect("it ends");
        assert!(nft(by_hand), "without its agent nobody owns the table");
        agent.start(&lab.binaries().lodend, false).expect("it starts");
        agent.wait_ready().expect("it gets ready");
        assert_eq!(agent.plan().expect("a plan").text, "", "{by_hand}");
        assert_eq!(agent.status().expect("a status").kernel.writes.values().sum::<u64>(), 1, "{by_hand}");
        all_reach(&lab);
    }
    assert!(nft("list table inet foreign"));
}

fn nexthop_id(lab: &Lab) -> u32 {
    use loden_linux::netlink::{Protocol, Socket};
    let all = lab.netns("host1").expect("netns").run(|| {
        let mut w = Writer::default();
        nexthop::list(&mut w);
        let mut socket = Socket::open(Protocol::Route).expect("socket");
        socket.dump("nexthops", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(nexthop::parse(m.payload)))
    });
    all.expect("thread").expect("nexthops").iter().find(|seen| seen.ours).expect("one of ours").id
}

pub fn set_mac(w: &mut Writer, name: &str) {
    w.begin(link::SET, 0);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, name);
    w.mac(link::ifla::ADDRESS, loden_core::model::Mac([2, 0, 0, 0, 0, 9]));
    w.end();
}

/// A route of another protocol and a neighbour that an administrator made.
fn foreign(lab: &Lab) {
    let eth0 = number(lab, "host1", "eth0").expect("eth0");
    by_hand(lab, "host1", |w| {
        route::add_foreign(w, "172.20.0.0/16".parse().expect("prefix"), 0, route::To::Link(eth0));
        neighbour::put(w, eth0, [192, 0, 2, 77].into(), loden_core::model::Mac([2, 0, 0, 0, 0, 7]));
    });
}

fn foreign_is_there(lab: &Lab) -> bool {
    use loden_linux::netlink::{Protocol, Socket};
    let eth0 = number(lab, "host1", "eth0").expect("eth0");
    lab.netns("host1")
        .expect("netns")
        .run(|| {
            let mut socket = Socket::open(Protocol::Route).expect("socket");
            let routes = route::read(&mut socket, loden_core::model::Family::V4, 4).expect("routes");
            let mut w = Writer::default();
            neighbour::list(&mut w, loden_core::model::Family::V4);
            let entries = socket
                .dump("neighbours", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(neighbour::parse(m.payload)))
                .expect("neighbours");
            routes.iter().any(|r| r.prefix.to_string() == "172.20.0.0/16")
                && entries.iter().any(|e| e.is_permanent && e.index == eth0)
        })
        .expect("a thread")
}

#[test]
fn the_plugins_tables_are_made_again_when_somebody_deletes_them() {
    let keys = "[plugin]\nmacspoofchk = true\nipMasq = true\n[plugin.runtimeConfig]\n\
                portMappings = [{ hostPort = 8080, containerPort = 80 }]\n";
    let lab = up("plugin-tables", &[SEGMENT, &hosts(1, ""), POOLS, keys].concat());
    let agent = lab.agent("host1").expect("an agent");
    let ns = lab.netns("host1").expect("netns");
    for table in [TABLE_PORTS, TABLE_SENDERS] {
        let read = || {
            let observe = || Nft::open(table, Ownership::Shared).expect("a socket").observe().expect("observed");
            ns.run(observe).expect("a thread")
        };
        let wanted = read().expect("there is a pod");
        assert!(wanted.sets.values().any(|set| !set.elements.is_empty()), "{table}");
        let last = agent.events(0).expect("events").last().map_or(0, |event| event.seq);
        let words: Vec<String> = format!("delete table {table}").split(' ').map(str::to_owned).collect();
        assert_eq!(lab.exec("host1", "nft", &words).expect("nft"), 0);
        wait_for(&table.to_string(), || read().as_ref() == Some(&wanted));
        wait_for("an event that names it", || {
            let of_it = |event: &Event| event.sort == "repair" && event.object == format!("nft table {table}");
            agent.events(last).expect("events").iter().any(of_it)
        });
    }
}
