//! From the reconciler's state to what the API answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use loden_core::api::{
    AddressInUse, BlockStatus, ChecksumStatus, Failing, Ipam, KernelStatus, MissStatus, PeerStatus, PoolStatus, Status,
    StoreStatus, TunnelStatus,
};
use loden_core::desired::Source;
use loden_core::ipam::{self, OwnBlock};
use loden_core::kernel::link::LinkKind;
use loden_core::kernel::{Kernel, Key, Object, Sort};
use loden_core::model::{BackendConfig, Block, Control, IfName, Pool, PoolName, Prefix};
use loden_core::offload::Verdict;
use loden_core::view::{Problem, View};
use loden_store::Readiness;

use crate::cluster::ClusterHealth;
use crate::reconcile::Reconciler;

/// What the status says besides what the reconciler knows.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The store's address.
    pub store_url: String,
    /// How the store's side is.
    pub cluster: ClusterHealth,
    /// Problems of the host: no external interface, unreadable attachments.
    pub host: Vec<Problem>,
    /// Problems of DHCP leases.
    pub leases: Vec<Problem>,
    /// Microseconds that the last round took.
    pub last_round_us: u64,
    /// Who guards the nftables table.
    pub nft_ownership: String,
    /// Who computes the checksums of what devices send.
    pub checksums: BTreeMap<IfName, Verdict>,
    /// The tunnels that this agent runs.
    pub tunnels: Vec<TunnelStatus>,
    /// What the kernel asks for, where it is told to ask.
    pub misses: Option<MissStatus>,
    /// Whether the plugin has been told.
    pub is_plugin_served: bool,
}

/// The whole status.
pub fn status<K: Kernel>(reconciler: &Reconciler<K>, around: &Around) -> Status {
    let view = reconciler.view();
    let mut problems = around.host.clone();
    problems.extend(around.leases.iter().cloned());
    problems.extend(around.checksums.iter().filter_map(|(dev, verdict)| verdict.problem(*dev)));
    problems.extend(around.cluster.problems.iter().cloned());
    problems.extend(around.cluster.strangers.iter().cloned());
    problems.extend(reconciler.problems());
    if let Some(error) = &around.cluster.error {
        problems.push(Problem::new("the datastore", format!("{error}; what is in the kernel stays as it is")));
    }
    problems.dedup();
    let peers: Vec<PeerStatus> = view.peers().map(|node| peer(reconciler, node)).collect();
    Status {
        node: view.local.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: reconciler.events.uptime_ms(),
        ready: is_ready(reconciler, around),
        problems,
        underlay: view.local.underlay.clone(),
        mtu_pod: reconciler.facts().mtu_pod,
        pools: pools(reconciler, &peers),
        blocks: blocks(view),
        peers,
        tunnels: tunnels(reconciler, around),
        misses: around.misses.clone(),
        checksums: around.checksums.iter().map(|(dev, verdict)| checksums(*dev, verdict)).collect(),
        kernel: kernel(reconciler, around),
        store: StoreStatus {
            url: around.store_url.clone(),
            up: around.cluster.up,
            revision: around.cluster.revision,
            error: around.cluster.error.clone(),
            view: around.cluster.view,
        },
    }
}

/// Whether pods can be served: the kernel is as wanted, and the plugin knows the node's blocks. A store that is away does not
/// make the node unready, since pods start without it.
pub fn is_ready<K: Kernel>(reconciler: &Reconciler<K>, around: &Around) -> bool {
    reconciler.synced()
        && around.is_plugin_served
        && reconciler.facts().mtu_pod.is_some()
        && !reconciler.is_hindered()
        && reconciler.view().local.underlay.is_some()
}

fn pools<K: Kernel>(reconciler: &Reconciler<K>, peers: &[PeerStatus]) -> Vec<PoolStatus> {
    let view = reconciler.view();
    let of_pool = |pool: &Pool| {
        let owners: Vec<_> = peers
            .iter()
            .filter(|peer| view.nodes.get(&peer.node).is_some_and(|n| view.blocks_in(&n.name, pool).next().is_some()))
            .collect();
        let suffix = format!("pool {}", pool.name);
        let causes: Vec<String> = reconciler
            .problems()
            .into_iter()
            .filter(|problem| problem.subject.ends_with(&suffix))
            .map(|problem| problem.to_string())
            .collect();
        let reached = owners.iter().filter(|peer| peer.missing == 0 && peer.problems.is_empty()).count();
        PoolStatus {
            name: pool.name.clone(),
            cidr: pool.cidr,
            backend: describe(&pool.backend),
            lingering: view.active_backends(pool).into_iter().skip(1).map(describe).collect(),
            peers_reached: reached,
            peers: owners.len(),
            healthy: causes.is_empty() && reached == owners.len() && !reconciler.is_hindered(),
            causes,
        }
    };
    view.pools.values().map(of_pool).collect()
}

