//! The tunnels that this process runs: which there are, and what each knows of its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use loden_core::api::{Carried, TunnelPeerStatus, TunnelStatus};
use loden_core::kernel::tunnel::{Peer, Tunnel};
use loden_core::kernel::{KernelError, Key, Object, Observed};
use loden_core::model::{IfName, Prefix};
use loden_core::plan::{Step, Verb};
use loden_tunnel::counters::{self, PeerCounters};
use loden_tunnel::peers::{Own, Peers};
use loden_tunnel::worker::{self, TunnelConfig};

/// By a tunnel, or to a peer, that is taken away nothing is sent any more. What is still on its way is carried before: in the
/// network, for so long …
const ON_ITS_WAY: Duration = Duration::from_millis(20);
/// … and in the queues, within this time.
const DRAIN: Duration = Duration::from_millis(100);

/// All of them, by their devices.
pub struct Tunnels {
    running: BTreeMap<IfName, Running>,
    /// Peers that are taken away, and when they are no longer known.
    leaving: BTreeMap<(IfName, Prefix), Instant>,
    on_failure: Arc<dyn Fn() + Send + Sync>,
}

/// One that has been started.
struct Running {
    wanted: Tunnel,
    peers: BTreeMap<Prefix, Peer>,
    engine: worker::Tunnel,
    has_ended: Arc<AtomicBool>,
}

impl Tunnels {
    /// None yet.
    #[must_use]
    pub fn new(on_failure: impl Fn() + Send + Sync + 'static) -> Self {
        Self { running: BTreeMap::new(), leaving: BTreeMap::new(), on_failure: Arc::new(on_failure) }
    }

