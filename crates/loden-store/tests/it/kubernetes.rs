//! The store in Kubernetes: a suite that runs against the double in every run, and against a real API server when `LODEN_KUBERNETES`
//! names an administrator's kubeconfig and, where the role is to be tested as well, `LODEN_KUBERNETES_AGENT` that of the user
//! `loden-suite`; and what only a double can do.

mod bytes;
mod claims;
mod faults;
mod pod_cidrs;
mod schema;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use loden_core::model::{Entry, Key, Node, NodeName, Prefix, Record};
use loden_store::kubernetes::Kubernetes;
use loden_store::{Change, Listing, Store, Watch};
use loden_testkit::kubernetes::{Double, Role, objects};
use serde_json::{Value, json};

/// flannel's net-conf.json of these tests. The addresses are for documentation and for tests, so a real cluster has others.
const NET_CONF: &str = r#"{"Network": "198.18.0.0/16", "EnableIPv6": true, "IPv6Network": "2001:db8:f000::/48",
    "Backend": {"Type": "vxlan"}}"#;

/// A cluster to test with.
struct Bench {
    /// The double, unless it is a real one.
    double: Option<Double>,
    kubeconfig: PathBuf,
    net_conf: PathBuf,
    admin: kube::Client,
    _dir: tempfile::TempDir,
    #[expect(dead_code, reason = "it is held")]
    turn: Option<tokio::sync::MutexGuard<'static, ()>>,
}

/// A real cluster is one test's at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Bench {
    async fn new(role: Role) -> Self {
        let Some(admin) = std::env::var_os("LODEN_KUBERNETES") else {
            return Self::of(Double::start(role).await).await;
        };
        let agent = std::env::var_os("LODEN_KUBERNETES_AGENT").unwrap_or_else(|| admin.clone());
        let turn = TURN.lock().await;
        let bench = Self { turn: Some(turn), ..Self::made(None, agent.into(), admin.into()).await };
        bench.install().await;
        bench.sweep().await;
        bench
    }

    async fn of(double: Double) -> Self {
        let (agent, admin) = (double.path("agent"), double.path("admin"));
        Self::made(Some(double), agent, admin).await
    }

    async fn made(double: Option<Double>, kubeconfig: PathBuf, admin: PathBuf) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let net_conf = dir.path().join("net-conf.json");
        std::fs::write(&net_conf, NET_CONF).expect("written");
        let config = kube::config::Kubeconfig::read_from(admin).expect("a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("a configuration");
        let admin = kube::Client::try_from(config).expect("a client");
        Self { double, kubeconfig, net_conf, admin, _dir: dir, turn: None }
    }

    /// Applies what loden needs to a real cluster as an operator does, and gives the agent's account its role.
    async fn install(&self) {
        let is_ready = || async {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            self.admin.request_text(request).await.is_ok()
        };
        while !is_ready().await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let shipped = ["deploy/crds.yaml", "deploy/rbac.yaml"].into_iter().flat_map(objects);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "loden-suite"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "loden"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "loden-suite"}],
        });
        for object in shipped.chain([binding]) {
            let object: DynamicObject = serde_json::from_value(object).expect("an object");
            let (name, types) = (object.metadata.name.clone().expect("a name"), object.types.clone().expect("a kind"));
            let gvk = kube::core::GroupVersionKind::try_from(&types).expect("a kind");
            let resource = ApiResource::from_gvk(&gvk);
            let api: Api<DynamicObject> = match &object.metadata.namespace {
                Some(namespace) => Api::namespaced_with(self.admin.clone(), namespace, &resource),
                None => Api::all_with(self.admin.clone(), &resource),
            };
            let how = PatchParams::apply("loden-suite").force();
            api.patch(&name, &how, &Patch::Apply(&object)).await.expect("applied");
        }
        // A resource is served a moment after its definition is there.
        while self.api("Block").list(&Default::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Takes away what an earlier run has left in a real cluster.
    async fn sweep(&self) {
        for kind in ["Node", "Pool", "Block"] {
            let all = self.api(kind).list(&Default::default()).await.expect("lists");
            for object in all.items {
                let name = object.metadata.name.expect("a name");
                if ["suite-", "198-18-", "2001-db8-f000-"].iter().any(|ours| name.starts_with(ours)) {
                    self.api(kind).delete(&name, &DeleteParams::default()).await.expect("removed");
                }
            }
        }
    }

    fn double(&self) -> &Double {
        self.double.as_ref().expect("a test of the double alone")
    }

    /// A handle as an agent has it, on the nodes' podCIDRs.
    async fn on_pod_cidrs(&self) -> Kubernetes {
        self.open(&format!("&net_conf={}", self.net_conf.display())).await
    }

    /// A handle as an agent has it, on loden's own pools.
    async fn on_pools(&self) -> Kubernetes {
        self.open("").await
    }

    async fn open(&self, more: &str) -> Kubernetes {
        let address = format!("kubernetes:?kubeconfig={}{more}", self.kubeconfig.display());
        Kubernetes::open(&address_of(&address)).await.expect("opens")
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let (group, version) = if kind == "Node" { ("", "v1") } else { ("loden.dev", "v1alpha1") };
        let gvk = kube::core::GroupVersionKind::gvk(group, version, kind);
        Api::all_with(self.admin.clone(), &ApiResource::from_gvk(&gvk))
    }

    /// Makes a Node as a kubelet and a controller manager do.
    async fn node(&self, name: &str, cidrs: &[&str]) -> DynamicObject {
        // The age of objects counts, and Kubernetes keeps it in seconds.
        if self.double.is_none() {
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let spec = match cidrs.first() {
            Some(first) => json!({"podCIDR": first, "podCIDRs": cidrs}),
            None => json!({}),
        };
        self.make("Node", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec})).await
    }

    async fn make(&self, kind: &str, object: Value) -> DynamicObject {
        let object = serde_json::from_value(object).expect("an object");
        self.api(kind).create(&PostParams::default(), &object).await.expect("made")
    }

    async fn annotate(&self, name: &str, annotations: Value) -> DynamicObject {
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        self.api("Node").patch(name, &PatchParams::default(), &patch).await.expect("annotated")
    }

    /// What a kubelet does every few minutes and with each change of its pods.
    async fn beat(&self, name: &str, n: u32) {
        let patch = Patch::Merge(json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": n}}}}));
        self.api("Node").patch_status(name, &PatchParams::default(), &patch).await.expect("a beat");
    }

    async fn remove(&self, kind: &str, name: &str) {
        self.api(kind).delete(name, &DeleteParams::default()).await.expect("removed");
    }

    async fn annotations(&self, name: &str) -> BTreeMap<String, String> {
        self.api("Node").get(name).await.expect("there").metadata.annotations.unwrap_or_default()
    }

    /// Nothing was asked for that the role does not allow.
    fn asked_for_nothing_else(&self) {
        if let Some(double) = &self.double {
            assert!(double.log().refused.is_empty(), "not in the role: {:?}", double.log().refused);
        }
    }
}

