//! Configuration: what the examples mean, and what every fault is answered with, word for word.

use std::fs;

use loden_core::config::cluster::parse_pools;
use loden_core::config::node::NodeConfig;
use loden_core::model::{BackendConfig, Pool};
use loden_core::view::HostRules;

use crate::picture::{fixtures, from_toml};

fn example(name: &str) -> serde_json::Value {
    from_toml(&fs::read_to_string(fixtures().join("config").join(name)).expect("example"))
}

/// A file of pools is refused with these words.
fn check_pools(text: &str, expected: &str) {
    let error = parse_pools(from_toml(text)).expect_err(text);
    assert_eq!(error.to_string(), expected, "{text}");
}

/// The one pool `p` of 10.0.0.0/16 with these lines more is refused with these words.
fn check_pool(lines: &str, expected: &str) {
    check_pools(&format!("[[pool]]\nname = \"p\"\ncidr = \"10.0.0.0/16\"\n{lines}\n"), expected);
}

fn check_node(text: &str, expected: &str) {
    let error = NodeConfig::parse(from_toml(text)).expect_err(text);
    assert_eq!(error.to_string(), expected, "{text}");
}

#[test]
fn the_example_of_a_cluster_means_what_it_says() {
    let pools = parse_pools(example("cluster.toml")).expect("pools");
    let text: Vec<_> = pools.iter().map(describe).collect();
    assert_eq!(
        text,
        [
            "default 10.244.0.0/16 /24 nat {\"zone\": \"west\"} vxlan vni 1 port 8472 mtu Some(1500) gbp false direct true",
            "default-v6 fd00:244::/48 /64 nat {} vxlan vni 1 port 8472 mtu None gbp false direct false",
            "flat 10.245.0.0/23 /25 nat {} host-gw",
        ]
    );
}

fn describe(pool: &Pool) -> String {
    let nat = if pool.nat_outgoing { "nat" } else { "no nat" };
    let backend = match &pool.backend {
        BackendConfig::Vxlan(v) => {
            format!("vxlan vni {} port {} mtu {:?} gbp {} direct {}", v.vni, v.port, v.mtu, v.gbp, v.direct_routing)
        }
        BackendConfig::HostGw(_) => "host-gw".to_owned(),
        BackendConfig::Udp(udp) => format!("udp port {}", udp.port),
        BackendConfig::Ipip(ipip) => format!("ipip direct {}", ipip.direct_routing),
    };
    format!("{} {} /{} {nat} {:?} {backend}", pool.name, pool.cidr, pool.block_len, pool.node_selector)
}

#[test]
fn a_file_without_pools_is_a_cluster_without_pools() {
    assert_eq!(parse_pools(from_toml("")).expect("pools"), []);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    check_pools("[[pools]]\nname = \"p\"\n", "unknown key `pools`: did you mean `pool`?");
    check_pool("blok_len = 24", "unknown key `pool[0].blok_len`: did you mean `pool[0].block_len`?");
    check_pool("blockLen = 24", "unknown key `pool[0].blockLen`: did you mean `pool[0].block_len`?");
    check_pool("Backend = { type = \"vxlan\" }", "unknown key `pool[0].Backend`: did you mean `pool[0].backend`?");
    check_pool(
        "backend = { type = \"vxlan\", VNI = 1 }",
        "unknown key `pool[0].backend.VNI`: did you mean `pool[0].backend.vni`?",
    );
    check_pool(
        "backend = { type = \"vxlan\", DirectRouting = true }",
        "unknown key `pool[0].backend.DirectRouting`: did you mean `pool[0].backend.direct_routing`?",
    );
    check_pool(
        "backend = { Type = \"vxlan\" }",
        "unknown key `pool[0].backend.Type`: did you mean `pool[0].backend.type`?",
    );
    check_pool(
        "masquerade = true",
        "unknown key `pool[0].masquerade`; known here are `backend`, `block_len`, `cidr`, `first_block`, `last_block`, `name`, \
         `nat_outgoing`, `node_selector`",
    );
    check_pool("backend = { type = \"host-gw\", vni = 1 }", "unknown key `pool[0].backend.vni`; known here are `type`");
    check_pools(
        "[[pool]]\nname = \"p\"\ncdir = \"10.0.0.0/16\"\n",
        "unknown key `pool[0].cdir`: did you mean `pool[0].cidr`?",
    );
}

