//! A pod's bandwidth, measured: within 5 % of what is asked for, in both directions and families, from 1 Mbit/s to 1 Gbit/s.

use std::thread;
use std::time::Duration;

use loden_lab::Lab;
use loden_lab::pod::Pod;
use loden_lab::probe::flow::Flow;
use serde_json::{Map, Value, json};

use crate::support::{POOLS, SEGMENT, say, up};

/// A burst as containerd gives it: it means none.
const UNSET: u64 = u32::MAX as u64;
/// What is asked for: bits a second, and bits. With a burst of 125 kB the stream's largest packets go in one piece.
const BOUNDS: [(u64, u64); 5] =
    [(1_000_000, UNSET), (10_000_000, UNSET), (20_000_000, 1_000_000), (100_000_000, UNSET), (1_000_000_000, UNSET)];
/// From here on each stream is measured by itself: together they are more than a small machine copies.
const FAST: u64 = 100_000_000;
/// How far the measured rate may be from it.
const TOLERANCE: f64 = 0.05;
/// A window, and how many of them a busy machine is given to keep up in one. No window may be above the rate.
const WINDOW: Duration = Duration::from_millis(2000);
const WINDOWS: usize = 6;
/// The burst and the stream's beginning are not measured.
const WARM_UP: Duration = Duration::from_millis(1000);

fn bounded(lab: &Lab, name: &str, rate: u64, burst: u64) -> Pod {
    let asked = json!({ "IngressRate": rate, "IngressBurst": burst, "EgressRate": rate, "EgressBurst": burst });
    let Value::Object(more) = json!({ "runtimeConfig": { "bandwidth": asked } }) else {
        panic!("an object");
    };
    lab.attach_with("host1", name, &more).expect("attached")
}

#[test]
fn the_rate_is_what_is_asked_for() {
    let lab = up("bandwidth", &[SEGMENT, "[[host]]\nname = \"host1\"\npods = 0\n", POOLS].concat());
    for (rate, burst) in BOUNDS {
        let names: Vec<(String, bool, bool)> = [(true, true), (true, false), (false, true), (false, false)]
            .map(|(is_ingress, is_v4)| (format!("p{rate}-{is_ingress}-{is_v4}"), is_ingress, is_v4))
            .into();
        let pods: Vec<(Pod, Pod)> = names
            .iter()
            .map(|(name, ..)| {
                let free = lab.attach_with("host1", &format!("{name}-free"), &Map::new()).expect("attached");
                (bounded(&lab, name, rate, burst), free)
            })
            .collect();
        let measure = |n: usize| {
            let ((pod, free), (name, is_ingress, is_v4)) = (&pods[n], &names[n]);
            let seen = measured(&lab, pod, free, *is_ingress, *is_v4, rate);
            say(&format!("{name}: {seen:.4?} of the rate"));
            assert!(seen.iter().all(|seen| *seen < 1.0 + TOLERANCE), "{name}: faster than it may be: {seen:?}");
            let is_near = seen.iter().any(|seen| (seen - 1.0).abs() < TOLERANCE);
            assert!(is_near, "{name}: not within {TOLERANCE} of the rate: {seen:?}");
        };
        if rate < FAST {
            thread::scope(|scope| {
                (0..names.len())
                    .map(|n| scope.spawn(move || measure(n)))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|thread| thread.join().expect("measured"));
            });
        } else {
            (0..names.len()).for_each(measure);
        }
        for (pod, free) in &pods {
            lab.detach(pod).expect("detached");
            lab.detach(free).expect("detached");
        }
    }
}

/// The rates of windows, as shares of what is asked for, up to the first that is near.
fn measured(lab: &Lab, pod: &Pod, free: &Pod, is_ingress: bool, is_v4: bool, rate: u64) -> Vec<f64> {
    let (from, to) = if is_ingress { (free, pod) } else { (pod, free) };
    let addr = if is_v4 { to.addresses.v4 } else { to.addresses.v6 }.expect("both families");
    let netns = |pod: &Pod| lab.netns(&pod.name).expect("a namespace");
    let far = netns(to);
    let flow = Flow::start(&netns(from), &far, addr, pod.mtu).expect("a flow");
    thread::sleep(WARM_UP);
    let mut seen = Vec::new();
    for _ in 0..WINDOWS {
        seen.push(flow.rate(WINDOW).expect("counted") / rate as f64);
        if seen.last().is_some_and(|seen| (seen - 1.0).abs() < TOLERANCE) {
            break;
        }
    }
    flow.stop().expect("ended");
    seen
}
