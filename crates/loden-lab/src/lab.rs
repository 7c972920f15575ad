//! A lab: made, found again, taken down so that nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use loden_core::api::PeerStatus;
use loden_core::model::PerFamily;
use loden_linux::netns::{self, NetNs};
use loden_linux::run_dir::{make_dir, read_json, write_atomically, write_json};
use loden_linux::spawn;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::agent::Agent;
use crate::pod::Pod;
use crate::topology::Topology;
use crate::{LabError, underlay};

/// Where labs are, one directory each.
pub const LABS: &str = "/run/loden-lab";

/// The programs that a lab runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binaries {
    /// The command line.
    pub loden: PathBuf,
    /// The agent.
    pub lodend: PathBuf,
    /// The plugin.
    pub loden_cni: PathBuf,
}

impl Binaries {
    /// The three in one directory.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { loden: dir.join("loden"), lodend: dir.join("lodend"), loden_cni: dir.join("loden-cni") }
    }
}

/// A host of a lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabHost {
    /// Its name.
    pub name: String,
    /// Its underlay addresses.
    pub addresses: PerFamily<std::net::IpAddr>,
}

/// What is written down of a lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    name: String,
    binaries: Binaries,
    hosts: Vec<LabHost>,
    namespaces: Vec<String>,
    pods: Vec<Pod>,
    /// The datastore's address, when it is not the lab's own file.
    #[serde(default)]
    store: Option<String>,
    /// Keys for the plugin's configuration.
    plugin: Map<String, Value>,
}

/// A lab. It stays until [`Lab::down`].
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    state: State,
}

impl Lab {
    /// Makes the underlay, starts the agents and attaches the pods. `tell` hears of every step.
    ///
    /// # Errors
    /// [`LabError`]; what was made is taken down again.
    pub fn up(
        topology: &Topology,
        dir: &Path,
        binaries: Binaries,
        stays: bool,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Self, LabError> {
        Self::up_with(topology, dir, binaries, stays, tell, |_| Ok(()))
    }

    /// The same; `prepare` is called once the underlay stands and before anything runs on it, to start servers for instance.
    ///
    /// # Errors
    /// [`LabError`], that of `prepare` too; what was made is taken down again.
    pub fn up_with(
        topology: &Topology,
        dir: &Path,
        binaries: Binaries,
        stays: bool,
        tell: &mut dyn FnMut(&str),
        prepare: impl FnOnce(&Self) -> Result<(), LabError>,
    ) -> Result<Self, LabError> {
        if dir.join("lab.json").exists() {
            return Err(LabError::system(
                format!("lab {}", topology.name),
                format!("it is up already: `loden lab down {}` takes it down", topology.name),
            ));
        }
        make_dir(dir).map_err(LabError::linux("the lab's directory"))?;
        // `/run` is a tmpfs on a host, and so it is on a lab's.
        mount("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0700"))
            .map_err(|error| LabError::system(format!("tmpfs on {}", dir.display()), error))?;
        let hosts = topology.hosts.iter().map(|host| {
            let mut addresses = PerFamily::default();
            host.addresses.iter().for_each(|(family, net)| addresses.set(family, net.addr()));
            LabHost { name: host.name.clone(), addresses }
        });
        let state = State {
            name: topology.name.clone(),
            binaries,
            hosts: hosts.collect(),
            namespaces: underlay::namespaces(topology),
            pods: Vec::new(),
            store: topology.store.clone(),
            plugin: topology.plugin.clone(),
        };
        let mut lab = Self { dir: dir.to_owned(), state };
        match lab.make(topology, stays, tell, prepare) {
            Ok(()) => Ok(lab),
            Err(error) => match lab.down() {
                Ok(()) => Err(error),
                Err(second) => Err(LabError::Several(vec![error, second])),
            },
        }
    }

    fn make(
        &mut self,
        topology: &Topology,
        stays: bool,
        tell: &mut dyn FnMut(&str),
        prepare: impl FnOnce(&Self) -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        // Written down before anything is made, so that a lab that was killed half-way can be taken down.
        self.save()?;
        tell(&format!(
            "underlay: {} segment(s), a router, the outside, {} hosts",
            topology.segments.len(),
            topology.hosts.len()
        ));
        underlay::make(topology, &self.dir.join("netns"))?;
        prepare(self)?;
        if !topology.pools.is_empty() {
            self.apply_pools(&topology.pools)?;
        }
        tell(&format!("agents: one lodend a host over {}", topology.store.as_deref().unwrap_or("one SQLite store")));
        for host in &topology.hosts {
            self.write_config(host)?;
            if host.starts {
                self.agent(&host.name)?.start(&self.state.binaries.lodend, stays)?;
            }
        }
        for host in topology.hosts.iter().filter(|host| host.starts) {
            self.agent(&host.name)?.wait_ready()?;
        }
        if !topology.pools.is_empty() && topology.hosts.iter().all(|host| host.starts) {
            self.wait_for_each_other()?;
        }
        tell("pods: attached by loden-cni");
        for host in &topology.hosts {
            for n in 1..=host.pods {
                let pod = self.attach(&host.name, &format!("{}-pod{n}", host.name))?;
                self.state.pods.push(pod);
                self.save()?;
            }
        }
        Ok(())
    }

