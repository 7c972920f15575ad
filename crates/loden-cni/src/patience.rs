//! Waiting for a further block: a pod that finds no free address asks the agent for one, which answers when there is.
//!
//! The agent's answer is waited for and not a change of `node.json`: the kernel has 128 inotify instances for all of root's processes,
//! which hundreds of pods that come at once would take from everybody.

use std::collections::BTreeSet;
use std::time::Duration;

use loden_core::api::BlockWish;
use loden_core::attach::Draft;
use loden_core::cni::{CniError, Code, NodeFile};
use loden_core::ipam::Exhausted;
use loden_core::model::Prefix;
use loden_linux::agent;
use loden_linux::ledger::{Reservation, ReserveError};

use crate::Call;
use crate::add::refused;

/// How long the agent may take besides.
const AGENT: Duration = Duration::from_secs(5);

/// Reserves what a draft asks for, which is made anew when the node has further blocks. `node` is what the agent has told, if it matters.
pub fn reserve(
    call: &Call,
    mut node: Option<NodeFile>,
    mut draft: Draft,
    anew: impl Fn(Option<&NodeFile>) -> Result<Draft, CniError>,
) -> Result<(Draft, Reservation), CniError> {
    loop {
        let error = match call.ledger().reserve_soon(&draft, call.conf.quarantine) {
            Ok(reservation) => return Ok((draft, reservation)),
            Err(error) => error,
        };
        let Some(known) = node.as_ref().filter(|known| can_help(&error, known)) else {
            return reserve_after_all(call, draft, refused);
        };
        match further(call, &error, &wish_of(&error, known)) {
            Ok(further) => node = Some(further),
            Err(given_up) => return reserve_after_all(call, draft, |_| given_up),
        }
        draft = anew(node.as_ref())?;
    }
}

/// Without a further block it is looked whether what is taken is somebody's: killed processes leave addresses that nobody has.
fn reserve_after_all(
    call: &Call,
    draft: Draft,
    refused: impl FnOnce(ReserveError) -> CniError,
) -> Result<(Draft, Reservation), CniError> {
    match call.ledger().reserve(&draft, call.conf.quarantine) {
        Ok(reservation) => Ok((draft, reservation)),
        Err(error) => Err(refused(error)),
    }
}

/// Whether another block would do.
fn can_help(error: &ReserveError, node: &NodeFile) -> bool {
    match error {
        ReserveError::Withdrawn => true,
        ReserveError::Exhausted(full) => full.iter().any(|full| is_nodes(full, node)),
        _ => false,
    }
}

fn is_nodes(full: &Exhausted, node: &NodeFile) -> bool {
    node.blocks.iter().any(|block| block.cidr == full.range.subnet())
}

/// Of the pools whose blocks are full; of all that the node has blocks of, when those are not its any more.
fn wish_of(error: &ReserveError, node: &NodeFile) -> BlockWish {
    let full: BTreeSet<Prefix> = match error {
        ReserveError::Exhausted(full) => full.iter().map(|full| full.range.subnet()).collect(),
        _ => node.blocks.iter().map(|block| block.cidr).collect(),
    };
    let pools = node.blocks.iter().filter(|block| full.contains(&block.cidr)).map(|block| block.pool.clone());
    BlockWish { pools: pools.collect(), blocks: node.blocks.iter().map(|block| block.cidr).collect() }
}

/// What the agent tells of the node when it has a block more in one of the pools.
fn further(call: &Call, error: &ReserveError, wish: &BlockWish) -> Result<NodeFile, CniError> {
    let given_up =
        |why: String| CniError::new(Code::NoAddress, "no address is free").with(format!("{}; {why}", shortened(error)));
    let body = serde_json::to_value(wish).map_err(|error| given_up(error.to_string()))?;
    match agent::post(&call.run_dir().agent_socket(), "/v1/ipam/wish", &body, BlockWish::PATIENCE + AGENT) {
        Ok((200, _)) => call.node(Code::TryAgain),
        Ok((_, cause)) => Err(given_up(format!("no further block can be had: {}", cause.trim()))),
        Err(cause) => Err(given_up(format!("lodend, which would claim a further block, does not answer: {cause}"))),
    }
}

/// The first few causes.
fn shortened(error: &ReserveError) -> String {
    match error {
        ReserveError::Exhausted(full) if full.len() > 3 => {
            let first: Vec<String> = full[..2].iter().map(ToString::to_string).collect();
            format!("{}; and {} blocks more are full, too", first.join("; "), full.len() - 2)
        }
        error => error.to_string(),
    }
}
