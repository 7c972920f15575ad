//! flannel's formats, byte for byte. `fixtures/flannel` has what flannel v0.28.9's own code wrote: leases (`NAME.lease`: the key,
//! the value), annotations, `subnet.env`. `NAME.net-conf` is a configuration, `NAME.pools` what it comes to.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use loden_core::dialect::flannel::{
    Announced, Attributes, NetConf, SubnetEnv, SubnetKey, Vtep, WireguardPeer, annotations, node_name, pool_name,
};
use loden_core::model::{BackendConfig, Family, HostGwConfig, Mac, PerFamily, Pool, Prefix, Vni, VxlanConfig};
use proptest::prelude::*;
use serde_json::json;

use crate::golden::compare;
use crate::picture;

const PREFIX: &str = "flannel.alpha.coreos.com/";

/// All fixtures whose name ends so.
fn fixtures(ending: &str, at_least: usize) -> Vec<(PathBuf, String)> {
    let folder = picture::fixtures().join("flannel");
    let mut paths: Vec<_> = fs::read_dir(folder).expect("fixtures").map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    assert!(paths.len() >= at_least, "the fixtures are not where they are looked for");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("read"))).collect()
}

fn annotations_of(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.lines().filter_map(pair).collect()
}

#[test]
fn leases_are_written_as_flannel_writes_them() {
    let backends = [BackendConfig::Vxlan(VxlanConfig::default()), BackendConfig::HostGw(HostGwConfig {})];
    let mut faults = String::new();
    for (path, text) in fixtures(".lease", 9) {
        let (key, value) = text.trim_end().split_once('\n').expect("a key and a value");
        let name = key.strip_prefix("subnets/").expect("a subnet's key");
        assert_eq!(name.parse::<SubnetKey>().expect(name).to_string(), name);
        let attributes = Attributes::parse(value.as_bytes()).expect(value);
        assert_eq!(attributes.render(), value, "{}", path.display());
        // What it comes to in a pool of each backend, and what loden says in its turn of a node that takes that in.
        let mut came = String::new();
        for backend in &backends {
            match attributes.receives(backend) {
                Ok(receives) => {
                    let receives_json = serde_json::to_string_pretty(&receives).expect("JSON");
                    came += &format!("{}: {receives_json}\n", backend.kind());
                    let mut node = attributes.node(node_name(Ipv4Addr::new(172, 16, 0, 5)), &[]);
                    node.receives = receives;
                    assert_eq!(Attributes::of(&node, backend).render(), value);
                }
                Err(error) => came += &format!("{}: {error}\n", backend.kind()),
            }
        }
        faults += &compare(&path.with_extension("receives"), &came);
    }
    assert!(faults.is_empty(), "{faults}\nLODEN_BLESS=1 takes what came out as right");
}

#[test]
fn annotations_are_written_as_flannel_writes_them() {
    for (path, text) in fixtures(".annotations", 11) {
        let given = annotations_of(&text);
        let read = annotations::read(PREFIX, &given).expect("readable").expect("served");
        let mut written = annotations::write(PREFIX, &read);
        // What an operator wrote is not written again.
        written.extend(given.clone().into_iter().filter(|(name, _)| name.ends_with("-overwrite")));
        assert_eq!(written, given, "{}", path.display());
        if let Ok(lease) = fs::read_to_string(path.with_extension("lease")) {
            let value = lease.lines().nth(1).expect("a value");
            assert_eq!(read, Attributes::parse(value.as_bytes()).expect("a lease"), "{}", path.display());
        }
        let wishes = annotations::wishes(PREFIX, &given).expect("readable");
        let is_wished = text.contains("-overwrite");
        assert_eq!(wishes.public, if is_wished { read.public } else { PerFamily::default() });
        let name = "worker-1".parse().expect("a name");
        let node = annotations::node(PREFIX, &name, &given, &[]).expect("readable").expect("served");
        assert_eq!((node.underlay, node.public, node.asked), (read.public, wishes.public, wishes.asked));
    }
}

#[test]
fn subnet_env_is_written_as_flannel_writes_it() {
    for (path, text) in fixtures(".subnet.env", 3) {
        let read: SubnetEnv = text.parse().expect("readable");
        assert_eq!(read.to_string(), text, "{}", path.display());
    }
}

