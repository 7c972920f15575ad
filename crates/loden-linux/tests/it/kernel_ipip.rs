//! The kernel's own device of IP in IP, which not every kernel has: `cargo xtask kernel` runs these tests under one that does.
//!
//! That kernel has no nftables of the family `inet`: the table and what is in it is left out of what is wanted here.

use std::collections::BTreeSet;
use std::process::Command;

use loden_core::desired::Desired;
use loden_core::kernel::link::{Ipip, Link, LinkKind, Port};
use loden_core::kernel::{Kernel, Key, LINK_GROUP, Object, Observed, Scope, Sort, Via};
use loden_core::model::{BackendConfig, Entry, Family, IpipConfig, Node, Pool, Receive, Record};
use loden_core::plan::{Plan, Step, Verb};
use loden_core::view::{Changed, View};
use loden_linux::{LinuxKernel, abilities};

use crate::support::{
    add, apply, check, ifname, in_namespace, index_of, ip, link_key, link_object, make_eth0, prefix, step, view,
};

const DEV: &str = "flannel.ipip";

fn ipip() -> Ipip {
    Ipip { underlay: None, local: Some(ip("192.168.7.1")) }
}

fn device(kind: LinkKind) -> Link {
    Link { kind, mtu: 1480, mac: None, up: true, master: None, port: Port::default(), group: LINK_GROUP }
}

/// A driver in a namespace with `eth0`.
fn kernel_with_eth0() -> LinuxKernel {
    make_eth0();
    let mut kernel = LinuxKernel::open().expect("kernel");
    look(&mut kernel, &[]);
    kernel
}

/// The sorts that the other kernel has.
fn sorts() -> BTreeSet<Sort> {
    Sort::ALL.into_iter().filter(|sort| *sort != Sort::Nft).collect()
}

/// Everything of loden's but the table and sysctls, and the links of these names.
fn look(kernel: &mut LinuxKernel, links: &[&str]) -> Observed {
    let links = links.iter().map(|name| ifname(name)).collect();
    kernel.observe(&Scope { sorts: sorts(), links, ..Scope::default() }).expect("observe")
}

/// This host with three others, by IPIP.
fn by_ipip() -> View {
    let by_vxlan = view(3);
    let mut view = View::new(by_vxlan.local.clone());
    view.local.abilities = abilities::find().expect("tried");
    let put = |view: &mut View, record| view.put(&Entry { record, created: 1, revision: 1 });
    let backend = BackendConfig::Ipip(IpipConfig { direct_routing: false });
    for pool in by_vxlan.pools.values().filter(|pool| pool.cidr.family() == Family::V4) {
        put(&mut view, Record::Pool(Pool { backend: backend.clone(), ..pool.clone() }));
    }
    for node in by_vxlan.nodes.values() {
        put(&mut view, Record::Node(Node { receives: vec![Receive::Ipip], ..(**node).clone() }));
    }
    for block in by_vxlan.blocks.values().flatten().filter(|block| block.cidr.family() == Family::V4) {
        put(&mut view, Record::Block(block.clone()));
    }
    view
}

/// What is to be done but for the table, as the kernel is now.
fn plan(kernel: &mut LinuxKernel, view: &View) -> Vec<Step> {
    let mut desired = Desired::new();
    desired.update(view, &Changed { all: true, sources: BTreeSet::new() });
    let seen = kernel.observe(&desired.scope(sorts())).expect("observe");
    desired.observed(&sorts(), seen);
    let plan = Plan::of(&desired);
    assert_eq!(plan.refused, []);
    plan.steps.into_iter().filter(|step| step.key.sort() != Sort::Nft).collect()
}

fn text(steps: &[Step]) -> Vec<String> {
    steps.iter().map(Step::to_string).collect()
}

