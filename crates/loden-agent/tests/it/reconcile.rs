//! What the reconciler promises, whatever happens to it.

use std::sync::Arc;

use loden_agent::reconcile::Reconciler;
use loden_core::attach;
use loden_core::kernel::link::{Link, LinkKind, Port, Vxlan};
use loden_core::kernel::{Event, Key, Object, Sort};
use loden_core::model::{Attach, Attachment, AttachmentKey, Record, Vni};
use loden_testkit::FakeKernel;
use serde_json::json;

use crate::cluster::{host_gw, listing, published, reconciler, settle, settled, vxlan};

#[test]
fn a_start_on_a_kernel_that_is_right_writes_nothing() {
    let mut kernel = settled(5, &vxlan());
    kernel.writes.clear();
    let mut again = reconciler(kernel);
    again.listing(&listing(5, &vxlan()));
    let round = again.round();
    assert_eq!((round.done, round.failed, round.repairs), (0, 0, 0));
    assert_eq!(again.kernel().written(), 0);
    assert!(again.facts().mtu_pod.is_some());
}

#[test]
fn nothing_is_touched_before_the_store_has_been_listed() {
    let mut early = reconciler(settled(5, &vxlan()));
    early.kernel().writes.clear();
    assert!(early.kernel_event(Event::Overrun));
    assert_eq!(early.round().done, 0);
    assert_eq!(early.kernel().written(), 0);
    assert_eq!(early.facts().mtu_pod, None);
    assert!(early.problems().iter().any(|problem| problem.subject == "the datastore"));
}

#[test]
fn drift_of_each_object_is_repaired_and_named() {
    let kernel = settled(2, &vxlan());
    for key in kernel.objects.keys().copied().filter(|key| key.sort() != Sort::Sysctl) {
        let mut agent = reconciler(kernel.clone());
        agent.listing(&listing(2, &vxlan()));
        agent.round();
        agent.kernel().drift(&key);
        assert!(agent.kernel_event(Event::Gone(key)), "{key}: the report calls for a round");
        Sort::ALL.into_iter().for_each(|sort| assert!(agent.kernel_event(Event::Stale(sort))));
        let round = agent.round();
        assert!(round.repairs > 0 && round.failed == 0, "{key}: {round:?}");
        assert_eq!(agent.kernel().objects, kernel.objects, "{key}");
        let named =
            agent.events.after(0).into_iter().any(|event| event.sort == "repair" && event.object == key.to_string());
        assert!(named, "{key}: no event names it");
    }
}

#[test]
fn a_fault_at_any_step_is_told_keeps_what_there_was_and_is_overcome() {
    let wanted = settled(3, &vxlan());
    let steps = usize::try_from(wanted.written()).expect("few");
    for n in 0..steps {
        let mut kernel = FakeKernel::new("eth0");
        kernel.fail_in = Some((n, 12));
        let mut agent = reconciler(kernel);
        agent.listing(&listing(3, &vxlan()));
        let round = agent.round();
        // What hangs on the failed step fails with it.
        assert!(round.failed >= 1, "step {n}");
        assert!(agent.events.after(0).iter().any(|event| event.sort == "error" && event.text.contains("error 12")));
        settle(&mut agent);
        assert_eq!(agent.kernel().objects, wanted.objects, "step {n}");
        assert!(agent.failures().is_empty());
    }
}

#[test]
fn a_fault_at_any_step_of_a_switch_never_leaves_a_peer_without_a_route() {
    let before = settled(3, &vxlan());
    for n in 0..20 {
        let mut agent = reconciler(before.clone());
        agent.listing(&listing(3, &vxlan()));
        agent.round();
        agent.kernel().fail_in = Some((n, 12));
        agent.listing(&listing(3, &host_gw()));
        for _ in 0..5 {
            agent.round();
            let routes = agent.kernel().objects.keys().filter(|key| key.sort() == Sort::Route).count();
            assert_eq!(routes, 3, "step {n}");
        }
        settle(&mut agent);
        // The device goes when everybody has read that this node takes nothing in by it any more. One record is under way at
        // a time: the first is what was said before the switch.
        for _ in 0..6 {
            let facts = agent.facts().clone();
            agent.listing(&published(listing(3, &host_gw()), &facts));
            settle(&mut agent);
        }
        let kernel = agent.kernel();
        assert!(!kernel.objects.contains_key(&Key::Link("flannel.1".parse().expect("name"))), "step {n}");
    }
}

