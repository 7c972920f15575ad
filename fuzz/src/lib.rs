//! What must hold for any bytes from outside. The fuzz targets call these functions, and so does an ordinary test with bytes of its
//! own making.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use loden_core::attach::{self, Draft};
use loden_core::cni::{
    self, CniError, Environment, HostFacts, Master, NetConf, NodeFile, Role, Success, Verb, Version,
};
use loden_core::dialect::flannel::layout::{Layout, Pair, RawChange};
use loden_core::dialect::flannel::{
    Announced, Attributes, Flanneld, NetConf as FlannelConf, SubnetEnv, SubnetKey, annotations,
};
use loden_core::ipam::{Choice, Offer, Range, RangeState, Supply};
use loden_core::model::{Attachment, AttachmentKey, PodAddress};
use serde_json::{Value, json};

const VERBS: [Verb; 6] = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status, Verb::Version];
/// The names of the program.
const NAMES: [&str; 11] = [
    "loden-cni",
    "bridge",
    "ptp",
    "macvlan",
    "host-local",
    "static",
    "portmap",
    "bandwidth",
    "tuning",
    "loopback",
    "flannel",
];
/// Addresses that are taken of a state that was read: as many as the smaller ranges have.
const TAKEN: usize = 300;

/// A configuration is refused, or comes to an attachment whose file and whose result can be read again.
pub fn stdin(data: &[u8]) {
    for role in NAMES.map(Role::of_program) {
        for verb in VERBS {
            match NetConf::parse(data, verb, role) {
                Ok(conf) => made(&conf),
                Err(error) => drop(error.to_json(Version::V1_1_0)),
            }
        }
    }
}

fn made(conf: &NetConf) {
    let (Some(make), Some(network)) = (&conf.make, &conf.name) else { return };
    let environment = environment("IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p").expect("variables");
    let key = AttachmentKey {
        network: network.clone(),
        container: environment.container.clone().unwrap_or_default(),
        ifname: environment.ifname.expect("an interface"),
    };
    let facts = HostFacts { node: Some(node()), master: Some(master()), allow_list: None };
    let Ok(draft) = cni::draft(key, make, &environment, &facts) else { return };
    let Some(addresses) = first_free(&draft) else { return };
    attached(&draft.attachment(addresses));
    if let Some(previous) = &conf.previous {
        let given = cni::given(draft, make, previous);
        attached(&given.attachment(given.demand.fixed.clone()));
    }
}

/// The variables of an ADD with these `CNI_ARGS`.
pub fn environment(args: &str) -> Result<Environment, CniError> {
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/p"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", args),
    ];
    let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Environment::read(get)
}

/// A node with a block of each family, and one of a tenant's.
pub fn node() -> NodeFile {
    let node = json!({
        "node": "n1", "bridge": "cni0", "mtuPod": 1450,
        "blocks": [{ "cidr": "10.1.7.0/24", "gateway": "10.1.7.1", "pool": "p4" },
                   { "cidr": "fd01:0:0:7::/64", "gateway": "fd01:0:0:7::1", "pool": "p6" },
                   { "cidr": "10.100.7.0/26", "gateway": "10.100.7.1", "pool": "red", "segment": "10.100.0.0/16", "bridge": "red0" }],
    });
    serde_json::from_value(node).expect("a node")
}

/// A macvlan's master.
pub fn master() -> Master {
    Master { name: "eth0".parse().expect("a name"), mtu: 1500, mac: None }
}

/// What a node that has given no address yet would give; `None` when one is demanded that there is not.
pub fn first_free(draft: &Draft) -> Option<Vec<PodAddress>> {
    let one = |choice: &Vec<Offer>| {
        let offer = choice.first()?;
        let free = || {
            let avoid = |addr| draft.demand.is_kept(offer, addr);
            RangeState::new(offer.supply.range).allocate(Choice { now: 0, quarantine: 0, avoid: &avoid }).ok()
        };
        let addr = draft.demand.wanted_of(choice).or_else(free)?;
        let subnet = offer.segment.unwrap_or(offer.supply.range.subnet());
        let net = IpNet::new(addr, subnet.len()).expect("a length of its family");
        Some(PodAddress { net, gateway: offer.gateway, supply: Some(offer.supply.clone()) })
    };
    draft.demand.choices.iter().map(one).chain(draft.demand.fixed.iter().cloned().map(Some)).collect()
}

/// What follows from an attachment: its file, its objects on the host, its result.
fn attached(attachment: &Attachment) {
    let json = serde_json::to_vec(attachment).expect("JSON");
    assert_eq!(serde_json::from_slice::<Attachment>(&json).as_ref().ok(), Some(attachment));
    for (key, object, _) in attach::host_objects(attachment) {
        drop((key.to_string(), object.to_string()));
    }
    drop(attach::host_link(attachment, Some(1400)));
    drop(loden_core::ports::elements(attachment));
    result(&Success::of(attachment, None));
    result(&Success::of_addresses(attachment, None));
}

