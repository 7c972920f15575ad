//! What this node says of itself: its record, and how it is where the store has a place for that.

use std::collections::BTreeMap;
use std::time::Duration;

use loden_core::model::{Node, Record};
use loden_store::{Expect, Readiness, Store, StoreError};
use tokio::time::Instant;

use super::{Cluster, Outward};

/// How often what was announced is said again: the store writes it only if somebody else has changed it.
const AGAIN: Duration = Duration::from_secs(60);
/// Pauses between tries to announce, and how long one may take.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MOST: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);

/// What was said last of how the node is.
#[derive(Debug, Default)]
pub(super) struct Announced {
    said: Option<Readiness>,
    at: Option<Instant>,
    pause: Option<Duration>,
}

impl Announced {
    /// When it is said again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at
    }
}

impl Cluster {
    pub(super) async fn publish(&mut self, store: &dyn Store, outward: &Outward) -> Result<(), StoreError> {
        let Some(underlay) = outward.underlay else { return Ok(()) };
        let former = self.own_node.as_ref();
        // Until the kernel has been seen to hold it, what was said before the restart, or by who served this host before, goes on
        // being true.
        let before = match former {
            Some((node, _)) if node.uid == self.identity.uid => Some(node),
            _ => self.predecessor(outward),
        };
        let node = Node {
            name: self.identity.node.clone(),
            uid: self.identity.uid.clone(),
            underlay,
            public: former.map(|(node, _)| node.public).unwrap_or_default(),
            asked: former.map(|(node, _)| node.asked).unwrap_or_default(),
            labels: self.identity.labels.clone(),
            receives: match (outward.facts.mtu_pod, before) {
                (None, Some(node)) => node.receives.clone(),
                _ => outward.facts.receives.clone(),
            },
            sends: match (&outward.facts.sends, before) {
                (Some(sends), _) => sends.clone(),
                (None, Some(node)) => node.sends.clone(),
                (None, None) => BTreeMap::new(),
            },
            unknown: former.map(|(node, _)| node.unknown.clone()).unwrap_or_default(),
        };
        if former.is_some_and(|(former, _)| *former == node) {
            return Ok(());
        }
        let expect = former.map_or(Expect::Absent, |(_, revision)| Expect::Revision(*revision));
        match store.put(Record::Node(node), expect, None).await {
            Ok(entry) => self.note(&entry),
            // Somebody wrote it meanwhile: the watch brings that, and then it is compared again.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Tells how the node is when that has changed, and once a minute. What fails is tried again and ends nothing else.
    pub(super) async fn announce(&mut self, store: &dyn Store) {
        let Some(now) = self.outward.borrow().readiness.clone().filter(|_| self.identity.announces) else { return };
        let is_due = self.announced.at.is_none_or(|at| at <= Instant::now());
        let is_new = self.announced.said.as_ref() != Some(&now);
        // While it fails its pause holds, whatever is new.
        if !is_due && (!is_new || self.announced.pause.is_some()) {
            return;
        }
        let said = tokio::time::timeout(PATIENCE, store.announce(&self.identity.node, &now)).await;
        let said = said.unwrap_or_else(|_| {
            let cause = format!("no answer in {} s", PATIENCE.as_secs());
            Err(StoreError::Unavailable { place: "the datastore".to_owned(), cause })
        });
        let wait = match &said {
            Ok(()) => {
                self.announced.said = Some(now);
                self.announced.pause = None;
                AGAIN
            }
            Err(error) => {
                tracing::warn!(%error, "the node's readiness cannot be told; it is tried again");
                let pause = self.announced.pause.map_or(PAUSE_FIRST, |pause| (pause * 2).min(PAUSE_MOST));
                self.announced.pause = Some(pause);
                pause
            }
        };
        self.announced.at = Some(Instant::now() + wait);
        let problem = said.err().map(|error| format!("{error}; others may see the node as it was. It is tried again"));
        self.set_problem("the node's readiness", problem);
    }
}
