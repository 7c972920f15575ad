//! A containerd of a host's own: its files, its start, its end, its death.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use super::cri::messages::{LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping};
use super::cri::{Cri, Sandbox};
use super::go;
use super::image::{self, IMAGE};
use super::node::{Node, Process};
use crate::support::wait_for;

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian's.
    V1_6,
    /// Built from its Go module by `cargo xtask peers`.
    V2_4,
}

impl Release {
    /// The distribution's, unless `cargo xtask peers` asks for the other.
    pub fn asked() -> Self {
        match std::env::var("LODEN_CONTAINERD").as_deref() {
            Err(_) => Self::V1_6,
            Ok("2.4.2") => Self::V2_4,
            Ok(other) => panic!("LODEN_CONTAINERD={other:?}: 2.4.2 is there"),
        }
    }

    /// The newest version of the CNI protocol that it speaks.
    pub fn newest(self) -> &'static str {
        match self {
            Self::V1_6 => "1.0.0",
            Self::V2_4 => "1.1.0",
        }
    }

    /// Where its programs are; `None`: in the path.
    fn programs(self) -> Option<PathBuf> {
        match self {
            Self::V1_6 => None,
            Self::V2_4 => Some(go::peers().join("containerd-2.4.2")),
        }
    }

    fn config(self, node: &Node) -> String {
        let text = match self {
            Self::V1_6 => CONFIG_1_6,
            Self::V2_4 => CONFIG_2_4,
        };
        let text = text.replace("$BIN", "$DIR/bin").replace("$CONF", "$DIR/net.d");
        text.replace("$DIR", &node.dir.display().to_string()).replace("$IMAGE", IMAGE)
    }
}

/// One that runs.
pub struct Containerd<'a> {
    pub node: &'a Node,
    pub cri: Cri,
    release: Release,
    process: Process,
}

impl<'a> Containerd<'a> {
    /// Starts it with an empty memory, and gives it the image.
    pub fn new(node: &'a Node, release: Release) -> Self {
        fs::create_dir_all(node.conf_dir()).expect("a directory");
        fs::write(node.dir.join("config.toml"), release.config(node)).expect("written");
        let this = Self::start(node, release);
        let archive = image::archive(&node.dir);
        this.ctr(&["images", "import", &archive.display().to_string()]);
        // The image's name comes to the CRI's ears by an event.
        wait_for("the image", || this.cri.has_image(IMAGE));
        this
    }

    fn start(node: &'a Node, release: Release) -> Self {
        let (program, path) = match release.programs() {
            None => ("containerd".into(), PATH.to_owned()),
            Some(dir) => {
                let program = dir.join("containerd");
                assert!(program.exists(), "{}: `cargo xtask peers` builds it", program.display());
                (program, format!("{}:{PATH}", dir.display()))
            }
        };
        let mut command = node.command(program);
        command.arg("-c").arg(node.dir.join("config.toml")).env("PATH", path);
        let process = Process::start(&mut command, &node.dir.join("containerd.log"));
        let cri = Cri::at(&node.dir.join("containerd.sock"));
        let this = Self { node, cri, release, process };
        wait_for("containerd's start", || this.cri.status().is_ok());
        this
    }

    /// Kills it; gives what it takes to start it again, with the memory that it has on disk.
    pub fn kill(self) -> (&'a Node, Release) {
        self.process.end(Signal::KILL);
        (self.node, self.release)
    }

    pub fn start_again((node, release): (&'a Node, Release)) -> Self {
        Self::start(node, release)
    }

    fn ctr(&self, args: &[&str]) {
        let socket = self.node.dir.join("containerd.sock").display().to_string();
        let all = [&["-a", &socket, "-n", "k8s.io"], args].concat();
        self.node.run("ctr", &all).expect("ctr");
    }

    /// Gives it a list of plugins and waits until it has read it.
    pub fn configure(&self, version: &str, more: &[Value]) {
        self.node.put_conflist(version, more);
        let list = fs::read_to_string(self.node.conflist()).expect("the list");
        wait_for("containerd reads the list of plugins", || {
            let info = self.cri.status().expect("a status").info;
            let known: Value =
                serde_json::from_str(info.get("cniconfig").map_or("", String::as_str)).unwrap_or_default();
            let networks = known["Networks"].as_array().into_iter().flatten();
            networks.filter_map(|network| network["Config"]["Source"].as_str()).any(|source| source == list)
        });
    }

    /// What a kubelet would ask for.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "labs".to_owned(),
            }),
            hostname: name.to_owned(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.node.cgroup.clone() }),
            ..PodSandboxConfig::default()
        }
    }

    pub fn run(&self, config: PodSandboxConfig) -> Sandbox {
        self.cri.run(config).unwrap_or_else(|status| panic!("{status}\n{}", self.log()))
    }

    /// A container that serves a page with its pod's name.
    pub fn serve(&self, pod: &Sandbox) -> String {
        let name = pod.config.hostname.clone();
        self.cri.start(pod, "web", IMAGE, &image::serve(&name)).expect("a container")
    }

    /// A container that does nothing by itself.
    pub fn idle(&self, pod: &Sandbox) -> String {
        self.cri.start(pod, "idle", IMAGE, &["/bin/sleep", "1000000"]).expect("a container")
    }

    /// As a kubelet ends a pod.
    pub fn end(&self, pod: &Sandbox) {
        self.cri.stop(&pod.id).expect("stopped");
        self.cri.remove(&pod.id).expect("removed");
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.node.dir.join("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// A port of the host that leads to the container's port 80.
pub fn host_port(number: i32) -> PortMapping {
    PortMapping { container_port: 80, host_port: number }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The machine may not lower a process's oom_score_adj: CAP_SYS_RESOURCE is lacking in many containers.
const CONFIG_1_6: &str = r#"
version = 2
root = "$DIR/root"
state = "$DIR/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "$DIR/containerd.sock"
[ttrpc]
address = "$DIR/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "$IMAGE"
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
disable_hugetlb_controller = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "$DIR/bin"
conf_dir = "$DIR/net.d"
max_conf_num = 1
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "runc"
SystemdCgroup = false
"#;

const CONFIG_2_4: &str = include_str!("../../../../fixtures/containerd/2.4.toml");
