//! Following the cluster: a watch for each sort of object, and the picture that they are taken into.
//!
//! A watch that ends or breaks goes on where it was, so a server that restarts is not asked for everything by everybody. A line
//! that was cut is read again; what was said already is not taken in twice: in one sort of objects revisions only grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Client, chain, jittered};
use super::fault::Fault;
use super::object::{Kind, Line, Object};
use super::picture::Picture;
use super::shared::Shared;
use crate::watch::Sender;
use crate::{Change, StoreError};

/// How long a watch is asked to last. With a jitter, so that watches do not end all at once.
const LASTING: Duration = Duration::from_secs(420);
/// A server sends a bookmark a minute; from one that says nothing for so long nothing is to come.
const SILENCE: Duration = Duration::from_secs(150);
/// Pauses between tries, and for how long a watch that is broken is tried again before callers hear of it.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MOST: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a watcher waits about whose history is lost.
const GONE: Duration = Duration::from_secs(1);
/// How long after a change a pool's status is written: a cluster that starts claims many blocks at once.
const TALLY: Duration = Duration::from_secs(2);
/// Events that wait to be taken in.
const AHEAD: usize = 256;

/// Where a sort of objects is followed from.
pub type Cursor = (Kind, String);

/// An object as it is now, or its last state if it is gone.
struct Event {
    kind: Kind,
    object: Object,
    is_gone: bool,
}

/// Follows all sorts, until the watcher is gone or something fails that waiting does not mend.
pub async fn follow(shared: Arc<Shared>, client: Client, mut picture: Picture, from: Vec<Cursor>, watcher: Sender) {
    let (events, mut queue) = mpsc::channel(AHEAD);
    let mut readers = JoinSet::new();
    for (kind, at) in from {
        let reader = Reader { client: client.clone(), kind, at, events: events.clone() };
        readers.spawn(reader.run());
    }
    let mut tally = Some(Instant::now() + TALLY);
    let mut untold: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let at = tally.unwrap_or_else(Instant::now);
        let event = tokio::select! {
            event = queue.recv() => event,
            () = watcher.closed() => return,
            () = sleep_until(at), if tally.is_some() => {
                tally = None;
                let causes = write_tallies(&shared, &client, &picture).await;
                for change in flaws(&mut untold, causes) {
                    let _ = watcher.send(Ok(change));
                }
                continue;
            }
        };
        let changes = match event {
            Some(Ok(event)) => take_in(&shared, &client, &mut picture, event).await,
            Some(Err(error)) => Err(error),
            None => return,
        };
        match changes {
            Ok(changes) => {
                if tally.is_none() && picture.has_objects() {
                    tally = Some(Instant::now() + TALLY);
                }
                for change in changes {
                    if watcher.send(Ok(shared.stamped(change))).is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                // A watcher that is gone does not want to know.
                let _ = watcher.send(Err(error));
                return;
            }
        }
    }
}

/// Writes how many blocks nodes have where this node is the one that does; what goes wrong is no reason to stop following.
async fn write_tallies(shared: &Shared, client: &Client, picture: &Picture) -> BTreeMap<String, String> {
    let Some(own) = shared.own() else { return BTreeMap::new() };
    let mut causes = BTreeMap::new();
    for (pool, blocks) in picture.tallies(&own) {
        let patch = serde_json::json!({"status": {"blocks": blocks}});
        match client.patch_status(Kind::Pool, &pool, &patch).await {
            Ok(_) => {}
            Err(fault) if fault.is_missing_object(&pool) => {}
            Err(fault) => drop(
                causes.insert(format!("{}/{pool} status", Kind::Pool.resource()), fault.at(&client.place).to_string()),
            ),
        }
    }
    causes
}

/// What is newly wrong, or no longer.
fn flaws(known: &mut BTreeMap<String, String>, now: BTreeMap<String, String>) -> Vec<Change> {
    let over = known.keys().filter(|place| !now.contains_key(*place)).map(|place| (place.clone(), None));
    let new = now.iter().filter(|(place, cause)| known.get(*place) != Some(*cause));
    let new = new.map(|(place, cause)| (place.clone(), Some(cause.clone())));
    let changes = over.chain(new).map(|(place, cause)| Change::Flaw { place, cause, revision: 0 }).collect();
    *known = now;
    changes
}

