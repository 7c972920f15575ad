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

#[cfg(test)]
mod tests {
    use loden_core::kernel::tunnel::Peer;
    use loden_core::model::{PerFamily, Prefix};

    use super::*;
    use crate::counters::Cause;
    use crate::peers::Own;

    /// Blocks, the hosts that own them, and where those are.
    fn peers(list: &[(&str, &str, [u8; 4])]) -> Arc<Peers> {
        let own = Own { addresses: PerFamily::default(), blocks: Default::default(), mtu: 1472 };
        let known: BTreeMap<Prefix, Peer> = list
            .iter()
            .map(|(block, node, from)| {
                let node = node.parse().expect("a name");
                (block.parse().expect("a prefix"), Peer { node, from: vec![(*from).into()], to: None })
            })
            .collect();
        Arc::new(Peers::build(own, &known))
    }

    #[test]
    fn a_thread_takes_each_picture_once_and_counts_on() {
        let (a, b) = (("10.1.0.0/24", "a", [192, 0, 2, 1]), ("10.2.0.0/24", "b", [192, 0, 2, 2]));
        let board = Board::new([Direction::Outward, Direction::Inward], &peers(&[a, b]));
        let mut seen = 0;
        let first = board.newer(0, &mut seen).expect("the first one");
        assert!(board.newer(0, &mut seen).is_none());
        first.cells[0].carried(3, 300);
        first.cells[1].dropped(Cause::TooBig);
        board.newer(1, &mut 0).expect("of the other thread").cells[0].carried(1, 10);

        // One has gone, one has another block, and so another number, by another address.
        board.set(&peers(&[("10.0.0.0/24", "c", [192, 0, 2, 3]), a, ("10.9.0.0/24", "a", [192, 0, 2, 9])]));
        let second = board.newer(0, &mut seen).expect("another one");
        let numbers: Vec<_> = second.peers.list().iter().map(|peer| peer.node.as_str().to_owned()).collect();
        assert_eq!(numbers, ["c", "a", "a"]);
        second.cells[2].carried(1, 5);
        second.nobody.dropped(Cause::NoRoute);
        let counters = board.counters();
        let of_a = &counters.peers[&"a".parse::<NodeName>().expect("a name")];
        assert_eq!((of_a.sent.packets, of_a.sent.bytes, of_a.received.packets), (4, 305, 1));
        assert_eq!(counters.peers.keys().map(NodeName::as_str).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(counters.others.dropped, [(Cause::NoRoute, 1)].into());
    }
}