/// The program `ip`.
fn run(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_ability_is_found() {
    for _ in 0..2 {
        assert!(abilities::find().expect("tried").ipip);
    }
}

#[test]
fn a_device_is_made_changed_and_removed() {
    in_namespace(|| {
        let mut kernel = kernel_with_eth0();
        let state = |mtu, up, ipip| link_object(Link { mtu, up, ..device(LinkKind::Ipip(ipip)) });
        let elsewhere = Ipip { underlay: None, local: Some(ip("192.168.7.9")) };
        let tied = Ipip { underlay: Some(ifname("eth0")), ..ipip() };
        let states = [
            state(1480, true, ipip()),
            state(1380, true, ipip()),
            state(1380, false, elsewhere),
            // The kernel works out an MTU of its own when it is tied or untied.
            state(1380, true, tied.clone()),
            state(1300, true, ipip()),
            state(1300, true, tied),
        ];
        check(&mut kernel, link_key(DEV), &states);
        // Where the engine's device is, the kernel's takes its place, and the other way round.
        for (new, old) in [(LinkKind::Ipip(ipip()), LinkKind::Tun), (LinkKind::Tun, LinkKind::Ipip(ipip()))] {
            let [new, old] = [new, old].map(|kind| link_object(device(kind)));
            apply(&mut kernel, &[add(link_key(DEV), old.clone())]);
            apply(&mut kernel, &[step(Verb::Recreate, link_key(DEV), Some(new.clone()), Some(old))]);
            assert_eq!(look(&mut kernel, &[]).get(&link_key(DEV)), Some(&new));
            apply(&mut kernel, &[step(Verb::Remove, link_key(DEV), None, Some(new))]);
        }
    });
}

#[test]
fn gateways_behind_it_need_no_prefix_of_it() {
    in_namespace(|| {
        let mut kernel = kernel_with_eth0();
        apply(&mut kernel, &[add(link_key(DEV), link_object(device(LinkKind::Ipip(ipip()))))]);
        let dev = ifname(DEV);
        // One on the underlay's link, and one that is not.
        for (gateway, block) in [("192.168.7.2", "10.64.1.0/24"), ("172.16.0.9", "10.64.2.0/24")] {
            let gateway = ip(gateway);
            check(&mut kernel, Key::Nexthop(dev, gateway), &[Object::Nexthop]);
            apply(&mut kernel, &[add(Key::Nexthop(dev, gateway), Object::Nexthop)]);
            let ways = [Via::Nexthop(dev, gateway), Via::Link(dev), Via::Blackhole, Via::Nexthop(dev, gateway)];
            check(&mut kernel, Key::Route(prefix(block), 0), &ways.map(Object::Route));
        }
    });
}

#[test]
fn a_plan_applied_twice_is_empty() {
    in_namespace(|| {
        let mut kernel = kernel_with_eth0();
        let view = by_ipip();
        let steps = plan(&mut kernel, &view);
        let made = |sort| steps.iter().filter(|step| step.key.sort() == sort).count();
        assert_eq!((made(Sort::Link), made(Sort::Nexthop), made(Sort::Route)), (2, 3, 3), "{:#?}", text(&steps));
        apply(&mut kernel, &steps);
        assert_eq!(text(&plan(&mut kernel, &view)), Vec::<String>::new());
        // A second driver, as after a restart, sees the same.
        assert_eq!(text(&plan(&mut LinuxKernel::open().expect("kernel"), &view)), Vec::<String>::new());
        // And nothing stays when nothing is wanted.
        let steps = plan(&mut kernel, &View::new(view.local.clone()));
        apply(&mut kernel, &steps);
        let left = look(&mut kernel, &[]);
        assert_eq!(left.keys().collect::<Vec<_>>(), Vec::<&Key>::new());
    });
}

#[test]
fn what_flannel_has_made_changes_hands_in_place() {
    // As by the program; as flanneld makes it (pkg/backend/ipip of flannel 0.28); as an administrator may have, when the underlay's MTU was
    // smaller.
    for (settings, mtu) in [("", 1480), (" mode any ttl inherit nopmtudisc", 1480), (" dev eth0", 1430)] {
        in_namespace(move || {
            let mut kernel = kernel_with_eth0();
            let view = by_ipip();
            run(&format!("link add {DEV} type ipip local 192.168.7.1 remote any{settings}"));
            run(&format!("link set {DEV} mtu {mtu} up"));
            run(&format!("address add 10.64.0.0/32 dev {DEV}"));
            // No marks, no nexthop objects; a host that is gone has a route, too.
            for (block, gateway) in [(1, 2), (2, 3), (3, 4), (9, 99)] {
                run(&format!("route add 10.64.{block}.0/24 via 192.168.7.{gateway} dev {DEV} onlink"));
            }
            let number = index_of(DEV);
            let mut all = Vec::new();
            for _ in 0..2 {
                let steps = plan(&mut kernel, &view);
                apply(&mut kernel, &steps);
                all.extend(steps);
            }
            assert_eq!(text(&plan(&mut kernel, &view)), Vec::<String>::new());
            assert_eq!(index_of(DEV), number, "it is the same device");
            let of_link: Vec<Verb> =
                all.iter().filter(|step| step.key == link_key(DEV)).map(|step| step.verb).collect();
            assert_eq!(of_link, [Verb::Change]);
            let removed = all.iter().filter(|step| step.verb == Verb::Remove).map(|step| step.key);
            assert_eq!(removed.collect::<Vec<_>>(), [Key::Route(prefix("10.64.9.0/24"), 0)], "{:#?}", text(&all));
        });
    }
}

#[test]
fn a_device_to_one_host_alone_is_somebody_elses() {
    in_namespace(|| {
        let mut kernel = kernel_with_eth0();
        run("link add flannel.ipip type ipip local 192.168.7.1 remote 192.168.7.2");
        let mut desired = Desired::new();
        desired.update(&by_ipip(), &Changed { all: true, sources: BTreeSet::new() });
        let seen = kernel.observe(&desired.scope(sorts())).expect("observe");
        desired.observed(&sorts(), seen);
        let plan = Plan::of(&desired);
        let words = plan.refused.iter().map(|refusal| refusal.cause.as_str()).collect::<Vec<_>>().join("; ");
        assert!(words.contains("it is a ipip to 192.168.7.2 alone device"), "{words}");
        assert!(plan.steps.iter().all(|step| step.key.device() != Some(ifname(DEV))), "{plan}");
    });
}
