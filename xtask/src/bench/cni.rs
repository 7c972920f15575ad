//! `loden-cni` against the reference plugins, each called as a runtime calls it, in turn on one host of a lab.

mod alloc;
pub mod network;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use loden_lab::{Lab, Topology};
use loden_linux::netns::{self, NetNs};
use serde_json::{Value, json};

use self::network::{Attached, Network};
use super::{Row, median};
use crate::shell;

/// Where Debian puts the reference plugins (package containernetworking-plugins), and where others do.
const PLACES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Pods of each side in a run, one after the other: in five runs two hundred.
const IN_TURN: usize = 40;
/// Pods of each side in a run, at once, and how many callers a side has then.
const AT_ONCE: usize = 200;
const CALLERS: usize = 16;
/// The first port of the host that is given away.
const FIRST_PORT: u16 = 20_000;

/// Two networks that do the same: ours and the peer's.
struct Pair {
    name: &'static str,
    sides: [Network; 2],
    has_ports: bool,
}

/// What was measured: in milliseconds or ADDs a second, ours and theirs.
#[derive(Default)]
struct Figures {
    add: Vec<[Vec<f64>; 2]>,
    del: [Vec<f64>; 2],
    rate: [Vec<f64>; 2],
    status: Vec<f64>,
}

/// Both in turn on one host of a lab.
pub fn run(runs: usize) -> Result<Vec<Row>> {
    let reference = reference()?;
    let binaries = shell::build(true)?;
    let text = "name = \"bench-cni\"\n[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\n[[host]]\nname = \"host1\"\npods = 0\n\
                [[pool]]\nname = \"default\"\ncidr = \"10.244.0.0/16\"\n";
    let dir = Path::new(loden_lab::lab::LABS).join("bench-cni");
    let lab = Lab::up(&Topology::parse(text)?, &dir, binaries, false, &mut |step| shell::say(&format!("· {step}")))?;
    // The calls come from a thread inside the host, as a runtime's do: nothing but starting the programs is measured.
    let measured =
        lab.netns("host1").map_err(Into::into).and_then(|host| host.run(|| measure(&lab, reference, runs))?);
    lab.down()?;
    let (pairs, figures) = measured?;
    let row = |name, ours, peer, unit, ratio, floor, goal, against| Row {
        name,
        ours,
        peer,
        unit,
        ratio,
        floor,
        goal,
        runs,
        against,
    };
    let times = |name, [ours, theirs]: [Vec<f64>; 2], floor, goal, against| {
        let (ours, theirs) = (median(ours), median(theirs));
        row(name, ours, theirs, "ms", theirs / ours, floor, goal, against)
    };
    let mut rows = Vec::new();
    for (pair, add) in pairs.iter().zip(figures.add) {
        let (floor, goal, against) = match pair.name {
            "add_portmap_p50" => (6.0, 8.0, "bridge + host-local, then portmap (containernetworking-plugins)"),
            "ptp_add_p50" => (4.0, 8.0, "ptp + host-local (containernetworking-plugins)"),
            "macvlan_add_p50" => (4.0, 8.0, "macvlan + host-local (containernetworking-plugins)"),
            _ => (4.0, 8.0, BRIDGE),
        };
        rows.push(times(pair.name, add, floor, goal, against));
    }
    rows.push(times("del_p50", figures.del, 5.0, 20.0, BRIDGE));
    let [ours, theirs] = figures.rate.map(median);
    rows.push(row("add_rate_16", ours, theirs, "/s", ours / theirs, 3.0, 6.0, BRIDGE));
    let status = median(figures.status);
    rows.push(row("status_ms", status, 3.0, "ms", 3.0 / status, 1.0, 2.0, "the bound of 3 ms"));
    let rate = median((0..runs).map(|_| alloc::rate()).collect::<Result<_>>()?);
    rows.push(row("alloc_rate", rate, 2000.0, "/s", rate / 2000.0, 1.0, 4.0, "the bound of 2,000 a second"));
    Ok(rows)
}

const BRIDGE: &str = "bridge + host-local (containernetworking-plugins)";

/// The directory of the reference plugins; installs them where they are missing.
pub fn reference() -> Result<&'static Path> {
    let find = || PLACES.iter().map(Path::new).find(|place| place.join("bridge").exists());
    if find().is_none() || !shell::has("iptables") {
        let packages = ["containernetworking-plugins", "iptables"];
        shell::install(&packages, "the peers are the reference plugins, of which portmap needs iptables")?;
    }
    find().context("the reference plugins are not where they are looked for")
}

