//! The choice of the external interface, by table.

use loden_core::model::{Family, PerFamily};
use loden_core::underlay::{AddressFacts, HostFacts, LinkFacts, Wish, choose};

fn link(name: &str, up: bool, addresses: &[&str]) -> LinkFacts {
    let address = |text: &&str| {
        let (net, temporary) = text.strip_suffix(" temporary").map_or((*text, false), |net| (net, true));
        AddressFacts { net: net.parse().expect("address"), temporary }
    };
    LinkFacts {
        name: name.parse().expect("name"),
        mtu: 1500,
        up,
        addresses: addresses.iter().map(address).collect(),
        onlink: vec!["192.0.2.0/24".parse().expect("prefix"), "192.0.2.0/24".parse().expect("prefix")],
    }
}

fn host() -> HostFacts {
    HostFacts {
        links: vec![
            link("lo", true, &[]),
            link("eth0", true, &["192.0.2.1/24", "192.0.2.9/24", "2001:db8::bad/64 temporary", "2001:db8::1/64"]),
            link("eth1", true, &["198.51.100.1/24 temporary"]),
            link("eth2", false, &["203.0.113.1/24"]),
            link("wg0", true, &[]),
        ],
        default_routes: vec![
            (Family::V4, "gone".parse().expect("name")),
            (Family::V4, "eth0".parse().expect("name")),
            (Family::V6, "eth1".parse().expect("name")),
        ],
        can_reach: Some("eth1".parse().expect("name")),
    }
}

/// What is chosen: the link and its addresses, or why none.
fn check(iface: &[&str], regex: Option<&dyn Fn(&str) -> bool>, can_reach: bool, public: &[&str], expected: &str) {
    let iface: Vec<String> = iface.iter().map(ToString::to_string).collect();
    let mut dialled = PerFamily::default();
    for addr in public {
        let addr = addr.parse().expect("address");
        dialled.set(Family::of(addr), addr);
    }
    let wish = Wish { iface: &iface, iface_regex: regex, can_reach, public: dialled, asked: PerFamily::default() };
    let outcome = match choose(&host(), &wish) {
        Ok(chosen) => {
            let addresses: Vec<_> = chosen.addresses.iter().map(|(_, addr)| addr.to_string()).collect();
            assert_eq!(chosen.onlink.len(), 1, "told twice, kept once");
            format!("{} {}", chosen.ifname, addresses.join(" "))
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(outcome, expected, "{iface:?}");
}

#[test]
fn the_first_way_given_that_finds_a_link_wins() {
    let is_eth = |name: &str| name.starts_with("eth1");
    let is_none = |_: &str| false;
    // By the default route; a link of it that is not there is passed over; a permanent address before a temporary one.
    check(&[], None, false, &[], "eth0 192.0.2.1 2001:db8::1");
    // By name, by the first name that is there, by address: then that is the address.
    check(&["eth1"], None, false, &[], "eth1 198.51.100.1");
    check(&["nope", "eth1", "eth0"], None, false, &[], "eth1 198.51.100.1");
    check(&["192.0.2.9"], None, false, &[], "eth0 192.0.2.9 2001:db8::1");
    check(&["2001:db8::bad"], None, false, &[], "eth0 192.0.2.1 2001:db8::bad");
    // By regular expression, alone and after names that are not there.
    check(&[], Some(&is_eth), false, &[], "eth1 198.51.100.1");
    check(&["nope"], Some(&is_eth), false, &[], "eth1 198.51.100.1");
    // By the route to an address.
    check(&[], None, true, &[], "eth1 198.51.100.1");
    // By the address that peers dial; one that no link has (it is translated on the way) leaves the choice as it is.
    check(&[], None, false, &["198.51.100.1"], "eth1 198.51.100.1");
    check(&[], None, false, &["100.64.0.1"], "eth0 100.64.0.1 2001:db8::1");
    check(&["eth0"], None, false, &["198.51.100.1"], "eth0 198.51.100.1 2001:db8::1");
    // None.
    let present = "this host has lo, eth0, eth1, eth2, wg0. It is chosen as soon as it appears";
    check(&["nope"], None, false, &[], &format!("no interface fits iface \"nope\"; {present}"));
    check(
        &["nope", "192.0.2.77"],
        None,
        false,
        &[],
        &format!("no interface fits iface \"nope\" or \"192.0.2.77\"; {present}"),
    );
    check(&[], Some(&is_none), false, &[], &format!("no interface fits iface_regex; {present}"));
    check(
        &["nope"],
        Some(&is_none),
        false,
        &[],
        &format!("no interface fits iface \"nope\" or iface_regex; {present}"),
    );
    check(&["eth2"], None, false, &[], "interface eth2 is down: set it up, or name another with `iface`");
    check(&["wg0"], None, false, &[], "interface wg0 has no global address yet; it is used as soon as it has one");
}

#[test]
fn without_a_default_route_it_is_said_how_to_name_a_link() {
    let facts = HostFacts { default_routes: Vec::new(), ..host() };
    let error = choose(&facts, &Wish::default()).expect_err("none");
    assert_eq!(
        error.to_string(),
        "no interface fits the default route (there is none; `iface` names an interface without one); this host has lo, eth0, \
         eth1, eth2, wg0. It is chosen as soon as it appears"
    );
}

#[test]
fn what_the_record_asks_for_is_served_at_unless_the_host_itself_is_told_otherwise() {
    let asked = |addr: &str| PerFamily { v4: Some(addr.parse().expect("address")), v6: None };
    let choose = |iface: &[String], can_reach, public, addr| {
        let wish = Wish { iface, iface_regex: None, can_reach, public, asked: asked(addr) };
        choose(&host(), &wish).map(|chosen| format!("{} {:?}", chosen.ifname, chosen.addresses.v4))
    };
    let none = PerFamily::default();
    assert_eq!(choose(&[], false, none, "192.0.2.9"), Ok("eth0 Some(192.0.2.9)".to_owned()));
    assert_eq!(choose(&[], false, none, "198.51.100.1"), Ok("eth1 Some(198.51.100.1)".to_owned()));
    assert_eq!(choose(&["eth0".to_owned()], false, none, "198.51.100.1"), Ok("eth0 Some(192.0.2.1)".to_owned()));
    assert_eq!(choose(&["eth0".to_owned()], false, none, "192.0.2.9"), Ok("eth0 Some(192.0.2.9)".to_owned()));
    assert_eq!(choose(&["192.0.2.1".to_owned()], false, none, "192.0.2.9"), Ok("eth0 Some(192.0.2.1)".to_owned()));
    assert_eq!(choose(&[], true, none, "192.0.2.9"), Ok("eth1 Some(198.51.100.1)".to_owned()));
    assert_eq!(choose(&[], false, asked("192.0.2.1"), "198.51.100.1"), Ok("eth0 Some(192.0.2.1)".to_owned()));
    let error = choose(&[], false, none, "192.0.2.77").expect_err("no link has it");
    assert!(
        error.to_string().starts_with("no interface fits 192.0.2.77, which this node's record asks for; "),
        "{error}"
    );
}
