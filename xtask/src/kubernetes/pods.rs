//! Pods that kubelets run: each serves a page with its name.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use loden_core::model::Attachment;
use loden_lab::probe::stream::Stream;
use loden_linux::netns::NetNs;
use serde_json::{Value, json};

use super::cluster::{Cluster, PODS, wait_for};
use super::node::Node;

/// Where a pod serves.
pub const PORT: u16 = 80;
const SERVE: &str = "mkdir -p /www && echo \"$0\" >/www/index.html && exec httpd -f -p 80 -h /www";

/// The manifest of one, which the scheduler may put on this node alone; as a static pod of its kubelet's it needs none.
pub fn manifest(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default", "labels": { "name": name } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node }, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "web", "image": PODS, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", SERVE, name],
            }],
        },
    })
}

/// One that runs.
pub struct Running {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub netns: NetNs,
}

impl Running {
    /// Waits until the plugin has attached it on the node, and it serves.
    pub fn wait(name: &str, node: &Node) -> Result<Self> {
        let mut found = None;
        wait_for(&format!("{name} is attached on {}", node.name), || {
            found = attachment(name, node)?;
            Ok(found.is_some())
        })?;
        let attachment = found.context("an attachment")?;
        let addresses: Vec<IpAddr> = attachment.ips().collect();
        ensure!(addresses.len() == 2, "{name} has not one address of each family: {addresses:?}");
        // `/var/run` is a link, and leads into the machine's own root.
        let netns = NetNs::open(&node.inside(attachment.netns.trim_start_matches("/var")))?;
        let pod = Self { name: name.to_owned(), addresses, netns };
        wait_for(&format!("{name} serves"), || pod.answers(node.netns()))?;
        Ok(pod)
    }

    /// Whether it answers a namespace, at all its addresses.
    pub fn answers(&self, from: &NetNs) -> Result<bool> {
        let pages = self.addresses.iter().map(|addr| page(from, (*addr, PORT).into()));
        Ok(pages.collect::<Result<Vec<_>>>()?.iter().all(|page| *page == self.name))
    }
}

/// One on each of the two nodes, put there by the scheduler: `a` and `b`.
pub fn one_on_each(cluster: &Cluster) -> Result<(Running, Running)> {
    let [n1, n2] = &cluster.nodes[..] else { bail!("two nodes") };
    for (name, node) in [("a", n1), ("b", n2)] {
        cluster.server.apply(&manifest(name, &node.name).to_string())?;
    }
    Ok((Running::wait("a", n1)?, Running::wait("b", n2)?))
}

/// What the plugin has written down of a pod. A static one's name has that of its node behind it.
fn attachment(name: &str, node: &Node) -> Result<Option<Attachment>> {
    let mut all = node.attachments()?.into_iter();
    let is_it = |attachment: &Attachment| {
        let pod = attachment.pod.as_deref().unwrap_or_default();
        attachment.complete && (pod == format!("default/{name}") || pod == format!("default/{name}-{}", node.name))
    };
    Ok(all.rfind(is_it))
}

/// The page at an address, asked for from a namespace.
pub fn page(from: &NetNs, at: SocketAddr) -> Result<String> {
    let patience = Duration::from_secs(2);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned())
    };
    from.run(ask)?.with_context(|| at.to_string())
}

/// All pairs ask each other for their pages.
pub fn all_reach(pods: &[&Running]) -> Result<()> {
    for from in pods {
        for to in pods {
            ensure!(to.answers(&from.netns)?, "{} does not reach {}", from.name, to.name);
        }
    }
    Ok(())
}

/// Streams of numbered datagrams between two pods, both ways and in both families.
pub fn streams(a: &Running, b: &Running) -> Result<Vec<Stream>> {
    let mut all = Vec::new();
    for (from, to) in [(a, b), (b, a)] {
        for addr in &to.addresses {
            all.push(Stream::start(&from.netns, &to.netns, *addr, 300)?);
        }
    }
    Ok(all)
}

/// Ends them; gives how many were sent, and how many of those did not arrive.
pub fn stop(streams: Vec<Stream>) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for stream in streams {
        let report = stream.stop()?;
        sum = (sum.0 + report.sent, sum.1 + report.lost);
    }
    Ok(sum)
}