/// The pairs of networks. What is not of the node's own block has a range of its own, the same on both sides, and one
/// configuration with the keys of both.
fn pairs(lab: &Lab, reference: &Path) -> Result<Vec<Pair>> {
    let ours_in = lab.dir().join("bin");
    std::fs::create_dir(&ours_in)?;
    for role in ["loden-cni", "ptp", "macvlan"] {
        std::os::unix::fs::symlink(&lab.binaries().loden_cni, ours_in.join(role))?;
    }
    let common = |name: &str| json!({ "cniVersion": "1.0.0", "name": name, "runDir": lab.dir().join("host1/run") });
    let ipam = |net: u8| {
        json!({ "type": "host-local", "dataDir": lab.dir().join("host-local"), "routes": [{ "dst": "0.0.0.0/0" }],
                "ranges": [[{ "subnet": format!("10.{net}.0.0/16") }]] })
    };
    let capable = json!({ "portMappings": true });
    let loden = json!({ "type": "loden-cni", "attach": "bridge", "quarantineSeconds": 0, "capabilities": capable });
    let bridge = |net| json!({ "type": "bridge", "bridge": "ref0", "isGateway": true, "mtu": 1450, "ipam": ipam(net) });
    let portmap = json!({ "type": "portmap", "capabilities": capable });
    let ours =
        |name: &str, plugin: &str, conf: Value| Network::new(&ours_in, &common(name), &[(Path::new(plugin), conf)]);
    let theirs = |name: &str, plugins: &[(&str, Value)]| {
        let plugins: Vec<(&Path, Value)> =
            plugins.iter().map(|(name, conf)| (Path::new(*name), conf.clone())).collect();
        Network::new(reference, &common(name), &plugins)
    };
    let ptp = |net| json!({ "type": "ptp", "mtu": 1450, "ipam": ipam(net) });
    let macvlan = |net| json!({ "type": "macvlan", "master": "eth0", "ipam": ipam(net) });
    let pair = |name, ours, theirs, has_ports| Pair { name, sides: [ours, theirs], has_ports };
    Ok(vec![
        pair("add_p50", ours("loden", "loden-cni", loden.clone()), theirs("ref", &[("bridge", bridge(99))]), false),
        pair(
            "add_portmap_p50",
            ours("loden", "loden-cni", loden),
            theirs("ref", &[("bridge", bridge(99)), ("portmap", portmap)]),
            true,
        ),
        pair("ptp_add_p50", ours("ptp1", "ptp", ptp(101)), theirs("ptp2", &[("ptp", ptp(102))]), false),
        pair(
            "macvlan_add_p50",
            ours("mac1", "macvlan", macvlan(103)),
            theirs("mac2", &[("macvlan", macvlan(104))]),
            false,
        ),
    ])
}

fn measure(lab: &Lab, reference: &Path, runs: usize) -> Result<(Vec<Pair>, Figures)> {
    let pairs = pairs(lab, reference)?;
    let mut figures = Figures { add: pairs.iter().map(|_| Default::default()).collect(), ..Figures::default() };
    let status = json!({ "cniVersion": "1.1.0", "name": "loden", "runDir": lab.dir().join("host1/run") });
    let status =
        Network::new(&lab.dir().join("bin"), &status, &[(Path::new("loden-cni"), json!({ "quarantineSeconds": 0 }))]);
    for run in 0..runs {
        for (which, pair) in pairs.iter().enumerate() {
            shell::say(&format!("· run {} of {runs}: {}, {IN_TURN} pods each", run + 1, pair.name));
            let mut attached = Vec::new();
            for n in 0..IN_TURN {
                for (side, network) in pair.sides.iter().enumerate() {
                    let pod = format!("{}-{run}-{n}-{side}", pair.name);
                    let path = namespace(lab, &pod)?;
                    let port = u16::try_from(2 * n + side)?;
                    let (took, made) = network.add(&pod, &path, pair.has_ports.then_some(FIRST_PORT + port))?;
                    figures.add[which][side].push(took.as_secs_f64() * 1000.0);
                    attached.push((side, made));
                }
            }
            if which == 0 {
                for _ in 0..IN_TURN {
                    figures.status.push(status.status()?.as_secs_f64() * 1000.0);
                }
            }
            for (side, made) in attached {
                let took = pair.sides[side].del(&made)?;
                if which == 0 {
                    figures.del[side].push(took.as_secs_f64() * 1000.0);
                }
                netns::remove(&made.netns)?;
            }
        }
        shell::say(&format!("· run {} of {runs}: {AT_ONCE} pods each by {CALLERS} callers at once", run + 1));
        for (side, network) in pairs[0].sides.iter().enumerate() {
            figures.rate[side].push(at_once(lab, network, &format!("rate-{run}-{side}"))?);
        }
    }
    Ok((pairs, figures))
}

/// ADDs a second by several callers.
fn at_once(lab: &Lab, network: &Network, name: &str) -> Result<f64> {
    let pods: Vec<(String, PathBuf)> = (0..AT_ONCE)
        .map(|n| format!("{name}-{n}"))
        .map(|pod| namespace(lab, &pod).map(|path| (pod, path)))
        .collect::<Result<_>>()?;
    let began = Instant::now();
    let attached: Vec<Attached> =
        by_callers(&pods, |(pod, path)| network.add(pod, path, None).map(|(_, attached)| attached))?;
    let rate = AT_ONCE as f64 / began.elapsed().as_secs_f64();
    by_callers(&attached, |attached| network.del(attached))?;
    for attached in &attached {
        netns::remove(&attached.netns)?;
    }
    Ok(rate)
}

/// Each takes the next item when it is done with one.
fn by_callers<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(item);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(result);
                }
            });
        }
    });
    done.into_inner().map_err(|_| anyhow!("a caller panicked"))?.into_iter().collect()
}

fn namespace(lab: &Lab, pod: &str) -> Result<PathBuf> {
    let path = lab.netns_path(pod);
    NetNs::create(&path)?;
    Ok(path)
}
