//! A node: a machine's surroundings on a host of the lab, and containerd, kubelet and kube-proxy in them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loden_core::model::{Attachment, PerFamily};
use loden_lab::Lab;
use loden_linux::netns::NetNs;
use loden_linux::run_dir::RunDir;
use loden_linux::spawn;
use serde_json::json;

use super::server::Server;
use crate::{peers, shell};

const FIRST: &str = include_str!("node.sh");
const CONTAINERD: &str = include_str!("../../../fixtures/containerd/2.4.toml");
/// Where containerd's socket is in each node.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// The address that pods are told for names; nobody serves there.
const DNS: &str = "10.96.0.10";

/// A node that runs.
pub struct Node {
    pub name: String,
    addresses: PerFamily<IpAddr>,
    dir: PathBuf,
    ns: NetNs,
    cgroup: String,
    first: Child,
    programs: PathBuf,
    running: Vec<(&'static str, Child)>,
}

impl Node {
    /// Makes the surroundings on a host of the lab. The plugin is there under the names of the reference plugins that a network's
    /// configuration has beside its own.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let host = lab.hosts().iter().find(|host| host.name == name).context("no such host")?;
        let addresses = host.addresses;
        let dir = lab.dir().join(name).join("node");
        fs::create_dir_all(dir.join("opt/cni/bin"))?;
        for part in ["loopback", "portmap"] {
            symlink(&lab.binaries().loden_cni, dir.join("opt/cni/bin").join(part))?;
        }
        let cgroup = format!("loden-{}-{}-{name}", lab.name(), std::process::id());
        let ns = lab.netns(name)?;
        let mut first = Command::new("unshare");
        first
            .args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "sh", "-c", FIRST, "sh", name])
            .args([dir.as_path(), lab.dir()])
            .arg(&cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        spawn::in_netns(&mut first, &ns, true)?;
        let mut first = first.spawn().context("unshare")?;
        let mut said = String::new();
        BufReader::new(first.stdout.take().context("its output")?).read_line(&mut said)?;
        let programs = peers::containerd()?;
        let node = Self { name: name.to_owned(), addresses, dir, ns, cgroup, first, programs, running: Vec::new() };
        ensure!(said.trim() == "ready", "the surroundings of {name} cannot be made");
        Ok(node)
    }

    /// Starts containerd with these images, then the kubelet and kube-proxy.
    pub fn start(&mut self, server: &Server, images: &[PathBuf], pause: &str) -> Result<()> {
        let config = CONTAINERD.replace("$DIR", "/run/containerd").replace("$IMAGE", pause);
        let config = config.replace("$BIN", "/opt/cni/bin").replace("$CONF", "/etc/cni/net.d");
        let mut containerd = self.command(self.programs.join("containerd"));
        containerd.arg("-c").arg(self.write("containerd.toml", &config)?);
        self.run("containerd", containerd)?;
        let begun = Instant::now();
        while !self.inside(SOCKET).exists() {
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "containerd does not start:\n{}",
                self.log("containerd", 5)
            );
            thread::sleep(Duration::from_millis(50));
        }
        for image in images {
            let mut ctr = self.command("ctr");
            shell::output(ctr.args(["-a", SOCKET, "-n", "k8s.io", "images", "import"]).arg(image))?;
        }
        self.start_kubelet(server)?;
        let proxy = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "hostnameOverride": self.name,
            "clientConnection": { "kubeconfig": server.kubeconfig("proxy") },
            // What is one for the whole machine stays as it is.
            "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        });
        let mut command = self.command(server.program());
        command.args(["kube-proxy", "--config"]).arg(self.write("proxy.yaml", &proxy.to_string())?);
        self.run("kube-proxy", command)
    }

    pub fn start_kubelet(&mut self, server: &Server) -> Result<()> {
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "staticPodPath": "/etc/kubernetes/manifests",
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": false },
                "x509": { "clientCAFile": server.file("ca.pem") },
            },
            "authorization": { "mode": "AlwaysAllow" },
            "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "cgroupRoot": format!("/{}", self.cgroup),
            "enforceNodeAllocatable": [], "failCgroupV1": false, "failSwapOn": false, "oomScoreAdj": 0,
            "resolvConf": "", "clusterDomain": "cluster.local", "clusterDNS": [DNS],
            // The lab's files are in memory; what is full elsewhere on the machine is none of the node's.
            "evictionHard": { "imagefs.available": "0%", "memory.available": "10Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%" },
            "imageGCHighThresholdPercent": 100,
            "fileCheckFrequency": "2s", "syncFrequency": "10s",
            // Each beat of a kubelet is a change of its Node: five minutes apart unless said.
            "nodeStatusUpdateFrequency": "5s", "nodeStatusReportFrequency": "5s",
        });
        let mut kubelet = self.command(server.program());
        kubelet.arg("kubelet").arg("--config").arg(self.write("kubelet.yaml", &config.to_string())?);
        kubelet.arg("--kubeconfig").arg(server.kubeconfig(&self.name));
        let addresses: Vec<String> = self.addresses.iter().map(|(_, addr)| addr.to_string()).collect();
        kubelet.args(["--hostname-override", &self.name, "--node-ip", &addresses.join(",")]);
        self.run("kubelet", kubelet)
    }

    /// Kills what runs under this name, which is a child of nsenter's.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        for (_, outer) in self.running.iter_mut().filter(|(running, _)| *running == name) {
            for child in children(outer.id())? {
                shell::output(Command::new("kill").args(["-KILL", &child]))?;
            }
            outer.wait()?;
        }
        self.running.retain(|(running, _)| *running != name);
        Ok(())
    }

    /// A program of the node.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let of = |ns: &str, name: &str| format!("--{ns}=/proc/{}/ns/{name}", self.first.id());
        let mut command = Command::new("nsenter");
        command.args([of("net", "net"), of("mount", "mnt"), of("uts", "uts"), of("ipc", "ipc")]);
        command.arg(of("pid", "pid_for_children")).args(["--wd=/", "--"]).arg(program);
        let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.programs.display());
        command.env("PATH", path);
        command
    }

    fn run(&mut self, name: &'static str, mut command: Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context(name)?;
        self.running.push((name, child));
        Ok(())
    }

    /// A path of the node's, seen from outside of it.
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first.id()))
    }

    pub fn netns(&self) -> &NetNs {
        &self.ns
    }

    /// What the plugin has written down of its pods.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let found = RunDir::new(self.inside("/run/loden")).attachments();
        if let Some((_, error)) = found.unreadable.first() {
            bail!("an attachment on {}: {error}", self.name);
        }
        Ok(found.good)
    }

    /// The process of loden's agent, by its program's name.
    pub fn agent(&self, name: &str) -> Result<u32> {
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
            // A process may go while one looks at it.
            let is_named = fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name);
            let is_here =
                || NetNs::open(&entry.path().join("ns/net")).is_ok_and(|ns| ns.identity() == self.ns.identity());
            if is_named && is_here() {
                return Ok(pid);
            }
        }
        bail!("no {name} runs on {}", self.name)
    }

    /// The end of a log.
    pub fn log(&self, name: &str, lines: usize) -> String {
        shell::tail(&self.dir.join(format!("{name}.log")), lines)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.dir.join(name);
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(file)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The first process ends with its input, the others with it; only then does unshare.
        drop(self.first.stdin.take());
        let _ = self.first.wait();
        for (_, outer) in &mut self.running {
            let _ = outer.wait();
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_tree(&hierarchy.path().join(&self.cgroup));
        }
        remove_tree(&Path::new("/sys/fs/cgroup").join(&self.cgroup));
    }
}

/// Directories alone: the files of a control group go with it. One that stays is empty, and in the way of nobody.
fn remove_tree(dir: &Path) {
    let inside = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    let _ = fs::remove_dir(dir);
}

/// The children of a process that has one thread.
fn children(pid: u32) -> Result<Vec<String>> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&file).with_context(|| file.clone())?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}
