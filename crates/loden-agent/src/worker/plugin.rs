//! What the worker does for the plugin: tells it the node's blocks, and makes clean behind it.

use std::collections::BTreeSet;
use std::time::Duration;

use loden_core::cni::{NodeBlock, NodeFile};
use loden_core::model::Prefix;
use loden_core::view::Problem;
use loden_linux::clock::boot_ms;
use loden_linux::ledger::Ledger;

use super::{Loop, Worker};
use crate::cluster::Outward;
use crate::host::Host;
use crate::reconcile::Reconciler;
use crate::{ledger, status, subnet_file};

impl Worker {
    /// Undoes what ADDs left that were killed. One that is under way holds a lock and is passed by.
    pub(super) fn sweep(&self, reconciler: &mut Reconciler<Host>) {
        match Ledger::new(self.run_dir.clone()).sweep() {
            Ok(swept) => swept.iter().for_each(|key| {
                let text = "its ADD was killed; its interface and addresses are free again".to_owned();
                reconciler.events.push("sweep", &format!("attachment {key}"), text);
            }),
            Err(error) => tracing::warn!(%error, "what killed ADDs left cannot be swept; it is tried again"),
        }
    }

    /// Frees what pods left that have gone without a DEL: those that were so the last time, too. A runtime that comes with its DEL after
    /// all finds nothing to do.
    pub(super) fn collect_abandoned(&self, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        let ledger = Ledger::new(self.run_dir.clone());
        let found = ledger.abandoned().map(|keys| keys.into_iter().collect::<BTreeSet<_>>());
        match found {
            Ok(found) => {
                for key in found.intersection(&state.abandoned) {
                    match ledger.release_abandoned(key) {
                        Ok(true) => {
                            let text = "its pod has gone, and no DEL has come; its addresses are free again".to_owned();
                            reconciler.events.push("sweep", &format!("attachment {key}"), text);
                        }
                        Ok(false) => {}
                        Err(error) => tracing::warn!(%error, %key, "it cannot be collected; it is tried again"),
                    }
                }
                state.abandoned = found;
            }
            Err(error) => tracing::warn!(%error, "abandoned attachments cannot be looked for; it is tried again"),
        }
    }

    /// Makes the plugin's tables right again, if somebody else changed them.
    pub(super) fn repair_tables(&self, reconciler: &mut Reconciler<Host>) {
        match Ledger::new(self.run_dir.clone()).repair_tables() {
            Ok(repaired) => repaired.iter().for_each(|table| {
                let text = "was not as the attachments say; it is again".to_owned();
                reconciler.events.push("repair", &format!("nft table {table}"), text);
            }),
            Err(error) => tracing::warn!(%error, "the plugin's tables cannot be looked at; it is tried again"),
        }
    }

    /// Tells the plugin what it can serve pods from, and the store's side what has been reached.
    pub(super) fn serve_pods(&mut self, reconciler: &Reconciler<Host>, state: &mut Loop) {
        state.around.is_plugin_served = self.serve_plugin(reconciler, state);
        let view = reconciler.view();
        let outward = Outward {
            facts: reconciler.facts().clone(),
            underlay: view.local.underlay.as_ref().map(|underlay| underlay.addresses),
            used: status::used_of_pools(view),
            waiting: state.blocks.waiting(),
            in_use: status::blocks_in_use(view),
            retired: state.blocks.retired().clone(),
            refused: view.refused_blocks().filter(|b| b.owner == view.local.node).map(|b| b.cidr).collect(),
            readiness: Some(status::readiness(reconciler, &state.around)),
        };
        self.outward.send_if_modified(|was| {
            let is_new = *was != outward;
            if is_new {
                *was = outward;
            }
            is_new
        });
    }

