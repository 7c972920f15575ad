//! A watch on a range of keys: goes on behind the last revision over another member when one falls silent, and ends with an error
//! when none answers.
//!
//! etcd tells each revision whole and in order, and after a break it is asked for what is behind the last one that came: nothing is
//! lost, and what comes twice is passed over. A connection that is dead without a word is found out by asking for a sign of life.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, KeyValue, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use tokio::time::{Instant, sleep, sleep_until};

use super::fault::{Fault, Sort};
use super::layout::{signed, unsigned};
use super::members::Members;
use crate::watch::Sender;
use crate::{Change, StoreError, Watch};

/// After so much silence a sign of life is asked for.
const SILENCE: Duration = Duration::from_secs(5);
/// It must come within this.
const SIGN: Duration = Duration::from_secs(3);
/// The pause before a stream is opened again that has not lasted for longer itself.
const PAUSE: Duration = Duration::from_millis(250);
/// The largest answer: many changes in one revision, or many revisions that were missed.
const MOST_BYTES: usize = 64 << 20;

/// What is watched: the range, the store's identity, and what events come to.
pub struct Subject<F> {
    /// What all the keys begin with.
    pub root: String,
    /// The key with the store's identity.
    pub id: String,
    /// What events say: all of one revision, or of several.
    pub read: F,
}

/// An event.
pub struct Event<'a> {
    /// The key with its value; of a removal the key alone, with the revision that removed it.
    pub kv: &'a KeyValue,
    /// Whether it was written, not removed.
    pub is_put: bool,
}