fn address_of(text: &str) -> loden_core::config::store::KubernetesAddress {
    match text.parse() {
        Ok(loden_core::config::store::StoreAddress::Kubernetes(address)) => address,
        other => panic!("{text}: {other:?}"),
    }
}

fn node_record(name: &str, uid: &str, mac: u8) -> Node {
    let value = json!({
        "name": name, "uid": uid, "underlay": {"v4": format!("192.0.2.{mac}")}, "labels": {"zone": "a"},
        "receives": [{"type": "vxlan", "vni": 1, "underlay": "v4", "mac": format!("02:00:00:00:00:{mac:02x}"), "port": 8472}],
        "sends": {"flannel": [{"type": "vxlan", "vni": 1, "port": 8472}]}, "fromTheFuture": {"x": [1, 2]},
    });
    serde_json::from_value(value).expect("a node")
}

/// The annotations of a flanneld.
fn flannels(n: u8) -> Value {
    json!({
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:{n:02x}\"}}"),
        "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{n}"),
    })
}

fn node_key(name: &str) -> Key {
    Key::Node(name.parse().expect("a name"))
}

fn block_key(cidr: &str) -> Key {
    Key::Block(cidr.parse().expect("a prefix"))
}

fn find(listing: &Listing, key: &Key) -> Option<Entry> {
    listing.entries.iter().find(|entry| entry.record.key() == *key).cloned()
}

fn owner(entry: Option<Entry>) -> Option<(String, String)> {
    match entry?.record {
        Record::Block(block) => Some((block.owner.to_string(), block.owner_uid.to_string())),
        other => panic!("a block: {other:?}"),
    }
}

/// What a watcher makes of a listing and the changes behind it.
struct Follower {
    entries: BTreeMap<Key, Entry>,
    flaws: BTreeMap<String, String>,
    watch: Watch,
    changes: Vec<Change>,
}

impl Follower {
    async fn new(store: &Kubernetes) -> Self {
        let listing = store.list().await.expect("lists");
        let watch = store.watch(listing.revision).await.expect("watches");
        let entries = listing.entries.into_iter().map(|entry| (entry.record.key(), entry)).collect();
        Self { entries, flaws: listing.flaws, watch, changes: Vec::new() }
    }

    /// Follows until something is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            let change = tokio::time::timeout(Duration::from_secs(20), self.watch.next()).await;
            let change =
                change.unwrap_or_else(|_| panic!("in time: {what}; {:#?} {:#?}", self.entries.keys(), self.flaws));
            self.take_in(change.unwrap_or_else(|error| panic!("{what}: {error}")));
        }
    }

    fn take_in(&mut self, change: Change) {
        match change.clone() {
            Change::Put(entry) => drop(self.entries.insert(entry.record.key(), entry)),
            Change::Delete { key, .. } => drop(self.entries.remove(&key)),
            Change::Flaw { place, cause: Some(cause), .. } => drop(self.flaws.insert(place, cause)),
            Change::Flaw { place, cause: None, .. } => drop(self.flaws.remove(&place)),
        }
        self.changes.push(change);
    }

    fn node(&self, name: &str) -> Option<&Node> {
        match &self.entries.get(&node_key(name))?.record {
            Record::Node(node) => Some(node),
            _ => None,
        }
    }

    fn owner(&self, cidr: &str) -> Option<(String, String)> {
        owner(self.entries.get(&block_key(cidr)).cloned())
    }

    /// The records and flaws of a cluster in which others live, too.
    fn picture(&self) -> (BTreeMap<Key, Record>, BTreeMap<String, String>) {
        (self.entries.iter().map(|(key, entry)| (key.clone(), entry.record.clone())).collect(), self.flaws.clone())
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn shared(store: Kubernetes) -> Arc<dyn Store> {
    Arc::new(store)
}