#[test]
fn a_host_whose_sysctls_may_not_be_written_serves_when_it_forwards_and_says_what_is_lacking() {
    for forwards in [true, false] {
        let mut kernel = FakeKernel::new("eth0");
        kernel.keeps_sysctls = true;
        if forwards {
            kernel.objects.insert(Key::Sysctl("net/ipv4/ip_forward"), Object::Sysctl(1));
        }
        let mut agent = reconciler(kernel);
        agent.listing(&listing(3, &vxlan()));
        agent.round();
        assert_eq!((agent.facts().mtu_pod.is_some(), agent.is_hindered()), (forwards, !forwards));
        let problems: Vec<String> = agent.problems().iter().map(ToString::to_string).collect();
        let guards = problems.iter().filter(|text| text.contains("pods are served without it"));
        assert!(guards.clone().any(|text| text.contains("net/ipv6/conf/cni0/accept_ra: Read-only")), "{problems:?}");
        assert_eq!(guards.count(), problems.len() - usize::from(!forwards), "{problems:?}");

        // It is tried again, and said once.
        let said = agent.events.after(0).len();
        agent.retry();
        assert!(agent.round().failed > 0);
        assert_eq!(agent.events.after(0).len(), said);

        // A peer that goes is forgotten, as long as nothing stands in that pods need.
        agent.listing(&listing(2, &vxlan()));
        agent.round();
        let routes = agent.kernel().objects.keys().filter(|key| key.sort() == Sort::Route).count();
        assert_eq!(routes, if forwards { 2 } else { 3 });
    }
}

#[test]
fn a_kernel_that_cannot_be_read_is_not_written() {
    let mut agent = reconciler(settled(2, &vxlan()));
    agent.kernel().is_blind = true;
    agent.kernel().writes.clear();
    agent.listing(&listing(2, &host_gw()));
    let round = agent.round();
    assert_eq!((round.done, round.failed), (0, 1));
    assert_eq!(agent.kernel().written(), 0);
    assert!(agent.problems().iter().any(|problem| problem.cause.contains("Input/output error")));
    agent.kernel().is_blind = false;
    settle(&mut agent);
    assert!(agent.problems().iter().all(|problem| !problem.cause.contains("Input/output error")));
}

#[test]
fn nodes_that_went_while_the_agent_was_off_leave_no_trace() {
    let mut agent = reconciler(settled(6, &vxlan()));
    agent.listing(&listing(2, &vxlan()));
    settle(&mut agent);
    assert_eq!(agent.kernel().objects, settled(2, &vxlan()).objects);
    // And a listing without them, after the store was away, is the same as reports of their end.
    let mut agent = reconciler(FakeKernel::new("eth0"));
    agent.listing(&listing(6, &vxlan()));
    settle(&mut agent);
    agent.listing(&listing(2, &vxlan()));
    settle(&mut agent);
    assert_eq!(agent.kernel().objects, settled(2, &vxlan()).objects);
}

#[test]
fn a_block_that_another_node_has_taken_is_routed_there_and_its_addresses_are_given_up() {
    for has_another in [true, false] {
        let mut agent = reconciler(settled(2, &vxlan()));
        agent.listing(&listing(2, &vxlan()));
        agent.round();
        let mut taken = listing(2, &vxlan());
        if !has_another {
            taken.retain(|entry| !matches!(&entry.record, Record::Block(block) if block.owner.as_str() == "n0"));
        }
        for entry in &mut taken {
            if let Record::Block(block) = &mut entry.record {
                match block.owner.as_str() {
                    "n0" => block.cidr = "10.244.200.0/24".parse().expect("prefix"),
                    "n1" => block.cidr = "10.244.0.0/24".parse().expect("prefix"),
                    _ => {}
                }
            }
        }
        agent.listing(&taken);
        let round = agent.round();
        assert_eq!(round.failed, 0, "{:?}", agent.problems());
        let mut fresh = reconciler(FakeKernel::new("eth0"));
        fresh.listing(&taken);
        settle(&mut fresh);
        assert_eq!(agent.kernel().objects, fresh.kernel().objects);
    }
}

#[test]
fn what_failed_is_looked_at_again_by_the_next_try_and_not_by_every_change() {
    let mut kernel = FakeKernel::new("eth0");
    kernel.fail_in = Some((12, 12));
    let mut agent = reconciler(kernel);
    agent.listing(&listing(3, &vxlan()));
    assert!(agent.round().failed > 0);
    assert!(!agent.is_due());
    let seen = agent.kernel().observed;
    agent.listing(&listing(4, &vxlan()));
    agent.round();
    assert_eq!(agent.kernel().observed, seen, "a peer more is no reason to look at everything");
    agent.retry();
    agent.round();
    assert!(agent.kernel().observed > seen);
    assert_eq!(agent.kernel().objects, settled(4, &vxlan()).objects);
}

