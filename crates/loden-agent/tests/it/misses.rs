//! Questions of the kernel's are events like others: answered, bounded, ended, adopted by the next agent.

use std::net::IpAddr;

use loden_agent::reconcile::Reconciler;
use loden_core::kernel::{Event, Key, Object, Sort};
use loden_core::model::{BackendConfig, Control, IfName, Mac, Prefix, Record, VxlanConfig};
use loden_core::view::MOST_FLOWS;
use loden_testkit::FakeKernel;

use crate::cluster::{listing, reconciler, settle, settled};

fn misses() -> BackendConfig {
    BackendConfig::Vxlan(VxlanConfig { control: Control::Miss, ..VxlanConfig::default() })
}

fn dev() -> IfName {
    "flannel.1".parse().expect("name")
}

/// An agent of a cluster that has come to rest.
fn at_rest(peers: u8) -> Reconciler<FakeKernel> {
    let mut agent = reconciler(settled(peers, &misses()));
    agent.listing(&listing(peers, &misses()));
    agent.round();
    agent.kernel().writes.clear();
    agent
}

fn pod(node: u8, last: u8) -> IpAddr {
    [10, 244, node, last].into()
}

/// Where the kernel's entry for an address leads.
fn answer(agent: &mut Reconciler<FakeKernel>, addr: IpAddr) -> Option<Mac> {
    match agent.kernel().objects.get(&Key::Neighbour(dev(), addr)) {
        Some(Object::Neighbour(mac)) => Some(*mac),
        _ => None,
    }
}

#[test]
fn a_question_is_answered_by_one_write_and_what_nobody_has_leaves_nothing() {
    let mut agent = at_rest(2);
    assert!(agent.asked(dev(), pod(1, 7)));
    assert!(agent.has_flows_alone());
    let observed = agent.kernel().observed;
    assert_eq!(agent.round().done, 1);
    assert_eq!(answer(&mut agent, pod(1, 7)), Some(Mac([2, 0, 0, 0, 0, 1])));
    assert_eq!(agent.kernel().observed, observed, "nothing is read for it");
    // An own address, one of no block, one of no pool, and a device that is not the pool's.
    for addr in [pod(0, 7), pod(9, 7), [192, 0, 2, 99].into()] {
        assert!(!agent.asked(dev(), addr), "{addr}");
    }
    assert!(!agent.asked("cni0".parse().expect("name"), pod(1, 7)));
    assert!(!agent.is_due());
    assert_eq!((agent.view().count_flows(), agent.round().done), (1, 0));
}

#[test]
fn who_asks_again_has_lost_it_and_gets_it_again() {
    let mut agent = at_rest(1);
    agent.asked(dev(), pod(1, 7));
    agent.round();
    agent.kernel().drift(&Key::Neighbour(dev(), pod(1, 7)));
    assert!(agent.asked(dev(), pod(1, 7)));
    assert_eq!(agent.round().done, 1);
    assert_eq!(agent.view().count_flows(), 1);
    assert!(answer(&mut agent, pod(1, 7)).is_some());
}

#[test]
fn answers_follow_their_block_and_their_node() {
    let mut agent = at_rest(3);
    agent.asked(dev(), pod(1, 7));
    agent.asked(dev(), pod(2, 7));
    agent.round();
    let mut records = listing(3, &misses());
    for entry in &mut records {
        match &mut entry.record {
            // The first block has another owner now, the second's node another VTEP.
            Record::Block(block) if block.cidr.contains(pod(1, 7)) => {
                block.owner = "n3".parse().expect("name");
                block.owner_uid = "uid-n3".parse().expect("uid");
            }
            Record::Node(node) if node.name.as_str() == "n2" => {
                for receive in &mut node.receives {
                    if let loden_core::model::Receive::Vxlan { mac, .. } = receive {
                        *mac = Mac([2, 9, 9, 9, 9, 9]);
                    }
                }
            }
            _ => {}
        }
    }
    agent.listing(&records);
    settle(&mut agent);
    assert_eq!(answer(&mut agent, pod(1, 7)), Some(Mac([2, 0, 0, 0, 0, 3])));
    assert_eq!(answer(&mut agent, pod(2, 7)), Some(Mac([2, 9, 9, 9, 9, 9])));
    records.retain(|entry| !matches!(&entry.record, Record::Block(block) if block.cidr.contains(pod(2, 7))));
    agent.listing(&records);
    settle(&mut agent);
    assert_eq!(answer(&mut agent, pod(2, 7)), None, "nobody has it any more");
}

