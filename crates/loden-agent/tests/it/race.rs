//! Two hundred agents start at once in a cluster of 256 blocks, of which flannel has no use for the first: each gets one, and none gets another's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loden_agent::cluster::{Cluster, ClusterHealth, Identity, Opening, Outward};
use loden_core::model::{Block, PerFamily, Record};
use loden_linux::run_dir::RunDir;
use loden_store::memory::Memory;
use loden_store::{Expect, Store, StoreError};
use loden_testkit::user;
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

const AGENTS: u8 = 200;

/// Opens a store as an agent does: each for itself.
type Open = Arc<dyn Fn() -> Opening + Send + Sync>;

/// The ends of an agent's that the kernel's side would hold.
type Agent = (JoinHandle<()>, watch::Sender<Outward>, watch::Receiver<ClusterHealth>);

fn start(n: u8, dir: &Path, open: &Open) -> Agent {
    let identity = Identity {
        preferred: Vec::new(),
        announces: false,
        node: format!("n{n}").parse().expect("name"),
        uid: format!("uid-n{n}").parse().expect("uid"),
        instance: "now".to_owned(),
        labels: BTreeMap::new(),
        state_dir: dir.join(format!("{n}")),
        run_dir: RunDir::new(dir.join(format!("{n}/run"))),
    };
    loden_linux::run_dir::make_dir(&identity.state_dir).expect("a directory");
    let underlay = PerFamily { v4: Some(IpAddr::from([192, 0, 2, n])), v6: None };
    let (outward, seen) = watch::channel(Outward { underlay: Some(underlay), ..Outward::default() });
    let (told, health) = watch::channel(ClusterHealth::default());
    let open = Arc::clone(open);
    let agent = Cluster::new(Box::new(move || open()), identity, seen, told, Box::new(|_| {}));
    (tokio::spawn(agent.run()), outward, health)
}

async fn race(name: &str, open: Open) {
    race_in(name, &open, &open).await;
}

/// The same where the operator, who makes the pool, opens the store otherwise than the agents do.
async fn race_in(name: &str, operators: &Open, open: &Open) {
    // Two at a time are too much for a small machine: what then answers late is not the store.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir().expect("a directory");
    let store = operators().await.expect("opens");
    // Named as flannel's layout names it.
    let pool = json!({ "kind": "pool", "name": "flannel", "cidr": "10.5.0.0/16", "blockLen": 24, "firstBlock": "10.5.1.0/24",
        "lastBlock": "10.5.255.0/24", "backend": { "type": "vxlan", "vni": 1, "port": 8472 }, "natOutgoing": false });
    store.put(serde_json::from_value(pool).expect("a pool"), Expect::Any, None).await.expect("written");
    let began = Instant::now();
    let agents: Vec<Agent> = (0..AGENTS).map(|n| start(n, dir.path(), open)).collect();
    let owners = loop {
        let owners = owners_at_last(&*store).await;
        if owners.len() == usize::from(AGENTS) {
            break owners;
        }
        let errors: Vec<_> = agents.iter().filter_map(|(_, _, health)| health.borrow().error.clone()).collect();
        assert!(began.elapsed() < Duration::from_secs(240), "{} have a block: {errors:?}", owners.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let text = format!("{name}: {AGENTS} agents have a block each after {:?}\n", began.elapsed());
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).expect("stderr");
    // A block is one record, so it has one owner; and nobody has taken two.
    assert!(owners.values().all(|blocks| blocks.len() == 1), "{owners:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(owners_at_last(&*store).await, owners, "they stay");
    agents.iter().for_each(|(task, ..)| task.abort());
}

/// Who has which blocks. Whoever shares a small machine with two hundred agents may be told that an answer came too late, and asks again.
async fn owners_at_last(store: &dyn Store) -> BTreeMap<String, Vec<String>> {
    let mut tries = 0;
    loop {
        match owners(store).await {
            Ok(owners) => return owners,
            Err(StoreError::Unavailable { .. }) if tries < 10 => tries += 1,
            Err(error) => panic!("the blocks cannot be listed: {error}"),
        }
    }
}

async fn owners(store: &dyn Store) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in store.list().await?.entries {
        if let Record::Block(Block { cidr, owner, .. }) = entry.record {
            owners.entry(owner.to_string()).or_default().push(cidr.to_string());
        }
    }
    Ok(owners)
}

#[tokio::test]
async fn in_memory() {
    let memory = Memory::new();
    let open = move || -> Opening {
        let memory = memory.clone();
        Box::pin(async move { Ok(Arc::new(memory) as Arc<dyn Store>) })
    };
    race("memory", Arc::new(open)).await;
}

/// By an address, as in the configuration.
fn at(address: String) -> Open {
    Arc::new(move || -> Opening {
        let address = address.clone();
        Box::pin(async move { loden_store::open(&address).await })
    })
}

/// All of them are one host's, and of one user, whom the kernel gives 128 inotify instances: the others look every second.
#[test]
fn in_sqlite() {
    user::as_somebody(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let race = race("SQLite", at(format!("sqlite:{}", dir.path().join("loden.db").display())));
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(race);
    });
}

/// What something gives in a runtime of its own, which goes on for as long as the process does: a server beside its clients.
#[cfg(feature = "kubernetes")]
fn apart<T: Send + 'static, F: Future<Output = T>>(make: impl FnOnce() -> F + Send + 'static) -> T {
    let (sender, made) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            sender.send(make().await).expect("it is waited for");
            std::future::pending::<()>().await;
        });
    });
    made.recv().expect("it is made")
}

/// With pools and blocks of loden's own, by the roles that are shipped.
#[cfg(feature = "kubernetes")]
#[tokio::test]
async fn in_kubernetes() {
    use loden_testkit::kubernetes::{Double, Role};
    let double = apart(|| Double::start(Role::shipped("loden")));
    for n in 0..AGENTS {
        double.cluster().create("nodes", json!({ "metadata": { "name": format!("n{n}") } })).expect("made");
    }
    let by = |who: &str| at(format!("kubernetes:?kubeconfig={}", double.path(who).display()));
    race_in("Kubernetes", &by("admin"), &by("agent")).await;
    assert!(double.log().refused.is_empty(), "{:?}", double.log().refused);
}

#[cfg(feature = "etcd")]
mod etcd {
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};

    use super::{Duration, at, race};

    /// etcd on loopback; it ends with the test.
    struct Etcd(Child, u16, #[expect(dead_code, reason = "it is held")] tempfile::TempDir);

    impl Etcd {
        async fn start() -> Self {
            let free =
                || TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
            let (port, peer, dir) = (free(), free(), tempfile::tempdir().expect("a directory"));
            let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
            let mut command = Command::new("etcd");
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args([
                "--initial-cluster",
                &format!("default={peer}"),
                "--logger",
                "zap",
                "--log-outputs",
                "/dev/null",
            ]);
            command.arg("--data-dir").arg(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
            let etcd = Self(command.spawn().expect("etcd"), port, dir);
            for _ in 0..1000 {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return etcd;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("etcd does not listen");
        }
    }

    impl Drop for Etcd {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test]
    async fn in_etcd() {
        let etcd = Etcd::start().await;
        race("etcd", at(format!("etcd:http://127.0.0.1:{}", etcd.1))).await;
    }

    #[tokio::test]
    async fn in_flannels_layout() {
        let etcd = Etcd::start().await;
        race("flannel's layout", at(format!("flannel:http://127.0.0.1:{}", etcd.1))).await;
    }
}
