//! loden's own pools: nodes claim blocks, and a Node that is removed takes its blocks with it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cluster::{Cluster, wait_for};
use super::pods::{self, Running};
use super::server::Server;
use crate::shell;

const CRDS: &str = include_str!("../../../deploy/crds.yaml");
const RBAC: &str = include_str!("../../../deploy/rbac.yaml");
const MANIFEST: &str = include_str!("pools.yaml");

/// Shows it.
pub fn show(cluster: &mut Cluster) -> Result<()> {
    cluster.server.apply(CRDS)?;
    cluster.server.apply(RBAC)?;
    // A resource is served a moment after its definition is there.
    wait_for("the Pool is taken", || cluster.server.apply(MANIFEST).map(|()| true))?;
    cluster.wait_served()?;
    let (a, b) = pods::one_on_each(cluster)?;
    pods::all_reach(&[&a, &b])?;
    shell::say(&format!("✓ pods reach each other: {:?} and {:?}", a.addresses, b.addresses));
    let former = owned(&cluster.server, "n2")?;
    let uid = uid_of(&cluster.server, "n2")?;
    ensure!(former.len() == 2, "n2 has not one block of each family: {former:?}");
    for block in &former {
        let owner = &block["metadata"]["ownerReferences"][0];
        ensure!(owner["kind"] == "Node" && owner["uid"] == uid.as_str(), "a block of n2's is owned by {owner}");
    }
    wait_for("the Pool's status counts the blocks", || {
        Ok(cluster.server.get(&["pool", "default"])?["status"]["blocks"] == 2)
    })?;

    // The machine is switched off, and the operator removes its Node.
    let n2 = cluster.node("n2")?;
    n2.kill("kubelet")?;
    shell::output(Command::new("kill").args(["-KILL", &n2.agent("lodend")?.to_string()]))?;
    let gone = cluster.server.kubectl(&["delete", "node", "n2"]);
    gone.context("the Node is removed")?;
    let took = wait_for("the blocks of n2 go with it", || Ok(owned(&cluster.server, "n2")?.is_empty()))?;
    shell::say(&format!("✓ a Node that was removed took its blocks with it, after {:.1} s", took.as_secs_f64()));
    let first = cluster.nodes.first().context("a node")?;
    for block in &former {
        let block = block["spec"]["cidr"].as_str().context("a prefix")?;
        let family = if block.contains(':') { "-6" } else { "-4" };
        wait_for(&format!("n1 forgets the way to {block}"), || {
            let mut ip = first.command("ip");
            Ok(shell::output(ip.args([family, "route", "show", block]))?.trim().is_empty())
        })?;
    }

    // It comes back, and is another Node of the same name.
    let server = &cluster.server;
    cluster.nodes.iter_mut().filter(|node| node.name == "n2").try_for_each(|node| node.start_kubelet(server))?;
    wait_for("n2 is there again", || Ok(uid_of(&cluster.server, "n2")? != uid))?;
    cluster.wait_served()?;
    cluster.server.apply(&pods::manifest("c", "n2").to_string())?;
    let c = Running::wait("c", cluster.node("n2")?)?;
    pods::all_reach(&[&a, &c])?;
    ensure!(owned(&cluster.server, "n2")?.len() == 2, "n2 has not one block of each family");
    shell::say("✓ the node came back under its name and with another identity, and a pod on it is reached");
    Ok(())
}

/// The blocks of a node.
fn owned(server: &Server, node: &str) -> Result<Vec<Value>> {
    let all = server.get(&["blocks"])?;
    Ok(all["items"].as_array().into_iter().flatten().filter(|block| block["spec"]["owner"] == node).cloned().collect())
}

fn uid_of(server: &Server, node: &str) -> Result<String> {
    Ok(server.get(&["node", node])?["metadata"]["uid"].as_str().context("an identity")?.to_owned())
}