    /// Writes `node.json` once the kernel holds what pods need. Says whether the plugin can serve.
    fn serve_plugin(&self, reconciler: &Reconciler<Host>, state: &mut Loop) -> bool {
        let Some(node) = self.node_file(reconciler, state) else { return false };
        let is_of_use = !node.blocks.is_empty();
        // Without a block of each family nothing is said, or pods would have one family for good; but what was said before is taken back.
        let served: Vec<Prefix> = node.blocks.iter().map(|block| block.cidr).collect();
        let lacks = || !status::awaited(reconciler.view(), &served, &state.around.cluster.problems).is_empty();
        if (!is_of_use || lacks()) && !self.run_dir.node_file().exists() {
            return false;
        }
        state.around.host.retain(|problem| problem.subject != "node.json");
        match ledger::tell_plugin(&self.run_dir, &node) {
            Ok(()) => {
                state.blocks.served(&node);
                is_of_use && self.write_subnet_file(reconciler, &node, state)
            }
            Err(error) => {
                state.around.host.push(Problem::new("node.json", error.to_string()));
                false
            }
        }
    }

    /// Tells those who read flannel's file. Says whether they know.
    fn write_subnet_file(&self, reconciler: &Reconciler<Host>, node: &NodeFile, state: &mut Loop) -> bool {
        state.around.host.retain(|problem| problem.subject != subnet_file::SUBJECT);
        let written = self.subnet_file.as_ref().map_or(Ok(()), |file| file.write(reconciler.view(), node));
        let is_written = written.is_ok();
        state.around.host.extend(written.err());
        is_written
    }

    fn node_file(&self, reconciler: &Reconciler<Host>, state: &mut Loop) -> Option<NodeFile> {
        let view = reconciler.view();
        let mtu_pod = reconciler.facts().mtu_pod?;
        let idle_since = status::own_blocks(view, |_| Duration::ZERO);
        let (offered, problems) = state.blocks.offered(&idle_since, boot_ms());
        state.around.host.retain(|problem| !problem.subject.starts_with("block "));
        state.around.host.extend(problems);
        let blocks = status::blocks(view).into_iter().filter_map(|block| {
            let until_ms = *offered.get(&block.cidr)?;
            let pool = view.pools.get(&block.pool);
            let bridge = pool.map(|pool| view.bridge_of_pool(pool)).filter(|bridge| *bridge != view.local.bridge);
            let segment = pool.filter(|pool| view.is_whole_segment(pool)).map(|pool| pool.cidr);
            Some(NodeBlock {
                cidr: block.cidr,
                gateway: block.cidr.nth(1)?,
                pool: block.pool,
                segment,
                bridge,
                until_ms,
            })
        });
        let blocks = blocks.collect();
        Some(NodeFile { node: view.local.node.clone(), bridge: view.local.bridge, mtu_pod, blocks })
    }

    /// Takes a block out of the plugin's hands that is to be given back, and those whose term has ended.
    pub(super) fn look_at_blocks(&mut self, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        state.blocks.looked_at();
        self.refresh(reconciler, state);
        state.blocks.refuse(&state.around.cluster.problems);
        // Those who read flannel's file take addresses without a word to this agent: what it names is never idle.
        let named = self.subnet_file.as_ref().map(|file| file.former().0).unwrap_or_default();
        let idle = |cidr| if named.contains(&cidr) { Duration::ZERO } else { state.blocks.idle(cidr) };
        let own = status::own_blocks(reconciler.view(), idle);
        let is_ready = state.around.cluster.leased && state.around.cluster.up;
        if is_ready && let Some(cidr) = state.blocks.surplus(&own, self.block_idle) {
            state.blocks.retire(cidr);
            let retired = match self.node_file(reconciler, state) {
                Some(node) => Ledger::new(self.run_dir.clone()).retire(cidr, &node, self.block_idle),
                None => Ok(false),
            };
            match retired {
                Ok(true) => tracing::info!(block = %cidr, "has been idle: the plugin takes nothing of it any more"),
                Ok(false) => state.blocks.keep(cidr),
                Err(error) => {
                    state.blocks.keep(cidr);
                    tracing::warn!(%error, block = %cidr, "cannot be given back; it is tried again");
                }
            }
        }
        self.serve_pods(reconciler, state);
    }
}