#[test]
fn a_missing_key_is_named_with_what_it_should_say() {
    check_pools(
        "[[pool]]\ncidr = \"10.0.0.0/16\"\n",
        "`pool[0].name` is missing: a name for the pool, such as \"default\"",
    );
    check_pools(
        "[[pool]]\nname = \"p\"\n",
        "`pool[0].cidr` is missing: the pool's addresses, such as \"10.244.0.0/16\"",
    );
    check_pool(
        "backend = { vni = 2 }",
        "`pool[0].backend.type` is missing: \"vxlan\", \"host-gw\", \"udp\" or \"ipip\"",
    );
}

#[test]
fn a_value_of_the_wrong_type_is_shown_with_what_was_meant() {
    check_pools("pool = 5", "`pool` is 5: a list of tables was meant");
    check_pools("pool = [5]", "`pool[0]` is 5: a table of keys was meant");
    check_pools("[[pool]]\nname = 5\ncidr = \"10.0.0.0/16\"\n", "`pool[0].name` is 5: a text in quotes was meant");
    check_pool("block_len = \"24\"", "`pool[0].block_len` is \"24\": a whole number from 0 to 128 was meant");
    check_pool("block_len = 24.5", "`pool[0].block_len` is 24.5: a whole number from 0 to 128 was meant");
    check_pool("nat_outgoing = \"yes\"", "`pool[0].nat_outgoing` is \"yes\": true or false was meant");
    check_pool("backend = \"vxlan\"", "`pool[0].backend` is \"vxlan\": a table of keys was meant");
    check_pool(
        "node_selector = [\"west\"]",
        "`pool[0].node_selector` is [\"west\"]: a table of texts was meant, such as { zone = \"a\" }",
    );
    check_pool(
        "node_selector = { zone = 1 }",
        "`pool[0].node_selector` is 1: a table of texts was meant, such as { zone = \"a\" }",
    );
}

#[test]
fn a_value_out_of_its_range_is_shown_with_the_range() {
    let backend = |rest: &str| format!("backend = {{ type = \"vxlan\", {rest} }}");
    let vni = "a whole number from 1 to 16777215 was meant";
    check_pool(&backend("vni = 0"), &format!("`pool[0].backend.vni` is 0: {vni}"));
    check_pool(&backend("vni = 16777216"), &format!("`pool[0].backend.vni` is 16777216: {vni}"));
    check_pool(&backend("vni = -1"), &format!("`pool[0].backend.vni` is -1: {vni}"));
    let port = "a whole number from 1 to 65535 was meant";
    check_pool(&backend("port = 0"), &format!("`pool[0].backend.port` is 0: {port}"));
    check_pool(&backend("port = 65536"), &format!("`pool[0].backend.port` is 65536: {port}"));
    check_pool(&backend("mtu = 10"), "`pool[0].backend.mtu` is 10: a whole number from 68 to 65535 was meant");
    let kind = "`pool[0].backend.type` is";
    check_pool("backend = { type = \"vxlna\" }", &format!("{kind} \"vxlna\": did you mean \"vxlan\"?"));
    check_pool("backend = { type = \"hostgw\" }", &format!("{kind} \"hostgw\": did you mean \"host-gw\"?"));
    check_pool(
        "backend = { type = \"wireguard\" }",
        &format!("{kind} \"wireguard\": \"vxlan\", \"host-gw\", \"udp\" or \"ipip\" was meant"),
    );
    check_pools(
        "[[pool]]\nname = \"My Pool\"\ncidr = \"10.0.0.0/16\"\n",
        "`pool[0].name` is My Pool: pool name \"My Pool\" is not valid: lower-case letters, digits, '-' and '.', at most 253 \
         characters, each label at most 63 and begun and ended by a letter or digit (RFC 1123)",
    );
}

