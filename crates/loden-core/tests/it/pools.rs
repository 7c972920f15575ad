//! Which pools are in force when some are faulty or clash.

use loden_core::config::cluster::parse_pools;
use loden_core::model::{Entry, Pool, Record};
use loden_core::view::{Local, View};
use serde_json::json;

fn view() -> View {
    View::new(Local {
        node: "a".parse().expect("name"),
        uid: "uid-a".parse().expect("identity"),
        labels: Default::default(),
        bridge: "cni0".parse().expect("name"),
        found: std::collections::BTreeMap::new(),
        rules: loden_core::view::HostRules::default(),
        abilities: Default::default(),
        underlay: None,
    })
}

fn pool(name: &str, cidr: &str, port: u16) -> Pool {
    let backend = json!({ "type": "vxlan", "port": port });
    parse_pools(json!({ "pool": [{ "name": name, "cidr": cidr, "backend": backend }] })).expect("pool").remove(0)
}

/// Puts pools with the revision that first wrote them, then compares what is in force and what is wrong.
fn check(puts: &[(u64, Pool)], in_force: &[&str], problems: &[&str]) {
    let mut view = view();
    for (created, pool) in puts {
        view.put(&Entry { record: Record::Pool(pool.clone()), created: *created, revision: *created });
    }
    let pools: Vec<_> = view
        .pools
        .values()
        .map(|pool| match &pool.backend {
            loden_core::model::BackendConfig::Vxlan(vxlan) => {
                format!("{} {} port {}", pool.name, pool.cidr, vxlan.port)
            }
            _ => format!("{} {}", pool.name, pool.cidr),
        })
        .collect();
    assert_eq!(pools, in_force);
    let found: Vec<_> = view.problems().map(ToString::to_string).collect();
    assert_eq!(found, problems);
}

#[test]
fn of_two_that_overlap_the_older_is_in_force_whichever_was_seen_first() {
    let (old, young) = ((1, pool("old", "10.0.0.0/8", 8472)), (2, pool("young", "10.1.0.0/16", 8472)));
    for puts in [[old.clone(), young.clone()], [young, old]] {
        check(
            &puts,
            &["old 10.0.0.0/8 port 8472"],
            &[
                "pool young: pool young clashes with pool old: 10.1.0.0/16 overlaps 10.0.0.0/8; choose addresses that are in \
               no other pool. Until that is mended the pool is not in force",
            ],
        );
    }
}

#[test]
fn a_pool_that_becomes_faulty_goes_on_as_it_was() {
    let good = pool("one", "10.0.0.0/16", 8472);
    check(
        &[(1, good.clone()), (1, Pool { block_len: 12, ..good })],
        &["one 10.0.0.0/16 port 8472"],
        &[
            "pool one: `pool.one.block_len` is 12: a block of /12 is larger than the pool 10.0.0.0/16: at least 16 was meant. \
           Until that is mended the pool goes on as it was before this change",
        ],
    );
}

#[test]
fn an_old_pool_that_is_changed_into_a_young_one_goes_on_as_it_was_and_so_does_the_young_one() {
    check(
        &[
            (1, pool("old", "10.0.0.0/16", 8472)),
            (2, pool("young", "10.1.0.0/16", 8472)),
            (1, pool("old", "10.0.0.0/15", 8472)),
        ],
        &["old 10.0.0.0/16 port 8472", "young 10.1.0.0/16 port 8472"],
        &[
            "pool old: pool old clashes with pool young: 10.0.0.0/15 overlaps 10.1.0.0/16; choose addresses that are in no \
           other pool. Until that is mended the pool goes on as it was before this change",
        ],
    );
}

#[test]
fn two_pools_on_one_device_are_given_another_port_one_after_the_other() {
    let (four, six) = ("10.0.0.0/16", "fd00::/48");
    let before = [(1, pool("four", four, 8472)), (2, pool("six", six, 8472))];
    let half = |first: (u64, Pool)| [before.to_vec(), vec![first]].concat();
    for (n, cidr) in [(1, four), (2, six)] {
        let name = if n == 1 { "four" } else { "six" };
        let other = if n == 1 { "six" } else { "four" };
        check(
            &half((n, pool(name, cidr, 4789))),
            &["four 10.0.0.0/16 port 8472", "six fd00::/48 port 8472"],
            &[&format!(
                "pool {name}: pool {name} clashes with pool {other}: both use VNI 1, which is one device, but with UDP ports \
                 4789 and 8472; give them different VNIs, or set both alike. Until that is mended the pool goes on as it was \
                 before this change"
            )],
        );
    }
    let after = [(1, pool("four", four, 4789)), (2, pool("six", six, 4789))];
    for order in [after.to_vec(), after.iter().rev().cloned().collect()] {
        check(&[before.to_vec(), order].concat(), &["four 10.0.0.0/16 port 4789", "six fd00::/48 port 4789"], &[]);
    }
}

#[test]
fn a_pool_whose_record_goes_makes_room() {
    let mut view = view();
    let records = [(1, pool("old", "10.0.0.0/8", 8472)), (2, pool("young", "10.1.0.0/16", 8472))];
    for (created, pool) in records.clone() {
        view.put(&Entry { record: Record::Pool(pool), created, revision: created });
    }
    view.delete(&Record::Pool(records[0].1.clone()).key());
    assert_eq!(view.pools.keys().map(ToString::to_string).collect::<Vec<_>>(), ["young"]);
    assert_eq!(view.problems().count(), 0);
}