    /// Carries out steps that are about tunnels, in the calling thread's namespace.
    pub fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), KernelError>> {
        let mut changed = BTreeSet::new();
        let carry_out = |step: &Step| {
            let done = self.carry_out(step);
            changed.extend(step.key.device());
            done.map_err(|cause| KernelError { object: step.key.to_string(), errno: 0, cause })
        };
        let results = steps.iter().map(carry_out).collect();
        self.show(changed);
        results
    }

    /// However many peers have come or gone: a tunnel looks at one picture of all of them.
    fn show(&self, changed: BTreeSet<IfName>) {
        for running in changed.into_iter().filter_map(|dev| self.running.get(&dev)) {
            running.engine.set_peers(&running.picture());
        }
    }

    /// When the next peer is to be forgotten.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.leaving.values().min().copied()
    }

    /// Forgets peers of which nothing is on its way any more.
    pub fn forget(&mut self, now: Instant) {
        let gone: Vec<_> = self.leaving.iter().filter(|(_, at)| **at <= now).map(|(key, _)| *key).collect();
        for (dev, block) in &gone {
            self.leaving.remove(&(*dev, *block));
            if let Some(running) = self.running.get_mut(dev) {
                running.peers.remove(block);
            }
        }
        self.show(gone.into_iter().map(|(dev, _)| dev).collect());
    }

    fn carry_out(&mut self, step: &Step) -> Result<(), String> {
        match (step.key, &step.new) {
            (Key::Tunnel(dev), Some(Object::Tunnel(wanted))) if step.verb != Verb::Remove => self.start(dev, wanted),
            (Key::Tunnel(dev), _) => {
                self.leaving.retain(|(of, _), _| *of != dev);
                if let Some(running) = self.running.remove(&dev) {
                    std::thread::sleep(ON_ITS_WAY);
                    if !running.engine.drain(DRAIN) {
                        tracing::info!(%dev, "the tunnel is stopped with packets on their way in it");
                    }
                }
                Ok(())
            }
            (Key::TunnelPeer(dev, block), new) => {
                let Some(running) = self.running.get_mut(&dev) else {
                    return if step.verb == Verb::Remove { Ok(()) } else { Err(format!("no tunnel runs on {dev}")) };
                };
                match new {
                    Some(Object::TunnelPeer(peer)) if step.verb != Verb::Remove => {
                        self.leaving.remove(&(dev, block));
                        running.peers.insert(block, (**peer).clone());
                    }
                    _ => drop(self.leaving.insert((dev, block), Instant::now() + ON_ITS_WAY + DRAIN)),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Starts one, or lets one that runs go on as it is wanted now: only another wire or address calls for a start.
    fn start(&mut self, dev: IfName, wanted: &Tunnel) -> Result<(), String> {
        if let Some(running) = self.running.get_mut(&dev)
            && (running.wanted.wire, running.wanted.local) == (wanted.wire, wanted.local)
            && !running.has_ended()
        {
            running.wanted = wanted.clone();
            return Ok(());
        }
        // The port has to be free before it is taken again.
        let peers = self.running.remove(&dev).map(|former| former.peers).unwrap_or_default();
        let picture = Arc::new(Peers::build(Own::of(wanted), &peers));
        let config = TunnelConfig { dev, wire: wanted.wire, local: wanted.local, queues: 1 };
        let (on_failure, has_ended) = (Arc::clone(&self.on_failure), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&has_ended);
        let engine = worker::Tunnel::start(&config, &picture, move |error| {
            tracing::warn!(%error, "a tunnel has ended; it is started again");
            ended.store(true, Ordering::Relaxed);
            on_failure();
        });
        let engine = engine.map_err(|error| error.to_string())?;
        self.running.insert(dev, Running { wanted: wanted.clone(), peers, engine, has_ended });
        Ok(())
    }

    /// What runs. One that has ended by itself does not.
    pub fn observe(&mut self, seen: &mut Observed) {
        self.running.retain(|_, running| !running.has_ended());
        for (dev, running) in &self.running {
            seen.insert(Key::Tunnel(*dev), Object::Tunnel(Box::new(running.wanted.clone())));
            let peer = |(block, peer): (&Prefix, &Peer)| {
                (Key::TunnelPeer(*dev, *block), Object::TunnelPeer(Box::new(peer.clone())))
            };
            let stays = |(block, _): &(&Prefix, &Peer)| !self.leaving.contains_key(&(*dev, **block));
            seen.extend(running.peers.iter().filter(stays).map(peer));
        }
    }

    /// What each does, for people and programs.
    #[must_use]
    pub fn status(&self) -> Vec<TunnelStatus> {
        self.running.iter().map(|(dev, running)| running.status(*dev)).collect()
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.running.keys()).finish()
    }
}

impl Running {
    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    fn picture(&self) -> Arc<Peers> {
        Arc::new(Peers::build(Own::of(&self.wanted), &self.peers))
    }

    fn status(&self, dev: IfName) -> TunnelStatus {
        let (able, counted) = (self.engine.abilities(), self.engine.counters());
        let lacks = [
            (able.uso, "datagrams of pods come in one by one: the kernel hands over none uncut (USO, since 6.2)"),
            (able.segmentation, "packets are sent one by one: the kernel cuts none apart (UDP_SEGMENT, since 4.18)"),
            (able.gro, "packets are received one by one: the kernel joins none (UDP_GRO, since 5.0)"),
        ];
        let is_udp = matches!(self.wanted.wire, loden_core::kernel::tunnel::Wire::Udp { .. });
        let lacks = lacks.into_iter().filter(|(has, _)| is_udp && !has).map(|(_, words)| words.to_owned()).collect();
        let peer = |(node, of): (_, &PeerCounters)| TunnelPeerStatus {
            node,
            sent: carried(of.sent),
            received: carried(of.received),
            dropped: dropped(of),
        };
        TunnelStatus {
            device: dev,
            wire: self.wanted.to_string(),
            by: "an engine in this agent".to_owned(),
            lacks,
            peers: counted.peers.iter().map(|(node, of)| peer((node.clone(), of))).collect(),
            dropped: dropped(&counted.others),
        }
    }
}

fn carried(of: counters::Carried) -> Carried {
    Carried { packets: of.packets, bytes: of.bytes }
}

fn dropped(of: &PeerCounters) -> BTreeMap<String, u64> {
    of.dropped.iter().map(|(cause, count)| (cause.as_str().to_owned(), *count)).collect()
}
