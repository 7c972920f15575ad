//! Kubernetes' API as far as flannel uses it: a double that keeps to flannel's own role, reached by every host at its loopback address.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use loden_lab::lab::Lab;
use loden_testkit::kubernetes::{Double, Role};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::flannel::Laid;

pub struct Kubernetes {
    pub double: Arc<Double>,
    over: Option<oneshot::Sender<()>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Kubernetes {
    pub fn start(lab: &Lab, net_conf: &str) -> Self {
        std::fs::write(lab.dir().join("net-conf.json"), net_conf).expect("written");
        let (sender, made) = mpsc::channel();
        let (over, ended) = oneshot::channel();
        let server = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                sender.send(Arc::new(Double::start(Role::flannels()).await)).expect("it is waited for");
                // Its end is as good as the message.
                let _ = ended.await;
            });
        });
        let double = made.recv().expect("it starts");
        let is_over = Arc::new(AtomicBool::new(false));
        let mut threads = vec![server];
        let port = port(&double);
        for host in lab.hosts() {
            let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            let listener = lab.netns(&host.name).expect("netns").run(bind).expect("a thread").expect("a port");
            listener.set_nonblocking(true).expect("set");
            let is_over = Arc::clone(&is_over);
            threads.push(thread::spawn(move || forward(&listener, port, &is_over)));
        }
        Self { double, over: Some(over), is_over, threads }
    }

    /// What a flanneld has written of its node, and the pod that it runs in.
    pub fn record(&self, host: &Laid) {
        let blocks = host.blocks();
        let node = json!({
            "metadata": { "name": host.name(), "annotations": host.annotations() },
            "spec": { "podCIDR": blocks[0], "podCIDRs": blocks },
        });
        let pod = json!({
            "metadata": { "name": format!("kube-flannel-ds-{}", host.n), "namespace": "kube-flannel" },
            "spec": { "nodeName": host.name() },
        });
        let mut cluster = self.double.cluster();
        cluster.create("nodes", node).expect("made");
        cluster.create("pods", pod).expect("made");
    }

    /// flannel's annotations of a node as they stand.
    pub fn annotations(&self, host: &Laid) -> Map<String, Value> {
        let node = self.double.cluster().get("nodes", &host.name()).expect("there");
        let all = node["metadata"]["annotations"].as_object().expect("annotations").clone();
        all.into_iter().filter(|(key, _)| key.starts_with("flannel.alpha.coreos.com/")).collect()
    }

    /// The node's condition `NetworkUnavailable`.
    pub fn condition(&self, host: &Laid) -> Value {
        let node = self.double.cluster().get("nodes", &host.name()).expect("there");
        let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|condition| condition["type"] == "NetworkUnavailable").unwrap_or_default()
    }

    /// The arguments of the shipped manifest, and what a kubelet gives the pod.
    pub fn complete(&self, command: &mut Command, lab: &Lab, host: &Laid) {
        let config = lab.dir().join(host.name()).join("daemonset.toml");
        // The lab's file says which node it is, which here is to be asked.
        let text =
            format!("run_dir = {:?}\n", lab.agent(&host.name()).expect("an agent").run_dir().display().to_string());
        std::fs::write(&config, text).expect("written");
        command.args(["--kube-subnet-mgr", "--kubeconfig-file"]).arg(self.double.path("agent"));
        command.arg("--net-config-path").arg(lab.dir().join("net-conf.json"));
        command.env("LODEN_CONFIG", config).env("POD_NAMESPACE", "kube-flannel");
        command.env("POD_NAME", format!("kube-flannel-ds-{}", host.n)).env("EVENT_QUEUE_DEPTH", "5000");
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        drop(self.over.take());
        // A panic of theirs has been seen already.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn port(double: &Double) -> u16 {
    let text = std::fs::read(double.path("agent")).expect("a kubeconfig");
    let config: Value = serde_json::from_slice(&text).expect("JSON");
    let server = config["clusters"][0]["cluster"]["server"].as_str().expect("an address");
    server.rsplit(':').next().expect("a port").parse().expect("a number")
}

/// Takes connections in a host's namespace on to this process's own.
fn forward(listener: &TcpListener, port: u16, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((near, _)) => {
                near.set_nonblocking(false).expect("set");
                // A server that has gone closes both.
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
                let (near2, far2) = (near.try_clone().expect("a descriptor"), far.try_clone().expect("a descriptor"));
                thread::spawn(move || carry(near, far));
                thread::spawn(move || carry(far2, near2));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("{error}"),
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    // Either end may go at any time.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
