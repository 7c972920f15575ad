//! Whom a test of checksums may ask, by which device.

use loden_core::kernel::Key;
use loden_core::offload;
use loden_core::view::View;

use crate::picture;

fn view(name: &str) -> View {
    let file = picture::fixtures().join(format!("cluster/{name}.toml"));
    picture::read(&std::fs::read_to_string(file).expect("a picture"))
}

/// What is shown of a host whose kernel is as wanted, but for objects that are not there.
fn shown(view: &View, lacks: impl Fn(&Key) -> bool) -> Vec<String> {
    let mut desired = picture::desired(view);
    let there: Vec<_> = desired.map().all_desired().map(|(key, wanted)| (*key, wanted.object.clone())).collect();
    for (key, object) in there.into_iter().filter(|(key, _)| !lacks(key)) {
        desired.noted(key, Some(object));
    }
    let devices = offload::devices(view, &desired);
    let one = |of: &offload::Target| format!(" {}={}", of.node, of.addr);
    devices.iter().map(|(dev, targets)| format!("{dev}:{}", targets.iter().map(one).collect::<String>())).collect()
}

#[test]
fn devices_of_the_kernels_and_peers_behind_them() {
    let table: [(&str, &[&str]); 7] = [
        ("dual-stack", &["flannel-v6.1: b=fd00:244:0:1:: c=fd00:244:0:2::", "flannel.1: b=10.244.1.0 c=10.244.2.0"]),
        ("ipip-kernel", &["flannel.ipip: b=10.244.1.0 c=10.244.2.0"]),
        // The engine computes by itself, and where there is no tunnel there is nothing to ask.
        ("ipip-engine", &[]),
        ("host-gw", &[]),
        // The peer on the segment is reached without the device.
        ("direct-routing", &["flannel.1: c=10.244.2.0"]),
        // One route leads to the whole pool.
        ("miss", &["flannel-v6.1: b=fd00:244:0:1:: c=fd00:244:0:2::", "flannel.1: b=10.244.1.0 c=10.244.2.0"]),
        ("ipv6-only", &["flannel-v6.1: b=fd00:244:0:1:: c=fd00:244:0:2::"]),
    ];
    for (name, expected) in table {
        assert_eq!(shown(&view(name), |_| false), expected, "{name}");
    }
}

#[test]
fn who_is_not_reached_yet_is_not_asked() {
    let is_route = |key: &Key| matches!(key, Key::Route(block, _) if block.to_string() == "10.244.1.0/24");
    assert_eq!(shown(&view("ipip-kernel"), is_route), ["flannel.ipip: c=10.244.2.0"]);
    assert_eq!(shown(&view("ipip-kernel"), |key| matches!(key, Key::Link(_))), Vec::<String>::new());
}

#[test]
fn each_node_asks_those_behind_it() {
    let mut view = view("ipip-kernel");
    view.local.node = "b".parse().expect("a name");
    view.local.uid = "uid-b".parse().expect("an identity");
    assert_eq!(shown(&view, |_| false), ["flannel.ipip: c=10.244.2.0 a=10.244.0.0"]);
}
