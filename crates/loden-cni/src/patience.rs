//! Waiting for a further block: a pod that finds no free address tells the agent, and looks again when the agent has told of more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use loden_core::api::BlockWish;
use loden_core::attach::Draft;
use loden_core::cni::{CniError, Code, NodeFile};
use loden_core::ipam::Exhausted;
use loden_core::model::Prefix;
use loden_linux::agent;
use loden_linux::ledger::{Reservation, ReserveError};
use loden_linux::watch::Watch;

use crate::add::refused;
use crate::{Call, failed};

/// How long the next block is waited for. CNI sets no deadline, and runtimes give minutes; a claim takes milliseconds when the datastore
/// is well, and seconds on a machine that hundreds of pods begin on at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reserves what a draft asks for, which is made anew when the node has further blocks. `node` is what the agent has told, if it matters.
pub fn reserve(
    call: &Call,
    mut node: Option<NodeFile>,
    mut draft: Draft,
    anew: impl Fn(Option<&NodeFile>) -> Result<Draft, CniError>,
) -> Result<(Draft, Reservation), CniError> {
    let mut waiting: Option<Watch> = None;
    loop {
        let error = match call.ledger().reserve_soon(&draft, call.conf.quarantine) {
            Ok(reservation) => return Ok((draft, reservation)),
            Err(error) => error,
        };
        let Some(known) = node.as_ref().filter(|known| can_help(&error, known)) else {
            return reserve_after_all(call, draft, refused);
        };
        let wish = wish_of(&error, known);
        let watch = match &waiting {
            Some(watch) => watch,
            None => {
                // Before it is looked again, so that nothing falls between.
                let watch = Watch::on([call.run_dir().path()]);
                waiting.insert(watch.map_err(|error| failed("a further block cannot be waited for", &error))?)
            }
        };
        match further(call, &error, &wish, watch) {
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
fn further(call: &Call, error: &ReserveError, wish: &BlockWish, watch: &Watch) -> Result<NodeFile, CniError> {
    // One that has many blocks names a few.
    let error = shortened(error);
    let is_further = |node: &NodeFile| {
        node.blocks.iter().any(|block| wish.pools.contains(&block.pool) && !wish.blocks.contains(&block.cidr))
    };
    let until = Instant::now() + PATIENCE;
    let read = || call.node(Code::TryAgain);
    let given_up = |why: String| CniError::new(Code::NoAddress, "no address is free").with(format!("{error}; {why}"));
    let now = read()?;
    if is_further(&now) {
        return Ok(now);
    }
    let body = serde_json::to_value(wish).map_err(|error| given_up(error.to_string()))?;
    let tell = || agent::post(&call.run_dir().agent_socket(), "/v1/ipam/wish", &body, PATIENCE);
    match tell() {
        Ok((200, _)) => {}
        Ok((_, cause)) => return Err(given_up(format!("no further block can be had: {}", cause.trim()))),
        Err(cause) => {
            return Err(given_up(format!("lodend, which would claim a further block, does not answer: {cause}")));
        }
    }
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let pools: Vec<&str> = wish.pools.iter().map(|pool| pool.as_str()).collect();
            let cause = match tell() {
                Ok((200, _)) | Err(_) => "`loden status` says why".to_owned(),
                Ok((_, cause)) => cause.trim().to_owned(),
            };
            let (pools, seconds) = (pools.join(" or "), PATIENCE.as_secs());
            return Err(given_up(format!("a further block of pool {pools} was waited for {seconds} s: {cause}")));
        }
        watch.wait(left).map_err(|error| failed("a further block cannot be waited for", &error))?;
        // While it is being replaced it is there all the same: it is renamed into its place.
        let now = read()?;
        if is_further(&now) {
            return Ok(now);
        }
    }
}
