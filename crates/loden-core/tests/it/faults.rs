//! Faults at the edge of a host that works: the old state goes on, and it is said why.

use loden_core::kernel::link::{Link, LinkKind, Port, Vxlan};
use loden_core::kernel::{Key, LINK_GROUP, Object, Via};
use loden_core::model::{BackendConfig, Entry, Pool, Prefix, Receive, Record, Vni, VxlanConfig};
use loden_core::plan::Plan;
use loden_core::view::{Changed, View};

use crate::picture;
use loden_testkit::FakeKernel;

/// A host of `fixtures/cluster/ipv4-only.toml` whose kernel has followed.
fn at_rest() -> (View, FakeKernel) {
    let text = std::fs::read_to_string(picture::fixtures().join("cluster/ipv4-only.toml")).expect("picture");
    let view = picture::read(&text);
    let mut kernel = FakeKernel::new("eth0");
    kernel.run(&Plan::of(&picture::desired(&view)), |_, _| {});
    (view, kernel)
}

/// Changes the pool's backend and says what is to be done about it, then what is wrong.
fn check(
    change: impl FnOnce(&mut VxlanConfig),
    prepare: impl FnOnce(&mut View, &mut FakeKernel),
    plan: &str,
    problems: &str,
) {
    let (mut view, mut kernel) = at_rest();
    let mut desired = picture::desired(&view);
    prepare(&mut view, &mut kernel);
    let name = "four".parse().expect("name");
    let Pool { backend: BackendConfig::Vxlan(mut vxlan), .. } = view.pools[&name].clone() else { panic!("VXLAN") };
    change(&mut vxlan);
    let pool = Pool { backend: BackendConfig::Vxlan(vxlan), ..view.pools[&name].clone() };
    let changed = view.put(&Entry { record: Record::Pool(pool), created: 1, revision: 99 });
    let all = Changed { all: true, ..changed };
    desired.update(&view, &all);
    desired.observed(&FakeKernel::all_sorts(), kernel.objects);
    assert_eq!(Plan::of(&desired).to_string(), plan);
    assert_eq!(picture::problems(&view, &desired), problems);
}

#[test]
fn an_mtu_that_leaves_too_little_changes_nothing() {
    let cause = "`pool.four.backend.mtu` is 100: vxlan takes 50 of them, and IPv4 needs at least 68: at least 118 is needed \
                 there";
    check(
        |vxlan| vxlan.mtu = Some(100),
        |_, _| {},
        "",
        &format!(
            "the configuration: {cause}\nnode b, pool four: still reached by vxlan: {cause}\nnode c, pool four: still reached \
             by vxlan: {cause}\n"
        ),
    );
}

/// A device of the new VNI that others made with another port.
fn foreign(group: u32) -> (Key, Object) {
    let vxlan = Vxlan {
        group: None,
        reports_misses: false,
        most_entries: 0,
        vni: Vni::new(2).expect("VNI"),
        underlay: Some("eth0".parse().expect("name")),
        local: Some([192, 0, 2, 1].into()),
        port: 9999,
        learning: true,
        gbp: false,
    };
    let link = Link {
        kind: LinkKind::Vxlan(vxlan),
        mtu: 1450,
        mac: None,
        up: true,
        master: None,
        port: Port::default(),
        group,
    };
    (Key::Link("flannel.2".parse().expect("name")), Object::Link(Box::new(link)))
}

/// All have published that they take in VNI 2, and this node that it sends by it.
fn all_take_in_vni_2(view: &mut View) {
    let nodes: Vec<_> = view.nodes.values().map(|node| (**node).clone()).collect();
    for mut node in nodes {
        for receive in node.receives.clone() {
            if let Receive::Vxlan { underlay, mac, port, .. } = receive {
                let vni = Vni::new(2).expect("VNI");
                node.receives.push(Receive::Vxlan { vni, underlay, mac, port, bridged: false });
            }
        }
        for sends in node.sends.values_mut() {
            let both: Vec<_> = sends.iter().cloned().collect();
            for backend in both {
                let BackendConfig::Vxlan(vxlan) = backend else { continue };
                sends.insert(BackendConfig::Vxlan(VxlanConfig { vni: Vni::new(2).expect("VNI"), ..vxlan }));
            }
        }
        view.put(&Entry { record: Record::Node(node), created: 1, revision: 50 });
    }
}

#[test]
fn while_a_foreign_device_stands_in_the_way_the_old_routes_and_what_they_need_stay() {
    let kept = "pool four: VXLAN (VNI 1, UDP port 8472) is kept up beside VXLAN (VNI 2, UDP port 8472) because a, b, c still \
                sent with it when last heard of; a node that is gone for good should be removed from the cluster\n";
    check(
        |vxlan| vxlan.vni = Vni::new(2).expect("VNI"),
        |view, kernel| {
            all_take_in_vni_2(view);
            kernel.objects.extend([foreign(0)]);
        },
        "x link flannel.2   # refused: a device of this name is there that loden did not make, and its UDP port is 9999, \
         wanted is 8472. It is left alone: remove or rename it, or configure another name\n",
        kept,
    );
}

#[test]
fn a_device_of_our_own_with_other_settings_is_made_anew() {
    let (_, Object::Link(wanted)) = foreign(LINK_GROUP) else { panic!("a link") };
    let (view, mut kernel) = at_rest();
    let key = Key::Link("flannel.1".parse().expect("name"));
    let Some(Object::Link(right)) = kernel.objects.get(&key).cloned() else { panic!("a device") };
    let wrong = Link { kind: wanted.kind, ..*right };
    kernel.objects.insert(key, Object::Link(Box::new(wrong)));
    let mut desired = picture::desired(&view);
    desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
    let plan = Plan::of(&desired);
    assert_eq!(
        plan.to_string(),
        "! link flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning mtu 1450 address \
         5a:7e:80:a9:0b:46 up   (was: type vxlan id 2 dev eth0 local 192.0.2.1 dstport 9999 learning mtu 1450 address \
         5a:7e:80:a9:0b:46 up)   # VTEP device, pool four\n"
    );
    // What stood on it went with it; the next look says what to make again.
    kernel.run(&plan, |_, _| {});
    desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
    kernel.run(&Plan::of(&desired), |_, _| {});
    desired.observed(&FakeKernel::all_sorts(), kernel.objects.clone());
    assert!(Plan::of(&desired).is_empty());
}

#[test]
fn what_a_plugin_has_just_made_for_a_pod_is_left_alone_though_its_link_has_not_been_heard_of() {
    let (view, mut kernel) = at_rest();
    let mut desired = picture::desired(&view);
    let dev = "cali0123456789a".parse().expect("name");
    let foreign = "cali-of-mine".parse().expect("name");
    for (dev, last) in [(dev, 9), (foreign, 10)] {
        let prefix = Prefix::host([10, 244, 1, last].into());
        kernel.objects.insert(Key::Address(dev, prefix.ipnet()), Object::Address { ours: true });
        kernel.objects.insert(Key::Route(prefix, 0), Object::Route(Via::Link(dev)));
    }
    desired.observed(&FakeKernel::all_sorts(), kernel.objects);
    assert_eq!(
        Plan::of(&desired).to_string(),
        "- route 10.244.1.10/32 dev cali-of-mine   # nobody wants it any more\n- address 10.244.1.10/32 dev cali-of-mine   # nobody \
         wants it any more\n"
    );
}
