//! What a flanneld has left is taken over in place: no device is made anew, no route is missing in between. What the engine has left makes
//! way for the kernel's own device.

use loden_core::kernel::link::{Ipip, Link, LinkKind, Port};
use loden_core::kernel::{Key, NO_GROUP, Object, Via};
use loden_core::model::IfName;
use loden_core::plan::{Plan, Step};
use loden_core::view::View;

use crate::picture;
use loden_testkit::FakeKernel;

/// Takes the next stage; says what it does to a device and to routes out of it.
fn follow(view: &View, kernel: &mut FakeKernel, dev: IfName) -> String {
    let mut desired = picture::desired(view);
    desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
    let plan = Plan::stage(&desired);
    kernel.run(&plan, |_, _| {});
    let way = |object: Option<&Object>| match object {
        Some(Object::Route(via)) => via.device(),
        _ => None,
    };
    let is_of = |step: &&Step| step.key.device().or(way(step.old.as_ref().or(step.new.as_ref()))) == Some(dev);
    plan.steps.iter().filter(is_of).map(|step| format!("{step}\n")).collect()
}

/// Flannel's device, as it makes it (pkg/backend/ipip of flannel 0.28), and its address.
fn left(dev: IfName, ipip: Ipip, mtu: u32) -> FakeKernel {
    let mut kernel = FakeKernel::new("eth0");
    let kind = LinkKind::Ipip(ipip);
    let link = Link { kind, mtu, mac: None, up: true, master: None, port: Port::default(), group: NO_GROUP };
    let net = "10.244.0.0/32".parse().expect("an address");
    kernel.objects.extend([
        (Key::Link(dev), Object::Link(Box::new(link))),
        (Key::Address(dev, net), Object::Address { ours: false }),
    ]);
    kernel
}

/// Its routes, which are seen when the device has become loden's.
fn lead(kernel: &mut FakeKernel, dev: IfName, routes: &[(&str, &str)]) {
    for (block, gateway) in routes {
        let via = Via::Gateway(dev, gateway.parse().expect("an address"));
        kernel.objects.insert(Key::Route(block.parse().expect("a prefix"), 0), Object::Route(via));
    }
}

#[test]
fn of_ipip() {
    let text = std::fs::read_to_string(picture::fixtures().join("cluster/ipip-kernel.toml")).expect("picture");
    let view = picture::read(&text);
    let dev: IfName = "flannel.ipip".parse().expect("name");
    let local = Some([192, 0, 2, 1].into());
    let as_wanted = (Ipip { underlay: None, local }, 1480);
    // One that an administrator has tied to the underlay, whose MTU was smaller then.
    let otherwise = (Ipip { underlay: Some("eth0".parse().expect("name")), local }, 1430);
    for (ipip, mtu) in [as_wanted, otherwise] {
        let tie = if ipip.underlay.is_some() { " dev eth0" } else { "" };
        let mut kernel = left(dev, ipip, mtu);
        let change = format!(
            "~ link flannel.ipip type ipip local 192.0.2.1 mtu 1480 up   (was: type ipip{tie} local 192.0.2.1 mtu {mtu} up)   # \
             tunnel device, pool four\n"
        );
        assert_eq!(follow(&view, &mut kernel, dev), change + SYSCTLS);
        let gone = ("10.244.9.0/24", "192.0.2.9");
        lead(&mut kernel, dev, &[("10.244.1.0/24", "192.0.2.2"), ("10.244.2.0/24", "192.0.2.3"), gone]);
        assert_eq!(follow(&view, &mut kernel, dev), ROUTES);
        assert_eq!(follow(&view, &mut kernel, dev), "");
    }
}

#[test]
fn of_the_engine_when_the_kernel_has_come_to_have_the_device() {
    let text = std::fs::read_to_string(picture::fixtures().join("cluster/ipip-kernel.toml")).expect("picture");
    let (mut view, dev) = (picture::read(&text), "flannel.ipip".parse().expect("name"));
    view.local.abilities.ipip = false;
    let mut kernel = FakeKernel::new("eth0");
    while !follow(&view, &mut kernel, dev).is_empty() {}
    assert!(kernel.objects.contains_key(&Key::Tunnel(dev)));
    view.local.abilities.ipip = true;
    let change = "! link flannel.ipip type ipip local 192.0.2.1 mtu 1480 up   (was: type tun mtu 1480 up)   # tunnel device, pool four\n";
    assert_eq!(follow(&view, &mut kernel, dev), change);
    while !follow(&view, &mut kernel, dev).is_empty() {}
    let mut fresh = FakeKernel::new("eth0");
    while !follow(&view, &mut fresh, dev).is_empty() {}
    assert_eq!(kernel.objects, fresh.objects, "nothing of the engine's stays");
}

const SYSCTLS: &str = "\
+ sysctl net/ipv6/conf/flannel.ipip/accept_ra = 0   # tunnel device, pool four
+ sysctl net/ipv4/conf/flannel.ipip/rp_filter = 2   # tunnel device, pool four
";

const ROUTES: &str = "\
+ nexthop via 192.0.2.2 dev flannel.ipip   # underlay address of node b, pool four
+ nexthop via 192.0.2.3 dev flannel.ipip   # underlay address of node c, pool four
~ route 10.244.1.0/24 via 192.0.2.2 dev flannel.ipip   (was: via 192.0.2.2 dev flannel.ipip, without a nexthop object)   # route \
to a block of node b, pool four
~ route 10.244.2.0/24 via 192.0.2.3 dev flannel.ipip   (was: via 192.0.2.3 dev flannel.ipip, without a nexthop object)   # route \
to a block of node c, pool four
- route 10.244.9.0/24 via 192.0.2.9 dev flannel.ipip, without a nexthop object   # nobody wants it any more
";