#[test]
fn addresses_that_do_for_no_pool_are_refused() {
    let check = |cidr: &str, rest: &str, expected: &str| {
        check_pools(&format!("[[pool]]\nname = \"p\"\ncidr = \"{cidr}\"\n{rest}"), expected);
    };
    check(
        "10.244.1.0/16",
        "",
        "`pool[0].cidr` is 10.244.1.0/16: 10.244.1.0/16 has bits set behind its length: 10.244.0.0/16 was probably meant",
    );
    let syntax = "is not a prefix such as 10.244.0.0/16 or fd00:244::/56";
    check("10.244.0.0", "", &format!("`pool[0].cidr` is 10.244.0.0: \"10.244.0.0\" {syntax}"));
    check("10.244.0.0/33", "", &format!("`pool[0].cidr` is 10.244.0.0/33: \"10.244.0.0/33\" {syntax}"));
    let block_len = "`pool.p.block_len` is";
    check(
        "10.0.0.0/16",
        "block_len = 12",
        &format!("{block_len} 12: a block of /12 is larger than the pool 10.0.0.0/16: at least 16 was meant"),
    );
    check(
        "10.0.0.0/16",
        "block_len = 31",
        &format!("{block_len} 31: a block needs at least four addresses: at most 30 for IPv4"),
    );
    check(
        "fd00::/64",
        "block_len = 127",
        &format!("{block_len} 127: a block needs at least four addresses: at most 126 for IPv6"),
    );
    check(
        "10.0.0.0/16",
        "block_len = 24\nfirst_block = \"10.1.0.0/24\"",
        "`pool.p.first_block` is 10.1.0.0/24: a block of /24 inside 10.0.0.0/16 was meant",
    );
    check(
        "10.0.0.0/16",
        "block_len = 24\nlast_block = \"10.0.4.0/23\"",
        "`pool.p.last_block` is 10.0.4.0/23: a block of /24 inside 10.0.0.0/16 was meant",
    );
    check(
        "10.0.0.0/16",
        "block_len = 24\nfirst_block = \"10.0.9.0/24\"\nlast_block = \"10.0.3.0/24\"",
        "`pool.p.last_block` is 10.0.3.0/24: one not below `first_block`, 10.0.9.0/24, was meant",
    );
    check("10.0.0.0/31", "", &format!("{block_len} 32: a block needs at least four addresses: at most 30 for IPv4"));
    let no_pod = |cidr: &str, what: &str, prefix: &str| {
        check(
            cidr,
            "",
            &format!("`pool.p.cidr` is {cidr}: it holds {what} addresses ({prefix}), which no pod can have"),
        );
    };
    no_pod("0.0.0.0/0", "unspecified", "0.0.0.0/8");
    no_pod("127.0.0.0/16", "loopback", "127.0.0.0/8");
    no_pod("169.254.0.0/16", "link-local", "169.254.0.0/16");
    no_pod("224.0.0.0/8", "multicast", "224.0.0.0/4");
    no_pod("fe80::/64", "link-local", "fe80::/10");
    no_pod("ff02::/16", "multicast", "ff00::/8");
}

#[test]
fn a_segment_is_asked_for_whole_or_not_at_all() {
    let backend = |rest: &str| format!("backend = {{ type = \"vxlan\", {rest} }}");
    let at = "`pool[0].backend";
    let of_pool = "`pool.p.backend";
    let check = |rest: &str, expected: &str| check_pool(&backend(rest), expected);
    check("control = \"flood\"", &format!("{at}.control` is \"flood\": \"static\", \"learn\" or \"miss\" was meant"));
    check("group = \"239.1.1.42\"", &format!("{at}.group` is \"239.1.1.42\": a table of keys was meant"));
    let meant = "a multicast group of IPv4 was meant, such as \"239.1.1.42\"";
    check("control = \"learn\", group = { v4 = \"all\" }", &format!("{at}.group.v4` is \"all\": {meant}"));
    for addr in ["192.0.2.1", "ff05::42"] {
        let rest = format!("control = \"learn\", group = {{ v4 = \"{addr}\" }}");
        check(&rest, &format!("{of_pool}.group.v4` is {addr}: {meant}"));
    }
    check(
        "control = \"learn\", group = { v6 = \"2001:db8::1\" }",
        &format!("{of_pool}.group.v6` is 2001:db8::1: a multicast group of IPv6 was meant, such as \"ff05::42\""),
    );
    check(
        "group = { v4 = \"239.1.1.42\" }",
        &format!("{of_pool}.group.v4` is 239.1.1.42: a group is for what is flooded: control = \"learn\" goes with it"),
    );
    check(
        "control = \"learn\", bridged = false",
        &format!(
            "{of_pool}.bridged` is false: what is learned is where the pods of one segment are: leave it out, or true"
        ),
    );
    check(
        "bridged = true",
        &format!(
            "{of_pool}.bridged` is true: where the pods of a segment are has to be learned: control = \"learn\" goes \
             with it"
        ),
    );
    check(
        "control = \"learn\", direct_routing = true",
        &format!(
            "{of_pool}.direct_routing` is true: false was meant: the pods of one segment reach each other without a router"
        ),
    );
    check(
        "bridge = \"tenant1\"",
        &format!(
            "{of_pool}.bridge` is tenant1: pods that are routed are on the node's own: control = \"learn\" goes with it"
        ),
    );
    let whole = backend("control = \"learn\", gbp = true, bridge = \"tenant1\", group = { v6 = \"ff05::42\" }");
    parse_pools(from_toml(&format!("[[pool]]\nname = \"p\"\ncidr = \"10.0.0.0/16\"\n{whole}\n"))).expect("a segment");
}

