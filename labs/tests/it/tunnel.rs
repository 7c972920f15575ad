//! Tunnels that the agent runs itself: bare packets in UDP, and IPIP where the kernel has no device for it.

use crate::support::{POOLS, SEGMENT, all_reach, hosts, say, stop, streams, up};

const IPIP: &str = "[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nbackend = { type = \"ipip\" }\n";

#[test]
fn by_udp_both_families_reach_everybody() {
    let lab = up("udp", &[SEGMENT, &hosts(3, ""), &POOLS.replace("vxlan", "udp")].concat());
    all_reach(&lab);
    let status = lab.agent("host1").expect("an agent").status().expect("a status");
    say(&format!("{:#?}", status.tunnels));
}

#[test]
fn by_ipip_all_reach_everybody() {
    let lab = up("ipip", &[SEGMENT, &hosts(3, ""), IPIP].concat());
    all_reach(&lab);
}
