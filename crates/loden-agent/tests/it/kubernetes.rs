//! The agent's side of the store on the double of the Kubernetes API: a node's whole way, without and with pools of loden's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use loden_agent::cluster::{Opener, Opening};
use loden_core::model::Prefix;
use loden_store::Readiness;
use loden_testkit::FakeKernel;
use loden_testkit::kubernetes::{Double, Part, Role};
use serde_json::{Value, json};

use crate::double::Agent;

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

fn flannels(n: u8) -> Value {
    json!({
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:{n:02x}\"}}"),
        "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{n}"),
    })
}

fn opener(double: &Double, more: &str) -> Opener {
    let address = format!("kubernetes:?kubeconfig={}{more}", double.path("agent").display());
    Box::new(move || -> Opening {
        let address = address.clone();
        Box::pin(async move { loden_store::open(&address).await })
    })
}

fn net_conf(dir: &Path) -> PathBuf {
    let path = dir.join("net-conf.json");
    std::fs::write(&path, NET_CONF).expect("written");
    path
}

fn make(double: &Double, name: &str, cidr: Option<&str>, annotations: Value) {
    let spec = cidr.map_or(json!({}), |cidr| json!({"podCIDR": cidr, "podCIDRs": [cidr]}));
    let node = json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec});
    double.cluster().create("nodes", node).expect("made");
}

fn annotate(double: &Double, name: &str, annotations: &Value) {
    let patch = json!({"metadata": {"annotations": annotations}});
    double.cluster().patch("nodes", name, &patch, Part::Status).expect("annotated");
}

fn annotation(double: &Double, name: &str, which: &str) -> Option<String> {
    let node = double.cluster().get("nodes", name).expect("there");
    node["metadata"]["annotations"][which].as_str().map(str::to_owned)
}

fn p(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// Who owns a block in the view.
fn owner(agent: &Agent, cidr: &str) -> Option<String> {
    let view = agent.reconciler.view();
    let names = view.peers().map(|peer| peer.name.clone()).chain([view.local.node.clone()]);
    let pools: Vec<_> = view.pools.values().collect();
    let mut owners =
        names.filter(|name| pools.iter().any(|pool| view.blocks_in(name, pool).any(|block| block.cidr == p(cidr))));
    owners.next().map(|owner| owner.to_string())
}

fn condition(double: &Double) -> Option<Value> {
    let node = double.cluster().get("nodes", "n0").expect("there");
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == "NetworkUnavailable")
}

#[tokio::test]
async fn a_fresh_node_among_flannels_is_served_by_its_pod_cidr() {
    let dir = tempfile::tempdir().expect("a directory");
    let double = Double::start(Role::flannels()).await;
    make(&double, "n0", Some("10.244.0.0/24"), json!({}));
    make(&double, "n1", Some("10.244.1.0/24"), flannels(9));
    let open = opener(&double, &format!("&net_conf={}", net_conf(dir.path()).display()));
    let mut agent = Agent::start_on(dir.path(), open, FakeKernel::new("eth0"), Vec::new());
    agent
        .until("it is a node of flannel's", |agent| {
            let data = annotation(&double, "n0", "flannel.alpha.coreos.com/backend-data");
            data.is_some_and(|data| data.contains("VtepMAC")) && owner(agent, "10.244.0.0/24").as_deref() == Some("n0")
        })
        .await;
    agent.settle().await;
    assert_eq!(annotation(&double, "n0", "flannel.alpha.coreos.com/public-ip").as_deref(), Some("192.0.2.1"));
    assert_eq!(owner(&agent, "10.244.1.0/24").as_deref(), Some("n1"));
    assert!(agent.reconciler.dry_run().expect("readable").is_empty());
    let kernel = agent.reconciler.kernel();
    let leads_there = |object: &str| object.contains("10.244.1.0/24") || object.contains("02:00:00:00:00:09");
    let objects = kernel.objects.iter().filter(|it| leads_there(&format!("{it:?}"))).count();
    assert!(objects >= 3, "a route, an ARP and an FDB entry lead to the flannel peer");
    assert!(agent.problems().is_empty(), "{}", agent.problems());

    // One that joins, and one that leaves.
    make(&double, "n2", Some("10.244.2.0/24"), flannels(12));
    agent.until("it has joined", |agent| owner(agent, "10.244.2.0/24").is_some()).await;
    double.cluster().delete("nodes", "n2", None).expect("removed");
    agent.until("it has left", |agent| owner(agent, "10.244.2.0/24").is_none()).await;

    // A pool that runs short is named; nothing else is claimed, however often the agent looks.
    agent.outward.send_modify(|outward| {
        outward
            .waiting
            .insert("flannel".parse().expect("a name"), loden_agent::cluster::Waiting { batch: 1, count: 3 });
    });
    agent.until("it is named", |agent| agent.problems().contains("--node-cidr-mask-size")).await;
    agent.outward.send_modify(|outward| {
        outward.waiting.clear();
        outward.readiness = Some(Readiness { ready: true, message: "pods are served".to_owned() });
    });
    agent.until("it is said", |_| condition(&double).is_some_and(|it| it["status"] == "False")).await;
    assert_eq!(condition(&double).expect("there")["reason"], "LodenIsUp");
    assert!(double.log().refused.is_empty(), "{:?}", double.log().refused);
}

