//! A host for the plugin: namespaces, a bridge, `node.json`; everything is gone when it is dropped.

use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use loden_core::kernel::link::{Bridge, Link, LinkKind, Port};
use loden_core::kernel::{LINK_GROUP, PROTOCOL};
use loden_core::model::{AttachmentKey, Family};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::{self, NetNs};
use loden_linux::rt::{address, link, route};
use loden_linux::run_dir::RunDir;
use loden_linux::spawn;
use serde_json::{Value, json};

pub struct Host {
    dir: tempfile::TempDir,
    ns: NetNs,
}

impl Host {
    /// A host whose node has these blocks.
    pub fn new(blocks: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ns = NetNs::create(&dir.path().join("netns/host")).expect("these tests need root");
        let host = Self { dir, ns };
        host.ns.run(make_bridge).expect("a thread");
        host.run_dir().make().expect("a run directory");
        host.write_node(blocks);
        host
    }

    pub fn write_node(&self, blocks: &[&str]) {
        let blocks: Vec<Value> = blocks
            .iter()
            .map(|cidr| {
                let prefix: loden_core::model::Prefix = cidr.parse().expect("a prefix");
                json!({ "cidr": cidr, "gateway": prefix.nth(1), "pool": "default" })
            })
            .collect();
        let node = json!({ "node": "n1", "bridge": "cni0", "mtuPod": 1450, "blocks": blocks });
        std::fs::write(self.run_dir().node_file(), node.to_string()).expect("node.json");
    }

    pub fn run_dir(&self) -> RunDir {
        RunDir::new(self.dir.path().join("run"))
    }

    /// The file of a pod's usual attachment.
    pub fn attachment_file(&self, pod: &str) -> PathBuf {
        self.run_dir().attachments_dir().join("net").join(format!("{pod}:eth0.json"))
    }

    pub fn netns_path(&self, pod: &str) -> PathBuf {
        self.dir.path().join("netns").join(pod)
    }

    pub fn pod(&self, name: &str) -> NetNs {
        NetNs::create(&self.netns_path(name)).expect("a pod's namespace")
    }

    pub fn conf(&self, version: &str, more: &Value) -> String {
        let mut conf = json!({
            "cniVersion": version, "name": "net", "type": "loden-cni", "runDir": self.run_dir().path(),
            "quarantineSeconds": 0,
        });
        if let (Value::Object(conf), Value::Object(more)) = (&mut conf, more) {
            conf.extend(more.clone());
        }
        conf.to_string()
    }

    /// Executes the plugin with variables over the usual ones.
    pub fn exec(&self, verb: &str, pod: &str, stdin: &[u8], variables: &[(&str, &str)]) -> Output {
        self.begin(verb, pod, stdin, variables).wait_with_output().expect("the plugin ends")
    }

    /// The same, without waiting for its end.
    pub fn begin(&self, verb: &str, pod: &str, stdin: &[u8], variables: &[(&str, &str)]) -> Child {
        self.begin_as("loden-cni", verb, pod, stdin, variables)
    }

    /// The same as [`Self::exec`] under another plugin's name.
    pub fn exec_as(&self, role: &str, verb: &str, pod: &str, stdin: &[u8], variables: &[(&str, &str)]) -> Output {
        self.begin_as(role, verb, pod, stdin, variables).wait_with_output().expect("the plugin ends")
    }

    /// The same under another plugin's name; gives the JSON, or the error's code and words.
    pub fn call_as(&self, role: &str, verb: &str, pod: &str, conf: &Value) -> Result<Value, (u64, String)> {
        let conf = self.conf(conf["cniVersion"].as_str().unwrap_or("1.0.0"), conf);
        answer(&self.exec_as(role, verb, pod, conf.as_bytes(), &[]))
    }

