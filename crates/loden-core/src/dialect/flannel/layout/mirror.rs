//! What flannel's keys are to say of a node of loden's.

use std::collections::BTreeMap;

use crate::dialect::flannel::{Attributes, SubnetKey};
use crate::model::{Block, Family, Node, Pool, Prefix};

/// The keys under the prefix with their values: one lease for each of the node's blocks, lowest first, in a network of both
/// families each with one block of both. A block that has no fellow yet is not shown, and neither is one in a network of IPv6
/// alone, for which flannel has no key.
#[must_use]
pub fn mirror(node: &Node, blocks: &[Block], pools: &[Pool]) -> BTreeMap<String, String> {
    let Some(pool) = pools.iter().find(|pool| pool.cidr.family() == Family::V4) else { return BTreeMap::new() };
    let value = Attributes::of(node, &pool.backend).in_network(pools).render();
    let of_family = |family: Family| {
        let is_in = |block: &&Block| pools.iter().any(|pool| pool.name == block.pool) && block.owner == node.name;
        let mut cidrs: Vec<Prefix> = blocks.iter().filter(is_in).map(|block| block.cidr).collect();
        cidrs.retain(|cidr| cidr.family() == family);
        cidrs.sort_unstable();
        cidrs
    };
    let (v4, v6) = (of_family(Family::V4), of_family(Family::V6));
    let is_dual = pools.iter().any(|pool| pool.cidr.family() == Family::V6);
    let keys: Vec<SubnetKey> = if is_dual {
        v4.into_iter().zip(v6).map(|(v4, v6)| SubnetKey { v4, v6: Some(v6) }).collect()
    } else {
        v4.into_iter().map(|v4| SubnetKey { v4, v6: None }).collect()
    };
    keys.into_iter().map(|key| (format!("subnets/{key}"), value.clone())).collect()
}
