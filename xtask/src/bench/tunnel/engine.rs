//! The engine as a program of its own, so that its processor time can be told from all else: the benchmark starts one on each host.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use loden_core::kernel::tunnel::{Destination, Peer, Wire};
use loden_core::model::{IfName, PerFamily, Prefix};
use loden_tunnel::peers::{Own, Peers};
use loden_tunnel::worker::{Tunnel, TunnelConfig};

/// This host and the other one.
#[derive(Debug, Args)]
pub struct Options {
    /// The TUN device, which must be there.
    dev: IfName,
    /// The address that it has.
    own: IpAddr,
    /// This host's address outside.
    local: IpAddr,
    /// The UDP port of all.
    port: u16,
    /// The largest packet inside, in bytes.
    mtu: u32,
    /// What lies behind this host.
    block: Prefix,
    /// What lies behind the other one.
    other_block: Prefix,
    /// Its address outside.
    other: IpAddr,
    /// Whether it may be sent runs of any length.
    #[arg(long)]
    bursts: bool,
    /// Queues of the device.
    #[arg(long, default_value_t = 1)]
    queues: usize,
}

/// Runs until standard input ends.
pub fn run(options: &Options) -> Result<()> {
    let per_family = |addr: IpAddr| match addr {
        IpAddr::V4(_) => PerFamily { v4: Some(addr), v6: None },
        IpAddr::V6(_) => PerFamily { v4: None, v6: Some(addr) },
    };
    let peer = Peer {
        node: "other".parse().context("a name")?,
        from: vec![options.other],
        to: Some(Destination { addr: options.other, port: options.port, bursts: options.bursts }),
    };
    let own = Own { addresses: per_family(options.own), blocks: [options.block].into(), mtu: options.mtu };
    let peers = Arc::new(Peers::build(own, &BTreeMap::from([(options.other_block, peer)])));
    let config = TunnelConfig {
        dev: options.dev,
        wire: Wire::Udp { port: options.port },
        local: per_family(options.local),
        queues: options.queues,
    };
    let tunnel = Tunnel::start(&config, &peers, |error| crate::shell::say(&format!("! {error}")))?;
    std::io::stdin().read_to_end(&mut Vec::new()).context("standard input")?;
    crate::shell::say(&format!("· {:?} {:?}", tunnel.abilities(), tunnel.counters()));
    Ok(())
}
