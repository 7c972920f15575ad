//! What a Node that a kubelet keeps costs in bytes: whole, as flannel lists and watches it, and as the agent does.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loden_linux::spawn;
use serde_json::Value;

use super::cluster::{Cluster, wait_for};
use super::node::Node;
use super::server::Server;
use crate::shell;

/// As the agent asks for lists of Nodes.
const METADATA: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Where `kubectl proxy` listens, in the control plane's namespace.
const PROXY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 8001);
/// How long the beats of the kubelets are followed, in seconds.
const WINDOW: u32 = 40;
/// How often that is begun at most.
const TRIES: usize = 3;

/// The bytes of one Node.
pub struct Bytes {
    /// Of a list of whole Nodes, in JSON and in protobuf.
    pub list: f64,
    pub list_protobuf: f64,
    /// Of the list that the agent reads.
    pub list_of_agent: f64,
    /// Of a change in a watch of whole Nodes, in JSON.
    pub change: f64,
    /// Of a change in the agent's watch, on the wire.
    pub change_of_agent: f64,
    /// How many changes were seen.
    pub changes: usize,
}

impl Bytes {
    /// What the agent reads for each byte of whole Nodes: listed, and watched.
    pub fn ratios(&self) -> [f64; 2] {
        [self.list_of_agent / self.list, self.change_of_agent / self.change]
    }
}

/// Measures both: the list as it is answered, the watch by what one agent's connections receive while all kubelets beat.
pub fn measure(cluster: &Cluster, agent: &Node) -> Result<Bytes> {
    let server = &cluster.server;
    let _proxy = Proxy::start(server)?;
    let ask = |path: &str, accept: &str| server.netns().run(|| get(path, accept))?;
    wait_for("kubectl proxy listens", || Ok(ask("/readyz", "*/*").is_ok()))?;
    // The kubelet tells of its images a while after its start.
    for node in &cluster.nodes {
        wait_for(&format!("the images of {}", node.name), || {
            let object = server.get(&["node", &node.name])?;
            Ok(object["status"]["images"].as_array().is_some_and(|images| images.len() >= 50))
        })?;
    }
    let nodes = cluster.nodes.len() as f64;
    let list = |accept| Ok::<_, anyhow::Error>(ask("/api/v1/nodes", accept)?.len() as f64 / nodes);
    let (whole, protobuf) = (list("application/json")?, list("application/vnd.kubernetes.protobuf")?);
    let metadata = list(METADATA)?;

    let (stream, read) = watch(server, agent, || ask("/api/v1/nodes?limit=1", "application/json"))?;
    let changes = stream.lines().count();
    ensure!(changes >= cluster.nodes.len(), "the kubelets have not said a word in {WINDOW} s");
    Ok(Bytes {
        list: whole,
        list_protobuf: protobuf,
        list_of_agent: metadata,
        change: stream.len() as f64 / changes as f64,
        change_of_agent: read / changes as f64,
        changes,
    })
}

/// All changes of whole Nodes for a while, as they are written, and what the agent has read meanwhile.
fn watch(server: &Server, agent: &Node, list: impl Fn() -> Result<Vec<u8>>) -> Result<(String, f64)> {
    for _ in 0..TRIES {
        let now: Value = serde_json::from_slice(&list()?)?;
        let at = now["metadata"]["resourceVersion"].as_str().context("a revision")?;
        let watch = format!("/api/v1/nodes?watch=1&resourceVersion={at}&timeoutSeconds={WINDOW}");
        let (before, begun) = (received(agent)?, Instant::now());
        let stream = server.kubectl(&["get", "--raw", &watch, "--request-timeout=0"])?;
        let read = received(agent)? - before;
        // A server that has not run for long may end one early.
        if begun.elapsed() + Duration::from_secs(5) > Duration::from_secs(WINDOW.into()) {
            return Ok((stream, read));
        }
    }
    bail!("watches end before their time");
}

/// `kubectl proxy`: the API without TLS and without asking who one is.
struct Proxy(Child);

impl Proxy {
    fn start(server: &Server) -> Result<Self> {
        let mut command = Command::new(server.program());
        command.arg("kubectl").arg("--kubeconfig").arg(server.kubeconfig("admin"));
        command.args(["proxy", &format!("--port={}", PROXY.1)]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        spawn::in_netns(&mut command, server.netns(), true)?;
        Ok(Self(command.spawn().context("kubectl proxy")?))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // One that has gone by itself is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The body of an answer, which with HTTP 1.0 is all that comes until the end.
fn get(path: &str, accept: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(PROXY)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").context("no answer")?;
    let status = String::from_utf8_lossy(answer.get(..head).unwrap_or_default()).into_owned();
    ensure!(status.starts_with("HTTP/1.0 200"), "{path}: {status}");
    Ok(answer.split_off(head + 4))
}

/// What the connections of a node's agent have received so far, in bytes, as the kernel counts them.
fn received(node: &Node) -> Result<f64> {
    let pid = format!("pid={},", node.agent("flanneld")?);
    let mut ss = Command::new("ss");
    spawn::in_netns(ss.args(["-tinpHO", "state", "established"]), node.netns(), false)?;
    let said = shell::output(&mut ss)?;
    let of_agent = said.lines().filter(|line| line.contains(&pid));
    let counts =
        of_agent.filter_map(|line| line.split("bytes_received:").nth(1)?.split(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum())
}