#[test]
fn a_network_is_a_vni_and_a_bridge() {
    let check = |second: &str, expected: &str| {
        let first = "[[pool]]\nname = \"one\"\ncidr = \"10.0.0.0/16\"\n\
                     backend = { type = \"vxlan\", vni = 7, control = \"learn\", bridge = \"t1\" }\n";
        let second =
            format!("[[pool]]\nname = \"two\"\ncidr = \"fd00::/56\"\nbackend = {{ type = \"vxlan\", {second} }}\n");
        let said = parse_pools(from_toml(&format!("{first}{second}"))).err().map(|error| error.to_string());
        assert_eq!(said.unwrap_or_default(), expected, "{second}");
    };
    let alike = "pool two clashes with pool one: both use VNI 7, which is one device, and differ in bridged, group or \
                 bridge; give them different VNIs, or set both alike";
    check("vni = 7, control = \"learn\", bridge = \"t2\"", alike);
    check("vni = 7, control = \"learn\", bridge = \"t1\", group = { v4 = \"239.1.1.1\" }", alike);
    check("vni = 7", alike);
    check(
        "vni = 8, control = \"learn\", bridge = \"t1\"",
        "pool two clashes with pool one: both extend bridge t1, which is one segment, by VNIs 8 and 7; give them one VNI, or each a \
         bridge of its own (`bridge`)",
    );
    check("vni = 7, control = \"learn\", bridge = \"t1\"", "");
    check("vni = 8, control = \"learn\", bridge = \"t2\"", "");
    check("vni = 8", "");
}

#[test]
fn pools_that_cannot_both_be_are_refused() {
    let check = |second: &str, expected: &str| {
        let first = "[[pool]]\nname = \"one\"\ncidr = \"10.0.0.0/16\"\nbackend = { type = \"vxlan\" }\n";
        check_pools(&format!("{first}[[pool]]\n{second}"), expected);
    };
    check(
        "name = \"two\"\ncidr = \"10.0.128.0/17\"\n",
        "pool two clashes with pool one: 10.0.128.0/17 overlaps 10.0.0.0/16; choose addresses that are in no other pool",
    );
    check("name = \"one\"\ncidr = \"10.1.0.0/16\"\n", "pool one clashes with pool one: the name is there twice");
    check(
        "name = \"two\"\ncidr = \"10.1.0.0/16\"\nbackend = { type = \"vxlan\", port = 4789 }\n",
        "pool two clashes with pool one: both use VNI 1, which is one device, but with UDP ports 4789 and 8472; give them \
         different VNIs, or set both alike",
    );
    check(
        "name = \"two\"\ncidr = \"10.1.0.0/16\"\nbackend = { type = \"vxlan\", gbp = true }\n",
        "pool two clashes with pool one: both use VNI 1, which is one device, but only one with the group policy extension \
         (gbp); give them different VNIs, or set both alike",
    );
}

