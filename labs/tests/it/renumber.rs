//! A host's own address changes under traffic: its record follows, and its peers follow that.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use loden_core::kernel::{Key, Object};
use loden_lab::Lab;
use loden_linux::rt::address;
use loden_linux::sysctl;
use loden_store::{Expect, Store};

use crate::drift::observe;
use crate::support::{Guard, all_reach, by_hand, hosts, number, say, stop, streams, up, wait_for};

const SEGMENT: &str = "[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\n";
const OLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const NEW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

fn lab(name: &str, backend: &str) -> Guard {
    let pool = format!("[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nbackend = {{ type = \"{backend}\" }}\n");
    let lab = up(name, &[SEGMENT, &hosts(2, ""), &pool].concat());
    // Else the kernel takes away all addresses of a subnet with the first of them.
    let promote = || sysctl::write("net/ipv4/conf/all/promote_secondaries", 1);
    lab.netns("host2").expect("netns").run(promote).expect("a thread").expect("written");
    lab
}

/// What host1 has in its kernel for host2 at an address.
fn entries_for(lab: &Lab, addr: Ipv4Addr) -> usize {
    let addr = IpAddr::from(addr);
    let is_it = |(key, object): &(&Key, &Object)| match (key, object) {
        (Key::Nexthop(_, gateway), _) => *gateway == addr,
        (Key::Neighbour(_, neighbour), Object::Neighbour(_)) => *neighbour == addr,
        (_, Object::Fdb(remote)) => *remote == addr,
        _ => false,
    };
    observe(lab, &[]).iter().filter(is_it).count()
}

fn change(lab: &Lab, addr: Ipv4Addr, is_there: bool) {
    let eth0 = number(lab, "host2", "eth0").expect("eth0");
    let net = IpNet::new(addr.into(), 24).expect("a length");
    by_hand(lab, "host2", |w| if is_there { address::add(w, net, eth0) } else { address::delete(w, net, eth0) });
}

/// From one moment to the other: until the peers have heard of it they send to where nobody is.
#[test]
fn peers_follow_an_address_that_is_changed_at_once() {
    for backend in ["vxlan", "host-gw"] {
        let lab = lab(&format!("renumber-{backend}"), backend);
        assert!(entries_for(&lab, OLD) > 0 && entries_for(&lab, NEW) == 0);
        all_reach(&lab);
        let running = streams(&lab, "host1", "host2");
        change(&lab, NEW, true);
        change(&lab, OLD, false);
        let took = wait_for("host1 follows", || entries_for(&lab, NEW) > 0 && entries_for(&lab, OLD) == 0);
        std::thread::sleep(std::time::Duration::from_millis(300));
        let (sent, lost) = stop(running);
        say(&format!(
            "{backend}: changed at once, the peer followed after {:.0} ms; {lost} of {sent} lost",
            took.as_secs_f64() * 1e3
        ));
        assert!(lost * 2 < sent, "{lost} of {sent}");
        let status = lab.agent("host2").expect("an agent").status().expect("a status");
        assert_eq!(status.underlay.and_then(|underlay| underlay.addresses.v4), Some(NEW.into()));
        assert_eq!(entries_for(&lab, OLD), 0);
    }
}

/// In good order: the host has both for a while, its record asks for the new one, and the old one is taken away when all send to the
/// new.
#[tokio::test]
async fn an_address_that_is_asked_for_while_the_old_one_is_there_costs_nothing() {
    for backend in ["vxlan", "host-gw"] {
        let lab = lab(&format!("asked-{backend}"), backend);
        all_reach(&lab);
        let running = streams(&lab, "host1", "host2");
        change(&lab, NEW, true);
        let store = loden_store::open(&lab.store_url()).await.expect("the store");
        let asks = async |store: &dyn Store| {
            let key = loden_core::model::Key::Node("host2".parse().expect("name"));
            let entry = store.get(&key).await.expect("read").expect("it is there");
            let loden_core::model::Record::Node(mut node) = entry.record else { panic!("a node was meant") };
            node.asked.v4 = Some(NEW.into());
            store
                .put(loden_core::model::Record::Node(node), Expect::Revision(entry.revision), None)
                .await
                .expect("written");
        };
        asks(&*store).await;
        let took = wait_for("host1 follows", || entries_for(&lab, NEW) > 0 && entries_for(&lab, OLD) == 0);
        change(&lab, OLD, false);
        std::thread::sleep(std::time::Duration::from_millis(300));
        let (sent, lost) = stop(running);
        say(&format!(
            "{backend}: asked for, the peer followed after {:.0} ms; {lost} of {sent} lost",
            took.as_secs_f64() * 1e3
        ));
        assert_eq!(lost, 0);
        all_reach_but_hosts(&lab);
    }
}

/// The lab's book has the old address; pods reach each other all the same.
fn all_reach_but_hosts(lab: &Lab) {
    let (sent, lost) = {
        let running = streams(lab, "host1", "host2");
        std::thread::sleep(std::time::Duration::from_millis(200));
        stop(running)
    };
    assert!(sent > 0 && lost == 0, "{lost} of {sent}");
}