fn describe(backend: &BackendConfig) -> String {
    match backend {
        BackendConfig::Vxlan(v) => {
            let direct = if v.direct_routing { ", direct routing" } else { "" };
            let control = match v.control {
                Control::Static => "",
                Control::Learn => ", learning",
                Control::Miss => ", by answered misses",
            };
            let bridged = if v.bridged { " over an extended bridge" } else { "" };
            let groups: Vec<_> = v.group.iter().map(|(_, group)| group.to_string()).collect();
            let groups = if groups.is_empty() { String::new() } else { format!(", group {}", groups.join(" and ")) };
            format!("vxlan vni {} port {}{direct}{control}{bridged}{groups}", v.vni, v.port)
        }
        BackendConfig::HostGw(_) => "host-gw".to_owned(),
        BackendConfig::Udp(udp) => format!("udp port {}", udp.port),
        BackendConfig::Ipip(ipip) => {
            format!("ipip{}", if ipip.direct_routing { ", direct routing" } else { "" })
        }
    }
}

fn peer<K: Kernel>(reconciler: &Reconciler<K>, node: &loden_core::model::Node) -> PeerStatus {
    let source = Source::Peer(node.name.clone());
    let keys = reconciler.desired().keys_of(&source);
    let map = reconciler.desired().map();
    let is_missing = |key: &&loden_core::kernel::Key| match (map.desired(key), map.actual(key)) {
        (Some(wanted), Some(actual)) => !wanted.object.is_met_by(actual),
        (Some(_), None) => true,
        (None, _) => false,
    };
    PeerStatus {
        node: node.name.clone(),
        addresses: node.underlay.iter().map(|(_, addr)| addr).collect(),
        blocks: reconciler
            .view()
            .blocks
            .get(&node.name)
            .map(|b| b.iter().map(|b| b.cidr).collect())
            .unwrap_or_default(),
        alive: reconciler.is_alive(&node.name),
        objects: keys.len(),
        missing: keys.iter().filter(is_missing).count(),
        problems: reconciler.desired().problems_of(&source).iter().map(ToString::to_string).collect(),
    }
}

/// Those that run here, and those of devices that not every kernel has.
pub fn tunnels<K: Kernel>(reconciler: &Reconciler<K>, around: &Around) -> Vec<TunnelStatus> {
    let by_kernel = reconciler.desired().map().all_desired().filter_map(|(key, wanted)| match (key, &wanted.object) {
        (Key::Link(dev), Object::Link(link)) if matches!(link.kind, LinkKind::Ipip(_)) => Some(TunnelStatus {
            device: *dev,
            wire: link.to_string(),
            by: "the kernel's own device".to_owned(),
            lacks: Vec::new(),
            peers: Vec::new(),
            dropped: BTreeMap::new(),
        }),
        _ => None,
    });
    around.tunnels.iter().cloned().chain(by_kernel).collect()
}

fn checksums(device: IfName, verdict: &Verdict) -> ChecksumStatus {
    ChecksumStatus { device, by: verdict.by(), tried_with: verdict.peer().cloned(), text: verdict.to_string() }
}

fn kernel<K: Kernel>(reconciler: &Reconciler<K>, around: &Around) -> KernelStatus {
    let (writes, repairs, rounds) = reconciler.counts();
    let by_name =
        |counts: &BTreeMap<Sort, u64>| counts.iter().map(|(sort, count)| (sort.name().to_owned(), *count)).collect();
    let failing = reconciler.failures().iter().map(|(key, failure)| Failing {
        object: key.to_string(),
        cause: failure.error.cause.clone(),
        why: failure.why.as_ref().map_or_else(|| "nobody wants it any more".to_owned(), ToString::to_string),
    });
    KernelStatus {
        wanted: reconciler.desired().map().count_desired(),
        pending: pending(reconciler),
        writes: by_name(writes),
        repairs: by_name(repairs),
        failing: failing.collect(),
        rounds,
        last_round_us: around.last_round_us,
        nft_ownership: around.nft_ownership.clone(),
    }
}

/// How many wanted objects are not as wanted.
pub fn pending<K: Kernel>(reconciler: &Reconciler<K>) -> usize {
    reconciler.desired().map().differences().filter(|(_, wanted, _)| wanted.is_some()).count()
}

/// This node's blocks with how full they are.
pub fn blocks(view: &View) -> Vec<BlockStatus> {
    let used = used(view);
    let of = |block: &Block| BlockStatus {
        cidr: block.cidr,
        pool: block.pool.clone(),
        used: used.get(&block.cidr).copied().unwrap_or(0),
        capacity: loden_core::ipam::capacity(block.cidr),
    };
    view.pools.values().flat_map(|pool| view.own_blocks_in(pool)).map(of).collect()
}

