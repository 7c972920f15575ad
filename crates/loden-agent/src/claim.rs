//! Claiming blocks: the race for one by compare-and-swap.

use std::collections::BTreeMap;
use std::time::Duration;

use loden_core::ipam::{choose_block, preferred};
use loden_core::model::{Block, Entry, Key, NodeName, NodeUid, Pool, Prefix, Record};
use loden_store::{Expect, Store, StoreError};

/// How many times a lost race is run again. Each loser saw the winner's block, so a second loss is rare.
const TRIES: u32 = 100;

/// Why a pool gave no block.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// All are taken.
    #[error(
        "{taken} blocks of /{block_len} are all taken in {cidr}: add a pool, or take out \
             nodes that are gone (`loden store forget`)"
    )]
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

/// Who claims, and how.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// The node.
    pub node: NodeName,
    /// Its identity.
    pub uid: NodeUid,
    /// For how long a block is lent, where it is.
    pub ttl: Option<Duration>,
}

/// Claims one block of the pool: of the `former` the first that can be had, else any.
///
/// # Errors
/// [`ClaimError`] says why there is none.
pub async fn claim_block(
    store: &dyn Store,
    pool: &Pool,
    claimant: &Claimant,
    former: &[Prefix],
    mut taken: BTreeMap<Prefix, NodeName>,
) -> Result<Entry, ClaimError> {
    let seed = seed(&claimant.node, &claimant.uid);
    for _ in 0..TRIES {
        let first = preferred(pool, former, &taken).first().copied();
        let Some(cidr) = first.or_else(|| choose_block(pool, &taken, seed)) else {
            let inside = taken.keys().filter(|block| pool.cidr.covers(**block)).count();
            return Err(ClaimError::Exhausted { taken: inside, block_len: pool.block_len, cidr: pool.cidr });
        };
        match claim_this(store, pool, claimant, cidr).await {
            Ok(entry) => return Ok(entry),
            Err(StoreError::Conflict { found, .. }) => {
                let owner = match found.map(|entry| entry.record) {
                    Some(Record::Block(block)) => block.owner,
                    // Gone again already: it is passed by all the same.
                    _ => claimant.node.clone(),
                };
                taken.insert(cidr, owner);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ClaimError::Contended)
}

/// Claims this block and no other.
///
/// # Errors
/// [`StoreError`], a lost race too.
pub async fn claim_this(
    store: &dyn Store,
    pool: &Pool,
    claimant: &Claimant,
    cidr: Prefix,
) -> Result<Entry, StoreError> {
    let (owner, owner_uid) = (claimant.node.clone(), claimant.uid.clone());
    let block = Block { cidr, pool: pool.name.clone(), owner, owner_uid };
    store.put(Record::Block(block), Expect::Absent, claimant.ttl).await
}

/// Takes over a block of who served this host before: a former host of this name (its lease has run out, and this host now holds
/// the name), or a flannel node at its address.
///
/// # Errors
/// [`StoreError`], a lost race too.
pub async fn take_over(
    store: &dyn Store,
    block: &Block,
    revision: u64,
    claimant: &Claimant,
) -> Result<Entry, StoreError> {
    let (owner, owner_uid) = (claimant.node.clone(), claimant.uid.clone());
    let block = Block { owner, owner_uid, ..block.clone() };
    debug_assert_eq!(Record::Block(block.clone()).key(), Key::Block(block.cidr));
    store.put(Record::Block(block), Expect::Revision(revision), claimant.ttl).await
}

/// Nodes begin to look at different places, so that they seldom race. FNV-1a: any stable hash would do.
fn seed(node: &NodeName, uid: &NodeUid) -> u64 {
    let bytes = node.as_str().bytes().chain(uid.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
