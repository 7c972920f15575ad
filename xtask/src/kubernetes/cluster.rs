//! A cluster of two nodes on one machine: a control plane and two kubelets, on the underlay of a lab, and loden for its network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loden_lab::{Binaries, Lab, Topology};
use loden_testkit::image;

use super::bytes::{self, Bytes};
use super::node::Node;
use super::server::{SERVICES, Server};
use super::{Options, flannel, pools};
use crate::shell;

/// The image of pods, and of their first containers.
pub const PODS: &str = "loden.test/busybox:1";
/// The image with loden's programs where flannel's manifest has flannel's.
pub const LODEN: &str = "loden.test/loden:1";
/// How many images a kubelet tells of at most (`nodeStatusMaxImages`); a node that has worked for a while has more.
const IMAGES: usize = 50;
/// The control plane's address: the lab's third.
const API: [u8; 4] = [192, 0, 2, 3];
/// How long something may take; only what hangs comes near it.
const PATIENCE: Duration = Duration::from_secs(180);

const TOPOLOGY: &str = "[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\nv6 = \"2001:db8:0:2::/64\"\n[[host]]\nname = \"n1\"\nstarts = false\n\
    [[host]]\nname = \"n2\"\nstarts = false\n[[server]]\nname = \"api\"\n";

/// The pods' addresses of flannel's manifest.
const PODS_OF_FLANNEL: &str = "10.244.0.0/16,fd00:10:244::/56";

/// What is shown, each in a cluster of its own.
struct Part {
    name: &'static str,
    /// Addresses of pods, in both families, that Kubernetes gives its nodes parts of.
    cidr: Option<&'static str>,
    show: fn(&mut Cluster) -> Result<()>,
}

const PARTS: &[Part] = &[
    Part { name: "flannel", cidr: Some(PODS_OF_FLANNEL), show: flannel::show },
    Part { name: "pools", cidr: None, show: pools::show },
];

/// Shows the parts that are asked for.
pub fn run(program: &Path, options: &Options) -> Result<()> {
    let (binaries, only) = (shell::build(false)?, options.only.as_deref());
    let chosen: Vec<&Part> = PARTS.iter().filter(|part| only.is_none_or(|only| part.name.contains(only))).collect();
    ensure!(
        !chosen.is_empty(),
        "there is no such part; {:?} are there",
        PARTS.iter().map(|part| part.name).collect::<Vec<_>>()
    );
    for part in chosen {
        let show = |cluster: &mut Cluster| {
            let shown = (part.show)(cluster);
            if options.keep {
                cluster.stay()?;
            }
            shown
        };
        with(part.name, program, binaries.clone(), part.cidr, show).with_context(|| part.name)?;
    }
    shell::print("everything held")
}

/// Measures what a kubelet's Node costs, on flannel's way.
pub fn bytes(program: &Path) -> Result<Bytes> {
    with("bytes", program, shell::build(false)?, Some(PODS_OF_FLANNEL), |cluster| {
        flannel::install(cluster)?;
        bytes::measure(cluster, cluster.nodes.first().context("a node")?)
    })
}

/// Works with a cluster, which is then taken down.
fn with<T>(
    name: &str,
    program: &Path,
    binaries: Binaries,
    cidr: Option<&str>,
    work: impl FnOnce(&mut Cluster) -> Result<T>,
) -> Result<T> {
    let topology = Topology::parse(&format!("name = \"k8s-{name}\"\n{TOPOLOGY}"))?;
    let dir = Path::new(loden_lab::lab::LABS).join(&topology.name);
    let lab = Lab::up(&topology, &dir, binaries, false, &mut |step| shell::say(&format!("· {step}")))?;
    let done = Cluster::up(&lab, program, cidr).and_then(|mut cluster| {
        let done = work(&mut cluster);
        if done.is_err() {
            cluster.tell();
        }
        done
    });
    lab.down()?;
    done
}

/// The cluster. The nodes go before the lab whose hosts they are on.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub server: Server,
    /// The lab's.
    dir: PathBuf,
}

impl Cluster {
    fn up(lab: &Lab, program: &Path, cidr: Option<&str>) -> Result<Self> {
        let images = images(lab.dir(), lab.binaries())?;
        let names: Vec<String> = lab.hosts().iter().map(|host| host.name.clone()).collect();
        let subjects: Vec<String> = names.iter().map(|name| format!("/O=system:nodes/CN=system:node:{name}")).collect();
        let nodes = names.iter().zip(&subjects).map(|(name, subject)| (name.as_str(), subject.as_str(), "DNS:node"));
        let users = [
            ("admin", "/O=system:masters/CN=admin", "DNS:user"),
            ("controllers", "/CN=system:kube-controller-manager", "DNS:user"),
            ("scheduler", "/CN=system:kube-scheduler", "DNS:user"),
            ("proxy", "/CN=system:kube-proxy", "DNS:user"),
        ];
        let users: Vec<_> = users.into_iter().chain(nodes).collect();
        let dir = lab.dir().join("control");
        let mut server = Server::start(program.to_owned(), &dir, lab.netns("api")?, API.into(), &users)?;
        start_controllers(&mut server, cidr)?;
        let kubeconfig = server.kubeconfig("scheduler").display().to_string();
        server.run("kube-scheduler", &[("kubeconfig", kubeconfig), ("leader-elect", "false".to_owned())])?;
        let mut cluster = Self { nodes: Vec::new(), server, dir: lab.dir().to_owned() };
        for name in &names {
            cluster.nodes.push(Node::new(lab, name)?);
        }
        for node in &mut cluster.nodes {
            node.start(&cluster.server, &images, PODS)?;
        }
        shell::say(&format!("· {} nodes", cluster.nodes.len()));
        Ok(cluster)
    }

