//! Changing a pool's backend under traffic: at no moment, in no order of events, does a route lead into a void.

use loden_core::config::cluster::parse_pools;
use loden_core::kernel::link::LinkKind;
use loden_core::kernel::{Key, Sort};
use loden_core::model::{BackendConfig, Pool, Record};
use loden_core::view::Problem;
use proptest::prelude::*;
use serde_json::json;

use crate::sim::Sim;

/// What may happen next.
#[derive(Debug, Clone, Copy)]
enum Op {
    /// A host sees the next records.
    Deliver(usize, usize),
    /// A host's kernel follows.
    Reconcile(usize),
    /// A host writes its record.
    Publish(usize),
    /// A host's agent is killed and started again.
    Restart(usize),
    /// A host's pods are attached anew, or go.
    Attach(usize, bool),
    /// The operator makes the next change.
    Configure,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let host = 0..3_usize;
    let op = prop_oneof![
        8 => (host.clone(), 1..4_usize).prop_map(|(host, count)| Op::Deliver(host, count)),
        8 => host.clone().prop_map(Op::Reconcile),
        8 => host.clone().prop_map(Op::Publish),
        1 => host.clone().prop_map(Op::Restart),
        1 => (host, any::<bool>()).prop_map(|(host, is_there)| Op::Attach(host, is_there)),
        1 => Just(Op::Configure),
    ];
    proptest::collection::vec(op, 0..120)
}

fn vxlan(vni: u32, port: u16) -> serde_json::Value {
    json!({ "type": "vxlan", "vni": vni, "port": port })
}

fn misses(vni: u32) -> serde_json::Value {
    json!({ "type": "vxlan", "vni": vni, "control": "miss" })
}

fn host_gw() -> serde_json::Value {
    json!({ "type": "host-gw" })
}

fn udp(port: u16) -> serde_json::Value {
    json!({ "type": "udp", "port": port })
}

fn ipip() -> serde_json::Value {
    json!({ "type": "ipip" })
}

fn learn(vni: u32, group: Option<&str>) -> serde_json::Value {
    let group = group.map_or_else(|| json!({}), |group| json!({ "v4": group }));
    json!({ "type": "vxlan", "vni": vni, "control": "learn", "group": group })
}

fn direct() -> serde_json::Value {
    json!({ "type": "vxlan", "direct_routing": true })
}

/// The pools `four` and, in the second place, `six`, with these backends.
fn pools(backends: &[serde_json::Value]) -> Vec<Pool> {
    let all = [("four", "10.244.0.0/16"), ("six", "fd00:244::/48")];
    let tables: Vec<_> = all
        .iter()
        .zip(backends)
        .map(|((name, cidr), backend)| json!({ "name": name, "cidr": cidr, "backend": backend }))
        .collect();
    parse_pools(json!({ "pool": tables })).expect("pools")
}

/// Goes through the configurations, one write after the other, while the operations happen between them.
fn check(configurations: &[Vec<Pool>], ops: &[Op]) {
    let (first, rest) = configurations.split_first().expect("a configuration");
    let mut sim = Sim::at_rest(3, first);
    let mut changes = rest.iter().flatten();
    let mut configure = |sim: &mut Sim| match changes.next() {
        Some(pool) => {
            sim.write(Record::Pool(pool.clone()));
            true
        }
        None => false,
    };
    for op in ops {
        match *op {
            Op::Deliver(n, count) => (0..count).for_each(|_| sim.deliver(n)),
            Op::Reconcile(n) => sim.reconcile(n),
            Op::Publish(n) => sim.publish(n),
            Op::Restart(n) => sim.restart(n),
            Op::Attach(n, is_there) => sim.attach(n, is_there),
            Op::Configure => drop(configure(&mut sim)),
        }
        sim.check(&format!("after {op:?}"));
    }
    while configure(&mut sim) {}
    sim.settle();
    // A pod that is on a segment keeps it up.
    (0..3).for_each(|n| sim.attach(n, false));
    sim.settle();
    let last = rest.last().unwrap_or(first);
    check_end(&sim, last);
}

/// Everybody uses the last configuration, and nothing of a former one is left.
fn check_end(sim: &Sim, pools: &[Pool]) {
    for host in &sim.hosts {
        let uses: Vec<_> = host.desired.uses().into_iter().collect();
        let wanted: Vec<_> = pools.iter().map(|pool| (pool.name.clone(), [pool.backend.clone()].into())).collect();
        assert_eq!(uses, wanted, "{}", host.name);
        let problems: Vec<&Problem> = host.view.problems().chain(host.desired.problems()).collect();
        assert!(problems.is_empty(), "{}: {problems:?}", host.name);
        let mut kinds: Vec<_> = pools.iter().filter_map(|pool| tells_apart(&pool.backend)).collect();
        kinds.dedup();
        let vteps: Vec<_> = host
            .vteps()
            .filter_map(|link| match &link.kind {
                LinkKind::Vxlan(vxlan) => Some((vxlan.vni.get(), vxlan.port)),
                _ => None,
            })
            .collect();
        assert_eq!(vteps, kinds, "{}", host.name);
        let unwanted: Vec<&Key> =
            host.kernel.objects.keys().filter(|key| host.desired.map().desired(key).is_none()).collect();
        // A device's sysctls go with it; those of the host and of what stays are left as they were set.
        assert!(unwanted.iter().all(|key| key.sort() == Sort::Sysctl), "{}: {unwanted:?}", host.name);
    }
}

fn tells_apart(backend: &BackendConfig) -> Option<(u32, u16)> {
    match backend {
        BackendConfig::Vxlan(vxlan) => Some((vxlan.vni.get(), vxlan.port)),
        _ => None,
    }
}

