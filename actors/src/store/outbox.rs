//! The outbox on disk: what durable delivery keeps, in an encrypted database of its own beside that of the store, so that
//! no log record ever stands before a message.
//!
//! - [`OutboxStore`] is the bus's [`OutboxStorage`]: each step is one transaction of one writing thread, callers that come
//!   together share one, and the answer is given after the commit, which is synced.
//! - [`Desk`] is for people: it lists, shows, retries and drops, beside a running sender or without any.
//! - Who sends holds the lock on `outbox.lock`, which ends with its process.
//! - A failed sync is never believed to have been made good: the connection is opened anew, whoever waited is told that
//!   nothing was stored, and the next write overwrites what may stand behind the last commit.
//!
//! Reading order: `schema/outbox` (the tables), `book` (states and totals), `put` (accepting), `lease` (the way to the end),
//! `forget` (retention), `sender` (the lock), [`desk`].

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use interlock_bus::{
    PeerName,
    durable::{
        OutboxStorage,
        storage::{
            DeliveryId, Leased, NewEntry, OpenDelivery, Put, PutError, Settled, Step, StorageError,
            StorageFailure,
        },
    },
};

mod book;
mod checkpoint;
pub mod desk;
mod forget;
mod lease;
pub mod limits;
mod put;
mod sender;
pub mod shown;
#[cfg(test)]
pub(super) mod tests;

pub use book::DeliveryState;
pub use desk::Desk;
pub use forget::KeepFinished;

use super::{DataKey, StoreError, join, locked, migrate::Migration, prepare, spawn, writer};
use book::Totals;

/// Name of the outbox's database inside the data directory.
pub const OUTBOX_FILE: &str = "outbox.db";

pub(super) const MIGRATIONS: &[Migration] =
    &[Migration { version: 1, name: "outbox", sql: include_str!("schema/outbox/001_outbox.sql") }];

/// The statements that make the schema, in order: for whoever compares our speed with that of SQLite alone.
pub fn schema_sql() -> impl Iterator<Item = &'static str> {
    MIGRATIONS.iter().map(|migration| migration.sql)
}

/// What may be accepted. May be changed while the outbox is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Messages that may be unfinished, in whatever state, dead letters not counted; zero for any number.
    pub pending_max: u64,
    /// Bytes of headers and payloads of unfinished messages and dead letters; zero for any number.
    pub bytes_max: u64,
    /// Bytes of the disk that must be free.
    pub disk_floor: u64,
    /// What happens to a message above `pending_max`.
    pub when_full: WhenFull,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self {
            pending_max: limits::PENDING_MAX,
            bytes_max: limits::BYTES_MAX,
            disk_floor: limits::DISK_FLOOR,
            when_full: WhenFull::default(),
        }
    }
}

/// What happens when as many messages are unfinished as may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// A further one is refused.
    #[default]
    Reject,
    /// The oldest one of which nothing is being sent becomes a dead letter. Nothing is ever deleted for another.
    OldestToDeadLetter,
}

/// An open outbox. Clones share the thread, and the lock of the sender.
///
/// The thread ends with [`close`](Self::close), or when the last clone is dropped; what is queued by then is written.
#[derive(Clone)]
pub struct OutboxStore {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    jobs: writer::Queue,
    writer: Mutex<Option<JoinHandle<()>>>,
    counts: Arc<writer::Counts>,
    limits: Mutex<OutboxLimits>,
    keep: Arc<Mutex<KeepFinished>>,
    /// The lock of who sends, once it is held. A lock of tasks: it is waited for.
    sender: tokio::sync::Mutex<Option<sender::SenderLock>>,
}

