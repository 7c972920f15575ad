//! A pod's bandwidth: how near the rate is to what is asked for, and how long echoes take beside a stream that fills it; against the
//! reference plugin `bandwidth` behind `bridge`, with the burst that containerd gives it and with one of 10 ms.

use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use loden_core::cni::{Success, Version};
use loden_lab::probe::flow::{Flow, echoes};
use loden_lab::{Lab, Topology};
use loden_linux::netns::{self, NetNs};
use serde_json::{Value, json};

use super::cni::network::{Attached, Network};
use super::cni::reference;
use super::{Row, median};
use crate::shell;

/// MTU of all pods in bytes.
const MTU: u32 = 1450;
/// What containerd and kubelet give as a burst, in bits.
const UNSET: u64 = u32::MAX as u64;
/// From the beginning of a stream; what is measured after it is steady.
const FIRST: Duration = Duration::from_secs(2);
const STEADY: Duration = Duration::from_secs(2);
/// How long an echo beside a stream may take at these rates, in milliseconds.
const BOUND_MS: f64 = 50.0;
/// Those that ours is compared with.
const AGAINST: [&str; 2] =
    ["bridge + bandwidth, burst as containerd gives it (2^32-1 bits)", "bridge + bandwidth, burst of 10 ms"];

/// A direction at a rate.
struct Case {
    /// Bits a second.
    rate: u64,
    is_ingress: bool,
    /// The rows: error, of the first seconds, p50 and p99 of echoes.
    rows: [&'static str; 4],
}

const CASES: [Case; 4] = [
    Case { rate: 10_000_000, is_ingress: true, rows: ["error_in_10m", "first_in_10m", "p50_in_10m", "p99_in_10m"] },
    Case {
        rate: 10_000_000,
        is_ingress: false,
        rows: ["error_out_10m", "first_out_10m", "p50_out_10m", "p99_out_10m"],
    },
    Case {
        rate: 100_000_000,
        is_ingress: true,
        rows: ["error_in_100m", "first_in_100m", "p50_in_100m", "p99_in_100m"],
    },
    Case {
        rate: 100_000_000,
        is_ingress: false,
        rows: ["error_out_100m", "first_out_100m", "p50_out_100m", "p99_out_100m"],
    },
];

/// What a stream came to.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// How far from the rate, in percent.
    error: f64,
    /// How many times the rate in the first seconds.
    first: f64,
    /// Echoes beside it, in milliseconds.
    p50: f64,
    p99: f64,
}

/// All three in turn on one host of a lab.
pub fn run(runs: usize) -> Result<Vec<Row>> {
    let reference = reference()?;
    let binaries = shell::build(true)?;
    let text = "name = \"bench-bandwidth\"\n[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\n[[host]]\nname = \"host1\"\n\
                pods = 0\n[[pool]]\nname = \"default\"\ncidr = \"10.244.0.0/16\"\n";
    let dir = Path::new(loden_lab::lab::LABS).join("bench-bandwidth");
    let lab = Lab::up(&Topology::parse(text)?, &dir, binaries, false, &mut |step| shell::say(&format!("· {step}")))?;
    let measured = lab.netns("host1").map_err(Into::into).and_then(|host| host.run(|| all(&lab, reference, runs))?);
    lab.down()?;
    measured
}

fn all(lab: &Lab, reference: &Path, runs: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for case in &CASES {
        let sane = case.rate / 100;
        let sides = [ours(lab, case)?, theirs(lab, reference, case, UNSET), theirs(lab, reference, case, sane)];
        let mut seen: [Vec<Seen>; 3] = Default::default();
        for run in 0..runs {
            for (place, side) in sides.iter().enumerate() {
                let name = format!("{}-{run}-{place}", case.rows[0].replace('_', "-"));
                let one = measure(lab, side, case, &name)?;
                shell::say(&format!("· {name}: {one:?}"));
                seen[place].push(one);
            }
        }
        rows.extend(rows_of(case, &seen, runs));
    }
    Ok(rows)
}