/// Addresses that pods have of each block that is recorded as this node's: by a look-up an address.
fn used(view: &View) -> BTreeMap<Prefix, u64> {
    let own = view.blocks.get(&view.local.node).map(Vec::as_slice).unwrap_or_default();
    let mut used = BTreeMap::new();
    for (addr, _) in addresses(view) {
        // They are in order and none overlaps another.
        let before = own.partition_point(|block| block.cidr <= Prefix::host(addr));
        if let Some(block) = before.checked_sub(1).map(|n| &own[n]).filter(|block| block.cidr.contains(addr)) {
            *used.entry(block.cidr).or_default() += 1;
        }
    }
    used
}

/// Addresses that pods have, pool by pool.
pub fn used_of_pools(view: &View) -> BTreeMap<PoolName, u64> {
    let mut all = BTreeMap::new();
    for block in blocks(view) {
        *all.entry(block.pool).or_default() += block.used;
    }
    all
}

/// The blocks that pods here have addresses of, whoever owns them.
pub fn blocks_in_use(view: &View) -> BTreeSet<Prefix> {
    let supplies = view.attachments.values().flat_map(|there| there.addresses.iter().filter_map(|a| a.supply.as_ref()));
    supplies.filter(|supply| supply.network.is_none()).map(|supply| supply.range.subnet()).collect()
}

/// All blocks of this node's, those of pools that are gone too, with how long they have been empty.
pub fn own_blocks(view: &View, idle: impl Fn(Prefix) -> Duration) -> Vec<OwnBlock> {
    let own = view.blocks.get(&view.local.node).into_iter().flatten();
    let used = used(view);
    let of = |block: &Block| OwnBlock {
        cidr: block.cidr,
        pool: block.pool.clone(),
        used: used.get(&block.cidr).copied().unwrap_or(0),
        idle_s: idle(block.cidr).as_secs(),
        // What a pool is to be that is not in force nobody knows.
        is_wanted: view.refused_pools().contains(&block.pool)
            || view
                .pools
                .get(&block.pool)
                .is_some_and(|pool| pool.cidr.covers(block.cidr) && ipam::is_selected(pool, &view.local.labels)),
    };
    own.filter(|block| block.owner_uid == view.local.uid).map(of).collect()
}

/// Pools of families that no block in use is of, and that are to give this node one and have not said why they do not.
pub fn awaited<'a>(view: &'a View, blocks: &[Prefix], problems: &[Problem]) -> Vec<&'a PoolName> {
    let has = |family| blocks.iter().any(|block| block.family() == family);
    let is_due = |pool: &&Pool| {
        let subject = format!("pool {}", pool.name);
        ipam::is_selected(pool, &view.local.labels)
            && !has(pool.cidr.family())
            && !problems.iter().any(|problem| problem.subject == subject)
    };
    view.pools.values().filter(is_due).map(|pool| &pool.name).collect()
}

/// Whether pods can be served, and if not the first cause.
pub fn readiness<K: Kernel>(reconciler: &Reconciler<K>, around: &Around) -> Readiness {
    if is_ready(reconciler, around) {
        return Readiness { ready: true, message: "loden is ready for pods".to_owned() };
    }
    let problem = status(reconciler, around).problems.first().map(ToString::to_string);
    let served: Vec<Prefix> = blocks(reconciler.view()).iter().map(|block| block.cidr).collect();
    let waits = || {
        let awaited = awaited(reconciler.view(), &served, &around.cluster.problems);
        let pools: Vec<String> = awaited.iter().map(|pool| format!("pool {pool}")).collect();
        (!pools.is_empty()).then(|| format!("a block of {} has not been had yet", pools.join(" and of ")))
    };
    let message = problem.or_else(waits).unwrap_or_else(|| "the kernel is not as wanted yet".to_owned());
    Readiness { ready: false, message }
}

fn addresses(view: &View) -> impl Iterator<Item = (IpAddr, &loden_core::model::Attachment)> {
    view.attachments.values().flat_map(|attachment| attachment.ips().map(|addr| (addr, attachment.as_ref())))
}

/// Who has which address.
pub fn ipam(view: &View) -> Ipam {
    let mut all: Vec<AddressInUse> = addresses(view)
        .map(|(address, attachment)| AddressInUse {
            address,
            attachment: attachment.key.to_string(),
            pod: attachment.pod.clone(),
            host_side: attachment.host_side.map(|name| name.to_string()),
        })
        .collect();
    all.sort_by_key(|used| used.address);
    Ipam { blocks: blocks(view), addresses: all }
}
