//! VXLAN over an extended bridge: the pods of all hosts on one segment, which learns where they are.

use loden_lab::Lab;
use loden_lab::probe::reach;

use crate::support::{SEGMENT, all_reach, hosts, up};

/// Pools of both families on one segment, with these further settings of the backend.
fn pools(backend: &str) -> String {
    let pool = |name: &str, cidr: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ncidr = \"{cidr}\"\nbackend = {{ type = \"vxlan\", control = \"learn\"{backend} }}\n"
        )
    };
    [pool("p4", "10.244.0.0/16"), pool("p6", "fd00:10:244::/56")].concat()
}

const GROUPS: &str = ", group = { v4 = \"239.1.1.42\", v6 = \"ff05::42\" }";

/// The pods among each other: where the underlay has no IPv4 there is no outside of IPv4.
fn pods_reach(lab: &Lab) {
    let is_pod = |name: &str| lab.pods().iter().any(|pod| pod.name == name);
    let mut probes = reach::all(lab).expect("probes");
    probes.retain(|probe| is_pod(&probe.from) && is_pod(&probe.to));
    let faults: Vec<_> = probes.iter().filter(|probe| probe.fault.is_some()).collect();
    assert!(!probes.is_empty() && faults.is_empty(), "{}\n{faults:#?}", reach::table(&probes));
}

#[test]
fn by_a_multicast_group_all_reach_everybody() {
    let lab = up("learn-group", &[SEGMENT, &hosts(3, ""), &pools(GROUPS)].concat());
    all_reach(&lab);
}

#[test]
fn by_copies_to_each_host_all_reach_everybody() {
    let lab = up("learn-copies", &[SEGMENT, &hosts(3, ""), &pools("")].concat());
    all_reach(&lab);
}

#[test]
fn over_an_ipv6_underlay_all_reach_everybody() {
    let segment = "[[segment]]\nname = \"s\"\nv6 = \"2001:db8:0:2::/64\"\n";
    let lab = up("learn-v6", &[segment, &hosts(3, ""), &pools(GROUPS)].concat());
    pods_reach(&lab);
}
