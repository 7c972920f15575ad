//! Claiming blocks: which pool needs one here, and the race for it by compare-and-swap.

use std::collections::BTreeMap;

use loden_core::ipam::choose_block;
use loden_core::model::{Block, Key, NodeName, NodeUid, Pool, PoolName, Prefix, Record};
use loden_store::{Expect, Store, StoreError};

/// How many times a lost race is run again. Each loser saw the winner's block, so a second loss is rare.
const TRIES: u32 = 100;

/// How full this node's blocks are, pool by pool: (addresses in use, addresses there).
pub type Usage = BTreeMap<PoolName, (u64, u64)>;

/// Whether the node should have one block more of the pool: it has none, or less than a quarter of its addresses is free.
#[must_use]
pub fn needs_block(pool: &Pool, labels: &BTreeMap<String, String>, own_blocks: usize, usage: &Usage) -> bool {
    let selected = pool.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let crowded = usage.get(&pool.name).is_some_and(|(used, capacity)| used * 4 > capacity * 3);
    selected && (own_blocks == 0 || crowded)
}

/// Why a pool gave no block.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// All are taken.
    #[error("{taken} blocks of /{block_len} are all taken in {cidr}: add a pool, or remove nodes that are gone")]
    Exhausted {
        /// How many blocks are taken.
        taken: usize,
        /// The blocks' prefix length.
        block_len: u8,
        /// The pool's addresses.
        cidr: Prefix,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others were quicker every time.
    #[error("lost the race for a block {TRIES} times; it is tried again")]
    Contended,
}

/// Claims one block of the pool.
///
/// # Errors
/// [`ClaimError`] says why there is none.
pub async fn claim_block(
    store: &dyn Store,
    pool: &Pool,
    node: &NodeName,
    uid: &NodeUid,
    mut taken: BTreeMap<Prefix, NodeName>,
) -> Result<Block, ClaimError> {
    let seed = seed(node, uid);
    for _ in 0..TRIES {
        let Some(cidr) = choose_block(pool, &taken, seed) else {
            let inside = taken.keys().filter(|block| pool.cidr.covers(**block)).count();
            return Err(ClaimError::Exhausted { taken: inside, block_len: pool.block_len, cidr: pool.cidr });
        };
        let block = Block { cidr, pool: pool.name.clone(), owner: node.clone(), owner_uid: uid.clone() };
        match store.put(Record::Block(block.clone()), Expect::Absent, None).await {
            Ok(_) => return Ok(block),
            Err(StoreError::Conflict { found, .. }) => {
                let owner = match found.map(|entry| entry.record) {
                    Some(Record::Block(block)) => block.owner,
                    // Gone again already: it is passed by all the same.
                    _ => node.clone(),
                };
                taken.insert(cidr, owner);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ClaimError::Contended)
}

/// Takes over a block of a former host of this name (its lease has run out, and this host now holds the name).
///
/// # Errors
/// [`StoreError`], a lost race too.
pub async fn take_over(store: &dyn Store, block: &Block, revision: u64, uid: &NodeUid) -> Result<(), StoreError> {
    let block = Block { owner_uid: uid.clone(), ..block.clone() };
    debug_assert_eq!(Record::Block(block.clone()).key(), Key::Block(block.cidr));
    store.put(Record::Block(block), Expect::Revision(revision), None).await.map(drop)
}

/// Nodes begin to look at different places, so that they seldom race. FNV-1a: any stable hash would do.
fn seed(node: &NodeName, uid: &NodeUid) -> u64 {
    let bytes = node.as_str().bytes().chain(uid.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