#[test]
fn a_host_without_pools_says_so_and_goes_on_when_there_are_pools_again() {
    let mut agent = reconciler(FakeKernel::new("eth0"));
    let without_pools = || -> Vec<_> {
        listing(2, &vxlan()).into_iter().filter(|entry| !matches!(entry.record, Record::Pool(_))).collect()
    };
    let said = |agent: &Reconciler<FakeKernel>| agent.facts().sends.clone().expect("something is said").len();
    for (records, pools) in [(listing(2, &vxlan()), 1), (without_pools(), 0), (listing(2, &vxlan()), 1)] {
        // Until what is said has come back nothing else is.
        for _ in 0..4 {
            let facts = agent.facts().clone();
            let seen = if facts.sends.is_some() { published(records.clone(), &facts) } else { records.clone() };
            agent.listing(&seen);
            settle(&mut agent);
        }
        assert_eq!(said(&agent), pools);
    }
}

/// What the plugin leaves for a routed pod.
fn routed_pod() -> (Attachment, Vec<(Key, Object)>) {
    let key =
        AttachmentKey { network: "n".to_owned(), container: "c".to_owned(), ifname: "eth0".parse().expect("name") };
    let addresses = ["10.244.0.2/24", "fd00::2/64"].map(|net| json!({ "net": net }));
    let attachment = json!({
        "key": key, "complete": true, "addresses": addresses, "hostSide": attach::host_side(&key, &Attach::Routed),
        "attach": "routed", "mac": "02:00:00:00:00:02", "mtu": 1450, "netns": "/run/netns/c",
    });
    let attachment: Attachment = serde_json::from_value(attachment).expect("an attachment");
    let (name, link) = attach::host_link(&attachment, None).expect("a host's end");
    let mut objects = vec![(Key::Link(name), Object::Link(Box::new(link)))];
    objects.extend(attach::host_objects(&attachment).into_iter().map(|(key, object, _)| (key, object)));
    (attachment, objects)
}

#[test]
fn what_the_plugin_makes_for_a_routed_pod_stays_and_is_written_by_nobody_else() {
    let mut agent = reconciler(settled(2, &vxlan()));
    agent.listing(&listing(2, &vxlan()));
    agent.round();
    agent.kernel().writes.clear();
    let (attachment, objects) = routed_pod();
    for (key, object) in &objects {
        agent.kernel().objects.insert(*key, object.clone());
        if key.sort() != Sort::Sysctl {
            assert!(!agent.kernel_event(Event::Seen(*key, object.clone())), "{key}: its attachment is heard of later");
        }
    }
    // Whatever makes everything be looked at meanwhile.
    agent.resync();
    agent.round();
    assert_eq!(agent.kernel().written(), 0);
    agent.attachments([(attachment.key.clone(), Arc::new(attachment.clone()))].into());
    assert_eq!(agent.round().failed, 0);
    assert_eq!(agent.kernel().writes, [(Sort::Route, 1)].into(), "the way to the gateway that the proxy answers for");
    // DEL: the plugin parks the link, and what is on it goes with it.
    agent.kernel().writes.clear();
    agent.kernel().drift(&Key::Link(attachment.host_side.expect("a name")));
    objects.iter().for_each(|(key, _)| agent.kernel().drift(key));
    agent.attachments([].into());
    settle(&mut agent);
    assert_eq!(agent.kernel().objects, settled(2, &vxlan()).objects);
}

#[test]
fn a_foreign_device_of_our_name_is_left_and_the_rest_goes_on() {
    let mut kernel = FakeKernel::new("eth0");
    let name = "flannel.1".parse().expect("name");
    let kind = LinkKind::Vxlan(Vxlan {
        group: None,
        reports_misses: false,
        most_entries: 0,
        vni: Vni::new(9).expect("vni"),
        underlay: None,
        local: Some([192, 0, 2, 1].into()),
        port: 4789,
        learning: true,
        gbp: false,
    });
    let foreign = Object::Link(Box::new(Link {
        kind,
        mtu: 1400,
        mac: None,
        up: true,
        master: None,
        port: Port::default(),
        group: 0,
    }));
    kernel.objects.insert(Key::Link(name), foreign.clone());
    let mut agent = reconciler(kernel);
    agent.listing(&listing(2, &vxlan()));
    agent.round();
    assert_eq!(agent.kernel().objects.get(&Key::Link(name)), Some(&foreign));
    assert!(agent.kernel().objects.keys().all(|key| key.device() != Some(name) || *key == Key::Link(name)));
    assert!(agent.kernel().objects.contains_key(&Key::Link("cni0".parse().expect("name"))));
    let named = agent.problems().iter().any(|p| p.subject == "link flannel.1" && p.cause.contains("left alone"));
    assert!(named, "{:?}", agent.problems());
    // What is not in the kernel is not promised to anybody.
    assert_eq!(agent.facts().receives, Vec::new());
}
