//! ADD by loden-cni against the reference plugins bridge and host-local, one by one in turn.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use loden_lab::pod::Call;
use loden_lab::{Lab, Topology};
use loden_linux::netns::{self, NetNs};

use super::{Row, median};
use crate::shell;

/// Where Debian puts the reference plugins (package containernetworking-plugins), and where others do.
const PLACES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Pods a run.
const PODS: usize = 50;

/// Both in turn on one host of a lab.
pub fn run(runs: usize) -> Result<Vec<Row>> {
    let place = PLACES.iter().find(|place| Path::new(place).join("bridge").exists());
    let place =
        Path::new(*place.context("the peer is the reference plugin `bridge`: install containernetworking-plugins")?);
    let binaries = shell::build(true)?;
    let text = "name = \"bench-cni\"\n[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\n[[host]]\nname = \"host1\"\npods = 0\n\
                [[pool]]\nname = \"default\"\ncidr = \"10.244.0.0/16\"\n";
    let dir = Path::new(loden_lab::lab::LABS).join("bench-cni");
    let lab = Lab::up(&Topology::parse(text)?, &dir, binaries, false, &mut |step| shell::say(&format!("· {step}")))?;
    // The calls come from a thread inside the host, as a runtime's do: nothing but starting the program is measured.
    let measured = lab.netns("host1").map_err(Into::into).and_then(|host| host.run(|| measure(&lab, place, runs))?);
    lab.down()?;
    let (ours, theirs) = measured?;
    let (ours, peer) = (median(ours), median(theirs));
    let against = "bridge + host-local (containernetworking-plugins)";
    Ok(vec![Row { name: "add_p50", ours, peer, unit: "ms", ratio: peer / ours, floor: 4.0, goal: 8.0, runs, against }])
}

fn measure(lab: &Lab, place: &Path, runs: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let state = lab.dir().join("host-local");
    let reference = serde_json::json!({
        "cniVersion": "1.0.0", "name": "ref", "type": "bridge", "bridge": "ref0", "isGateway": true, "mtu": 1450,
        "ipam": {"type": "host-local", "dataDir": state, "ranges": [[{"subnet": "10.99.0.0/16"}]],
                 "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let loden = serde_json::json!({
        "cniVersion": "1.0.0", "name": "loden", "type": "loden-cni", "runDir": lab.dir().join("host1/run"),
        "quarantineSeconds": 0,
    });
    let plugins = [(lab.binaries().loden_cni.clone(), loden), (place.join("bridge"), reference)];
    let mut figures = [Vec::new(), Vec::new()];
    for run in 0..runs {
        shell::say(&format!("· run {} of {runs}: {PODS} pods each", run + 1));
        let mut pods = Vec::new();
        for n in 0..PODS {
            for (which, (program, conf)) in plugins.iter().enumerate() {
                let pod = format!("bench{run}-{n}-{which}");
                let path = lab.netns_path(&pod);
                NetNs::create(&path)?;
                let began = Instant::now();
                call("ADD", program, &conf.to_string(), &pod, &path, place)?;
                figures[which].push(began.elapsed().as_secs_f64() * 1000.0);
                pods.push((which, pod, path));
            }
        }
        for (which, pod, path) in pods {
            let (program, conf) = &plugins[which];
            call("DEL", program, &conf.to_string(), &pod, &path, place)?;
            netns::remove(&path)?;
        }
    }
    let [ours, theirs] = figures;
    Ok((ours, theirs))
}

fn call(verb: &str, plugin: &Path, conf: &str, pod: &str, netns: &Path, path: &Path) -> Result<()> {
    let call = Call { plugin, verb, pod, netns, path, conf };
    let output = call.output(None).with_context(|| plugin.display().to_string())?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{} {verb}: {}", plugin.display(), String::from_utf8_lossy(&output.stdout).trim())
}
