//! Ten thousand VXLAN peers into an empty kernel, against the form of one on-link route a peer by `ip -batch` and
//! `bridge -batch`; and one peer more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_core::desired::Desired;
use loden_core::kernel::{Kernel, Key, Object, Sort};
use loden_core::model::{
    BackendConfig, Block, Entry, Family, IfName, Mac, Node, NodeName, PerFamily, Pool, Prefix, Receive, Record, Vni,
    VxlanConfig,
};
use loden_core::plan::{Plan, Step};
use loden_core::underlay::Underlay;
use loden_core::view::{Changed, Local, View};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::{address, link};
use loden_linux::{LinuxKernel, netns};

use super::{Row, median};
use crate::shell;

const PEERS: u32 = 10_000;

/// Both forms in turn, each in a fresh namespace.
pub fn run(runs: usize) -> Result<Vec<Row>> {
    if !shell::has("ip") || !shell::has("bridge") {
        bail!("the peer is `ip -batch`: install iproute2");
    }
    let (mut ours, mut kernel, mut theirs, mut one_more) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..runs {
        shell::say(&format!("· run {} of {runs}", n + 1));
        let (whole, applied, more) = in_namespace(loden_form)?;
        ours.push(whole.as_secs_f64());
        kernel.push(applied.as_secs_f64());
        one_more.push(more.as_secs_f64() * 1000.0);
        theirs.push(in_namespace(onlink_form)?.as_secs_f64());
    }
    let (ours, kernel, theirs, one_more) = (median(ours), median(kernel), median(theirs), median(one_more));
    let row = |name, ours, peer, unit, floor, goal, against| Row {
        name,
        ours,
        peer,
        unit,
        ratio: peer / ours,
        floor,
        goal,
        runs,
        against,
    };
    Ok(vec![
        row("peers_10k", ours, theirs, "s", 8.0, 20.0, "ip -batch and bridge -batch, one on-link route a peer"),
        row("peers_10k_kernel", kernel, 0.5, "s", 1.0, 2.0, "the bound of 0.5 s in the kernel"),
        row("peer_added_to_10k", one_more, 5.0, "ms", 1.0, 5.0, "the bound of 5 ms from the event to the kernel"),
    ])
}

fn in_namespace<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                netns::unshare_net()?;
                make_eth0()?;
                let figures = work()?;
                // By itself the kernel takes a namespace down later, with a lock that the next run needs.
                delete(&[name("flannel.1"), name("eth0")])?;
                Ok(figures)
            })
            .join()
            .unwrap_or_else(|_| bail!("a thread panicked"))
    })
}

/// From the view to the kernel: thinking, observing, applying. The second figure is the applying alone.
fn loden_form() -> Result<(Duration, Duration, Duration)> {
    let mut view = view(PEERS);
    let all: BTreeSet<Sort> = Sort::ALL.into();
    let mut kernel = LinuxKernel::open()?;
    let began = Instant::now();
    let mut desired = Desired::new();
    desired.update(&view, &Changed { all: true, sources: BTreeSet::new() });
    let mut applied = Duration::ZERO;
    for _ in 0..3 {
        let seen = kernel.observe(&desired.scope(all.clone()))?;
        desired.observed(&all, seen);
        let plan = Plan::stage(&desired);
        let begun = Instant::now();
        apply(&mut kernel, &mut desired, &plan.steps)?;
        applied += begun.elapsed();
        // As the agent does: what hangs on a link is planned when the link is there.
        if !plan.is_partial {
            break;
        }
    }
    let whole = began.elapsed();

    let began = Instant::now();
    let mut changed = Changed::default();
    for entry in node(PEERS + 1) {
        changed.merge(view.put(&entry));
    }
    desired.update(&view, &changed);
    let plan = Plan::of(&desired);
    apply(&mut kernel, &mut desired, &plan.steps)?;
    Ok((whole, applied, began.elapsed()))
}

fn apply(kernel: &mut LinuxKernel, desired: &mut Desired, steps: &[Step]) -> Result<()> {
    for (step, result) in steps.iter().zip(kernel.apply(steps)) {
        result?;
        desired.noted(step.key, step.new.clone());
    }
    Ok(())
}

/// What flannel writes for each peer, by the fastest tool that a shell has.
fn onlink_form() -> Result<Duration> {
    let view = view(PEERS);
    let mut desired = Desired::new();
    desired.update(&view, &Changed { all: true, sources: BTreeSet::new() });
    let (mut ip, mut bridge) = (String::new(), String::new());
    ip += "link add flannel.1 type vxlan id 1 dev eth0 local 192.168.7.1 dstport 8472 nolearning\nlink set flannel.1 up\n";
    for (key, wanted) in desired.map().all_desired() {
        match (key, &wanted.object) {
            (Key::Neighbour(dev, addr), Object::Neighbour(mac)) => {
                ip += &format!("neigh replace {addr} lladdr {mac} dev {dev} nud permanent\n");
            }
            (Key::Fdb(dev, mac), Object::Fdb(dst)) => {
                bridge += &format!("fdb replace {mac} dev {dev} dst {dst} self permanent\n")
            }
            (Key::Route(prefix, _), Object::Route(_)) => {
                ip += &format!("route add {prefix} via {} dev flannel.1 onlink\n", prefix.network());
            }
            _ => {}
        }
    }
    let began = Instant::now();
    shell::batch("ip", &ip)?;
    shell::batch("bridge", &bridge)?;
    Ok(began.elapsed())
}

