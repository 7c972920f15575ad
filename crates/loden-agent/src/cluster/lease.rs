//! The sign of life of the agent of this node, which also keeps two hosts from serving under one name.

use std::time::Duration;

use loden_core::model::{Key, Lease, Record};
use loden_store::{Expect, Store, StoreError};

use super::Cluster;

/// How long the agent's sign of life holds, and how often it is renewed.
const TTL: Duration = Duration::from_secs(30);
pub(super) const RENEWAL: Duration = Duration::from_secs(10);

impl Cluster {
    /// Takes or renews this node's lease. While a namesake holds it nothing is claimed or published.
    pub(super) async fn hold_lease(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let key = Key::Lease(self.identity.node.clone());
        if let Some(revision) = self.lease {
            match store.renew(&key, revision, TTL).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Conflict { .. }) => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        let lease = Lease {
            node: self.identity.node.clone(),
            uid: self.identity.uid.clone(),
            instance: self.identity.instance.clone(),
        };
        let expect = match store.get(&key).await? {
            None => Expect::Absent,
            Some(entry) => match &entry.record {
                // An earlier start on this host: the run directory's lock says that it is over.
                Record::Lease(held) if held.uid == self.identity.uid => Expect::Revision(entry.revision),
                _ => {
                    self.set_problem(
                        "lease",
                        Some(
                            "another host serves under this node's name: give this host another \
                         name (`node` in its configuration), or wait until the other's lease has run out"
                                .to_owned(),
                        ),
                    );
                    self.health.send_modify(|health| health.leased = false);
                    return Ok(());
                }
            },
        };
        match store.put(Record::Lease(lease), expect, Some(TTL)).await {
            Ok(entry) => {
                self.lease = Some(entry.revision);
                self.set_problem("lease", None);
                self.health.send_modify(|health| health.leased = true);
                Ok(())
            }
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
