//! What a runtime needs of a host besides the network: directories of its own where programs have what is one for the whole machine (`/run`,
//! `/var/lib` with libcni's cache, `/dev/shm` with podman's locks), and an end that takes everything with it.
//!
//! That is a mount namespace and a process namespace in the network namespace of a lab's host. When their first process ends, the kernel
//! ends all others, shims and containers too, and undoes the mounts. It ends when its input is closed, as it is when the test dies.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use loden_core::kernel::PROTOCOL;
use loden_core::kernel::nft::TABLE_PORTS;
use loden_core::model::{Attachment, Family};
use loden_lab::Lab;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::NetNs;
use loden_linux::nft::{Nft, Ownership};
use loden_linux::rt::{link, route};
use loden_linux::run_dir::RunDir;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Guard, POOLS, SEGMENT, hosts, up, wait_for};

/// The first process: makes the mounts, says so, and waits for the end of its input. It is a shell that stays, since it is the one that
/// takes the exit status of shims whose parent has ended.
const FIRST: &str = r#"
set -e
mkdir -p "$2/run" "$2/lib"
mount -t tmpfs -o mode=0755 tmpfs "$2/run"
mkdir -p "$2/run/${1#/run/}" "$2/run/netns"
mount --rbind "$1" "$2/run/${1#/run/}"
mount --no-mtab --move "$2/run" /run
mount --bind "$2/lib" /var/lib
mount -t tmpfs tmpfs /dev/shm
echo ready
cat >/dev/null
:
"#;

/// The plugin in the place where runtimes look for it. It has read all that the runtime says before anybody hears of the call.
const WRITES_DOWN: &str = r#"#!/bin/sh
conf=$DIR/conf.$$
cat >"$conf"
exec <"$conf"
rm "$conf"
echo "$CNI_COMMAND ${CNI_CONTAINERID:--} ${CNI_NETNS:--} $$" >>$DIR/calls
while [ -e $DIR/hold ]; do sleep 0.02; done
exec $PLUGIN
"#;

/// A host with a runtime's surroundings.
pub struct Node {
    first: Child,
    pub host: String,
    /// Where its programs' files are.
    pub dir: PathBuf,
    netns: PathBuf,
    run_dir: PathBuf,
    /// The control group of its pods, in every hierarchy.
    pub cgroup: String,
}

