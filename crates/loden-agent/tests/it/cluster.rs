//! A small cluster as a store would list it, seen from its first node.

use std::collections::BTreeSet;

use loden_agent::reconcile::{Facts, Reconciler};
use loden_core::model::{
    BackendConfig, Block, Entry, Family, HostGwConfig, Mac, Node, PerFamily, Pool, Prefix, Receive, Record, VxlanConfig,
};
use loden_core::underlay::Underlay;
use loden_core::view::Local;
use loden_testkit::FakeKernel;

pub fn vxlan() -> BackendConfig {
    BackendConfig::Vxlan(VxlanConfig::default())
}

pub fn host_gw() -> BackendConfig {
    BackendConfig::HostGw(HostGwConfig {})
}

/// The records of nodes 0 to `peers`, with one IPv4 pool.
pub fn listing(peers: u8, backend: &BackendConfig) -> Vec<Entry> {
    let pool = Pool {
        name: "default".parse().expect("name"),
        cidr: "10.244.0.0/16".parse().expect("prefix"),
        block_len: 24,
        first_block: None,
        last_block: None,
        backend: backend.clone(),
        nat_outgoing: true,
        node_selector: Default::default(),
        unknown: Default::default(),
    };
    let mut records = vec![Record::Pool(pool)];
    for n in 0..=peers {
        let vni = VxlanConfig::default().vni;
        let mac = if n == 0 { Mac::derived(&["uid-n0", "flannel.1"]) } else { Mac([2, 0, 0, 0, 0, n]) };
        records.push(Record::Node(Node {
            name: format!("n{n}").parse().expect("name"),
            uid: format!("uid-n{n}").parse().expect("uid"),
            underlay: PerFamily { v4: Some([192, 0, 2, n + 1].into()), v6: None },
            public: PerFamily::default(),
            asked: PerFamily::default(),
            labels: Default::default(),
            receives: vec![
                Receive::Vxlan { vni, underlay: Family::V4, mac, port: 8472, bridged: false },
                Receive::HostGw,
            ],
            sends: [("default".parse().expect("name"), BTreeSet::from([backend.clone()]))].into(),
            unknown: Default::default(),
        }));
        records.push(Record::Block(Block {
            cidr: Prefix::holding([10, 244, n, 0].into(), 24),
            pool: "default".parse().expect("name"),
            owner: format!("n{n}").parse().expect("name"),
            owner_uid: format!("uid-n{n}").parse().expect("uid"),
        }));
    }
    records.into_iter().map(|record| Entry { record, created: 1, revision: 1 }).collect()
}

/// The same records after this node has published what it can now.
pub fn published(mut listing: Vec<Entry>, facts: &Facts) -> Vec<Entry> {
    for entry in &mut listing {
        if let Record::Node(node) = &mut entry.record
            && node.name.as_str() == "n0"
        {
            node.receives = facts.receives.clone();
            node.sends = facts.sends.clone().expect("something is said");
        }
    }
    listing
}

pub fn reconciler(kernel: FakeKernel) -> Reconciler<FakeKernel> {
    let underlay = Underlay {
        ifname: "eth0".parse().expect("name"),
        mtu: 1500,
        addresses: PerFamily { v4: Some([192, 0, 2, 1].into()), v6: None },
        onlink: vec!["192.0.2.0/24".parse().expect("prefix")],
    };
    let local = Local {
        node: "n0".parse().expect("name"),
        uid: "uid-n0".parse().expect("uid"),
        labels: Default::default(),
        bridge: "cni0".parse().expect("name"),
        found: std::collections::BTreeMap::new(),
        rules: loden_core::view::HostRules::default(),
        abilities: Default::default(),
        underlay: Some(underlay),
    };
    Reconciler::new(kernel, local)
}

/// Rounds until nothing fails and nothing is left to do; the bound only guards against never.
pub fn settle(reconciler: &mut Reconciler<FakeKernel>) {
    for _ in 0..20 {
        reconciler.retry();
        let round = reconciler.round();
        if round.failed == 0 && reconciler.dry_run().expect("readable").is_empty() {
            return;
        }
    }
    panic!("it does not settle:\n{}", reconciler.dry_run().expect("readable"));
}

/// A kernel that a cluster of this size has settled on.
pub fn settled(peers: u8, backend: &BackendConfig) -> FakeKernel {
    let mut reconciler = reconciler(FakeKernel::new("eth0"));
    reconciler.listing(&listing(peers, backend));
    settle(&mut reconciler);
    reconciler.kernel().clone()
}
