//! The receiving end of a watch.

use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use crate::{Change, StoreError};

/// Changes as they come. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    changes: mpsc::UnboundedReceiver<Result<Change, StoreError>>,
    place: String,
    hindrance: Hindrance,
}

/// What the feeding end says of itself.
pub type Hindrance = Arc<Mutex<Option<String>>>;

/// The sending end.
pub type Sender = mpsc::UnboundedSender<Result<Change, StoreError>>;

impl Watch {
    /// A watch on the store at `place`, with the end that feeds it.
    #[must_use]
    pub fn new(place: &str) -> (Sender, Self) {
        let (sender, changes) = mpsc::unbounded_channel();
        (sender, Self { changes, place: place.to_owned(), hindrance: Hindrance::default() })
    }

    /// The same, with what the feeding end says by why changes come late.
    #[must_use]
    pub fn with_hindrance(place: &str) -> (Sender, Hindrance, Self) {
        let (sender, watch) = Self::new(place);
        (sender, Arc::clone(&watch.hindrance), watch)
    }

    /// Why changes come later than they could, and what to do about it, if that is so.
    #[must_use]
    pub fn hindrance(&self) -> Option<String> {
        self.hindrance.lock().ok().and_then(|hindrance| hindrance.clone())
    }

    /// The next change. May be dropped while it waits: no change is lost.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails; the watch is over then.
    pub async fn next(&mut self) -> Result<Change, StoreError> {
        self.changes.recv().await.unwrap_or_else(|| {
            Err(StoreError::Unavailable { place: self.place.clone(), cause: "the store was closed".to_owned() })
        })
    }

    /// The next change if it is there already: what was written at once comes at once.
    ///
    /// # Errors
    /// As [`Watch::next`]; that the store was closed is left to that.
    pub fn ready(&mut self) -> Option<Result<Change, StoreError>> {
        self.changes.try_recv().ok()
    }
}