#[tokio::test]
async fn a_flanneld_is_followed_by_lodend_on_its_own_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let double = Double::start(Role::flannels()).await;
    make(&double, "n0", Some("10.244.0.0/24"), flannels(1));
    make(&double, "n1", Some("10.244.1.0/24"), flannels(9));
    let open = opener(&double, &format!("&net_conf={}", net_conf(dir.path()).display()));
    let mut agent = Agent::start_on(dir.path(), open, FakeKernel::new("eth0"), Vec::new());
    agent
        .until("it speaks for itself", |agent| {
            let record = annotation(&double, "n0", "loden.dev/node").unwrap_or_default();
            record.contains("uid-n0") && agent.health.borrow().up && owner(agent, "10.244.0.0/24").is_some()
        })
        .await;
    agent.settle().await;
    assert!(agent.problems().is_empty(), "{}", agent.problems());
    assert_eq!(annotation(&double, "n0", "flannel.alpha.coreos.com/kube-subnet-manager").as_deref(), Some("true"));
    assert!(double.log().refused.is_empty(), "{:?}", double.log().refused);
}

#[tokio::test]
async fn blocks_of_pools_are_claimed_and_an_outage_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let double = Double::start(Role::shipped("loden")).await;
    make(&double, "n0", None, json!({}));
    let pool =
        json!({"metadata": {"name": "default"}, "spec": {"cidr": "10.244.0.0/16", "backend": {"type": "host-gw"}}});
    double.cluster().create("pools", pool).expect("made");
    let mut agent = Agent::start_on(dir.path(), opener(&double, ""), FakeKernel::new("eth0"), Vec::new());
    let blocks = |double: &Double| double.cluster().list("blocks", None, "").expect("listed").0;
    agent.until("a block", |_| blocks(&double).len() == 1).await;
    agent.settle().await;
    assert_eq!(blocks(&double)[0]["spec"]["ownerUid"], "uid-n0");
    agent
        .until("its status", |_| double.cluster().get("pools", "default").expect("there")["status"]["blocks"] == 1)
        .await;

    let before = agent.reconciler.kernel().clone();
    double.set_down(true);
    for _ in 0..50 {
        agent.turn();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(agent.reconciler.kernel().objects, before.objects);
    assert_eq!(agent.reconciler.kernel().writes, before.writes, "nothing is written while the API is away");
    double.set_down(false);
    make(&double, "n1", None, json!({}));
    let record = json!({"uid": "uid-n1", "underlay": {"v4": "192.0.2.9"}, "receives": [{"type": "host-gw"}]});
    annotate(&double, "n1", &json!({"loden.dev/node": record.to_string()}));
    let block = json!({"metadata": {"name": "10-244-200-0-24"},
        "spec": {"cidr": "10.244.200.0/24", "pool": "default", "owner": "n1", "ownerUid": "uid-n1"}});
    double.cluster().create("blocks", block).expect("made");
    agent.until("the peer", |agent| owner(agent, "10.244.200.0/24").is_some()).await;
    agent.settle().await;
    assert!(agent.problems().is_empty(), "{}", agent.problems());
    assert!(double.log().refused.is_empty(), "{:?}", double.log().refused);
}
