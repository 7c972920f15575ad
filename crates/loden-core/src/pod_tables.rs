//! The plugin's nftables tables. Their rules are always the same; each pod is a few elements of sets and maps.

use std::collections::BTreeMap;

use crate::kernel::nft::{Element, Table, Value};
use crate::model::Attachment;
use crate::{ports, senders};

/// Elements by the name of the set.
pub type Elements = BTreeMap<String, BTreeMap<Element, Option<Value>>>;

/// One of the tables.
#[derive(Debug, Clone, Copy)]
pub struct PodTable {
    /// The table without any pod's elements.
    pub frame: fn() -> Table,
    /// An attachment's elements.
    pub elements: fn(&Attachment) -> Elements,
    /// What the kernel must have been built with.
    pub needs: &'static str,
}

/// Ports of the host that lead to pods, and masquerading.
pub const PORTS: PodTable =
    PodTable { frame: ports::frame, elements: ports::elements, needs: "CONFIG_NF_TABLES_INET and CONFIG_NFT_NAT" };

/// Whose frames ports of bridges take in.
pub const SENDERS: PodTable =
    PodTable { frame: senders::frame, elements: senders::elements, needs: "CONFIG_NF_TABLES_BRIDGE" };

/// All of them.
pub const ALL: [PodTable; 2] = [PORTS, SENDERS];

impl PodTable {
    /// The table with the elements of these attachments.
    #[must_use]
    pub fn with<'a>(&self, attachments: impl Iterator<Item = &'a Attachment>) -> Table {
        let mut table = (self.frame)();
        for (name, elements) in attachments.flat_map(|attachment| (self.elements)(attachment)) {
            if let Some(set) = table.sets.get_mut(&name) {
                set.elements.extend(elements);
            }
        }
        table
    }
}