    /// Executes the program as a person does, with arguments and no verb.
    pub fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        self.begin_run(args, variables).wait_with_output().expect("the program ends")
    }

    /// The same, without waiting for its end.
    pub fn begin_run(&self, args: &[&str], variables: &[(&str, &str)]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden-cni"));
        command.args(args).env_clear().envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        spawn::in_netns(&mut command, &self.ns, true).expect("the host's namespace");
        command.spawn().expect("the program")
    }

    /// A directory of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn begin_as(&self, role: &str, verb: &str, pod: &str, stdin: &[u8], variables: &[(&str, &str)]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden-cni"));
        command.arg0(role);
        self.begin_command(command, verb, pod, stdin, variables)
    }

    /// The same by a command that ends in the plugin.
    pub fn begin_command(
        &self,
        mut command: Command,
        verb: &str,
        pod: &str,
        stdin: &[u8],
        variables: &[(&str, &str)],
    ) -> Child {
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", pod)
            .env("CNI_NETNS", self.netns_path(pod))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        spawn::in_netns(&mut command, &self.ns, true).expect("the host's namespace");
        let mut child = command.spawn().expect("the plugin");
        // One that ends before it has read everything closes its end.
        let _ = child.stdin.take().expect("stdin").write_all(stdin);
        child
    }

    /// Executes a verb with the usual configuration; gives the JSON, or the error's code and words.
    pub fn call(&self, verb: &str, pod: &str, more: &Value) -> Result<Value, (u64, String)> {
        let output = self.exec(verb, pod, self.conf("1.1.0", more).as_bytes(), &[]);
        answer(&output)
    }

    /// Links on the host besides the loopback and the bridge.
    pub fn links(&self) -> Vec<String> {
        self.ns
            .run(|| {
                let mut w = Writer::default();
                link::list(&mut w);
                let mut socket = Socket::open(Protocol::Route).expect("a socket");
                let all = socket.dump("links", &mut w, Vec::new, |all: &mut Vec<_>, m| {
                    all.extend(link::parse(m.payload).map(|seen| seen.name.to_string()));
                });
                all.expect("links").into_iter().filter(|name| name != "lo" && name != "cni0").collect()
            })
            .expect("a thread")
    }

    /// The routes of loden's: in a host without an agent those of pods alone.
    pub fn pod_routes(&self) -> Vec<route::Seen> {
        self.run_in(|| {
            let mut socket = Socket::open(Protocol::Route).expect("a socket");
            let of = |family| route::read(&mut socket, family, PROTOCOL).expect("routes");
            Family::ALL.into_iter().flat_map(of).collect()
        })
    }

    /// Deletes what DEL has parked, as the agent does.
    pub fn reap(&self) {
        self.ns.run(loden_linux::veth::reap).expect("a thread").expect("reaped");
    }

    /// Sweeps what killed ADDs left, as the agent does.
    pub fn sweep(&self) -> usize {
        let ledger = loden_linux::ledger::Ledger::new(self.run_dir());
        self.ns.run(|| ledger.sweep()).expect("a thread").expect("swept").len()
    }

    /// Everything that an attachment could leave: links, attachment files, marks of ADDs under way, unfinished files.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = self.links();
        let found = self.run_dir().attachments();
        left.extend(found.good.iter().map(|a| format!("attachment {}", a.key)));
        left.extend(found.unreadable.iter().map(|(_, error)| error.to_string()));
        for dir in [self.run_dir().ipam_dir(), self.run_dir().attachments_dir().join("net")] {
            let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
            let names = names.map(|name| name.to_string_lossy().into_owned());
            left.extend(names.filter(|name| name.ends_with(".add") || name.ends_with(".tmp")));
        }
        left
    }

    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// A link of the host.
    pub fn link(&self, name: &str) -> link::Seen {
        let name = name.parse().expect("a name");
        let read = || link::read(&mut Socket::open(Protocol::Route).expect("a socket"), name);
        self.run_in(read).expect("asked").expect("there")
    }

    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.ns.run(work).expect("a thread")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let dir = self.dir.path().join("netns");
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let _ = netns::remove(&entry.path());
        }
    }
}

/// Whether a datagram from one gets to the other.
pub fn reaches(from: &NetNs, to: &NetNs, addr: IpAddr) -> bool {
    reaches_within(from, to, addr, Duration::from_secs(5))
}

/// The same, with less patience where it is not to be.
pub fn reaches_within(from: &NetNs, to: &NetNs, addr: IpAddr, patience: Duration) -> bool {
    // A child of another test holds the former one's descriptor until it executes its program.
    let until = std::time::Instant::now() + Duration::from_secs(5);
    let server = loop {
        match to.run(|| UdpSocket::bind((addr, 4000))).expect("a thread") {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && std::time::Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            bound => break bound.expect("bound"),
        }
    };
    server.set_read_timeout(Some(patience)).expect("a timeout");
    from.run(|| {
        let any: IpAddr = if addr.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        UdpSocket::bind((any, 0)).expect("bound").send_to(b"hello", (addr, 4000)).expect("sent");
    })
    .expect("a thread");
    server.recv(&mut [0; 16]).is_ok_and(|len| len == 5)
}

/// The key of a pod's usual attachment.
pub fn key(pod: &str) -> AttachmentKey {
    AttachmentKey { network: "net".to_owned(), container: pod.to_owned(), ifname: "eth0".parse().expect("a name") }
}

pub fn answer(output: &Output) -> Result<Value, (u64, String)> {
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if output.status.success() {
        return Ok(value);
    }
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    Err((value["code"].as_u64().unwrap_or(0), format!("{} {}", text("msg"), text("details"))))
}

fn make_bridge() {
    let name = "cni0".parse().expect("a name");
    let bridge = Link {
        kind: LinkKind::Bridge(Bridge::default()),
        mtu: 1450,
        mac: None,
        up: true,
        master: None,
        port: Port::default(),
        group: LINK_GROUP,
    };
    let mut w = Writer::default();
    link::create(&mut w, name, &bridge, None, None);
    link::set_up(&mut w, name, true);
    link::set_up(&mut w, "lo".parse().expect("a name"), true);
    let mut socket = Socket::open(Protocol::Route).expect("a socket");
    for result in socket.batch(&mut w).expect("a batch") {
        result.expect("a bridge");
    }
    w.clear();
    // The first link of a fresh namespace behind the loopback.
    address::add(&mut w, "10.1.0.1/24".parse().expect("an address"), 2);
    address::add(&mut w, "fd01::1/64".parse().expect("an address"), 2);
    // As the agent does: what is forwarded in IPv6 is asked for by a link-local address.
    address::add(&mut w, "fe80::1/64".parse().expect("an address"), 2);
    for result in socket.batch(&mut w).expect("a batch") {
        result.expect("an address");
    }
}
