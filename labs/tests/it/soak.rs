//! Pods come and go on a host with a living agent; `cargo xtask soak` is the same with ten thousand.

use loden_lab::soak::Soak;

use crate::support::{POOLS, SEGMENT, hosts, up};

#[test]
fn what_pods_leave_that_came_and_went_is_nothing() {
    let lab = up("soak", &format!("{SEGMENT}{POOLS}{}", hosts(1, "")));
    let soak = Soak { lab: &lab, host: "host1" };
    let fresh = soak.holdings().expect("holdings");
    // What the first make and none takes away: the table of ports, the files of the address state.
    soak.cycle(0..40).expect("pods come and go");
    let before = soak.settled(|held| held.links == fresh.links).expect("holdings");
    let process = soak.process().expect("the agent");
    soak.cycle(40..300).expect("pods come and go");
    let after = soak.settled(|held| *held == before).expect("holdings");
    assert_eq!(after.differences(&before), Vec::<String>::new());
    assert_eq!(soak.process().expect("the agent").descriptors, process.descriptors);
}
