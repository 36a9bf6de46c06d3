//! The store as a component, and the place where others find it.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Deleted, Statistics, Store, StoreError, StoreOptions, Vault};
use crate::{
    actor::{Actor, Failure, Input},
    context::Context,
};

/// How often the store looks whether its writing thread is alive, brings its status up to date, and tries to write when it
/// could not.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often at most it says what the retention has deleted: in a steady flow there is always something.
const TELL_DELETED_EVERY: Duration = Duration::from_secs(60);

/// Where the open store is to be found. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct StoreSeat(Arc<Mutex<Seat>>);

#[derive(Debug, Default)]
struct Seat {
    store: Option<Store>,
    last_error: Option<StoreError>,
}

impl StoreSeat {
    /// The store that is open.
    ///
    /// # Errors
    /// [`StoreError::Closed`] if none is.
    pub fn store(&self) -> Result<Store, StoreError> {
        self.lock().store.clone().ok_or(StoreError::Closed)
    }

    /// Why the store could not be opened last time, if it could not; for the exit code of a start that fails.
    pub fn last_error(&self) -> Option<StoreError> {
        self.lock().last_error.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seat> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the store. Declared ready when database and threads are there.
#[derive(Debug)]
pub struct StoreActor {
    vault: Arc<Vault>,
    options: StoreOptions,
    seat: StoreSeat,
    store: Option<Store>,
    told: Option<Statistics>,
    /// What is wrong with the content, once somebody has looked.
    orphans: Rc<RefCell<Option<String>>>,
    told_impaired: Option<String>,
    /// What had been deleted when that was last told, and when.
    deleted: (Deleted, Option<Instant>),
}

impl StoreActor {
    /// A store with its key in `vault`, which will be found in `seat`.
    pub fn new(vault: Arc<Vault>, options: StoreOptions, seat: StoreSeat) -> Self {
        Self {
            vault,
            options,
            seat,
            store: None,
            told: None,
            orphans: Rc::default(),
            told_impaired: None,
            deleted: Default::default(),
        }
    }

    /// Says what the retention has deleted since it was last said. Not as the store, which never logs into the log: this
    /// is bounded by time, whatever it leads to.
    fn tell_deleted(&mut self, now: Deleted) {
        let (before, told) = self.deleted;
        if now == before || told.is_some_and(|told| told.elapsed() < TELL_DELETED_EVERY) {
            return;
        }
        self.deleted = (now, Some(Instant::now()));
        tracing::info!(
            target: "interlock_actors::retention",
            by_age = now.by_age - before.by_age,
            by_rows = now.by_rows - before.by_rows,
            by_bytes = now.by_bytes - before.by_bytes,
            "retention deleted {} log records",
            now.all() - before.all()
        );
    }

    /// Looks for rows that have lost what they belong to, beside everything else.
    fn look_for_orphans(&self, store: Store, context: &Context) {
        let found = Rc::clone(&self.orphans);
        context.spawn_background(async move {
            let orphans = match store.read(|reader| reader.orphans()).await {
                Ok(orphans) => orphans,
                Err(error) => {
                    tracing::warn!(%error, "nobody knows whether rows have lost what they belong to");
                    return Ok(());
                }
            };
            if let Some(first) = orphans.first() {
                let count = orphans.len();
                let text = format!(
                    "{count} rows have lost what they belong to, the first: {first}; `interlock db check` names all"
                );
                tracing::error!(target: "interlock_actors::orphans", count, first, "rows have lost what they belong to");
                *found.borrow_mut() = Some(text);
            }
            Ok(())
        });
    }

    fn impairment(&self, failed_in_a_row: u64) -> Option<String> {
        match failed_in_a_row {
            0 => self.orphans.borrow().clone(),
            failed => Some(format!("cannot write: the last {failed} writes failed")),
        }
    }

    /// Takes the store out of the seat, so that nobody finds one that is being closed.
    fn leave(&mut self) -> Option<Store> {
        let store = self.store.take()?;
        self.seat.lock().store = None;
        Some(store)
    }
}

impl Actor for StoreActor {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        let (vault, options) = (Arc::clone(&self.vault), self.options);
        let opened = tokio::task::spawn_blocking(move || {
            let key = vault.open_or_create()?;
            Store::open(vault.database(), &key, options)
        });
        let opened = opened.await?;
        let mut seat = self.seat.lock();
        seat.last_error = opened.as_ref().err().cloned();
        let store = opened?;
        seat.store = Some(store.clone());
        drop(seat);
        context.status(format!("opened `{}`", store.path().display()));
        self.look_for_orphans(store.clone(), context);
        self.store = Some(store);
        Ok(())
    }

    async fn handle(&mut self, _input: Input, _context: &Context) -> Result<(), Failure> {
        // The store is called, not written to: it subscribes to nothing.
        Ok(())
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(LOOK_EVERY)
    }

    async fn tick(&mut self, context: &Context) -> Result<(), Failure> {
        let Some(store) = &self.store else { return Ok(()) };
        if !store.is_open() {
            return Err(Failure::new("the writing thread of the store has ended"));
        }
        let now = store.statistics();
        let why = self.impairment(now.failed_in_a_row);
        if self.told_impaired != why {
            context.impaired(why.clone());
            self.told_impaired = why;
        }
        if self.told != Some(now) {
            let Statistics { waiting, jobs, commits, failures, deleted, .. } = now;
            let mut status = format!(
                "schema version {}; {jobs} writes in {commits} commits, {failures} failures, {waiting} waiting",
                store.schema_version()
            );
            if deleted.all() > 0 {
                status.push_str(&format!(", {} log records deleted by the retention", deleted.all()));
            }
            context.status(status);
            self.told = Some(now);
        }
        self.tell_deleted(now.deleted);
        Ok(())
    }

    async fn stopping(&mut self, _context: &Context) -> Result<(), Failure> {
        if let Some(store) = self.leave() {
            tokio::task::spawn_blocking(move || store.close()).await?;
        }
        Ok(())
    }
}

impl Drop for StoreActor {
    /// After a failure: what is queued is written, and the next incarnation opens the file anew.
    fn drop(&mut self) {
        if let Some(store) = self.leave() {
            store.close();
        }
    }
}
