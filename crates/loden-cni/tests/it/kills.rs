//! The plugin killed at moments that nobody chose.

use std::time::Duration;

use serde_json::json;

use crate::host::Host;

/// One IPv4 address and two IPv6 ones: what leaks is missed at the next ADD.
const TINY: [&str; 2] = ["10.1.0.0/30", "fd01::/126"];
/// A moment every so many microseconds, past the end of a whole ADD.
const STEP: u64 = 70;
const MOMENTS: u64 = 60;

#[test]
fn killed_at_any_moment_nothing_stays_and_no_address_is_lost() {
    kill_at_any_moment("bridge");
}

#[test]
fn a_routed_pods_routes_do_not_stay_either() {
    let host = kill_at_any_moment("routed");
    assert_eq!(host.pod_routes(), Vec::new());
}

fn kill_at_any_moment(attach: &str) -> Host {
    let host = Host::new(&TINY);
    host.pod("a");
    let attach = json!({ "attach": attach });
    let conf = host.conf("1.1.0", &attach);
    for (verb, moment) in ["ADD", "DEL"].into_iter().flat_map(|verb| (0..MOMENTS).map(move |n| (verb, n * STEP))) {
        let what = format!("{verb} killed after {moment} us");
        if verb == "DEL" {
            host.call("ADD", "a", &attach).expect(&what);
        }
        let mut killed = host.begin(verb, "a", conf.as_bytes(), &[]);
        std::thread::sleep(Duration::from_micros(moment));
        killed.kill().expect(&what);
        killed.wait().expect(&what);
        let cure = if (moment / STEP).is_multiple_of(2) { "DEL" } else { "GC" };
        host.call(cure, "a", &json!({ "cni.dev/valid-attachments": [] })).expect(&what);
        host.reap();
        host.sweep();
        assert_eq!(host.leftovers(), Vec::<String>::new(), "{what}, then {cure}");
        host.call("ADD", "a", &attach).expect(&what);
        host.call("DEL", "a", &json!({})).expect(&what);
    }
    host
}
