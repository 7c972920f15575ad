//! What the threads of a tunnel look at and what they have counted: the picture of the peers is put up here, and each thread takes it when
//! it is between two batches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loden_core::model::NodeName;

use crate::counters::{Cells, Counters, PeerCounters};
use crate::engine::Picture;
use crate::peers::Peers;

/// Which way a thread carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the device to the wire.
    Outward,
    /// From the wire to the device.
    Inward,
}

/// Of one thread.
#[derive(Debug)]
struct Seat {
    direction: Direction,
    nobody: Arc<Cells>,
    /// By host: it may have more numbers than one.
    cells: BTreeMap<NodeName, Arc<Cells>>,
    picture: Arc<Picture>,
}

/// One for a tunnel.
#[derive(Debug)]
pub struct Board {
    /// How often the picture was changed: looked at without the lock.
    epoch: AtomicU64,
    seats: Mutex<Vec<Seat>>,
}

impl Board {
    /// For threads of these directions.
    #[must_use]
    pub fn new(directions: impl IntoIterator<Item = Direction>, peers: &Arc<Peers>) -> Self {
        let seat = |direction| {
            let (nobody, mut cells) = (Arc::default(), BTreeMap::new());
            let picture = picture(peers, &nobody, &mut cells);
            Seat { direction, nobody, cells, picture }
        };
        Self { epoch: AtomicU64::new(1), seats: Mutex::new(directions.into_iter().map(seat).collect()) }
    }

    /// Puts up another picture.
    pub fn set(&self, peers: &Arc<Peers>) {
        for seat in &mut *self.seats() {
            seat.picture = picture(peers, &seat.nobody, &mut seat.cells);
        }
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// The picture for a thread, when it is another than that of `seen`, the epoch that it has seen last.
    #[must_use]
    pub fn newer(&self, thread: usize, seen: &mut u64) -> Option<Arc<Picture>> {
        let epoch = self.epoch.load(Ordering::Acquire);
        if epoch == *seen {
            return None;
        }
        *seen = epoch;
        self.seats().get(thread).map(|seat| Arc::clone(&seat.picture))
    }

    /// What was counted until now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for seat in &*self.seats() {
            let add = |cells: &Cells, to: &mut PeerCounters| match seat.direction {
                Direction::Outward => cells.add_to(&mut to.sent, &mut to.dropped),
                Direction::Inward => cells.add_to(&mut to.received, &mut to.dropped),
            };
            add(&seat.nobody, &mut counters.others);
            for (node, cells) in &seat.cells {
                add(cells, counters.peers.entry(node.clone()).or_default());
            }
        }
        counters
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Seat>> {
        // Nothing is left half done under it.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The picture of one thread: hosts keep their cells, and those of hosts that have gone are forgotten.
fn picture(peers: &Arc<Peers>, nobody: &Arc<Cells>, cells: &mut BTreeMap<NodeName, Arc<Cells>>) -> Arc<Picture> {
    let mut before = std::mem::take(cells);
    let list = peers.list().iter().map(|peer| {
        let known = cells.entry(peer.node.clone());
        Arc::clone(known.or_insert_with(|| before.remove(&peer.node).unwrap_or_default()))
    });
    let list = list.collect();
    Arc::new(Picture { peers: Arc::clone(peers), cells: list, nobody: Arc::clone(nobody) })
}