/// A result is written in each version so that it reads as it was written.
fn result(result: &Success) {
    for version in Version::ALL {
        let json = result.to_json(version);
        let again = Success::parse(&json, version).expect("what was written can be read");
        assert_eq!(again.to_json(version), json, "{version}");
    }
}

/// A result of another plugin is refused, or can be passed on in each version, before and behind another.
pub fn prev_result(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    for version in Version::ALL {
        let Ok(read) = Success::parse(&value, version) else { continue };
        result(&read);
        for version in Version::ALL {
            drop(read.behind(Some(&value), version));
        }
    }
}

/// What is stored is refused, or is sound.
pub fn stored(data: &[u8]) {
    if let Ok(attachment) = serde_json::from_slice::<Attachment>(data) {
        attached(&attachment);
    }
    if let Ok(node) = serde_json::from_slice::<NodeFile>(data) {
        let json = serde_json::to_vec(&node).expect("JSON");
        assert_eq!(serde_json::from_slice::<NodeFile>(&json).ok(), Some(node));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(supply) = Supply::from_file_stem(text)
    {
        assert_eq!(Supply::from_file_stem(&supply.file_stem()), Some(supply));
    }
    for range in ["10.1.0.0/29", "10.1.0.0/24", "fd01::/64", "10.1.0.0/24 10.1.0.9-10.1.0.20"] {
        let range = range.parse().expect("a range");
        // With a right sum as well: it keeps torn files out, not what this is about.
        for bytes in [data.to_vec(), summed(data)] {
            if let Some(state) = RangeState::decode(range, &bytes) {
                sound(range, state);
            }
        }
    }
}

fn summed(data: &[u8]) -> Vec<u8> {
    let sum = data.iter().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    [data, &sum.to_le_bytes()].concat()
}

/// No address is given twice, and what was read is written as it was.
fn sound(range: Range, mut state: RangeState) {
    assert_eq!(RangeState::decode(range, &state.encode()).as_ref(), Some(&state));
    let before = state.in_use();
    let mut given = BTreeSet::new();
    while given.len() < TAKEN
        && let Ok(addr) = state.allocate(Choice { now: u32::MAX, quarantine: 0, avoid: &|_| false })
    {
        assert!(given.insert(addr), "{addr} twice");
        assert!(range.index_of(addr).is_some(), "{addr} is of another range");
    }
    assert_eq!(state.in_use() as usize, before as usize + given.len());
    given.iter().for_each(|addr| state.release(*addr, 0));
    assert_eq!(state.in_use(), before);
}

/// What a flannel would have written is refused, or reads as it was written once it has been written again.
pub fn flannel(data: &[u8]) {
    if let Ok(conf) = FlannelConf::parse(data, true) {
        let again = conf.render().expect("what was read can be said");
        assert_eq!(FlannelConf::parse(again.as_bytes(), true), Ok(conf), "{again}");
    }
    if let Ok(attributes) = Attributes::parse(data) {
        let again = Attributes::parse(attributes.render().as_bytes());
        // What another backend says may hold a broken number, which is not written as it was read.
        match &attributes.backend {
            Announced::Other { .. } => assert!(again.is_ok()),
            _ => assert_eq!(again.as_ref(), Ok(&attributes)),
        }
    }
    layout(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = text.parse::<SubnetKey>() {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    if let Ok(env) = text.parse::<SubnetEnv>() {
        let again = env.to_string();
        assert!(again.parse::<SubnetEnv>().is_ok_and(|env| env.to_string() == again) || !again.contains("SUBNET"));
    }
    if let Ok(told) = Flanneld::parse(text.lines(), |_| None) {
        drop((told.config(Some("/p")), format!("{told:?}")));
    }
    let prefix = "flannel.alpha.coreos.com/";
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let given: BTreeMap<String, String> = text.lines().filter_map(pair).collect();
    drop(annotations::wishes(prefix, &given));
    if let Ok(Some(read)) = annotations::read(prefix, &given) {
        let written = annotations::write(prefix, &read);
        let again = annotations::read(prefix, &written).expect("what was written can be read").expect("served");
        if !matches!(read.backend, Announced::Other { .. }) {
            assert_eq!(annotations::write(prefix, &again), written);
        }
    }
}

/// Lines of a key and a value, one after the other and all at once, come to the same.
fn layout(data: &[u8]) {
    let event = |(n, line): (usize, &[u8])| {
        let (key, value) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
        let revision = n as u64 + 1;
        Pair {
            key: String::from_utf8_lossy(key).into_owned(),
            value: value.to_vec(),
            created: revision,
            revision,
            lease: 0,
        }
    };
    let pairs: Vec<Pair> = data.split(|byte| *byte == b'\n').enumerate().map(event).collect();
    let (mut one, mut all) = (Layout::new("/x", true), Layout::new("/x", true));
    for pair in &pairs {
        one.apply([RawChange::Put(pair.clone())]);
    }
    all.apply(pairs.into_iter().rev().map(RawChange::Put));
    let entries = |layout: &Layout| layout.entries().cloned().collect::<Vec<_>>();
    assert_eq!((entries(&one), one.flaws()), (entries(&all), all.flaws()));
}