#[test]
fn a_block_that_is_cut_anew_is_known_in_its_new_form() {
    let mut agent = at_rest(2);
    let known = |agent: &mut Reconciler<FakeKernel>| -> Vec<Prefix> {
        let keys = agent.kernel().objects.keys().copied().collect::<Vec<_>>();
        keys.into_iter().filter_map(|key| if let Key::KnownBlock(block) = key { Some(block) } else { None }).collect()
    };
    assert_eq!(known(&mut agent).len(), 2);
    let mut records = listing(2, &misses());
    for entry in &mut records {
        if let Record::Block(block) = &mut entry.record
            && block.cidr.contains(pod(1, 7))
        {
            block.cidr = Prefix::holding(pod(1, 0), 25);
        }
    }
    agent.listing(&records);
    // The kernel refuses what overlaps, so the former goes first.
    assert_eq!(agent.round().failed, 0);
    assert!(known(&mut agent).contains(&Prefix::holding(pod(1, 0), 25)));
    assert_eq!(known(&mut agent).len(), 2);
}

#[test]
fn the_next_agent_adopts_what_it_finds_and_writes_nothing() {
    let mut agent = at_rest(2);
    [pod(1, 7), pod(1, 8), pod(2, 7)].into_iter().for_each(|addr| assert!(agent.asked(dev(), addr)));
    agent.round();
    let mut kernel = agent.kernel().clone();
    kernel.writes.clear();
    let mut next = reconciler(kernel.clone());
    next.set_flow_age(10_000);
    next.tick(1_000);
    next.listing(&listing(2, &misses()));
    next.round();
    assert_eq!(next.kernel().written(), 0);
    assert_eq!(next.view().count_flows(), 3);
    // They end one after the other, the first not at once.
    next.tick(5_999);
    assert_eq!(next.view().count_flows(), 3);
    next.tick(8_000);
    assert_eq!(next.view().count_flows(), 2);
    next.tick(11_000);
    assert_eq!(next.view().count_flows(), 0);

    // One that leads elsewhere is made right, one for an address that nobody has goes.
    kernel.objects.insert(Key::Neighbour(dev(), pod(1, 7)), Object::Neighbour(Mac([2, 7, 7, 7, 7, 7])));
    kernel.objects.insert(Key::Neighbour(dev(), pod(9, 9)), Object::Neighbour(Mac([2, 7, 7, 7, 7, 7])));
    let mut next = reconciler(kernel);
    next.listing(&listing(2, &misses()));
    next.round();
    assert_eq!(answer(&mut next, pod(1, 7)), Some(Mac([2, 0, 0, 0, 0, 1])));
    assert_eq!(answer(&mut next, pod(9, 9)), None);
    assert_eq!(next.kernel().written(), 2);
}

#[test]
fn answers_end_by_age_even_if_everything_is_read_in_the_same_round() {
    let mut agent = at_rest(1);
    agent.set_flow_age(1_000);
    agent.tick(0);
    agent.asked(dev(), pod(1, 7));
    agent.round();
    agent.tick(999);
    assert!(!agent.is_due());
    agent.tick(1_000);
    assert!(agent.is_due());
    agent.kernel_event(Event::Stale(Sort::Neighbour));
    agent.round();
    assert_eq!(answer(&mut agent, pod(1, 7)), None);
    assert_eq!(agent.view().count_flows(), 0);
    // The kernel says that it has gone, and asks anew when somebody sends.
    agent.kernel_event(Event::Gone(Key::Neighbour(dev(), pod(1, 7))));
    assert!(agent.asked(dev(), pod(1, 7)));
    agent.round();
    assert!(answer(&mut agent, pod(1, 7)).is_some());
}

#[test]
fn one_more_than_there_may_be_ends_the_oldest() {
    let mut agent = at_rest(20);
    let addresses: Vec<IpAddr> = (1..=20).flat_map(|node| (1..=250).map(move |last| pod(node, last))).collect();
    for (n, addr) in addresses.iter().take(MOST_FLOWS + 3).enumerate() {
        agent.tick(n as u64);
        assert!(agent.asked(dev(), *addr));
    }
    agent.round();
    assert_eq!(agent.view().count_flows(), MOST_FLOWS);
    let there = agent.kernel().objects.keys().filter(|key| matches!(key, Key::Neighbour(..))).count();
    assert_eq!(there, MOST_FLOWS);
    assert!(addresses[..3].iter().all(|addr| !agent.view().has_flow(dev(), *addr)));
    assert!(agent.view().has_flow(dev(), addresses[3]));
}
