//! Taking a block out of the plugin's hands: from then on no ADD takes an address of it, and none has one.

use std::time::Duration;

use loden_core::cni::NodeFile;
use loden_core::ipam::{Range, Supply};
use loden_core::model::Prefix;

use super::Ledger;
use super::allocate::{in_use, reclaim};
use crate::clock::boot_s;
use crate::error::LinuxError;
use crate::run_dir::{remove_file, write_json};

impl Ledger {
    /// Writes what the plugin is told without the block, if no attachment has an address of it and none was freed within `idle`; else
    /// says no and changes nothing. An ADD takes addresses under the same lock, and looks there again before it does.
    ///
    /// # Errors
    /// [`LinuxError`]; the block is as it was then.
    pub fn retire(&self, block: Prefix, without: &NodeFile, idle: Duration) -> Result<bool, LinuxError> {
        debug_assert!(without.blocks.iter().all(|there| there.cidr != block));
        let Ok(range) = Range::of_block(block) else { return Ok(false) };
        let supply = Supply { network: None, range };
        let _lock = self.lock()?;
        let found = self.run_dir.attachments();
        // Nobody knows whose addresses are in what cannot be read.
        if !found.unreadable.is_empty() || in_use(&supply, &found).any(|addr| block.contains(addr)) {
            return Ok(false);
        }
        let mut state = self.state(&supply)?;
        reclaim(&mut state, &supply, &found);
        let idle_s = u32::try_from(idle.as_secs()).unwrap_or(u32::MAX);
        if !state.is_idle(boot_s(), idle_s) {
            return Ok(false);
        }
        write_json(&self.run_dir.node_file(), without)?;
        // If it comes back one day it is as one that nobody has used.
        remove_file(&self.state_file(&supply))?;
        Ok(true)
    }
}