/// The changes: each a row of configurations that follow one another.
fn rows() -> Vec<Vec<Vec<Pool>>> {
    let one = |backends: &[serde_json::Value]| backends.iter().map(|b| pools(std::slice::from_ref(b))).collect();
    vec![
        one(&[vxlan(1, 8472), host_gw()]),
        one(&[host_gw(), vxlan(1, 8472)]),
        one(&[vxlan(1, 8472), vxlan(1, 4789)]),
        one(&[vxlan(1, 4789), vxlan(1, 8472)]),
        one(&[vxlan(1, 8472), vxlan(2, 8472)]),
        one(&[vxlan(1, 8472), vxlan(500, 4789)]),
        one(&[vxlan(1, 8472), direct()]),
        one(&[direct(), vxlan(2, 8472)]),
        one(&[direct(), host_gw()]),
        // Back again before it is through.
        one(&[vxlan(1, 8472), host_gw(), vxlan(1, 8472)]),
        one(&[vxlan(1, 8472), vxlan(1, 4789), vxlan(1, 8472)]),
        one(&[host_gw(), vxlan(1, 8472), host_gw()]),
        one(&[vxlan(1, 8472), vxlan(2, 8472), vxlan(1, 8472)]),
        // On to a third before it is through.
        one(&[vxlan(1, 8472), host_gw(), vxlan(1, 4789)]),
        one(&[vxlan(1, 8472), vxlan(1, 4789), vxlan(1, 4790)]),
        // To and fro.
        one(&[vxlan(1, 8472), vxlan(2, 8472), vxlan(1, 8472), vxlan(2, 8472)]),
        one(&[vxlan(1, 8472), host_gw(), vxlan(1, 8472), host_gw()]),
        one(&[vxlan(1, 8472), vxlan(1, 4789), vxlan(1, 8472), vxlan(1, 4789), vxlan(1, 8472)]),
        // By engines in the agents, and by the kernels of some.
        one(&[vxlan(1, 8472), udp(8285), host_gw()]),
        one(&[udp(8285), vxlan(1, 8472)]),
        one(&[udp(8285), udp(9000), udp(8285)]),
        one(&[udp(8285), ipip(), vxlan(1, 8472)]),
        one(&[ipip(), host_gw(), ipip()]),
        one(&[ipip(), udp(8285), ipip()]),
        vec![pools(&[udp(8285), udp(8285)]), pools(&[vxlan(1, 8472), udp(8285)])],
        // To one segment and back, on the same device or on another.
        one(&[vxlan(1, 8472), learn(1, Some("239.1.1.42")), vxlan(1, 8472)]),
        one(&[learn(1, None), vxlan(1, 8472), learn(1, None)]),
        one(&[vxlan(1, 8472), learn(2, None), vxlan(1, 8472)]),
        one(&[host_gw(), learn(1, None), host_gw()]),
        one(&[learn(1, Some("239.1.1.42")), host_gw(), udp(8285), learn(1, None)]),
        // From one group straight to another some of what is flooded is lost: a host that has not heard of it floods to the former one.
        one(&[learn(1, None), learn(1, Some("239.1.1.42"))]),
        one(&[learn(1, Some("239.1.1.42")), learn(1, None)]),
        one(&[learn(1, Some("239.1.1.42")), learn(2, Some("239.1.1.42")), learn(1, None)]),
        vec![pools(&[vxlan(1, 8472), vxlan(1, 8472)]), pools(&[learn(1, None), learn(1, None)])],
        // By answered misses, on the same device and on another.
        one(&[vxlan(1, 8472), misses(1)]),
        one(&[misses(1), vxlan(1, 8472)]),
        one(&[misses(1), vxlan(2, 8472), misses(1)]),
        one(&[misses(1), misses(2)]),
        one(&[host_gw(), misses(1), udp(8285)]),
        vec![pools(&[vxlan(1, 8472), vxlan(1, 8472)]), pools(&[misses(1), misses(1)])],
        vec![pools(&[misses(1), vxlan(1, 8472)]), pools(&[vxlan(1, 8472), misses(1)])],
        // Two pools share the device and are changed one after the other: the first change alone is refused.
        vec![pools(&[vxlan(1, 8472), vxlan(1, 8472)]), pools(&[vxlan(1, 4789), vxlan(1, 4789)])],
        vec![pools(&[vxlan(1, 8472), vxlan(1, 8472)]), pools(&[vxlan(2, 8472), vxlan(3, 8472)])],
    ]
}

#[test]
fn every_change_of_backend_comes_to_its_end_when_nothing_comes_between() {
    for row in rows() {
        check(&row, &[]);
        check(&row, &[Op::Configure]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_backend_leaves_a_route_into_a_void(row in proptest::sample::select(rows()), ops in ops()) {
        check(&row, &ops);
    }
}

#[test]
fn a_dead_node_keeps_a_former_backend_alive_and_is_named() {
    let (from, to) = (pools(&[vxlan(1, 8472)]), pools(&[host_gw()]));
    let mut sim = Sim::at_rest(3, &from);
    sim.hosts[2].dead = true;
    sim.write(Record::Pool(to[0].clone()));
    sim.settle();
    let host = &sim.hosts[0];
    assert_eq!(host.vteps().count(), 1, "c is still reached by its tunnel");
    let text: Vec<_> = host.desired.problems().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "pool four: VXLAN (VNI 1, UDP port 8472) is kept up beside routed packets (host-gw) because a, b, c still sent \
             with it when last heard of; a node that is gone for good should be removed from the cluster",
            "node c, pool four: still reached by vxlan: it has not published that it takes in routed packets (host-gw) for \
             pool four; its agent does so once its kernel is ready: look at `loden status` there",
        ]
    );
}
