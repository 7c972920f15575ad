//! `lodend` where the kernel gives it no inotify instance: it starts, follows all that it follows elsewhere, says what it lacks, and gets
//! over it. In a user namespace of its own, which has a limit of its own: nothing is taken from the machine.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use loden_core::api::{Ipam, Status};
use loden_linux::agent;
use loden_linux::netns::NetNs;
use loden_linux::run_dir::RunDir;
use loden_store::{Expect, Store};
use serde_json::{Value, json};

use crate::ledger::attachment;

/// The limit is a sysctl of the user namespace of whoever looks at it.
const LIMIT: &str = "/proc/sys/user/max_inotify_instances";

struct Lodend {
    child: Child,
    run_dir: RunDir,
}

impl Drop for Lodend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lodend {
    fn start(dir: &Path) -> Self {
        let prepared = format!(
            "echo 0 > {LIMIT} && ip link set lo up && ip link add eth0 type veth peer name far && \
             ip address add 192.0.2.1/24 dev eth0 && ip link set far up && ip link set eth0 up && exec \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c", &prepared, "sh"]);
        command.arg(env!("CARGO_BIN_EXE_lodend")).args(["--config", "/dev/null", "--node", "n1", "--iface", "eth0"]);
        command.arg("--run-dir").arg(dir.join("run")).arg("--state-dir").arg(dir.join("state"));
        command.arg("--store").arg(format!("sqlite:{}", dir.join("loden.db").display()));
        let log = fs::File::create(dir.join("log")).expect("a log");
        let child = command.stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("unshare");
        Self { child, run_dir: RunDir::new(dir.join("run")) }
    }

    fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Option<T> {
        let (code, text) = agent::get(&self.run_dir.agent_socket(), path, Duration::from_secs(5)).ok()?;
        (code == 200).then(|| serde_json::from_str(&text).expect("it can be read"))
    }

    fn problems(&self) -> Vec<String> {
        let status: Status = self.get("/v1/status").expect("a status");
        status.problems.iter().map(ToString::to_string).collect()
    }

    /// How many instances it has.
    fn instances(&self) -> usize {
        let all = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it lives").flatten();
        all.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:inotify")).count()
    }

    fn allow(&self, instances: u32) {
        let mut command = Command::new("nsenter");
        command.args(["--user", "--preserve-credentials", "--target", &self.child.id().to_string()]);
        let status = command.args(["sh", "-c", &format!("echo {instances} > {LIMIT}")]).status().expect("nsenter");
        assert!(status.success());
    }

    fn addresses(&self) -> usize {
        self.get::<Ipam>("/v1/ipam").expect("answered").addresses.len()
    }
}

fn until(what: &str, dir: &Path, mut is_so: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is_so() {
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(began.elapsed() < Duration::from_secs(20), "{what} did not come to pass:\n{}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
    began.elapsed()
}

async fn put(store: &dyn Store, record: Value) {
    store.put(serde_json::from_value(record).expect("a record"), Expect::Any, None).await.expect("written");
}

fn pool(name: &str, cidr: &str) -> Value {
    json!({ "kind": "pool", "name": name, "cidr": cidr, "blockLen": 24, "backend": { "type": "host-gw" }, "natOutgoing": false })
}

#[tokio::test]
async fn an_agent_without_inotify_follows_everything_says_what_it_lacks_and_gets_over_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let store = loden_store::open(&format!("sqlite:{}", dir.join("loden.db").display())).await.expect("a store");
    let lodend = Lodend::start(dir);
    until("an answer", dir, || lodend.get::<Status>("/v1/status").is_some_and(|status| status.store.up));
    assert_eq!(lodend.instances(), 0);

    put(&*store, pool("one", "10.244.0.0/16")).await;
    let count = || lodend.get::<Status>("/v1/status").expect("a status").blocks.len();
    let took = until("a block", dir, || count() == 1);
    until("it is ready", dir, || lodend.get::<Status>("/v1/status").expect("a status").ready);
    lodend.run_dir.put_attachment(&attachment("one", "early")).expect("put");
    let took_attachment = until("the attachment", dir, || lodend.addresses() == 1);
    let ns = NetNs::open(Path::new(&format!("/proc/{}/ns/net", lodend.child.id()))).expect("its namespace");
    let path = "net/ipv4/ip_forward";
    let forward = || ns.run(|| loden_linux::sysctl::read(path)).expect("entered").expect("read");
    let shut = || ns.run(|| loden_linux::sysctl::write(path, 0)).expect("entered").expect("written");
    assert_eq!(forward(), Some(1));
    shut();
    let took_sysctl = until("the sysctl is put right", dir, || forward() == Some(1));
    let text = format!("without inotify: pool {took:?}, attachment {took_attachment:?}, sysctl {took_sysctl:?}\n");
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).expect("stderr");
    // What else it says is of the attachments' devices, which are not there.
    let deaf = || lodend.problems().into_iter().filter(|problem| problem.contains("inotify")).collect::<Vec<_>>();
    let (mut subjects, problems) = (["attachments: ", "sysctls: ", "listening to the datastore: "].iter(), deaf());
    let says = |subject: &str| {
        problems.iter().any(|it| it.starts_with(subject) && it.contains("fs.inotify.max_user_instances"))
    };
    assert!(problems.len() == 3 && subjects.all(|subject| says(subject)), "{problems:?}");

    lodend.allow(16);
    let took = until("all is listened to", dir, || deaf().is_empty());
    assert_eq!(lodend.instances(), 3);
    // Each of these would take a second if it were looked for.
    let began = Instant::now();
    for n in 0..3 {
        put(&*store, pool(&format!("more{n}"), &format!("10.{n}.0.0/16"))).await;
        until("a block more", dir, || count() == 2 + n);
        lodend.run_dir.put_attachment(&attachment("one", &format!("late{n}"))).expect("put");
        until("an attachment more", dir, || lodend.addresses() == 2 + n);
        shut();
        until("the sysctl is put right at once", dir, || forward() == Some(1));
    }
    let text = format!("with it, after {took:?}: three of each in {:?}\n", began.elapsed());
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).expect("stderr");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
