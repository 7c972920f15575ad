//! The ledger alone, without the kernel's part: addresses of a block and of an IPv6 subnet for one attachment after the other.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use loden_core::attach::Draft;
use loden_core::cni::{NodeBlock, NodeFile};
use loden_core::ipam::{Demand, Offer, Range, Supply};
use loden_core::model::{Attach, AttachmentKey, Bandwidth, Mac, Prefix, Tuning};
use loden_linux::ledger::Ledger;
use loden_linux::run_dir::{RunDir, write_json};

/// As many as a block of 256 addresses has for pods, and how often it is filled and emptied.
const PODS: usize = 250;
const ROUNDS: usize = 8;

/// Reservations of an address of each family a second, each with its attachment written down twice, as ADD does.
pub fn rate() -> Result<f64> {
    let dir = Path::new("/dev/shm").join(format!("loden-bench-alloc-{}", std::process::id()));
    let measured = write_node(&RunDir::new(&dir)).and_then(|()| measure(&Ledger::new(RunDir::new(&dir))));
    std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    measured
}

const BLOCKS: [&str; 2] = ["10.1.0.0/24", "fd01::/64"];

/// What the agent tells the plugin: an ADD takes addresses of no other blocks.
fn write_node(run_dir: &RunDir) -> Result<()> {
    let block = |cidr: &str| -> Result<NodeBlock> {
        let cidr: Prefix = cidr.parse()?;
        let gateway = cidr.nth(1).context("a block of one address")?;
        Ok(NodeBlock { cidr, gateway, pool: "bench".parse()?, segment: None, bridge: None, until_ms: None })
    };
    let blocks = BLOCKS.into_iter().map(block).collect::<Result<_>>()?;
    let node = NodeFile { node: "bench".parse()?, bridge: "cni0".parse()?, mtu_pod: 1500, blocks };
    run_dir.make()?;
    Ok(write_json(&run_dir.node_file(), &node)?)
}

fn measure(ledger: &Ledger) -> Result<f64> {
    let offer = |block: &str| -> Result<Vec<Offer>> {
        let range = Range::of_block(block.parse()?)?;
        Ok(vec![Offer { supply: Supply { network: None, range }, gateway: None, segment: None }])
    };
    let demand = Demand { choices: BLOCKS.into_iter().map(offer).collect::<Result<_>>()?, ..Demand::default() };
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        let drafts: Vec<Draft> = (0..PODS).map(|n| draft(n, &demand)).collect::<Result<_>>()?;
        let began = Instant::now();
        for draft in &drafts {
            ledger.complete(&mut ledger.reserve(draft, 0)?)?;
        }
        spent += began.elapsed();
        for draft in &drafts {
            ledger.release(&draft.key)?;
        }
    }
    Ok((PODS * ROUNDS) as f64 / spent.as_secs_f64())
}

fn draft(n: usize, demand: &Demand) -> Result<Draft> {
    let key = AttachmentKey { network: "bench".to_owned(), container: format!("pod{n}"), ifname: "eth0".parse()? };
    Ok(Draft {
        mac: Mac::derived(&[&key.container]),
        key,
        attach: Attach::Foreign { host_device: None },
        demand: demand.clone(),
        delegates: Vec::new(),
        routes: Vec::new(),
        is_default: false,
        is_leased: false,
        mtu: 1500,
        mtu_is_asked: true,
        is_down: false,
        ports: Vec::new(),
        masquerade: false,
        bandwidth: Bandwidth::default(),
        tuning: Tuning::default(),
        netns: String::new(),
        pod: None,
    })
}
