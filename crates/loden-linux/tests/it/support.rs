//! A namespace a test, and a small cluster to plan for.

use std::collections::BTreeSet;
use std::net::IpAddr;

use loden_core::desired::Desired;
use loden_core::kernel::link::{Bridge, Link, LinkKind, Port, Vxlan};
use loden_core::kernel::{Kernel, KernelError, Key, LINK_GROUP, Object, Observed, Scope, Sort};
use loden_core::model::{
    BackendConfig, Block, Entry, Family, IfName, Mac, Node, NodeName, NodeUid, PerFamily, Pool, Prefix, Receive,
    Record, Vni, VxlanConfig,
};
use loden_core::plan::{Plan, Step, Verb};
use loden_core::underlay::Underlay;
use loden_core::view::{Changed, Local, View};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::{address, link};
use loden_linux::{LinuxKernel, netns};

/// Runs the test in a fresh namespace, in a thread of its own.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        netns::unshare_net().expect("these tests need root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn ifname(name: &str) -> IfName {
    name.parse().expect("a name")
}

/// Carries out what somebody else does: another socket than the driver's, in the same namespace.
pub fn foreign(write: impl FnOnce(&mut Writer)) {
    let mut w = Writer::default();
    write(&mut w);
    for result in Socket::open(Protocol::Route).expect("socket").batch(&mut w).expect("batch") {
        result.expect("what somebody else does");
    }
}

/// A step of a plan.
pub fn step(verb: Verb, key: Key, new: Option<Object>, old: Option<Object>) -> Step {
    Step { verb, key, new, old, why: None }
}

/// Adds an object.
pub fn add(key: Key, object: Object) -> Step {
    step(Verb::Add, key, Some(object), None)
}

/// Applies steps that must all succeed.
pub fn apply(kernel: &mut LinuxKernel, steps: &[Step]) {
    for (step, result) in steps.iter().zip(kernel.apply(steps)) {
        result.unwrap_or_else(|error| panic!("{step}: {error} (errno {})", error.errno));
    }
}

/// Applies a step that must be refused, and says how.
pub fn refused(kernel: &mut LinuxKernel, step: Step) -> KernelError {
    kernel.apply(&[step]).remove(0).expect_err("a refusal")
}

/// Makes the object, then changes it to each of the others, then removes it, twice; the kernel must show each.
pub fn check(kernel: &mut LinuxKernel, key: Key, states: &[Object]) {
    let mut old: Option<Object> = None;
    for new in states {
        let verb = if old.is_some() { Verb::Change } else { Verb::Add };
        apply(kernel, &[step(verb, key, Some(new.clone()), old.clone())]);
        assert_eq!(seen(kernel, key).as_ref(), Some(new), "{key} after {verb:?}");
        old = Some(new.clone());
    }
    for _ in 0..2 {
        apply(kernel, &[step(Verb::Remove, key, None, old.clone())]);
        assert_eq!(seen(kernel, key).as_ref(), None, "{key} after its removal");
    }
}

/// The object as it is now.
fn seen(kernel: &mut LinuxKernel, key: Key) -> Option<Object> {
    let scope = Scope { sorts: [key.sort()].into(), ..Scope::default() };
    kernel.observe(&scope).expect("observe").remove(&key)
}

/// Everything of loden's but sysctls, and the links of these names.
pub fn observe(kernel: &mut LinuxKernel, links: &[&str]) -> Observed {
    let scope =
        Scope { sorts: Sort::ALL.into(), links: links.iter().map(|name| ifname(name)).collect(), ..Scope::default() };
    kernel.observe(&scope).expect("observe")
}

/// A VXLAN device above `eth0`.
pub fn vxlan(local: &str) -> Link {
    Link {
        kind: LinkKind::Vxlan(Vxlan {
            group: None,
            reports_misses: false,
            most_entries: 0,
            vni: Vni::new(1).expect("vni"),
            underlay: Some(ifname("eth0")),
            local: Some(local.parse().expect("ip")),
            port: 8472,
            learning: false,
            gbp: false,
        }),
        mtu: 1430,
        mac: Some("02:11:22:33:44:55".parse().expect("mac")),
        up: true,
        master: None,
        port: Port::default(),
        group: LINK_GROUP,
    }
}

/// A bridge.
pub fn bridge() -> Link {
    Link {
        kind: LinkKind::Bridge(Bridge::default()),
        mtu: 1450,
        mac: Some("02:aa:bb:cc:dd:ee".parse().expect("mac")),
        up: true,
        master: None,
        port: Port::default(),
        group: LINK_GROUP,
    }
}

/// A driver in a namespace with `eth0` and the VXLAN device `v1`.
pub fn kernel_with_v1() -> LinuxKernel {
    make_eth0();
    let mut kernel = LinuxKernel::open().expect("kernel");
    observe(&mut kernel, &[]);
    apply(&mut kernel, &[add(link_key("v1"), link_object(vxlan("192.168.7.1")))]);
    kernel
}

pub fn link_key(name: &str) -> Key {
    Key::Link(ifname(name))
}