impl Node {
    pub fn new(lab: &Lab, host: &str) -> Self {
        let dir = lab.dir().join(host).join("runtime");
        fs::create_dir_all(dir.join("bin")).expect("a directory");
        let mut first = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", FIRST, "sh"])
            .args([lab.dir(), &dir])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut said = String::new();
        let output = first.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut said).expect("a line");
        let cgroup = format!("/loden-{}-{}-{host}", lab.name(), std::process::id());
        let node = Self {
            first,
            host: host.to_owned(),
            netns: lab.netns_path(host),
            run_dir: lab.dir().join(host).join("run"),
            dir,
            cgroup,
        };
        assert_eq!(said.trim(), "ready", "the mounts of {host}");
        node.install(&lab.binaries().loden_cni);
        node
    }

    /// The plugin and its name as `loopback`. The calls of the plugin are written down, and wait as long as there is a file `hold`.
    fn install(&self, plugin: &Path) {
        let script = WRITES_DOWN
            .replace("$DIR", &self.dir.display().to_string())
            .replace("$PLUGIN", &plugin.display().to_string());
        self.put_program("loden-cni", &script);
        std::os::unix::fs::symlink(plugin, self.bin_dir().join("loopback")).expect("a link");
    }

    /// A program in the directory of plugins.
    pub fn put_program(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.bin_dir().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    pub fn bin_dir(&self) -> PathBuf {
        self.dir.join("bin")
    }

    pub fn conf_dir(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    /// A program of the host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let of = |ns: &str| format!("/proc/{}/ns/{ns}", self.first.id());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns.display()))
            .arg(format!("--mount={}", of("mnt")))
            .arg(format!("--pid={}", of("pid_for_children")))
            .args(["--wd=/", "--"])
            .arg(program);
        command
    }

    /// Runs one to its end; gives what it said, if it ended well.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        said(self.command(program).args(args))
    }

    /// Puts the list of plugins in place as an installer does: by renaming it inside its directory.
    pub fn put_conflist(&self, version: &str, more: &[Value]) {
        let capabilities = json!({
            "portMappings": true, "bandwidth": true, "dns": true, "ips": true, "mac": true,
            "io.kubernetes.cri.pod-annotations": true,
        });
        let plugin = json!({ "type": "loden-cni", "runDir": self.run_dir, "capabilities": capabilities });
        let plugins: Vec<&Value> = std::iter::once(&plugin).chain(more).collect();
        let list = json!({ "cniVersion": version, "name": "loden", "plugins": plugins });
        fs::create_dir_all(self.conf_dir()).expect("a directory");
        let unfinished = self.conf_dir().join(".loden.tmp");
        fs::write(&unfinished, list.to_string()).expect("written");
        fs::rename(unfinished, self.conflist()).expect("renamed");
    }

    pub fn conflist(&self) -> PathBuf {
        self.conf_dir().join("10-loden.conflist")
    }

    /// The calls of the plugin so far: verb, container, namespace (`-` for what is not there), process.
    pub fn calls(&self) -> Vec<[String; 4]> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().expect("words");
        text.lines().map(words).collect()
    }

    /// Waits until no call of the plugin is under way.
    pub fn is_quiet(&self) {
        let proc = PathBuf::from(format!("/proc/{}/root/proc", self.first.id()));
        wait_for("the plugin's end", || self.calls().iter().all(|[.., pid]| !proc.join(pid).exists()));
    }

    /// The calls about one container: the verb, with `!` where no namespace was given.
    pub fn calls_about(&self, container: &str) -> Vec<String> {
        let of_it = self.calls().into_iter().filter(|[_, of, ..]| of == container);
        of_it.map(|[verb, _, netns, _]| if netns == "-" { format!("{verb}!") } else { verb }).collect()
    }

    /// From now on the plugin waits before it does anything, until it is let go.
    pub fn hold(&self) {
        fs::write(self.dir.join("hold"), "").expect("written");
    }

    pub fn let_go(&self) {
        fs::remove_file(self.dir.join("hold")).expect("removed");
    }

    pub fn run_dir(&self) -> RunDir {
        RunDir::new(&self.run_dir)
    }

    /// The plugin's attachments; every file of one must be readable.
    pub fn attachments(&self) -> Vec<Attachment> {
        let found = self.run_dir().attachments();
        assert!(found.unreadable.is_empty(), "{:?}", found.unreadable);
        found.good
    }

    pub fn attachment(&self, container: &str) -> Attachment {
        let mut all = self.attachments();
        all.retain(|attachment| attachment.key.container == container);
        assert_eq!(all.len(), 1, "{container}: {all:?}");
        all.remove(0)
    }

    pub fn netns(&self) -> NetNs {
        NetNs::open(&self.netns).expect("the host's namespace")
    }

    /// Everything of pods' that is in the host's kernel and in the plugin's files, one line each.
    pub fn footprint(&self) -> Vec<String> {
        let mut all = self.netns().run(in_kernel).expect("a thread");
        all.extend(self.attachments().iter().map(|attachment| format!("attachment {}", attachment.key)));
        let marks = fs::read_dir(self.run_dir().ipam_dir()).into_iter().flatten().flatten();
        let marks = marks.map(|entry| entry.file_name().to_string_lossy().into_owned());
        all.extend(marks.filter(|name| !name.ends_with(".range") && name != "lock"));
        all.sort();
        all
    }

    /// Waits until the host is as it was: DEL parks, the agent reaps.
    pub fn is_again(&self, before: &[String]) {
        let mut now = Vec::new();
        let is_so = || {
            now = self.footprint();
            now == before
        };
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for("nothing left", is_so)));
        assert!(waited.is_ok(), "{}:\n{now:#?}\nis not what there was:\n{before:#?}", self.host);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The first process ends with its input, the others with it; only then does unshare.
        drop(self.first.stdin.take());
        let ended = self.first.wait();
        let left = remove_cgroup(&self.cgroup);
        if !std::thread::panicking() {
            assert!(ended.is_ok(), "{ended:?}");
            assert_eq!(left, Vec::<String>::new());
        }
    }
}