async fn take_in(
    shared: &Shared,
    client: &Client,
    picture: &mut Picture,
    event: Event,
) -> Result<Vec<Change>, StoreError> {
    let Event { kind, object, is_gone } = event;
    let revision = object.metadata.revision();
    if is_gone {
        shared.forget(&object.metadata.uid);
        return Ok(picture.remove(kind, &object.metadata.name, revision));
    }
    let cidrs = match kind {
        Kind::Node if picture.wants_cidrs(&object.metadata) => shared.pod_cidrs(client, &object.metadata).await?,
        _ => None,
    };
    Ok(picture.put(kind, &object, cidrs.as_deref(), revision))
}

/// What has been tried since a watch last worked.
#[derive(Default)]
struct Tries {
    count: u32,
    /// The first fault: how long the watch had worked before it says nothing of how long it has been broken.
    since: Option<Instant>,
}

impl Tries {
    /// For how long there have been faults, with this one.
    fn failing_for(&mut self, now: Instant) -> Duration {
        now - *self.since.get_or_insert(now)
    }

    /// The pause before the next one.
    fn pause(&mut self) -> Duration {
        let pause = PAUSE_FIRST * 2_u32.saturating_pow(self.count);
        self.count += 1;
        pause.min(PAUSE_MOST)
    }
}

/// Reads one sort of objects.
struct Reader {
    client: Client,
    kind: Kind,
    at: String,
    events: mpsc::Sender<Result<Event, StoreError>>,
}

impl Reader {
    async fn run(mut self) {
        let mut tries = Tries::default();
        loop {
            let (began, before) = (Instant::now(), self.at.clone());
            let ended = self.stream().await;
            if self.at != before || began.elapsed() > PAUSE_MOST {
                tries = Tries::default();
            }
            let fault = match ended {
                Ok(()) => None,
                Err(fault) if fault.is_gone() => {
                    // All watchers hear it at one moment, and each lists everything then.
                    tokio::time::sleep(jittered(GONE)).await;
                    let _ = self.events.send(Err(StoreError::Compacted { oldest: 0 })).await;
                    return;
                }
                Err(fault) => Some(fault),
            };
            let asked = fault.as_ref().and_then(Fault::retry_after).unwrap_or(Duration::ZERO);
            if let Some(fault) = fault
                && (!fault.is_passing() || tries.failing_for(Instant::now()) + asked > PATIENCE)
            {
                let _ = self.events.send(Err(fault.at(&self.client.place))).await;
                return;
            }
            tokio::time::sleep(asked + jittered(tries.pause())).await;
        }
    }

    /// One watch, to its end.
    async fn stream(&mut self) -> Result<(), Fault> {
        let (mut body, form) = self.client.watch(self.kind, &self.at, jittered(LASTING)).await?;
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            let silent = |_| Fault::Transport(format!("nothing was heard for {} s", SILENCE.as_secs()));
            let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(silent)? else {
                // What is left of a message that was cut comes again.
                return Ok(());
            };
            let frame = frame.map_err(|error| Fault::Transport(chain(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            let mut begin = 0;
            while let Some((line, length)) = form.first(&buffer[begin..]).map_err(Fault::Body)? {
                begin += length;
                if let Some(line) = line {
                    self.hear(line).await?;
                }
            }
            buffer.drain(..begin);
        }
    }

    async fn hear(&mut self, line: Line) -> Result<(), Fault> {
        let (object, is_gone) = match line {
            Line::Error(status) => return Err(Fault::from_status(status, self.kind.resource())),
            Line::Bookmark(object) => {
                self.advance(&object);
                return Ok(());
            }
            Line::Added(object) | Line::Modified(object) => (object, false),
            Line::Deleted(object) => (object, true),
        };
        if self.advance(&object) {
            // A follower that is gone has aborted this task as well.
            let _ = self.events.send(Ok(Event { kind: self.kind, object, is_gone })).await;
        }
        Ok(())
    }

    /// Goes on to the object's revision; false when that is behind.
    fn advance(&mut self, object: &Object) -> bool {
        let is_ahead = object.metadata.revision() > self.at.parse().unwrap_or(0);
        if is_ahead {
            self.at.clone_from(&object.metadata.resource_version);
        }
        is_ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_had_worked_for_long_is_tried_again_like_any_other() {
        let broken = Instant::now() + Duration::from_secs(400);
        let mut tries = Tries::default();
        assert_eq!(tries.failing_for(broken), Duration::ZERO);
        let mut at = broken;
        while tries.failing_for(at) <= PATIENCE {
            at += tries.pause();
        }
        // 0.2 s, 0.4 s, and so on.
        assert_eq!(tries.count, 8);
        assert_eq!((0..10).map(|_| tries.pause()).max(), Some(PAUSE_MOST));
    }
}
