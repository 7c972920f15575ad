//! What the store's side does with the view on disk: keeps it, and runs on it while the store has not answered.

use std::time::Duration;

use loden_core::api::ViewOrigin;
use loden_core::cni::NodeFile;
use loden_core::model::Record;
use loden_linux::LinuxError;
use loden_linux::run_dir::read_json;
use loden_store::{Change, Listing, Store, StoreError};
use tokio::time::Instant;

use super::{Cluster, News};

/// The subject of what is wrong with writing it.
const WRITING: &str = "the view on disk";
/// The subject of what is said while it is run on.
pub(super) const SUBJECT: &str = "the view";
/// How long after it could not be written it is tried again.
const RETRY: Duration = Duration::from_secs(60);

impl Cluster {
    /// Looks at what is there. One of another store is not used.
    pub(super) fn remember(&mut self) {
        self.blocks.former.extend(self.identity.preferred.iter().copied());
        let found = match self.journal.read() {
            Ok(found) => found,
            Err(error) => {
                let aside = match self.journal.set_aside() {
                    Ok(aside) => format!("it is kept as {}", aside.display()),
                    Err(error) => error.to_string(),
                };
                let text = format!("{error}; it is not used, and {aside}");
                tracing::warn!("the view on disk: {text}");
                (self.deliver)(News::Event(WRITING.to_owned(), text.clone()));
                self.set_problem(WRITING, Some(text));
                return;
            }
        };
        let known = std::fs::read_to_string(self.identity.store_id_file()).unwrap_or_default();
        let Some(found) = found.filter(|found| found.store == known.trim()) else { return };
        let own = found.entries.iter().filter_map(|entry| match &entry.record {
            Record::Block(block) if block.owner == self.identity.node => Some(block.cidr),
            _ => None,
        });
        self.blocks.former.extend(own);
        if found.lends {
            // What the plugin was told of terms holds by the clock that began at boot, and goes with a reboot.
            let node = read_json::<NodeFile>(&self.identity.run_dir.node_file()).ok().flatten();
            let blocks = node.map(|node| node.blocks).unwrap_or_default();
            self.blocks.terms.extend(blocks.iter().filter_map(|block| Some((block.cidr, block.until_ms?))));
        }
        self.remembered = Some(found);
    }

    /// Gives the kernel's side the view on disk, once, if the store has not answered yet.
    pub(super) fn run_on_disk(&mut self) {
        let Some(found) = self.remembered.take() else { return };
        let text = format!(
            "the datastore has not answered since the start; running on the view on disk, of revision {}, last written {} s \
             before the start",
            found.revision,
            found.age.as_secs()
        );
        tracing::warn!("{text}");
        self.set_problem(SUBJECT, Some(text));
        self.health.send_modify(|health| {
            health.view = Some(ViewOrigin::Disk);
            health.revision = found.revision;
        });
        (self.deliver)(News::Terms(found.lends.then(|| self.blocks.terms.clone())));
        (self.deliver)(News::Remembered(found.entries));
    }

    pub(super) fn write_journal(&mut self, listing: &Listing, lends: bool) {
        let written = self.journal.begin(listing, lends);
        self.after_writing(written);
    }

    pub(super) fn append_journal(&mut self, change: &Change) {
        let was_whole = self.journal.is_whole();
        let written = self.journal.append(change);
        if was_whole {
            self.after_writing(written);
        }
    }

    /// Writes it anew from the store some time after it could not be written. What the watch brings behind that listing may be older
    /// than it: it is appended all the same, and the newest comes last.
    pub(super) async fn mend_journal(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        if self.journal_retry.is_some_and(|at| at <= Instant::now()) {
            let listing = store.list().await?;
            self.write_journal(&listing, store.term().is_some());
        }
        Ok(())
    }

    fn after_writing(&mut self, written: Result<(), LinuxError>) {
        self.journal_retry = written.is_err().then(|| Instant::now() + RETRY);
        let problem = written.err().map(|error| {
            format!("{error}; an agent that starts while the datastore is away has none to run on. It is tried again")
        });
        if let Some(problem) = &problem {
            tracing::warn!("the view on disk: {problem}");
        }
        self.set_problem(WRITING, problem);
    }
}
