//! In flanneld's place: whose blocks are whose, and the file that others read.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use loden_agent::subnet_file::SubnetFile;
use loden_core::cni::{NodeBlock, NodeFile};
use loden_core::model::{Block, Entry, Pool, Prefix, Record};
use loden_core::view::View;
use loden_store::Store;
use loden_testkit::FakeKernel;

use crate::cluster::{listing, reconciler, vxlan};
use crate::double::{Agent, Double};

/// A cluster of flannel's: nodes by their addresses, `n0` at 192.0.2.1 not yet among them.
fn of_flannel(peers: u8) -> Vec<Entry> {
    let mut all = listing(peers, &vxlan());
    for entry in &mut all {
        let renamed = |name: &str| format!("192.0.2.{}", name[1..].parse::<u8>().expect("a number") + 1);
        match &mut entry.record {
            Record::Node(node) => {
                node.name = renamed(node.name.as_str()).parse().expect("name");
                node.uid = "flannel".parse().expect("uid");
                node.sends = BTreeMap::new();
            }
            Record::Block(block) => {
                block.owner = renamed(block.owner.as_str()).parse().expect("name");
                block.owner_uid = "flannel".parse().expect("uid");
            }
            _ => {}
        }
    }
    all
}

async fn blocks(store: &Double) -> Vec<String> {
    let all = store.memory.list().await.expect("listed").entries.into_iter();
    let all = all.filter_map(|entry| match entry.record {
        Record::Block(Block { cidr, owner, owner_uid, .. }) => Some(format!("{cidr} {owner} {owner_uid}")),
        _ => None,
    });
    all.collect()
}

#[tokio::test]
async fn the_block_of_the_flanneld_that_was_here_is_taken_over_and_no_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Double::with(of_flannel(2)).await;
    let mut agent = Agent::start(dir.path(), &store, FakeKernel::new("eth0"));
    // Until the kernel's side has said where this host is nothing is claimed: its block would be taken for another's.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(agent.health.borrow().leased);
    let before = blocks(&store).await;
    assert!(before.len() == 3 && before.iter().all(|block| block.ends_with("flannel")), "{before:?}");
    agent.settle().await;
    assert_eq!(
        blocks(&store).await,
        ["10.244.0.0/24 n0 uid-n0", "10.244.1.0/24 192.0.2.2 flannel", "10.244.2.0/24 192.0.2.3 flannel"]
    );
    let event = "event block 10.244.0.0/24: was that of the flanneld at 192.0.2.1, whose place this agent has taken";
    assert!(agent.heard.iter().any(|heard| heard == event), "{:#?}", agent.heard);
}

#[tokio::test]
async fn the_block_that_subnet_env_names_is_asked_for_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("subnet.env");
    std::fs::write(&file, ENV).expect("written");
    let (preferred, fault) = SubnetFile::new(file.to_str().expect("text")).former();
    assert_eq!((preferred.len(), fault), (1, None));
    let mut records = listing(2, &vxlan());
    records.retain(|entry| !matches!(&entry.record, Record::Block(block) if block.owner.as_str() == "n0"));
    let store = Double::with(records).await;
    let mut agent = Agent::start_with(dir.path(), &store, FakeKernel::new("eth0"), preferred);
    agent.settle().await;
    assert!(blocks(&store).await.contains(&"10.244.77.0/24 n0 uid-n0".to_owned()), "{:?}", blocks(&store).await);
}

const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.77.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

#[test]
fn subnet_env_says_all_or_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    // The directory is made, too.
    let path = dir.path().join("flannel/subnet.env");
    let file = SubnetFile::new(path.to_str().expect("text"));
    assert_eq!(file.former(), (Vec::new(), None));

    let mut view = View::new(reconciler(FakeKernel::new("eth0")).view().local.clone());
    for entry in listing(0, &vxlan()) {
        view.put(&entry);
    }
    let block = |cidr: &str, pool: &str| NodeBlock {
        cidr: cidr.parse().expect("cidr"),
        gateway: cidr.parse::<Prefix>().expect("cidr").nth(1).expect("room"),
        pool: pool.parse().expect("name"),
        segment: None,
        bridge: None,
        until_ms: None,
    };
    let mut node = NodeFile {
        node: "n0".parse().expect("name"),
        bridge: "cni0".parse().expect("name"),
        mtu_pod: 1450,
        blocks: vec![block("10.244.77.0/24", "default"), block("10.244.9.0/24", "default")],
    };
    let read = || std::fs::read_to_string(&path).expect("written");
    file.write(&view, &node).expect("written");
    assert_eq!(read(), ENV);
    let inode = || std::fs::metadata(&path).expect("there");
    assert_eq!(inode().mode() & 0o777, 0o644);
    let before = inode().ino();
    file.write(&view, &node).expect("nothing is to be done");
    assert_eq!(inode().ino(), before, "what is there is not written again");

    // A further block, though it be a lower one, does not move those who read the file.
    node.blocks.reverse();
    file.write(&view, &node).expect("nothing is to be done");
    assert_eq!(read(), ENV);
    let lost = node.blocks.pop();
    file.write(&view, &node).expect("written");
    assert!(read().contains("FLANNEL_SUBNET=10.244.9.1/24\n"), "{}", read());
    node.blocks = vec![lost.expect("a block")];
    file.write(&view, &node).expect("written");

    // A second family: the file stays as it was until both are there.
    let of_v4 = listing(0, &vxlan());
    let Record::Pool(pool) = &of_v4[0].record else { panic!("a pool") };
    let six = Pool {
        name: "six".parse().expect("name"),
        cidr: "fd00:244::/48".parse().expect("cidr"),
        block_len: 64,
        ..pool.clone()
    };
    view.put(&Entry { record: Record::Pool(six), created: 2, revision: 2 });
    let problem = file.write(&view, &node).expect_err("one family lacks");
    assert_eq!(problem.to_string(), "subnet.env: it is not written: this node has no IPv6 block yet");
    assert_eq!(read(), ENV);
    node.blocks.push(block("fd00:244:0:7::/64", "six"));
    let mut local = view.local.clone();
    local.rules.masquerade = Some(false);
    view.set_local(local);
    file.write(&view, &node).expect("written");
    assert_eq!(
        read(),
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.77.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n\
         FLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(
        file.former().0.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.244.77.0/24", "fd00:244:0:7::/64"]
    );

    std::fs::write(&path, "FLANNEL_SUBNET=x\n").expect("written");
    let (blocks, fault) = file.former();
    let fault = fault.expect("it says what is wrong").to_string();
    assert!(blocks.is_empty() && fault.contains("FLANNEL_SUBNET=x is no IPv4 network"), "{fault}");
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("in its place");
    file.write(&view, &node).expect_err("it cannot be written");
}