#[test]
fn configurations_come_to_their_pools() {
    let mut faults = String::new();
    for (path, text) in fixtures(".net-conf", 14) {
        let came = match NetConf::parse(text.as_bytes(), true) {
            Ok(conf) => {
                let rendered = conf.render().expect("what was read can be said");
                assert_eq!(NetConf::parse(rendered.as_bytes(), true), Ok(conf.clone()), "{rendered}");
                let pools = serde_json::to_string_pretty(&conf.pools).expect("JSON");
                format!("{pools}\nEnableNFTables: {}\nwritten again: {rendered}\n", conf.enable_nftables)
            }
            Err(error) => format!("{error}\n"),
        };
        faults += &compare(&path.with_extension("pools"), &came);
    }
    assert!(faults.is_empty(), "{faults}\nLODEN_BLESS=1 takes what came out as right");
}

#[test]
fn pools_that_flannel_has_no_words_for_are_refused_with_what_to_do() {
    let conf =
        NetConf::parse(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#, true).expect("a configuration");
    let pool = conf.pools[0].clone();
    let v6 = Pool {
        name: pool_name(Family::V6),
        cidr: "fc00::/48".parse().expect("a prefix"),
        block_len: 64,
        first_block: None,
        ..pool.clone()
    };
    let host_gw = BackendConfig::HostGw(HostGwConfig {});
    for (pools, says) in [
        (vec![], "there has to be one"),
        (vec![Pool { name: "default".parse().expect("a name"), ..pool.clone() }], "rename"),
        (
            vec![Pool { node_selector: BTreeMap::from([("zone".to_owned(), "a".to_owned())]), ..pool.clone() }],
            "node_selector",
        ),
        (vec![Pool { unknown: BTreeMap::from([("colour".to_owned(), json!(1))]), ..pool.clone() }], "colour"),
        (vec![pool.clone(), pool.clone()], "another IPv4 pool"),
        (vec![pool.clone(), Pool { backend: host_gw, ..v6.clone() }], "one backend"),
        (vec![pool.clone(), Pool { nat_outgoing: false, ..v6.clone() }], "nat_outgoing"),
        (vec![Pool { block_len: 17, first_block: None, ..pool.clone() }], "four blocks"),
        (vec![Pool { first_block: Some("10.6.0.0/24".parse().expect("a prefix")), ..pool.clone() }], "do not fit"),
    ] {
        let error = NetConf { pools, enable_nftables: false }.render().expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    // A pool whose first block is served is one whose SubnetMin is that.
    let whole = NetConf { pools: vec![Pool { first_block: None, ..pool }, v6], enable_nftables: true };
    let text = whole.render().expect("sayable");
    assert!(text.contains(r#""SubnetMin":"10.5.0.0""#) && text.contains(r#""IPv6SubnetMin":"fc00::""#), "{text}");
    assert_eq!(NetConf::parse(text.as_bytes(), true), Ok(whole));
}

fn any_v4() -> impl Strategy<Value = Option<IpAddr>> {
    prop::option::of((1_u32..).prop_map(|bits| IpAddr::V4(bits.into())))
}

fn any_v6() -> impl Strategy<Value = Option<IpAddr>> {
    prop::option::of((1_u128..).prop_map(|bits| IpAddr::V6(bits.into())))
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    let vtep = || prop::option::of((any::<u16>(), any::<[u8; 6]>()).prop_map(|(vni, mac)| Vtep { vni, mac: Mac(mac) }));
    let peer = || {
        let peer = (".{0,12}", prop::option::of(any::<u16>()));
        prop::option::of(peer.prop_map(|(public_key, port)| WireguardPeer { public_key, port }))
    };
    let data = || {
        prop::option::of(prop_oneof![
            ".{0,8}".prop_map(|text| json!(text)),
            any::<u32>().prop_map(|n| json!({ "VNI": [n] }))
        ])
    };
    let backend = prop_oneof![
        Just(Announced::Udp),
        Just(Announced::HostGw),
        Just(Announced::Ipip),
        (vtep(), vtep()).prop_map(|(v4, v6)| Announced::Vxlan(PerFamily { v4, v6 })),
        (peer(), peer()).prop_map(|(v4, v6)| Announced::Wireguard(PerFamily { v4, v6 })),
        ("x.{0,8}", data(), data()).prop_map(|(kind, v4, v6)| Announced::Other { kind, data: PerFamily { v4, v6 } }),
    ];
    (any_v4(), any_v6(), backend).prop_map(|(v4, v6, backend)| Attributes { public: PerFamily { v4, v6 }, backend })
}

fn any_pool(family: Family, backend: BackendConfig) -> impl Strategy<Value = Pool> {
    let bits = family.bits();
    (8..=bits - 4, any::<u32>(), any::<prop::sample::Index>(), any::<[prop::sample::Index; 2]>()).prop_map(
        move |(len, addr, block_len, bounds)| {
            let addr: IpAddr = match family {
                Family::V4 => Ipv4Addr::from((addr & 0x00ff_ffff) | 0x0a00_0000).into(),
                Family::V6 => IpAddr::V6(((0xfd00_u128 << 112) | (u128::from(addr) << 40)).into()),
            };
            let cidr = Prefix::holding(addr, len);
            let block_len =
                len + 2 + u8::try_from(block_len.index(usize::from(bits - 2 - (len + 2)) + 1)).expect("small");
            let count = cidr.count_subnets(block_len);
            let [a, b] = bounds.map(|bound| (bound.index(usize::MAX) as u128).min(count - 1) % 5);
            let block = |n: u128| cidr.nth_subnet(block_len, n);
            Pool {
                name: pool_name(family),
                cidr,
                block_len,
                first_block: Some(a.min(b)).filter(|n| *n > 0).and_then(block),
                last_block: Some(count - 1 - a.max(b) + a.min(b))
                    .filter(|n| *n != count - 1 && *n >= a.min(b))
                    .and_then(block),
                backend: backend.clone(),
                nat_outgoing: true,
                node_selector: BTreeMap::new(),
                unknown: BTreeMap::new(),
            }
        },
    )
}

fn any_conf() -> impl Strategy<Value = NetConf> {
    let vxlan = (1_u32..1 << 24, 1_u16.., prop::option::of(68_u32..65_536), any::<bool>(), any::<bool>()).prop_map(
        |(vni, port, mtu, gbp, direct_routing)| {
            let vni = Vni::new(vni).expect("24 bits");
            BackendConfig::Vxlan(VxlanConfig { vni, port, mtu, gbp, direct_routing, ..VxlanConfig::default() })
        },
    );
    let backend = prop_oneof![vxlan, Just(BackendConfig::HostGw(HostGwConfig {}))];
    (backend, 0..3, any::<bool>()).prop_flat_map(|(backend, families, enable_nftables)| {
        let pools = (any_pool(Family::V4, backend.clone()), any_pool(Family::V6, backend));
        pools.prop_map(move |(v4, v6)| {
            let pools = match families {
                0 => vec![v4],
                1 => vec![v6],
                _ => vec![v4, v6],
            };
            NetConf { pools, enable_nftables }
        })
    })
}

proptest! {
    #[test]
    fn attributes_read_as_they_were_written(attributes in any_attributes()) {
        prop_assert_eq!(Attributes::parse(attributes.render().as_bytes()), Ok(attributes));
    }

    #[test]
    fn annotations_read_as_they_were_written(attributes in any_attributes()) {
        let written = annotations::write("x.y/z-", &attributes);
        let read = annotations::read("x.y/z-", &written).expect("readable").expect("served");
        // What flannel leaves out is left out, and nothing else is other than it was.
        prop_assert_eq!(annotations::write("x.y/z-", &read), written);
        prop_assert_eq!(read.backend.kind(), attributes.backend.kind());
    }

    #[test]
    fn configurations_read_as_they_were_written(conf in any_conf()) {
        let text = conf.render().expect("sayable");
        prop_assert_eq!(NetConf::parse(text.as_bytes(), true), Ok(conf), "{}", text);
    }

    #[test]
    fn subnet_keys_read_as_they_were_written(v4 in any::<u32>(), l4 in 0_u8..=32, v6 in prop::option::of((any::<u128>(), 0_u8..=128))) {
        let v6 = v6.map(|(bits, len)| Prefix::holding(IpAddr::V6(bits.into()), len));
        let key = SubnetKey { v4: Prefix::holding(IpAddr::V4(v4.into()), l4), v6 };
        prop_assert_eq!(key.to_string().parse::<SubnetKey>(), Ok(key));
    }
}
