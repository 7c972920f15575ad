//! The control plane: etcd and the API server, and whatever else of Kubernetes runs beside them.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_linux::netns::NetNs;
use loden_linux::spawn;
use loden_testkit::certificates::{self, Holder};
use serde_json::{Value, json};

use super::VERSION;
use crate::shell;

/// The API server's own address as a service, the first of [`SERVICES`].
const SERVICE: &str = "10.96.0.1";
/// The addresses of services.
pub const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// How long the API server may take to be ready; it takes five seconds on an idle machine.
const READY: Duration = Duration::from_secs(120);

/// What runs in one namespace, with its files in one directory.
pub struct Server {
    program: PathBuf,
    dir: PathBuf,
    ns: NetNs,
    at: IpAddr,
    running: Vec<(String, Child)>,
}

impl Server {
    /// Starts etcd and the API server, at an address of the namespace, and waits until they are ready. `users` get certificates and a
    /// kubeconfig each; `admin` must be among them.
    pub fn start(program: PathBuf, dir: &Path, ns: NetNs, at: IpAddr, users: &[Holder<'_>]) -> Result<Self> {
        let names = format!("IP:{at},IP:{SERVICE}");
        let holders: Vec<Holder<'_>> =
            users.iter().copied().chain([("server", "/CN=kube-apiserver", names.as_str())]).collect();
        certificates::make(dir, &holders)
            .and_then(|()| certificates::make_key(dir, "accounts"))
            .map_err(anyhow::Error::msg)?;
        let mut server = Self { program, dir: dir.to_owned(), ns, at, running: Vec::new() };
        for (user, ..) in users {
            server.write_kubeconfig(user)?;
        }
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(dir.join("etcd")).args(["--logger", "zap"]);
        server.spawn("etcd", etcd)?;
        server.start_api()?;
        Ok(server)
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_api(&mut self) -> Result<()> {
        let (file, begun) = (|name: &str| self.file(name), Instant::now());
        let mut flags = vec![
            ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
            ("advertise-address", self.at.to_string()),
            ("secure-port", "6443".to_owned()),
            ("tls-cert-file", file("server.pem")),
            ("tls-private-key-file", file("server.key")),
            ("client-ca-file", file("ca.pem")),
            ("kubelet-client-certificate", file("admin.pem")),
            ("kubelet-client-key", file("admin.key")),
            ("kubelet-preferred-address-types", "InternalIP".to_owned()),
            ("service-account-key-file", file("accounts.key")),
            ("service-account-signing-key-file", file("accounts.key")),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
            ("service-cluster-ip-range", SERVICES.to_owned()),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("enable-admission-plugins", "NodeRestriction".to_owned()),
            ("allow-privileged", "true".to_owned()),
            ("cert-dir", file("made")),
        ];
        if self.at.is_loopback() {
            // A loopback address is no endpoint of a service.
            flags.push(("endpoint-reconciler-type", "none".to_owned()));
        }
        self.run("kube-apiserver", &flags)?;
        while self.kubectl(&["get", "--raw", "/readyz"]).is_err() {
            if begun.elapsed() > READY {
                bail!("the API server does not get ready:\n{}", self.log("kube-apiserver", 5));
            }
            thread::sleep(Duration::from_millis(200));
        }
        shell::say(&format!("· Kubernetes {VERSION} is ready after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Runs a part of Kubernetes.
    pub fn run(&mut self, part: &str, flags: &[(&str, String)]) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg(part).args(flags.iter().map(|(name, value)| format!("--{name}={value}")));
        self.spawn(part, command)
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        spawn::in_netns(&mut command, &self.ns, true)?;
        self.running.push((name.to_owned(), command.spawn().with_context(|| name.to_owned())?));
        Ok(())
    }

    /// Kills what runs under this name.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        for (_, child) in self.running.iter_mut().filter(|(running, _)| running == name) {
            child.kill()?;
            child.wait()?;
        }
        self.running.retain(|(running, _)| running != name);
        Ok(())
    }

    /// Runs `kubectl` as the administrator; gives what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["kubectl", "--request-timeout=10s", "--kubeconfig"]).arg(self.kubeconfig("admin")).args(args);
        self.output(&mut command)
    }

    /// Runs a program in the namespace; gives what it said.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        spawn::in_netns(command.env("HOME", &self.dir), &self.ns, false)?;
        shell::output(command)
    }

    /// An object, or a list.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], what].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {}", what.join(" ")))
    }

    /// Makes objects as they are in a manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let file = self.dir.join("applied.yaml");
        fs::write(&file, manifest).with_context(|| file.display().to_string())?;
        self.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()]).map(drop)
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn netns(&self) -> &NetNs {
        &self.ns
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.conf"))
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The end of a log.
    pub fn log(&self, name: &str, lines: usize) -> String {
        shell::tail(&self.dir.join(format!("{name}.log")), lines)
    }

    fn write_kubeconfig(&self, user: &str) -> Result<()> {
        let (cert, key) = (self.file(&format!("{user}.pem")), self.file(&format!("{user}.key")));
        let server = format!("https://{}:6443", self.at);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": server, "certificate-authority": self.file("ca.pem") } }],
            "users": [{ "name": "u", "user": { "client-certificate": cert, "client-key": key } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "u" } }],
        });
        // JSON is YAML.
        fs::write(self.kubeconfig(user), config.to_string()).context("the kubeconfig")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for (_, child) in self.running.iter_mut().rev() {
            // One that has gone by itself is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