/// Watches what was written behind a revision.
///
/// # Errors
/// [`StoreError`]: no member answers; or the store is behind that revision, as one that was restored from a copy is.
pub async fn watch<F>(members: Arc<Members>, subject: Subject<F>, after: u64) -> Result<Watch, StoreError>
where
    F: FnMut(&[Event<'_>]) -> Vec<Change> + Send + 'static,
{
    let (changes, watch) = Watch::new(members.place());
    let mut watcher = Watcher { members, subject, identity: None, seen: signed(after) };
    let stream = watcher.open().await?;
    tokio::spawn(async move {
        if let Err(error) = watcher.run(stream, &changes).await {
            // A receiver that is gone does not want it.
            let _ = changes.send(Err(error));
        }
    });
    Ok(watch)
}

/// A stream, and the turn of the member that it comes from.
struct Stream {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    turn: usize,
}

struct Watcher<F> {
    members: Arc<Members>,
    subject: Subject<F>,
    /// Who the store said it is.
    identity: Option<Vec<u8>>,
    /// The last revision that was handed on whole.
    seen: i64,
}

impl<F: FnMut(&[Event<'_>]) -> Vec<Change>> Watcher<F> {
    /// Hands on what comes until the receiver is gone.
    async fn run(&mut self, mut stream: Stream, changes: &Sender) -> Result<(), StoreError> {
        loop {
            let began = Instant::now();
            tokio::select! {
                broken = self.follow(&mut stream, changes) => broken?,
                () = changes.closed() => return Ok(()),
            }
            self.members.leave(stream.turn).await;
            if began.elapsed() < PAUSE {
                sleep(PAUSE).await;
            }
            let known = self.identity.take();
            stream = self.open().await?;
            if known.is_some() && known != self.identity {
                return Err(self.replaced());
            }
        }
    }

    /// Opens a stream behind what was seen.
    async fn open(&mut self) -> Result<Stream, StoreError> {
        let (root, id, from) = (self.subject.root.as_str(), self.subject.id.as_str(), self.seen + 1);
        let opened = self.members.call(|client| open(client, root, id, from)).await;
        let opened = opened.map_err(|fault| fault.into_error(self.members.place()))?;
        let Opened { identity, revision, requests, responses } = opened.value;
        if revision < self.seen {
            return Err(StoreError::Compacted { oldest: unsigned(revision) });
        }
        self.identity = identity;
        Ok(Stream { requests, responses, turn: opened.turn })
    }

    /// Hands on what comes until the stream breaks; an error ends the watch.
    async fn follow(&mut self, stream: &mut Stream, changes: &Sender) -> Result<(), StoreError> {
        let mut turns = self.members.turns();
        let (mut due, mut is_asked) = (Instant::now() + SILENCE, false);
        let mut should_ask = *turns.borrow() != stream.turn;
        loop {
            if should_ask && !is_asked {
                if stream.requests.request_progress().await.is_err() {
                    return Ok(());
                }
                (due, is_asked) = (Instant::now() + SIGN, true);
            }
            should_ask = tokio::select! {
                message = stream.responses.message() => {
                    let Ok(Some(response)) = message else { return Ok(()) };
                    if !self.take_in(&response, changes)? {
                        return Ok(());
                    }
                    (due, is_asked) = (Instant::now() + SILENCE, false);
                    false
                }
                // Somebody else found that this member does not answer.
                left = turns.changed() => left.is_ok(),
                () = sleep_until(due) => {
                    if is_asked {
                        return Ok(());
                    }
                    true
                }
            };
        }
    }

    /// Hands on one answer. `false`: this stream is over, another may go on.
    fn take_in(&mut self, response: &WatchResponse, changes: &Sender) -> Result<bool, StoreError> {
        if response.canceled() {
            if response.compact_revision() > 0 {
                return Err(StoreError::Compacted { oldest: unsigned(response.compact_revision()) });
            }
            let fault = Fault::said(response.cancel_reason());
            return if fault.is_of_member() { Ok(false) } else { Err(fault.into_error(self.members.place())) };
        }
        let seen = self.seen;
        let mut events = Vec::new();
        for event in response.events() {
            let Some(kv) = event.kv().filter(|kv| kv.mod_revision() > seen) else { continue };
            let is_put = event.event_type() == EventType::Put;
            self.seen = self.seen.max(kv.mod_revision());
            if kv.key() == self.subject.id.as_bytes() {
                let is_known = self.identity.as_deref().is_none_or(|known| known == kv.value());
                if !is_put || !is_known {
                    return Err(self.replaced());
                }
                self.identity = Some(kv.value().to_vec());
            } else {
                events.push(Event { kv, is_put });
            }
        }
        for change in (self.subject.read)(&events) {
            // A receiver that is gone is noticed elsewhere.
            let _ = changes.send(Ok(change));
        }
        // A sign of life that was asked for has no watch of its own, and may come before what happened earlier (etcd's issue 15220):
        // only one that comes by itself says how far the watch is.
        if response.events().is_empty() && response.watch_id() >= 0 && !response.created() {
            self.seen = self.seen.max(response.header().map_or(0, etcd_client::ResponseHeader::revision));
        }
        Ok(true)
    }

    fn replaced(&self) -> StoreError {
        let cause = "the store's identity was removed or replaced: it has to be read anew".to_owned();
        StoreError::Unavailable { place: self.members.place().to_owned(), cause }
    }
}

/// What opening a stream gives.
struct Opened {
    identity: Option<Vec<u8>>,
    /// The store's revision before.
    revision: i64,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
}

async fn open(client: Client, root: &str, id: &str, from: i64) -> Result<Opened, Fault> {
    // A read first: it says where the store is, and it is refused in plain words where a watch is only ended (3.4 says "permission
    // denied" of a token that has run out).
    let found = client.kv_client().get(id, None).await?;
    let revision = found.header().map_or(0, etcd_client::ResponseHeader::revision);
    let identity = found.kvs().first().map(|kv| kv.value().to_vec());
    let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
    let mut watcher = client.watch_client().max_decoding_message_size(MOST_BYTES);
    let (requests, mut responses) = watcher.watch(root, Some(options)).await?.split();
    match responses.message().await? {
        Some(first) if first.canceled() => Err(Fault::said(first.cancel_reason())),
        Some(_) => Ok(Opened { identity, revision, requests, responses }),
        None => Err(Fault::new(Sort::Away, "the watch ended before it began")),
    }
}
