//! Two hundred agents start at once in a cluster that has 255 blocks: each gets one, and none gets another's.

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
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const AGENTS: u8 = 200;
/// SQLite's watchers are one host's, and the kernel gives a user 128 of what they listen by (`max_user_instances` of inotify).
const AGENTS_OF_A_HOST: u8 = 100;

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

async fn race(name: &str, agents: u8, open: Open) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open().await.expect("opens");
    // flannel has no use for the first block, and names its pool so.
    let pool = json!({ "kind": "pool", "name": "flannel", "cidr": "10.5.0.0/16", "blockLen": 24, "firstBlock": "10.5.1.0/24",
        "lastBlock": "10.5.255.0/24", "backend": { "type": "vxlan", "vni": 1, "port": 8472 }, "natOutgoing": false });
    store.put(serde_json::from_value(pool).expect("a pool"), Expect::Any, None).await.expect("written");
    let began = Instant::now();
    let count = agents;
    let agents: Vec<Agent> = (0..count).map(|n| start(n, dir.path(), &open)).collect();
    let owners = loop {
        let owners = owners(&*store).await.expect("listed");
        if owners.len() == usize::from(count) {
            break owners;
        }
        let errors: Vec<_> = agents.iter().filter_map(|(_, _, health)| health.borrow().error.clone()).collect();
        assert!(began.elapsed() < Duration::from_secs(240), "{} have a block: {errors:?}", owners.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let text = format!("{name}: {count} agents have a block each after {:?}\n", began.elapsed());
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).expect("stderr");
    // A block is one record, so it has one owner; and nobody has taken two.
    assert!(owners.values().all(|blocks| blocks.len() == 1), "{owners:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(self::owners(&*store).await.expect("listed"), owners, "they stay");
    agents.iter().for_each(|(task, ..)| task.abort());
}

/// Who has which blocks.
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
    race("memory", AGENTS, Arc::new(open)).await;
}

/// By an address, as in the configuration.
fn at(address: String) -> Open {
    Arc::new(move || -> Opening {
        let address = address.clone();
        Box::pin(async move { loden_store::open(&address).await })
    })
}

#[tokio::test]
async fn in_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    race("SQLite", AGENTS_OF_A_HOST, at(format!("sqlite:{}", dir.path().join("loden.db").display()))).await;
}

#[cfg(feature = "etcd")]
mod etcd {
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};

    use super::{AGENTS, Duration, at, race};

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
        race("etcd", AGENTS, at(format!("etcd:http://127.0.0.1:{}", etcd.1))).await;
    }

    #[tokio::test]
    async fn in_flannels_layout() {
        let etcd = Etcd::start().await;
        race("flannel's layout", AGENTS, at(format!("flannel:http://127.0.0.1:{}", etcd.1))).await;
    }
}
