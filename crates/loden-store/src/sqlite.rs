//! The store in an SQLite file, shared by all processes of one host.
//!
//! WAL, so that readers and a writer do not wait for each other. One thread owns the connection: callers never block.
//! `synchronous=NORMAL`: a killed process loses nothing; after a power failure the last moments may be missing, and on a
//! one-host store every pod that they spoke of is gone as well. Watchers wait for inotify, and look every
//! second only where the kernel does not let them.

mod clock;
mod database;
mod watcher;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use loden_core::model::{Entry, Key, Record};
use tokio::sync::oneshot;

use crate::{Expect, Listing, Store, StoreError, Watch};
use database::Database;

type Job = Box<dyn FnOnce(&mut Database) + Send>;

/// The store.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
}

impl Sqlite {
    /// Opens the file, or makes it with its directory.
    ///
    /// # Errors
    /// [`StoreError`]: damaged, locked, of a newer version, not accessible.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, result) = oneshot::channel();
        let owned = path.to_owned();
        let worker = move || {
            let mut database = match Database::open(&owned) {
                Ok(database) => {
                    let _ = opened.send(Ok(()));
                    database
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            while let Ok(job) = queue.recv() {
                job(&mut database);
            }
        };
        thread::Builder::new().name("store".to_owned()).spawn(worker).map_err(|error| unavailable(path, &error))?;
        result.await.map_err(|error| unavailable(path, &error))??;
        Ok(Self { path: path.to_owned(), jobs })
    }

    /// Has the owner of the connection do something.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |database| {
            // A caller that has gone away does not want the answer.
            let _ = answer.send(work(database));
        });
        self.jobs.send(job).map_err(|error| unavailable(&self.path, &error))?;
        result.await.map_err(|error| unavailable(&self.path, &error))?
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn list(&self) -> Result<Listing, StoreError> {
        self.ask(Database::list).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let key = key.clone();
        self.ask(move |database| database.get(&key)).await
    }

    async fn put(&self, record: Record, expect: Expect, ttl: Option<Duration>) -> Result<Entry, StoreError> {
        self.ask(move |database| database.put(record, expect, ttl)).await
    }

    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        let key = key.clone();
        self.ask(move |database| database.delete(&key, expect)).await
    }

    async fn renew(&self, key: &Key, revision: u64, ttl: Duration) -> Result<(), StoreError> {
        let key = key.clone();
        self.ask(move |database| database.renew(&key, revision, ttl)).await
    }

    async fn watch(&self, after: u64) -> Result<Watch, StoreError> {
        let (sender, hindrance, watch) = Watch::with_hindrance(&self.path.display().to_string());
        let (ready, started) = oneshot::channel();
        let path = self.path.clone();
        let work = move || watcher::run(&path, after, &sender, hindrance, ready);
        let spawned = thread::Builder::new().name("store-watch".to_owned()).spawn(work);
        spawned.map_err(|error| unavailable(&self.path, &error))?;
        started.await.map_err(|error| unavailable(&self.path, &error))??;
        Ok(watch)
    }
}

fn unavailable(path: &Path, cause: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable { place: path.display().to_string(), cause: cause.to_string() }
}