/// The underlay's interface: one end of a wire whose other end is here as well.
fn make_eth0() -> Result<()> {
    let mut w = Writer::default();
    // NLM_F_CREATE | NLM_F_EXCL
    w.begin(link::NEW, 0x600);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, "eth0");
    let info = w.nest(link::ifla::LINKINFO);
    w.text(link::ifla::INFO_KIND, "veth");
    w.close(info);
    w.end();
    link::set_up(&mut w, "eth0".parse()?, true);
    link::set_up(&mut w, "veth0".parse()?, true);
    let mut socket = Socket::open(Protocol::Route)?;
    socket.batch(&mut w)?.into_iter().collect::<Result<(), _>>()?;
    w.clear();
    link::list(&mut w);
    let links =
        socket.dump("list links", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(link::parse(m.payload)))?;
    let eth0 = links.iter().find(|seen| seen.name.as_str() == "eth0").context("eth0 is not there")?.index;
    w.clear();
    address::add(&mut w, "192.168.7.1/16".parse()?, eth0);
    socket.batch(&mut w)?.into_iter().collect::<Result<(), _>>()?;
    Ok(())
}

fn delete(links: &[IfName]) -> Result<()> {
    let mut w = Writer::default();
    links.iter().for_each(|name| link::delete(&mut w, *name));
    Ok(Socket::open(Protocol::Route)?.batch(&mut w)?.into_iter().collect::<Result<(), _>>()?)
}

fn view(peers: u32) -> View {
    let parse = |addr: &str| addr.parse::<IpAddr>().ok();
    let underlay = Underlay {
        ifname: name("eth0"),
        mtu: 1500,
        addresses: PerFamily { v4: parse("192.168.7.1"), v6: None },
        onlink: vec![Prefix::holding([192, 168, 0, 0].into(), 16)],
    };
    let local = Local {
        node: name("n0"),
        uid: name("uid-n0"),
        labels: Default::default(),
        bridge: name("cni0"),
        found: BTreeMap::new(),
        rules: loden_core::view::HostRules::default(),
        abilities: Default::default(),
        underlay: Some(underlay),
    };
    let mut view = View::new(local);
    view.put(&entry(Record::Pool(pool())));
    for n in 0..=peers {
        for entry in node(n) {
            view.put(&entry);
        }
    }
    view
}

fn pool() -> Pool {
    Pool {
        name: name("many"),
        cidr: Prefix::holding([10, 64, 0, 0].into(), 10),
        block_len: 24,
        first_block: None,
        last_block: None,
        backend: BackendConfig::Vxlan(VxlanConfig::default()),
        nat_outgoing: true,
        node_selector: labels(),
        unknown: Default::default(),
    }
}

/// The nodes of the pool: the hosts of a lab that it is written into must not claim blocks of it.
fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("bench".to_owned(), "many".to_owned())])
}

/// The records of a pool and of so many nodes with a block of it each.
pub fn records(nodes: u32) -> Vec<Record> {
    let nodes = (1..=nodes).flat_map(node).map(|entry| entry.record);
    std::iter::once(Record::Pool(pool())).chain(nodes).collect()
}

fn entry(record: Record) -> Entry {
    Entry { record, created: 1, revision: 1 }
}

/// A node and its block.
pub fn node(n: u32) -> [Entry; 2] {
    let node: NodeName = name(&format!("n{n}"));
    let vni = VxlanConfig::default().vni;
    let receive = |vni: Vni| Receive::Vxlan {
        vni,
        underlay: Family::V4,
        mac: Mac::derived(&["bench", node.as_str()]),
        port: 8472,
        bridged: false,
    };
    let cidr = Prefix::holding([10, 64, 0, 0].into(), 10).nth_subnet(24, n.into());
    let block = Block {
        cidr: cidr.unwrap_or_else(|| Prefix::holding([10, 127, 255, 0].into(), 24)),
        pool: name("many"),
        owner: node.clone(),
        owner_uid: name(&format!("uid-n{n}")),
    };
    let record = Node {
        name: node.clone(),
        uid: name(&format!("uid-n{n}")),
        underlay: PerFamily { v4: Some(IpAddr::from((0xc0a8_0701_u32 + n).to_be_bytes())), v6: None },
        public: PerFamily::default(),
        asked: PerFamily::default(),
        labels: labels(),
        receives: vec![receive(vni)],
        sends: Default::default(),
        unknown: Default::default(),
    };
    [entry(Record::Node(record)), entry(Record::Block(block))]
}

/// Names that are written here are valid.
fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap_or_else(|error| unreachable!("{text}: {error:?}"))
}
