//! loden in flannel's place: flannel's DaemonSet with loden's programs, pods on both nodes, a minute without the API server.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loden_core::api::Status;
use loden_lab::http;

use super::bytes;
use super::cluster::{Cluster, wait_for};
use super::node::Node;
use super::pods::{self, Running};
use super::server::Server;
use crate::shell;

const MANIFEST: &str = include_str!("flannel.yaml");
/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(60);

/// Has it run on all nodes.
pub fn install(cluster: &Cluster) -> Result<()> {
    cluster.server.apply(MANIFEST)?;
    cluster.wait_served()
}

/// Shows it.
pub fn show(cluster: &mut Cluster) -> Result<()> {
    install(cluster)?;
    let (a, b) = pods::one_on_each(cluster)?;
    pods::all_reach(&[&a, &b])?;
    for node in &cluster.nodes {
        // flannel's container is not privileged, so it may write no sysctl.
        let mut problems: Vec<String> = status(node)?.problems.iter().map(ToString::to_string).collect();
        problems.retain(|problem| !problem.contains("pods are served without it"));
        ensure!(problems.is_empty(), "the agent of {} has {problems:?}", node.name);
    }
    shell::say(&format!("✓ pods reach each other: {:?} and {:?}", a.addresses, b.addresses));
    for node in &cluster.nodes {
        // What the agent may not write, the plugin does.
        let heeds = shell::output(node.command("cat").arg("/proc/sys/net/ipv6/conf/cni0/accept_ra"))?;
        ensure!(heeds.trim() == "0", "a pod's router advertisement may move {}: accept_ra is {heeds}", node.name);
    }
    count(cluster)?;
    outage(cluster, &a, &b)
}

/// What the agent says of itself.
fn status(node: &Node) -> Result<Status> {
    let root = format!("/proc/{}/root", node.agent("flanneld")?);
    Ok(http::get_json(&std::path::Path::new(&root).join("run/loden/agent.sock"), "/v1/status")?)
}

/// At most a fifth of what whole Nodes cost.
fn count(cluster: &Cluster) -> Result<()> {
    let first = cluster.nodes.first().context("a node")?;
    let bytes = bytes::measure(cluster, first)?;
    let [list, change] = bytes.ratios();
    shell::say(&format!(
        "· a kubelet's Node in a list: {:.0} bytes whole ({:.0} in protobuf), {:.0} for the agent ({list:.3}); a change, of {} seen: \
         {:.0} whole, {:.0} for the agent ({change:.3})",
        bytes.list, bytes.list_protobuf, bytes.list_of_agent, bytes.changes, bytes.change, bytes.change_of_agent
    ));
    ensure!(list <= 0.2 && change <= 0.2, "the agent reads more than a fifth of what whole Nodes are");
    shell::say("✓ the agent reads at most a fifth");
    Ok(())
}

/// The API server is away for a minute: nothing is lost, pods start, an agent that is killed too, and afterwards the agents go on.
fn outage(cluster: &mut Cluster, a: &Running, b: &Running) -> Result<()> {
    let streams = pods::streams(a, b)?;
    cluster.server.kill("kube-apiserver")?;
    shell::say(&format!("· the API server is away for {} s", OUTAGE.as_secs()));
    let begun = Instant::now();
    let [n1, n2] = &cluster.nodes[..] else { bail!("two nodes") };
    let killed = n2.agent("flanneld")?;
    shell::output(Command::new("kill").args(["-KILL", &killed.to_string()]))?;
    let mut meanwhile = Vec::new();
    for node in [n1, n2] {
        let manifest = node.inside("/etc/kubernetes/manifests/alone.yaml");
        let name = format!("alone{}", meanwhile.len() + 1);
        fs::write(&manifest, pods::manifest(&name, &node.name).to_string()).context("the manifest")?;
        meanwhile.push(Running::wait(&name, node)?);
    }
    let mut all: Vec<&Running> = [a, b].into_iter().chain(&meanwhile).collect();
    pods::all_reach(&all)?;
    shell::say(&format!("✓ without it pods start and are reached, after {:.1} s", begun.elapsed().as_secs_f64()));
    let took = wait_for("a killed agent is started again, and ready", || {
        Ok(n2.agent("flanneld")? != killed && status(n2)?.ready)
    })?;
    shell::say(&format!("✓ without it an agent that was killed is ready again, {:.1} s later", took.as_secs_f64()));
    thread::sleep(OUTAGE.saturating_sub(begun.elapsed()));
    // What the agents have followed from is gone from the history, so they list anew.
    compact(&cluster.server)?;
    cluster.server.start_api()?;
    let begun = Instant::now();
    cluster.server.apply(JOINS)?;
    for node in &cluster.nodes {
        wait_for(&format!("the agent of {} hears of a node that joins", node.name), || {
            let status = status(node)?;
            Ok(status.store.up && status.peers.iter().any(|peer| peer.node.as_str() == "joins" && peer.objects > 0))
        })?;
    }
    shell::say(&format!("✓ the agents have found it again, after {:.1} s", begun.elapsed().as_secs_f64()));
    let (sent, lost) = pods::stop(streams)?;
    ensure!(lost == 0, "{lost} of {sent} datagrams were lost");
    shell::say(&format!("✓ {sent} datagrams between the pods, none lost"));
    cluster.server.kubectl(&["delete", "node", "joins"])?;
    cluster.wait_served()?;
    cluster.server.apply(&pods::manifest("late", "n2").to_string())?;
    let late = Running::wait("late", cluster.node("n2")?)?;
    all.push(&late);
    pods::all_reach(&all)?;
    shell::say("✓ pods from before, from meanwhile and from afterwards reach each other");
    Ok(())
}

/// A node of flannel's that comes; nobody runs it.
const JOINS: &str = r#"
apiVersion: v1
kind: Node
metadata:
  name: joins
  annotations:
    flannel.alpha.coreos.com/kube-subnet-manager: "true"
    flannel.alpha.coreos.com/backend-type: vxlan
    flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}'
    flannel.alpha.coreos.com/backend-v6-data: '{"VNI":1,"VtepMAC":"02:00:00:00:00:78"}'
    flannel.alpha.coreos.com/public-ip: 192.0.2.77
    flannel.alpha.coreos.com/public-ipv6: 2001:db8:0:2::77
spec: {podCIDR: 10.244.77.0/24, podCIDRs: [10.244.77.0/24, "fd00:10:244:77::/64"]}
"#;

/// Makes etcd forget all that was before now.
fn compact(server: &Server) -> Result<()> {
    let etcdctl = |args: &[&str]| {
        let mut command = Command::new("etcdctl");
        server.output(command.env("ETCDCTL_API", "3").args(args))
    };
    let said = etcdctl(&["get", "/none", "-w", "json"])?;
    let said: serde_json::Value = serde_json::from_str(&said).context("etcdctl")?;
    let revision = said["header"]["revision"].as_u64().context("a revision")?;
    etcdctl(&["compact", &revision.to_string()]).map(drop)
}