/// Hosts of a lab with their surroundings; they go before it.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub lab: Guard,
}

impl Cluster {
    /// Hosts without pods, in both families.
    pub fn up(name: &str, n: usize) -> Self {
        let hosts = hosts(n, "").replace("pods = 1", "pods = 0");
        let lab = up(name, &[SEGMENT, &hosts, POOLS].concat());
        let nodes = lab.hosts().iter().map(|host| Node::new(&lab, &host.name)).collect();
        Self { nodes, lab }
    }
}

/// A program that runs in a host's surroundings.
pub struct Process {
    outer: Child,
}

impl Process {
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(log).expect("a log");
        let errors = log.try_clone().expect("a descriptor");
        let outer = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("nsenter");
        Self { outer }
    }

    /// The program itself: nsenter makes it as its child, inside the namespace.
    fn pid(&self) -> Pid {
        let outer = self.outer.id().to_string();
        let mut found = None;
        wait_for("a process", || {
            let all = fs::read_dir("/proc").expect("/proc").flatten();
            let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
            found = pids.find(|pid| parent(*pid).as_ref() == Some(&outer)).and_then(Pid::from_raw);
            found.is_some()
        });
        found.expect("a process")
    }

    pub fn end(mut self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it is there");
        self.outer.wait().expect("it ends");
    }
}

/// The parent of a process (field 4 of `/proc/PID/stat`).
fn parent(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1).map(str::to_owned)
}

/// Runs a program to its end; gives what it said, if it ended well, and else all.
pub fn said(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(out.into_owned());
    }
    Err(format!("{command:?}: {}\n{out}{err}", output.status))
}

/// The page at an address, asked for from a namespace.
pub fn page(from: &NetNs, at: impl Into<SocketAddr>) -> Result<String, String> {
    let at = at.into();
    let patience = Duration::from_secs(2);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned())
    };
    from.run(ask).expect("a thread").map_err(|error| format!("{at}: {error}"))
}

/// Links, loden's routes and the elements of the plugin's table in the calling thread's namespace.
fn in_kernel() -> Vec<String> {
    let mut socket = Socket::open(Protocol::Route).expect("a socket");
    let mut w = Writer::default();
    link::list(&mut w);
    let links = socket.dump("links", &mut w, Vec::new, |all: &mut Vec<_>, m| all.extend(link::parse(m.payload)));
    let mut all: Vec<String> = links.expect("links").iter().map(|seen| format!("link {}", seen.name)).collect();
    for family in Family::ALL {
        let routes = route::read(&mut socket, family, PROTOCOL).expect("routes");
        all.extend(routes.iter().map(|seen| format!("route {}", seen.prefix)));
    }
    let table = Nft::open(TABLE_PORTS, Ownership::Shared).expect("a socket").observe().expect("observed");
    for (name, set) in table.iter().flat_map(|table| &table.sets) {
        all.extend(set.elements.keys().map(|element| format!("{name}: {element:?}")));
    }
    all
}

/// Removes a control group with those below it from every hierarchy; gives what stayed.
fn remove_cgroup(name: &str) -> Vec<String> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let tops = hierarchies.map(|entry| entry.path().join(name.trim_start_matches('/')));
    tops.filter(|top| top.exists()).filter_map(|top| remove_tree(&top).err()).collect()
}

/// Directories alone: the files of a control group go with it.
fn remove_tree(dir: &Path) -> Result<(), String> {
    let inside = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path())?;
    }
    fs::remove_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))
}