fn rows_of(case: &Case, seen: &[Vec<Seen>; 3], runs: usize) -> Vec<Row> {
    let of = |place: usize, figure: fn(&Seen) -> f64| median(seen[place].iter().map(figure).collect());
    let row = |name, ours: f64, peer: f64, unit, floor, goal, against| Row {
        name,
        ours,
        peer,
        unit,
        ratio: peer / ours,
        floor,
        goal,
        runs,
        against,
    };
    let [error, first, p50, p99] = case.rows;
    let mut rows = vec![
        row(error, of(0, |seen| seen.error), 5.0, "%", 1.0, 5.0, "the bound of 5 %"),
        row(first, of(0, |seen| seen.first), of(1, |seen| seen.first), "times the rate", 1.0, 10.0, AGAINST[0]),
    ];
    rows.push(row(p99, of(0, |seen| seen.p99), BOUND_MS, "ms", 1.0, 3.0, "the bound of 50 ms"));
    for (place, against) in AGAINST.into_iter().enumerate() {
        // From run to run a stream fills its queue more or less: of the same plugin the figures differ by more than twice.
        let (floor, goal) = (0.3, if place == 0 { 2.0 } else { 1.0 });
        rows.push(row(p50, of(0, |seen| seen.p50), of(place + 1, |seen| seen.p50), "ms", floor, goal, against));
        rows.push(row(p99, of(0, |seen| seen.p99), of(place + 1, |seen| seen.p99), "ms", floor, goal, against));
    }
    rows
}

/// A network with the bound, and the same without.
type Side = [Network; 2];

fn asked(case: &Case, burst: u64) -> Value {
    if case.is_ingress {
        json!({ "ingressRate": case.rate, "ingressBurst": burst })
    } else {
        json!({ "egressRate": case.rate, "egressBurst": burst })
    }
}

fn ours(lab: &Lab, case: &Case) -> Result<Side> {
    let program = &lab.binaries().loden_cni;
    let dir = program.parent().context("the plugin's directory")?;
    let common = json!({
        "cniVersion": "1.0.0", "name": "loden", "runDir": lab.dir().join("host1/run"), "quarantineSeconds": 0, "mtu": MTU,
    });
    Ok([asked(case, UNSET), json!({})].map(|conf| Network::new(dir, &common, &[(Path::new("loden-cni"), conf)])))
}

fn theirs(lab: &Lab, reference: &Path, case: &Case, burst: u64) -> Side {
    let common = json!({ "cniVersion": "1.0.0", "name": "ref" });
    let bridge = json!({
        "type": "bridge", "bridge": "ref0", "isGateway": true, "mtu": MTU,
        "ipam": {"type": "host-local", "dataDir": lab.dir().join("host-local"), "ranges": [[{"subnet": "10.99.0.0/16"}]],
                 "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let mut bandwidth = asked(case, burst);
    bandwidth["type"] = "bandwidth".into();
    let bridge = (Path::new("bridge"), bridge);
    [
        Network::new(reference, &common, &[bridge.clone(), (Path::new("bandwidth"), bandwidth)]),
        Network::new(reference, &common, &[bridge]),
    ]
}

fn measure(lab: &Lab, side: &Side, case: &Case, name: &str) -> Result<Seen> {
    let attach = |place: usize, name: &str| -> Result<(NetNs, Attached)> {
        let path = lab.netns_path(name);
        let ns = NetNs::create(&path)?;
        Ok((ns, side[place].add(name, &path, None)?.1))
    };
    let (bounded, free) = (attach(0, name)?, attach(1, &format!("{name}-free"))?);
    let (from, to) = if case.is_ingress { (&free, &bounded) } else { (&bounded, &free) };
    let seen = filled(&from.0, &to.0, address(&to.1)?, case.rate);
    for (place, (_, attached)) in [&bounded, &free].into_iter().enumerate() {
        side[place].del(attached)?;
        netns::remove(&attached.netns)?;
    }
    seen
}

fn address(attached: &Attached) -> Result<IpAddr> {
    let result = Success::parse(&attached.result, Version::V1_0_0)?;
    Ok(result.ips.first().context("the pod has no address")?.address.addr())
}

fn filled(from: &NetNs, to: &NetNs, addr: IpAddr, rate: u64) -> Result<Seen> {
    let share = |measured: f64| measured / rate as f64;
    let flow = Flow::start(from, to, addr, MTU)?;
    let first = share(flow.rate(FIRST)?);
    let (steady, times) = thread::scope(|scope| {
        let times = scope.spawn(|| echoes(from, addr, STEADY));
        let steady = flow.rate(STEADY);
        (steady, times.join())
    });
    flow.stop()?;
    let times = times.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    let at = |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(f64::NAN);
    Ok(Seen { error: (share(steady?) - 1.0).abs() * 100.0, first, p50: at(50), p99: at(99) })
}