pub fn link_object(link: Link) -> Object {
    Object::Link(Box::new(link))
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

pub fn mac(text: &str) -> Mac {
    text.parse().expect("an Ethernet address")
}

/// An underlay: `eth0` with an address of each family; its peer `wire` is in the same namespace.
pub fn make_eth0() {
    let mut w = Writer::default();
    w.begin(link::NEW, 0x600);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, "eth0");
    let info = w.nest(link::ifla::LINKINFO);
    w.text(link::ifla::INFO_KIND, "veth");
    let data = w.nest(link::ifla::INFO_DATA);
    let peer = w.nest(1);
    w.raw(&link::info(0, 0, 0));
    w.text(link::ifla::IFNAME, "wire");
    w.close(peer);
    w.close(data);
    w.close(info);
    w.end();
    link::set_up(&mut w, ifname("eth0"), true);
    link::set_up(&mut w, ifname("wire"), true);
    let mut socket = Socket::open(Protocol::Route).expect("socket");
    for result in socket.batch(&mut w).expect("batch") {
        result.expect("eth0");
    }
    wait_for_carrier("eth0");
    let facts = loden_linux::underlay::facts(None).expect("facts");
    assert!(facts.links.iter().any(|link| link.name == ifname("eth0") && link.up));
    let index = std::fs::read_to_string("/proc/net/dev").map(|_| index_of("eth0")).expect("index");
    w.clear();
    address::add(&mut w, "192.168.7.1/24".parse().expect("net"), index);
    address::add(&mut w, "fd07::1/64".parse().expect("net"), index);
    for result in socket.batch(&mut w).expect("batch") {
        result.expect("address");
    }
}

/// The kernel is late to say that there is a carrier, and until then it drops what is sent (net/core/link_watch.c).
pub fn wait_for_carrier(name: &str) {
    let mut socket = Socket::open(Protocol::Route).expect("socket");
    let mut running = || link::read(&mut socket, ifname(name)).expect("asked").expect("there").is_running;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !running() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

pub fn index_of(name: &str) -> u32 {
    let socket = Socket::open(Protocol::Route).expect("socket");
    link::number_of(&socket, ifname(name)).expect("number").expect(name)
}

/// This host with `peers` others, dual stack, by VXLAN.
pub fn view(peers: u32) -> View {
    let underlay = Underlay {
        ifname: ifname("eth0"),
        mtu: 1500,
        addresses: PerFamily { v4: Some("192.168.7.1".parse().expect("ip")), v6: Some("fd07::1".parse().expect("ip")) },
        onlink: vec!["192.168.7.0/24".parse().expect("net"), "fd07::/64".parse().expect("net")],
    };
    let local = Local {
        node: "n0".parse().expect("name"),
        uid: "uid-n0".parse().expect("uid"),
        labels: Default::default(),
        bridge: ifname("cni0"),
        found: std::collections::BTreeMap::new(),
        rules: loden_core::view::HostRules::default(),
        abilities: Default::default(),
        underlay: Some(underlay),
    };
    let mut view = View::new(local);
    let put = |view: &mut View, record| view.put(&Entry { record, created: 1, revision: 1 });
    for (name, cidr, block_len) in [("p4", "10.64.0.0/10", 24), ("p6", "fd64::/32", 64)] {
        put(
            &mut view,
            Record::Pool(Pool {
                name: name.parse().expect("name"),
                cidr: cidr.parse().expect("cidr"),
                block_len,
                first_block: None,
                last_block: None,
                backend: BackendConfig::Vxlan(VxlanConfig::default()),
                nat_outgoing: true,
                node_selector: Default::default(),
                unknown: Default::default(),
            }),
        );
    }
    for n in 0..=peers {
        let name: NodeName = format!("n{n}").parse().expect("name");
        let uid: NodeUid = format!("uid-n{n}").parse().expect("uid");
        let v4 = IpAddr::from((0xc0a8_0701_u32 + n).to_be_bytes());
        let v6 = IpAddr::from((0xfd07_u128 << 112 | u128::from(n + 1)).to_be_bytes());
        let vni = Vni::new(1).expect("vni");
        let receive = |underlay, tag: &str| Receive::Vxlan {
            vni,
            underlay,
            mac: Mac::derived(&[tag, name.as_str()]),
            port: 8472,
            bridged: false,
        };
        put(
            &mut view,
            Record::Node(Node {
                name: name.clone(),
                uid: uid.clone(),
                underlay: PerFamily { v4: Some(v4), v6: Some(v6) },
                public: PerFamily::default(),
                asked: PerFamily::default(),
                labels: Default::default(),
                receives: vec![receive(Family::V4, "4"), receive(Family::V6, "6")],
                sends: Default::default(),
                unknown: Default::default(),
            }),
        );
        for (pool, cidr, len) in [("p4", "10.64.0.0/10", 24), ("p6", "fd64::/32", 64)] {
            let pool_cidr: Prefix = cidr.parse().expect("cidr");
            put(
                &mut view,
                Record::Block(Block {
                    cidr: pool_cidr.nth_subnet(len, u128::from(n)).expect("room"),
                    pool: pool.parse().expect("name"),
                    owner: name.clone(),
                    owner_uid: uid.clone(),
                }),
            );
        }
    }
    view
}

/// Makes the kernel as the view wants it, as the agent does; gives the errors.
pub fn settle(kernel: &mut LinuxKernel, desired: &mut Desired, view: &View) -> Vec<String> {
    desired.update(view, &Changed { all: true, sources: BTreeSet::new() });
    let all: BTreeSet<Sort> = Sort::ALL.into();
    let mut errors = Vec::new();
    for _ in 0..3 {
        let seen = kernel.observe(&desired.scope(all.clone())).expect("observe");
        desired.observed(&all, seen);
        let plan = Plan::of(desired);
        if plan.is_empty() {
            return errors;
        }
        errors = kernel.apply(&plan.steps).into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    }
    errors
}
