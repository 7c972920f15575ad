//! Families, segments, underlays.

use crate::support::{POOLS, all_pods_reach, all_reach, hosts, number, say, up};

#[test]
fn ipv4_alone() {
    let segment = "[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\n";
    let pool = "[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\n";
    let lab = up("v4", &[segment, &hosts(2, ""), pool].concat());
    all_reach(&lab);
    assert_eq!(lab.agent("host1").expect("agent").status().expect("status").mtu_pod, Some(1450));
    assert!(number(&lab, "host1", "flannel-v6.1").is_none());
}

#[test]
fn ipv6_alone_leaves_70_bytes_less() {
    let segment = "[[segment]]\nname = \"s\"\nv6 = \"2001:db8:0:2::/64\"\n";
    let pool = "[[pool]]\nname = \"p6\"\ncidr = \"fd00:10:244::/56\"\n";
    let lab = up("v6", &[segment, &hosts(2, ""), pool].concat());
    all_reach(&lab);
    assert_eq!(lab.agent("host1").expect("agent").status().expect("status").mtu_pod, Some(1430));
    assert!(number(&lab, "host1", "flannel.1").is_none());
}

#[test]
fn both_families_of_pods_over_an_ipv6_underlay() {
    let segment = "[[segment]]\nname = \"s\"\nv6 = \"2001:db8:0:2::/64\"\n";
    let lab = up("v46over6", &[segment, &hosts(2, ""), POOLS].concat());
    all_pods_reach(&lab);
}

#[test]
fn direct_routing_goes_straight_on_the_segment_and_by_tunnel_beyond() {
    let topology = "[[segment]]\nname = \"a\"\nv4 = \"192.0.2.0/25\"\n[[segment]]\nname = \"b\"\nv4 = \"203.0.113.0/24\"\n\
                    [[host]]\nname = \"host1\"\nsegment = \"b\"\npods = 1\n[[host]]\nname = \"host2\"\nsegment = \"b\"\npods = 1\n\
                    [[host]]\nname = \"host3\"\nsegment = \"c\"\npods = 1\n\
                    [[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nbackend = { type = \"vxlan\", direct_routing = true }\n";
    let topology = topology.replace("\"a\"", "\"c\"").replace("192.0.2.0/25", "192.0.2.0/24");
    let lab = up("routed", &topology);
    all_reach(&lab);
    let routes = |host: &str| {
        let agent = lab.agent(host).expect("an agent").status().expect("a status");
        agent.peers.iter().map(|peer| (peer.node.to_string(), peer.objects)).collect::<Vec<_>>()
    };
    // A direct peer is a known address, a nexthop and a route; one behind the tunnel has an ARP and an FDB entry besides.
    say(&format!("host1: {:?}", routes("host1")));
    assert_eq!(routes("host1"), [("host2".to_owned(), 3), ("host3".to_owned(), 5)]);
    assert_eq!(routes("host3"), [("host1".to_owned(), 5), ("host2".to_owned(), 5)]);
}