impl Shared {
    fn close(&self) {
        self.jobs.close();
        join(&self.path, locked(&self.writer).take());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the writer of an outbox has done since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxStatistics {
    /// Steps waiting now.
    pub waiting: usize,
    /// Transactions committed; fewer than steps when callers come together.
    pub commits: u64,
    /// Transactions that failed.
    pub failures: u64,
    /// Those of them since something was written: above zero it cannot write at present.
    pub failed_in_a_row: u64,
}

impl fmt::Debug for OutboxStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OutboxStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl OutboxStore {
    /// Opens the database, making or migrating it if needed, checks its totals against what they count, and starts the
    /// writing thread. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`StoreError`]; a database that cannot be opened is never changed.
    pub fn open(
        path: &Path,
        key: &DataKey,
        limits: OutboxLimits,
        keep: KeepFinished,
    ) -> Result<Self, StoreError> {
        let (mut connection, _) = prepare(path, key, MIGRATIONS)?;
        check_totals(&mut connection, path)?;
        let counts = Arc::new(writer::Counts::default());
        let keep = Arc::new(Mutex::new(keep));
        let hand = writer::Hand::new(path.to_owned(), Arc::new(key.clone()), connection, Arc::clone(&counts));
        let checkpoints = checkpoint::Checkpoints::start(path.to_owned(), key.clone())?;
        let writer = writer::Writer::new(hand, forget::Chores::new(Arc::clone(&keep), checkpoints));
        let (jobs, commands) = writer::Queue::new(super::limits::QUEUE_JOBS);
        // Joined in `close`.
        let thread = spawn(path, "outbox-writer".to_owned(), move || writer.run(commands.receiver()))?;
        let shared = Shared {
            path: path.to_owned(),
            jobs,
            writer: Mutex::new(Some(thread)),
            counts,
            limits: Mutex::new(limits),
            keep,
            sender: tokio::sync::Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// What may be accepted from now on, and what is remembered. What is too much is forgotten at once.
    pub fn configure(&self, limits: OutboxLimits, keep: KeepFinished) {
        *locked(&self.shared.limits) = limits;
        *locked(&self.shared.keep) = keep;
        self.shared.jobs.trim();
    }

    /// What the writer has done.
    pub fn statistics(&self) -> OutboxStatistics {
        let counts = &self.shared.counts;
        OutboxStatistics {
            waiting: self.shared.jobs.waiting(),
            commits: counts.commits.load(Ordering::Relaxed),
            failures: counts.failures.load(Ordering::Relaxed),
            failed_in_a_row: counts.failed_in_a_row.load(Ordering::Relaxed),
        }
    }

    /// Whether the writing thread still takes work.
    pub fn is_open(&self) -> bool {
        locked(&self.shared.writer).as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// What is kept now, for whoever shows it.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn standing(&self) -> Result<desk::Standing, StorageError> {
        self.step(desk::Stand).await
    }

    /// Does what a person, `by`, wants with deliveries, in one transaction, and writes down beside each who did it. Those that
    /// are not in the state in which they were seen any more are left as they are; returns how many were changed.
    ///
    /// # Errors
    /// [`StorageError`]; nothing was changed then.
    pub async fn edit(
        &self,
        edit: desk::Edit,
        deliveries: Vec<(u64, String, DeliveryState)>,
        by: String,
    ) -> Result<u64, StorageError> {
        self.step(desk::Change { edit, deliveries, by }).await
    }

    /// Writes what is queued, ends the thread and closes the file. Blocks until then; further calls, also those of clones,
    /// are `Closed`. Calling it again does nothing.
    pub fn close(&self) {
        self.shared.close();
    }

    /// A step that waits for its place in the queue.
    async fn step<W: writer::Work>(&self, work: W) -> Result<W::Output, StorageError> {
        self.try_step(work).await.map_err(StorageError::from)
    }

    async fn try_step<W: writer::Work>(&self, work: W) -> Result<W::Output, StoreError> {
        self.shared.jobs.submit_waiting(work).await.map_err(|refused| refused.error)
    }

    async fn lease_each(&self, deliveries: Vec<DeliveryId>) -> Result<Vec<Leased>, StorageError> {
        let error = match self.try_step(lease::Lease(deliveries.clone())).await {
            Ok(leased) => return Ok(leased),
            Err(error @ StoreError::Damaged { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        tracing::warn!(%error, "a page of the outbox is damaged; each message of the batch is read by itself");
        // A damaged page ends the transaction that met it. Those whose pages are whole go on.
        let mut leased = Vec::new();
        for id in deliveries {
            match self.try_step(lease::Lease(vec![id.clone()])).await {
                Ok(one) => leased.extend(one),
                Err(error @ StoreError::Damaged { .. }) => {
                    let reason = format!("cannot be read: {error}");
                    let DeliveryId { number, consumer } = id;
                    tracing::error!(number, %consumer, %error, "a message cannot be read and is a dead letter");
                    self.step(lease::Bury { number, consumer: consumer.as_str().to_owned(), reason }).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(leased)
    }

    /// Everybody with open deliveries. What is on its way to a name that is none becomes a dead letter.
    async fn consumers(&self) -> Result<Vec<(PeerName, u64)>, StorageError> {
        let mut consumers = Vec::new();
        for (name, open) in self.step(lease::OpenConsumers).await? {
            match name.parse() {
                Ok(consumer) => consumers.push((consumer, open)),
                Err(_) => {
                    tracing::error!(consumer = %name.escape_debug(), open, "a consumer's name is damaged; its messages are dead letters");
                    self.step(lease::BuryAll { consumer: name }).await?;
                }
            }
        }
        Ok(consumers)
    }

    async fn lock_and_take_back(&self) -> Result<u64, StorageError> {
        let mut sender = self.shared.sender.lock().await;
        if sender.is_none() {
            *sender = Some(sender::SenderLock::wait(&self.shared.path).await?);
        }
        self.step(lease::TakeBack).await
    }
}

impl OutboxStorage for OutboxStore {
    fn put(&self, entry: NewEntry) -> Step<'_, Result<Put, PutError>> {
        let limits = *locked(&self.shared.limits);
        Box::pin(async move {
            match self.shared.jobs.submit(put::Accept { entry, limits }).await {
                Ok(answer) => answer,
                Err(refused) => Err(PutError::Storage(refused.error.into())),
            }
        })
    }

    fn become_sender(&self) -> Step<'_, Result<u64, StorageError>> {
        Box::pin(self.lock_and_take_back())
    }

    fn open_deliveries(
        &self,
        consumer: &PeerName,
        after: u64,
        limit: usize,
    ) -> Step<'_, Result<Vec<OpenDelivery>, StorageError>> {
        let work = lease::OpenDeliveries { consumer: consumer.clone(), after, limit };
        Box::pin(self.step(work))
    }

    fn open_consumers(&self) -> Step<'_, Result<Vec<(PeerName, u64)>, StorageError>> {
        Box::pin(self.consumers())
    }

    fn lease(&self, deliveries: Vec<DeliveryId>) -> Step<'_, Result<Vec<Leased>, StorageError>> {
        Box::pin(self.lease_each(deliveries))
    }

    fn settle(&self, settled: Vec<Settled>) -> Step<'_, Result<(), StorageError>> {
        Box::pin(self.step(lease::Settle(settled)))
    }
}

impl From<StoreError> for StorageError {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Closed => StorageFailure::Closed,
            StoreError::Busy { .. }
            | StoreError::QueueFull { .. }
            | StoreError::InUse { .. }
            | StoreError::ReadTooLong { .. } => StorageFailure::Busy,
            StoreError::DiskFull { .. }
            | StoreError::Disk { .. }
            | StoreError::ReadOnly { .. }
            | StoreError::File { .. } => StorageFailure::Disk,
            _ => StorageFailure::Damaged,
        };
        Self { kind, text: error.to_string() }
    }
}

/// The totals are changed together with what they count; if they are not equal, somebody wrote by hand, and what is there
/// counts.
fn check_totals(connection: &mut rusqlite::Connection, path: &Path) -> Result<(), StoreError> {
    let check = |connection: &mut rusqlite::Connection| {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let (told, counted) = (Totals::read(&transaction)?, Totals::count(&transaction)?);
        if told != counted {
            tracing::warn!(?told, ?counted, "the totals of the outbox were wrong and have been counted anew");
            counted.write(&transaction)?;
        }
        transaction.commit()
    };
    check(connection).map_err(|error| StoreError::from_sqlite(path, "counting what is kept", error))
}

fn now_ms() -> u64 {
    interlock_bus::envelope::now_ns() / u64::try_from(Duration::from_millis(1).as_nanos()).unwrap_or(1)
}
