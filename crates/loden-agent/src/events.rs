//! The last things that happened, for `loden status` and the log: bounded, numbered, timed by the monotonic clock.

use std::collections::VecDeque;
use std::time::Instant;

use loden_core::api::Event;

/// How many are kept.
const KEPT: usize = 256;

/// A ring of events. Each is written to the log too.
#[derive(Debug)]
pub struct EventLog {
    started: Instant,
    next: u64,
    ring: VecDeque<Event>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { started: Instant::now(), next: 1, ring: VecDeque::new() }
    }
}

impl EventLog {
    /// Notes something.
    pub fn push(&mut self, sort: &str, object: &str, text: String) {
        match sort {
            "error" => tracing::warn!(object, "{text}"),
            _ => tracing::info!(sort, object, "{text}"),
        }
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        let at_ms = self.uptime_ms();
        self.ring.push_back(Event { seq: self.next, at_ms, sort: sort.to_owned(), object: object.to_owned(), text });
        self.next += 1;
    }

    /// Those with a greater number than `after`.
    #[must_use]
    pub fn after(&self, after: u64) -> Vec<Event> {
        self.ring.iter().filter(|event| event.seq > after).cloned().collect()
    }

    /// Milliseconds since the agent started.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
