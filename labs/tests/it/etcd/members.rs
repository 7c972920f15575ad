//! etcd itself: members on a lab's servers, which trust nobody without a certificate.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use loden_lab::{Lab, LabError};
use loden_linux::spawn;
use loden_testkit::certificates;
use serde_json::Value;

use crate::support::wait_for;

/// The name and the address of a server that a member is on.
pub type Place = (&'static str, &'static str);

/// Members that end with the test.
pub struct Members {
    dir: PathBuf,
    netns: Vec<PathBuf>,
    places: Vec<Place>,
    running: Vec<Option<Child>>,
}

impl Members {
    /// The address of the datastore for the agents; the certificates are made by [`Members::new`].
    pub fn url(dir: &Path, places: &[Place]) -> String {
        let endpoints: Vec<_> = places.iter().map(|(_, addr)| format!("https://{addr}:2379")).collect();
        let pki = dir.join("pki");
        let file = |name: &str| pki.join(name).display().to_string();
        format!("etcd:{}?ca={}&cert={}&key={}", endpoints.join(","), file("ca.pem"), file("node.pem"), file("node.key"))
    }

    /// Makes certificates for all places; nothing runs yet.
    pub fn new(lab: &Lab, places: &[Place]) -> Self {
        let dir = lab.dir().to_owned();
        make_certificates(&dir.join("pki"), places);
        let netns = places.iter().map(|(name, _)| lab.netns_path(name)).collect();
        Self { dir, netns, places: places.to_vec(), running: places.iter().map(|_| None).collect() }
    }

    /// Starts the first `count` members as a new cluster and waits until they answer.
    pub fn begin(&mut self, count: usize) -> Result<(), LabError> {
        let cluster = self.cluster(&(0..count).collect::<Vec<_>>());
        (0..count).for_each(|n| self.start_in(n, &cluster, "new"));
        self.wait_until_served();
        Ok(())
    }

    /// Starts a member again, with what it has on its disk.
    pub fn start(&mut self, n: usize) {
        // What the cluster consists of is on its disk; the arguments count for a new one only.
        let cluster = self.cluster(&[n]);
        self.start_in(n, &cluster, "existing");
    }

    /// Kills a member.
    pub fn kill(&mut self, n: usize) {
        let mut child = self.running[n].take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("it ends");
    }

    /// Which member leads.
    pub fn leader(&self) -> usize {
        let mut leader = None;
        wait_for("a leader", || {
            leader = (0..self.places.len()).find(|n| self.running[*n].is_some() && self.leads(*n));
            leader.is_some()
        });
        leader.expect("a leader")
    }

    fn leads(&self, n: usize) -> bool {
        let Some(answer) = self.ctl(n, &["endpoint", "status", "-w", "json"]) else { return false };
        let status: Value = serde_json::from_str(&answer).expect("JSON");
        let status = &status[0]["Status"];
        status["leader"] != 0 && status["leader"] == status["header"]["member_id"]
    }

    /// Takes a dead member out of the cluster and a new one in, on another server.
    pub fn replace(&mut self, old: usize, new: usize) {
        let via = (0..self.places.len()).find(|n| self.running[*n].is_some()).expect("one runs");
        let list = self.ctl(via, &["member", "list"]).expect("listed");
        let line = list.lines().find(|line| line.contains(self.places[old].0)).expect("it is a member");
        let id = line.split(',').next().expect("its number").to_owned();
        // Members that have known each other for less than five seconds change nothing (`HealthInterval`, etcd's server.go).
        wait_for("the removal", || self.ctl(via, &["member", "remove", &id]).is_some());
        let (name, addr) = self.places[new];
        let peer = format!("--peer-urls=https://{addr}:2380");
        wait_for("the addition", || self.ctl(via, &["member", "add", name, &peer]).is_some());
        let members: Vec<_> = (0..self.places.len()).filter(|n| *n == new || self.running[*n].is_some()).collect();
        let cluster = self.cluster(&members);
        self.start_in(new, &cluster, "existing");
    }

    /// Waits until a majority serves.
    pub fn wait_until_served(&self) -> Duration {
        wait_for("etcd's answer", || {
            let mut running = (0..self.places.len()).filter(|n| self.running[*n].is_some());
            running.any(|n| self.ctl(n, &["get", "x"]).is_some())
        })
    }

    /// `etcdctl` at a member; `None` when it fails.
    fn ctl(&self, n: usize, args: &[&str]) -> Option<String> {
        let pki = self.dir.join("pki");
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--dial-timeout=1s", "--command-timeout=2s"]);
        command.arg(format!("--endpoints=https://{}:2379", self.places[n].1));
        for (flag, file) in [("cacert", "ca.pem"), ("cert", "node.pem"), ("key", "node.key")] {
            command.arg(format!("--{flag}={}", pki.join(file).display()));
        }
        command.args(args);
        let ns = loden_linux::netns::NetNs::open(&self.netns[n]).expect("a namespace");
        spawn::in_netns(&mut command, &ns, true).expect("the server's namespace");
        let output = command.output().expect("etcdctl");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn cluster(&self, members: &[usize]) -> String {
        let member = |n: &usize| format!("{}=https://{}:2380", self.places[*n].0, self.places[*n].1);
        members.iter().map(member).collect::<Vec<_>>().join(",")
    }

    fn start_in(&mut self, n: usize, cluster: &str, state: &str) {
        let ((name, addr), pki) = (self.places[n], self.dir.join("pki"));
        let mut command = Command::new("etcd");
        let file = |name: &str| pki.join(name).display().to_string();
        let log = self.dir.join(format!("{name}.log"));
        command.args(["--name", name, "--initial-cluster", cluster, "--initial-cluster-state", state]);
        command.arg("--data-dir").arg(self.dir.join(name));
        for (flag, port) in [
            ("listen-client-urls", 2379),
            ("advertise-client-urls", 2379),
            ("listen-peer-urls", 2380),
            ("initial-advertise-peer-urls", 2380),
        ] {
            command.arg(format!("--{flag}=https://{addr}:{port}"));
        }
        for side in ["", "peer-"] {
            command.arg(format!("--{side}cert-file={}", file(&format!("{name}.pem"))));
            command.arg(format!("--{side}key-file={}", file(&format!("{name}.key"))));
            command.arg(format!("--{side}trusted-ca-file={}", file("ca.pem")));
            command.arg(format!("--{side}client-cert-auth=true"));
        }
        command.args(["--logger", "zap", "--log-outputs"]).arg(&log);
        let errors = File::create(log.with_extension("err")).expect("a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let ns = loden_linux::netns::NetNs::open(&self.netns[n]).expect("a namespace");
        spawn::in_netns(&mut command, &ns, true).expect("the server's namespace");
        self.running[n] = Some(command.spawn().expect("etcd"));
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// For each member and for the nodes.
fn make_certificates(dir: &Path, places: &[Place]) {
    let named: Vec<_> =
        places.iter().map(|(name, addr)| (*name, format!("/CN={name}"), format!("IP:{addr}"))).collect();
    let members = named.iter().map(|(name, subject, san)| (*name, subject.as_str(), san.as_str()));
    let holders: Vec<_> = members.chain([("node", "/CN=node", "DNS:node")]).collect();
    certificates::make(dir, &holders).expect("certificates");
}