    pub fn node(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// Waits until every node is ready, and has a network by loden's word.
    pub fn wait_served(&self) -> Result<()> {
        for node in &self.nodes {
            wait_for(&format!("{} gets ready", node.name), || {
                let network = self.condition(&node.name, "NetworkUnavailable")?;
                let is_served = network["status"] == "False" && network["reason"] == "LodenIsUp";
                Ok(is_served && self.condition(&node.name, "Ready")?["status"] == "True")
            })?;
        }
        shell::say("✓ both nodes are ready, and NetworkUnavailable is False by loden's word");
        Ok(())
    }

    /// A condition of a node; null when there is none.
    fn condition(&self, node: &str, kind: &str) -> Result<serde_json::Value> {
        let node = self.server.get(&["node", node])?;
        let mut all = node["status"]["conditions"].as_array().into_iter().flatten();
        Ok(all.find(|condition| condition["type"] == kind).cloned().unwrap_or_default())
    }

    /// Says how it is reached, and waits for a line.
    fn stay(&self) -> Result<()> {
        let netns = |of: &str| format!("nsenter --net={}", self.dir.join("netns").join(of).display());
        shell::say(&format!(
            "· {} {} kubectl --kubeconfig {} get nodes",
            netns("api"),
            self.server.program().display(),
            self.server.kubeconfig("admin").display()
        ));
        for node in &self.nodes {
            shell::say(&format!("· {}: {:?}", node.name, node.command("sh")));
        }
        std::io::stdin().read_line(&mut String::new()).map(drop).context("standard input")
    }

    /// What a person would look at first when something did not hold.
    fn tell(&self) {
        let listed = self.server.kubectl(&["get", "nodes,pods", "-A", "-o", "wide"]);
        shell::say(&listed.unwrap_or_else(|error| format!("{error:#}")));
        let events = self.server.kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        let events = events.unwrap_or_else(|error| format!("{error:#}"));
        shell::say(&events.lines().rev().take(15).collect::<Vec<_>>().join("\n"));
        for node in &self.nodes {
            shell::say(&format!("kubelet of {}:\n{}", node.name, node.log("kubelet", 5)));
            for log in fs::read_dir(node.inside("/var/log/containers")).into_iter().flatten().flatten() {
                let name = log.file_name().to_string_lossy().into_owned();
                let link = fs::read_link(log.path()).unwrap_or_default();
                let file = node.inside(&link.display().to_string());
                shell::say(&format!("{}: {name}\n{}", node.name, shell::tail(&file, 12)));
            }
        }
    }
}

fn start_controllers(server: &mut Server, cidr: Option<&str>) -> Result<()> {
    let kubeconfig = server.kubeconfig("controllers").display().to_string();
    let mut flags = vec![
        ("kubeconfig", kubeconfig),
        ("service-account-private-key-file", server.file("accounts.key")),
        ("root-ca-file", server.file("ca.pem")),
        ("use-service-account-credentials", "true".to_owned()),
        ("leader-elect", "false".to_owned()),
        ("service-cluster-ip-range", SERVICES.to_owned()),
        ("cert-dir", server.file("made")),
    ];
    if let Some(cidr) = cidr {
        flags.extend([("allocate-node-cidrs", "true".to_owned()), ("cluster-cidr", cidr.to_owned())]);
        flags.extend([("node-cidr-mask-size-ipv4", "24".to_owned()), ("node-cidr-mask-size-ipv6", "64".to_owned())]);
    }
    server.run("kube-controller-manager", &flags)
}

/// Waits until it is so; gives how long that took.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let now = is_so();
        if matches!(now, Ok(true)) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            match now {
                Err(error) => return Err(error.context(format!("{what} within {} s", PATIENCE.as_secs()))),
                Ok(_) => bail!("{what}: that has not come to pass in {} s", PATIENCE.as_secs()),
            }
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// The archives of all images that a node has.
fn images(dir: &Path, binaries: &Binaries) -> Result<Vec<PathBuf>> {
    let fail = anyhow::Error::msg;
    let root = |name: &str| -> Result<(PathBuf, PathBuf)> {
        let dir = dir.join("images").join(name);
        image::busybox(&dir.join("root")).map_err(fail)?;
        Ok((dir.clone(), dir.join("root")))
    };
    let (dir_of_pods, root_of_pods) = root("pods")?;
    let others: Vec<String> =
        (0..IMAGES).map(|n| format!("registry.test/department/service-{n:02}:v1.{n}.0")).collect();
    let names: Vec<&str> = std::iter::once(PODS).chain(others.iter().map(String::as_str)).collect();
    let pods = image::archive(&dir_of_pods, &root_of_pods, &names).map_err(fail)?;

    let (dir_of_loden, root) = root("loden")?;
    let programs = [
        (&binaries.lodend, "opt/bin/flanneld"),
        (&binaries.lodend, "opt/bin/lodend"),
        (&binaries.loden_cni, "flannel"),
    ];
    let programs = programs.into_iter().chain([(&binaries.loden_cni, "opt/bin/loden-cni")]);
    for (program, place) in programs {
        copy(program, &root.join(place))?;
        for library in libraries(program)? {
            copy(&library, &root.join(library.strip_prefix("/")?))?;
        }
    }
    Ok(vec![pods, image::archive(&dir_of_loden, &root, &[LODEN]).map_err(fail)?])
}

/// What a program is linked with, the loader too.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = shell::output(Command::new("ldd").arg(program))?;
    let words = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a directory")?)?;
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}
