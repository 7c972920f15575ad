//! What changes live: the backend, the underlay's MTU.

use loden_linux::rt::link;

use crate::support::{POOLS, SEGMENT, all_reach, by_hand, hosts, number, say, stop, streams, up, wait_for};

#[test]
fn the_backend_is_switched_to_and_fro_under_traffic() {
    let lab = up("switch", &[SEGMENT, &hosts(3, ""), POOLS].concat());
    let mut all_lost = 0;
    for (backend, has_device) in [("host-gw", false), ("vxlan", true), ("host-gw", false)] {
        let running = streams(&lab, "host1", "host2");
        std::thread::sleep(std::time::Duration::from_millis(200));
        lab.apply_pools(&POOLS.replace("vxlan", backend)).expect("applied");
        let took = wait_for("the switch", || {
            lab.hosts().iter().all(|host| {
                let status = lab.agent(&host.name).expect("an agent").status().expect("a status");
                let settled =
                    status.pools.iter().all(|pool| pool.backend.starts_with(backend) && pool.lingering.is_empty());
                settled && status.kernel.pending == 0 && number(&lab, &host.name, "flannel.1").is_some() == has_device
            })
        });
        let (sent, lost) = stop(running);
        say(&format!("to {backend}: {} ms, {lost} of {sent} packets lost", took.as_millis()));
        all_lost += lost;
        all_reach(&lab);
    }
    assert_eq!(all_lost, 0);
}

#[test]
fn a_smaller_underlay_mtu_reaches_the_pods_and_goes_again() {
    let lab = up("mtu", &[SEGMENT, &hosts(2, ""), POOLS].concat());
    let pod_mtu = || {
        let pod = lab.netns("host1-pod1").expect("a pod");
        pod.run(mtu_of_eth0).expect("a thread")
    };
    let before = pod_mtu();
    for (underlay, expected) in [(1400, before - 100), (1500, before)] {
        by_hand(&lab, "host1", |w| link::set_mtu(w, "eth0".parse().expect("name"), underlay));
        let took = wait_for("the pod's MTU", || pod_mtu() == expected);
        say(&format!("underlay {underlay}: pod {expected} after {} ms", took.as_millis()));
    }
    all_reach(&lab);
}

fn mtu_of_eth0() -> u32 {
    use loden_linux::netlink::{Protocol, Socket, Writer};
    let mut w = Writer::default();
    link::list(&mut w);
    let mut socket = Socket::open(Protocol::Route).expect("socket");
    let all = socket.dump("links", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(link::parse(m.payload)));
    all.expect("links").into_iter().find(|seen| seen.name.as_str() == "eth0").expect("eth0").link.mtu
}