#[test]
fn the_example_of_a_node_means_what_it_says_and_nothing_has_to_be_said() {
    let config = NodeConfig::parse(example("lodend.toml")).expect("config");
    assert_eq!(config.node.as_ref().map(|name| name.as_str()), Some("worker-1"));
    assert_eq!((config.store.as_str(), config.run_dir.as_str()), ("sqlite:/srv/loden.db", "/run/loden-test"));
    assert_eq!((config.state_dir.as_str(), config.bridge.as_str()), ("/srv/loden", "pods0"));
    assert_eq!((config.iface.join(" "), config.iface_regex.as_deref()), ("bond0 192.0.2.1".to_owned(), Some("^en")));
    assert_eq!(config.iface_can_reach, Some([192, 0, 2, 254].into()));
    let dialled: Vec<_> = config.public.iter().map(|(_, addr)| addr.to_string()).collect();
    assert_eq!(dialled, ["198.51.100.7", "2001:db8::7"]);
    assert_eq!(config.labels.get("zone").map(String::as_str), Some("west"));
    assert_eq!(config.listen.map(|addr| addr.to_string()).as_deref(), Some("127.0.0.1:9476"));
    assert_eq!((config.log_json, config.log_level.as_str(), config.resync_seconds), (true, "lodend=debug", 300));
    assert_eq!((config.block_idle_seconds, config.flow_seconds), (0, 60));
    assert_eq!(config.rules, HostRules { masquerade: Some(true), forward: false, blackhole: true, guard: false });
    assert!(!config.checksum_test);
    assert_eq!((config.announce, config.subnet_file.as_deref()), (false, Some("/run/flannel/subnet.env")));

    let usual = NodeConfig::parse(from_toml("")).expect("config");
    assert_eq!((usual.block_idle_seconds, usual.flow_seconds), (600, 600));
    assert_eq!((usual.store.as_str(), usual.run_dir.as_str()), ("sqlite:/var/lib/loden/loden.db", "/run/loden"));
    assert_eq!((usual.bridge.as_str(), usual.log_json, usual.resync_seconds), ("cni0", false, 60));
    assert_eq!((usual.node, usual.iface.is_empty(), usual.public.is_empty(), usual.listen), (None, true, true, None));
    assert_eq!(usual.rules, HostRules { masquerade: None, forward: true, blackhole: false, guard: true });
    assert!(usual.checksum_test);
    assert_eq!((usual.announce, usual.subnet_file), (true, None));
    // One interface needs no list.
    assert_eq!(NodeConfig::parse(from_toml("iface = \"eth0\"")).expect("config").iface, ["eth0"]);
}

#[test]
fn a_nodes_faults_are_answered_with_what_was_meant() {
    check_node("ifaces = \"eth0\"", "unknown key `ifaces`: did you mean `iface`?");
    check_node("rundir = \"/run\"", "unknown key `rundir`: did you mean `run_dir`?");
    check_node("iface = 5", "`iface` is 5: a text, or a list of texts, was meant");
    check_node("iface_can_reach = \"eth0\"", "`iface_can_reach` is \"eth0\": an address was meant, such as 192.0.2.1");
    check_node("public_ip = \"web\"", "`public_ip` is \"web\": an IPv4 address was meant");
    check_node("public_ip = \"2001:db8::1\"", "`public_ip` is 2001:db8::1: an IPv4 address was meant");
    check_node("public_ipv6 = \"192.0.2.1\"", "`public_ipv6` is 192.0.2.1: an IPv6 address was meant");
    check_node(
        "bridge = \"much-too-long-a-name\"",
        "`bridge` is much-too-long-a-name: interface name \"much-too-long-a-name\" is not valid: 1 to 15 ASCII characters \
         without blank, '/' and ':'",
    );
    check_node("log = \"jason\"", "`log` is \"jason\": \"json\" was probably meant");
    check_node("log = \"syslog\"", "`log` is \"syslog\": \"text\" or \"json\" was meant");
    check_node("listen = \"9476\"", "`listen` is \"9476\": an address with a port was meant, such as 127.0.0.1:9476");
    check_node("resync_seconds = 1", "`resync_seconds` is 1: a whole number from 5 to 86400 was meant");
    check_node("labels = \"west\"", "`labels` is \"west\": a table of texts was meant, such as { zone = \"a\" }");
}

#[test]
fn the_book_has_every_key_of_a_node() {
    let book = fs::read_to_string(fixtures().join("../docs/src/node.md")).expect("the book");
    let example: serde_json::Value = example("lodend.toml");
    let all = example.as_object().expect("a table").keys();
    let missing: Vec<_> = all.filter(|key| !book.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