    /// A host is ready as soon as it can serve pods; that it knows how to reach its peers comes a moment later. A peer that it
    /// refuses to reach, and says why, is not waited for.
    fn wait_for_each_other(&self) -> Result<(), LabError> {
        // What a peer has is what it says itself: one block may be known before the next.
        let blocks_of = |peer: &PeerStatus| -> Result<usize, LabError> {
            Ok(self.agent(peer.node.as_str())?.status()?.blocks.len())
        };
        let is_settled = |peer: &PeerStatus| -> Result<bool, LabError> {
            let is_refused = peer.problems.iter().any(|problem| !problem.contains("has not published"));
            let is_known = !peer.blocks.is_empty() && peer.blocks.len() == blocks_of(peer)?;
            Ok(is_known && (is_refused || (peer.objects > 0 && peer.missing == 0)))
        };
        for host in &self.state.hosts {
            let agent = self.agent(&host.name)?;
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let status = agent.status()?;
                let knows_all = status.peers.len() + 1 == self.state.hosts.len();
                let mut is_up = knows_all && status.kernel.pending == 0;
                for peer in &status.peers {
                    is_up = is_up && is_settled(peer)?;
                }
                if is_up {
                    break;
                }
                if Instant::now() > deadline {
                    let cause = format!("its peers are {:?}", status.peers);
                    return Err(LabError::NotReady {
                        host: host.name.clone(),
                        seconds: 20,
                        cause,
                        log: agent.log_tail(),
                    });
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Applies a file of pools to the lab's store, by the command line as an operator would.
    ///
    /// # Errors
    /// [`LabError`] with what the command said.
    pub fn apply_pools(&self, pools: &str) -> Result<(), LabError> {
        let file = self.dir.join("pools.toml");
        write_atomically(&file, pools.as_bytes()).map_err(LabError::linux("pools.toml"))?;
        self.loden(&["pool", "apply", "--store", &self.store_url(), &file.display().to_string()]).map(drop)
    }

    /// Runs the command line where the datastore is reached: on the first host. Gives what it wrote.
    ///
    /// # Errors
    /// [`LabError`] with what the command said.
    pub fn loden(&self, args: &[&str]) -> Result<String, LabError> {
        let what = || format!("loden {}", args.iter().take(2).copied().collect::<Vec<_>>().join(" "));
        let mut command = Command::new(&self.state.binaries.loden);
        command.args(args);
        if let Some(host) = self.state.hosts.first() {
            spawn::in_netns(&mut command, &self.netns(&host.name)?, false).map_err(LabError::linux(what()))?;
        }
        let output = command.output().map_err(|error| LabError::system(what(), error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(LabError::system(what(), String::from_utf8_lossy(&output.stderr).trim()))
    }

    fn write_config(&self, host: &crate::topology::Host) -> Result<(), LabError> {
        let dir = self.dir.join(&host.name);
        make_dir(&dir).map_err(LabError::linux("a host's directory"))?;
        let mut config = serde_json::json!({
            "node": host.name,
            "store": self.store_url(),
            "run_dir": dir.join("run"),
            "state_dir": dir.join("lib"),
            "iface": "eth0",
        });
        if let Value::Object(map) = &mut config {
            map.extend(host.agent.clone());
        }
        let text = toml::to_string(&config).map_err(|error| LabError::Topology(error.to_string()))?;
        write_atomically(&dir.join("lodend.toml"), text.as_bytes()).map_err(LabError::linux("lodend.toml"))
    }

    /// Finds a lab by its directory.
    ///
    /// # Errors
    /// [`LabError::Unknown`] when there is none.
    pub fn open(dir: &Path) -> Result<Self, LabError> {
        let state = read_json(&dir.join("lab.json")).map_err(LabError::linux("lab.json"))?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = || list(dir.parent().unwrap_or(dir));
        let state = state.ok_or_else(|| LabError::Unknown { what: "lab", name, known: known() })?;
        Ok(Self { dir: dir.to_owned(), state })
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its programs.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.state.binaries
    }

    /// Its hosts.
    #[must_use]
    pub fn hosts(&self) -> &[LabHost] {
        &self.state.hosts
    }

    /// Its pods.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.state.pods
    }

    /// From now on these are its pods, whoever attached them: what probes go between.
    pub fn set_pods(&mut self, pods: Vec<Pod>) {
        self.state.pods = pods;
    }

    /// The outside's addresses.
    #[must_use]
    pub fn outside(&self) -> PerFamily<std::net::IpAddr> {
        underlay::outside_addresses()
    }

    /// The address of its store.
    #[must_use]
    pub fn store_url(&self) -> String {
        let own = || format!("sqlite:{}", self.dir.join("loden.db").display());
        self.state.store.clone().unwrap_or_else(own)
    }

    /// The plugin's configuration on a host.
    pub(crate) fn plugin_conf(&self, host: &str) -> Map<String, Value> {
        let run_dir = self.dir.join(host).join("run").display().to_string();
        let usual = [("cniVersion", "1.1.0"), ("name", "loden"), ("type", "loden-cni"), ("runDir", &run_dir)];
        let usual = usual.map(|(key, value)| (key.to_owned(), Value::from(value)));
        usual.into_iter().chain(self.state.plugin.clone()).collect()
    }

    /// The path of a namespace: of a host, a pod, `router`, `outside`.
    #[must_use]
    pub fn netns_path(&self, name: &str) -> PathBuf {
        self.dir.join("netns").join(name)
    }

    /// A namespace.
    ///
    /// # Errors
    /// [`LabError::Unknown`] with those that there are.
    pub fn netns(&self, name: &str) -> Result<NetNs, LabError> {
        let path = self.netns_path(name);
        if !path.exists() || !loden_core::model::is_plain_name(name) {
            return Err(LabError::Unknown {
                what: "host or pod",
                name: name.to_owned(),
                known: list_files(&self.dir.join("netns")),
            });
        }
        NetNs::open(&path).map_err(LabError::linux(format!("namespace {name}")))
    }

    /// A host's agent.
    ///
    /// # Errors
    /// [`LabError::Unknown`] with those that there are.
    pub fn agent(&self, host: &str) -> Result<Agent, LabError> {
        if self.state.hosts.iter().any(|known| known.name == host) {
            return Ok(Agent::of(self, host));
        }
        let known = self.state.hosts.iter().map(|host| host.name.clone()).collect();
        Err(LabError::Unknown { what: "host", name: host.to_owned(), known })
    }

    /// Runs a program in a namespace with this process's input and output; gives its exit code.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn exec(&self, name: &str, program: &str, args: &[String]) -> Result<i32, LabError> {
        let mut command = Command::new(program);
        command.args(args);
        spawn::in_netns(&mut command, &self.netns(name)?, false).map_err(LabError::linux(program.to_owned()))?;
        let status = command.status().map_err(|error| LabError::system(program.to_owned(), error))?;
        Ok(status.code().unwrap_or(128))
    }

    /// Takes everything down: the agents, the namespaces, the directory. Goes on after an error and reports all.
    ///
    /// # Errors
    /// Whatever stayed.
    pub fn down(&self) -> Result<(), LabError> {
        let mut errors = Vec::new();
        for host in &self.state.hosts {
            errors.extend(Agent::of(self, &host.name).end(Signal::KILL).err());
        }
        let dir = self.dir.join("netns");
        for name in list_files(&dir) {
            errors.extend(netns::remove(&dir.join(&name)).err().map(LabError::linux(format!("namespace {name}"))));
        }
        match unmount(&self.dir, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => errors.push(LabError::system(format!("tmpfs on {}", self.dir.display()), error)),
        }
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            errors.push(LabError::system(format!("directory {}", self.dir.display()), error));
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(LabError::Several(errors)),
        }
    }

    /// What is still there of a lab that was taken down: files, mounts, processes.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.dir.exists() {
            left.push(format!("directory {}", self.dir.display()));
        }
        let dir = self.dir.display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(&dir)).map(|line| format!("mount {line}")));
        for process in list_files(Path::new("/proc")) {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("lodend") && line.contains(&dir) {
                left.push(format!("process {process} {line}"));
            }
        }
        left
    }

    fn save(&self) -> Result<(), LabError> {
        write_json(&self.dir.join("lab.json"), &self.state).map_err(LabError::linux("lab.json"))
    }
}

/// The names of the labs in a directory.
#[must_use]
pub fn list(labs: &Path) -> Vec<String> {
    list_files(labs).into_iter().filter(|name| labs.join(name).join("lab.json").exists()).collect()
}

/// The names in a directory, sorted; none when there is no such directory.
fn list_files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
