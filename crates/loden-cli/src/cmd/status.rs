//! `loden status`: what a tired operator has to know of this node.

use std::path::Path;

use loden_core::api::{Carried, ChecksumStatus, PeerStatus, Status, TunnelPeerStatus, TunnelStatus, ViewOrigin};

use crate::args::Output;
use crate::error::CliError;
use crate::render;

/// How many peers are listed that are well: in a large cluster those that are not must not be lost among them.
const WELL_PEERS: usize = 20;

/// Exit code 1 when the node is not ready.
pub fn run(run_dir: &Path, output: Output) -> Result<u8, CliError> {
    let status: Status = render::ask(run_dir, "/v1/status")?;
    match output {
        Output::Json => render::json(&status)?,
        Output::Text => render::text(&text(&status))?,
    }
    Ok(u8::from(!status.ready))
}

fn text(status: &Status) -> String {
    let underlay = status.underlay.as_ref().map_or_else(
        || "no external interface".to_owned(),
        |u| {
            let addresses: Vec<_> = u.addresses.iter().map(|(_, addr)| addr.to_string()).collect();
            format!("{} {} mtu {}", u.ifname, addresses.join(" "), u.mtu)
        },
    );
    let mut text = format!(
        "node {}  {}  lodend {}  up {} s\nunderlay {underlay}{}\nstore {} {}{}\nkernel {} objects, {} pending; writes {}, repairs {}; nft table {}\n",
        status.node,
        render::health(status.ready, "not ready"),
        status.version,
        status.uptime_ms / 1000,
        status.mtu_pod.map_or_else(String::new, |mtu| format!("; pods mtu {mtu}")),
        status.store.url,
        render::health(status.store.up, "away"),
        if status.store.view == Some(ViewOrigin::Disk) { "; on the view on disk" } else { "" },
        status.kernel.wanted,
        status.kernel.pending,
        status.kernel.writes.values().sum::<u64>(),
        status.kernel.repairs.values().sum::<u64>(),
        status.kernel.nft_ownership,
    );
    text += "\n";
    text += &render::table(
        &["POOL", "CIDR", "BACKEND", "PEERS", "HEALTH"],
        status.pools.iter().map(|pool| {
            let lingering = if pool.lingering.is_empty() {
                String::new()
            } else {
                format!(" (still serving {})", pool.lingering.join(", "))
            };
            vec![
                pool.name.to_string(),
                pool.cidr.to_string(),
                pool.backend.clone() + &lingering,
                format!("{}/{}", pool.peers_reached, pool.peers),
                render::health(pool.healthy, "see problems"),
            ]
        }),
    );
    text += "\n";
    text += &render::table(
        &["BLOCK", "POOL", "USED"],
        status
            .blocks
            .iter()
            .map(|b| vec![b.cidr.to_string(), b.pool.to_string(), format!("{}/{}", b.used, b.capacity)]),
    );
    if let Some(misses) = &status.misses {
        text += &format!(
            "\nanswers {} (at most {} a device), {} questions, {} a second; {} without an answer, {} held back; {} packets for unknown addresses refused\n",
            misses.flows,
            misses.most_flows,
            misses.asked,
            misses.per_second,
            misses.unanswered,
            misses.held_back,
            misses.refused,
        );
    }
    text += "\n";
    text += &peers(&status.peers);
    if !status.tunnels.is_empty() {
        text += "\n";
        text += &tunnels(&status.tunnels);
    }
    if !status.checksums.is_empty() {
        text += "\n";
        let row = |checksums: &ChecksumStatus| vec![checksums.device.to_string(), checksums.text.clone()];
        text += &render::table(&["DEVICE", "CHECKSUMS INSIDE"], status.checksums.iter().map(row));
    }
    if !status.problems.is_empty() {
        text += "\nproblems:\n";
        status.problems.iter().for_each(|problem| text += &format!("  {problem}\n"));
    }
    text
}

fn tunnels(tunnels: &[TunnelStatus]) -> String {
    let row = |tunnel: &TunnelStatus| {
        let sum = |of: fn(&TunnelPeerStatus) -> Carried| {
            let packets: u64 = tunnel.peers.iter().map(|peer| of(peer).packets).sum();
            let bytes: u64 = tunnel.peers.iter().map(|peer| of(peer).bytes).sum();
            format!("{packets} packets, {bytes} bytes")
        };
        let mut dropped = tunnel.dropped.clone();
        for (cause, count) in tunnel.peers.iter().flat_map(|peer| &peer.dropped) {
            *dropped.entry(cause.clone()).or_default() += count;
        }
        let dropped: Vec<_> = dropped.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
        vec![
            tunnel.device.to_string(),
            tunnel.wire.clone(),
            tunnel.by.clone(),
            sum(|peer| peer.sent),
            sum(|peer| peer.received),
            if dropped.is_empty() { "none".to_owned() } else { dropped.join(", ") },
        ]
    };
    let mut text =
        render::table(&["TUNNEL", "WIRE", "CARRIED BY", "SENT", "TAKEN IN", "DROPPED"], tunnels.iter().map(row));
    for (tunnel, lack) in tunnels.iter().flat_map(|tunnel| tunnel.lacks.iter().map(move |lack| (tunnel, lack))) {
        text += &format!("  {}: {lack}\n", tunnel.device);
    }
    text
}

fn peers(peers: &[PeerStatus]) -> String {
    let is_well = |peer: &&PeerStatus| peer.missing == 0 && peer.problems.is_empty() && peer.alive;
    let (well, ill): (Vec<&PeerStatus>, Vec<&PeerStatus>) = peers.iter().partition(is_well);
    let row = |peer: &&PeerStatus| {
        let join = |list: Vec<String>| list.join(" ");
        vec![
            peer.node.to_string(),
            join(peer.addresses.iter().map(ToString::to_string).collect()),
            join(peer.blocks.iter().map(ToString::to_string).collect()),
            if peer.alive { "alive".to_owned() } else { "silent".to_owned() },
            match (peer.missing, peer.problems.first()) {
                (_, Some(problem)) => problem.clone(),
                (0, None) => render::health(true, ""),
                (missing, None) => format!("{missing} of {} objects are missing", peer.objects),
            },
        ]
    };
    let hidden = well.len().saturating_sub(WELL_PEERS);
    let mut text = render::table(
        &["PEER", "ADDRESSES", "BLOCKS", "AGENT", "REACHED"],
        ill.iter().chain(well.iter().take(WELL_PEERS)).map(row),
    );
    if hidden > 0 {
        text += &format!("… and {hidden} more that are well (`-o json` has all)\n");
    }
    text
}
