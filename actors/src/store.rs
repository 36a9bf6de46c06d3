//! The store: one encrypted database for logs and conversations. The only place that names SQLite.
//!
//! - [`Store::open`] is the one way to write: it makes or migrates the database, then starts one
//!   writing thread and a few reading ones. Constructing anything else opens nothing.
//! - [`Reader::open`] is for programs beside the runtime (`interlock logs`); it works while the
//!   runtime runs and after it has stopped.
//! - What a call returns `Ok` for is committed and synced; nothing else is promised.
//!
//! Reading order: [`key`] (what it is encrypted with), `connection` (how it is opened), `migrate`
//! (the schema), `writer` (group commit), [`logs`], [`conversations`], [`reader`], [`limits`].

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread::JoinHandle,
};

use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::oneshot;

pub mod checkup;
mod child;
mod chores;
mod connection;
pub mod conversations;
mod error;
mod file_system;
mod identity;
pub mod key;
mod limited;
pub mod limits;
pub mod logs;
mod migrate;
pub mod outbox;
pub mod passphrase;
pub mod reader;
pub mod repair;
mod salvage;
pub(crate) mod snapshot;
pub mod status;
#[cfg(test)]
mod tests;
mod writer;

pub use child::{StoreActor, StoreSeat};
pub use conversations::{Conversation, MessageState, NewMessage, Role, StoredMessage};
pub use error::StoreError;
pub use key::{DataKey, KeyWrap, Vault};
pub use logs::{
    Appended, StoredLog,
    filter::{FieldPattern, Grep, LogQuery, NamePattern},
    prune::{Prune, PruneBound, Pruner},
    retention::{Deleted, LogRetention},
    search::Found,
    summary::LogSummary,
    words::TextQuery,
};
pub use migrate::SchemaVersion;
pub use passphrase::{Passphrase, PassphraseSources};
pub use reader::{Reader, schema_version};
pub use writer::Refused;

use crate::log_record::LogRecord;

/// Name of the database inside the data directory.
pub const DATABASE_FILE: &str = "interlock.db";

/// What can be chosen about a store. The defaults are in [`limits`].
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Log records kept.
    pub logs: LogRetention,
    /// Jobs that may wait for the writer.
    pub queue_jobs: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { logs: LogRetention::default(), queue_jobs: limits::QUEUE_JOBS }
    }
}

/// An open store. Cloning is cheap; all clones share the threads. Its `async` functions never block
/// the thread they are polled on and need no particular executor.
///
/// It ends with [`close`](Store::close), or when the last clone is dropped; what is queued by then is written. Both wait for
/// its threads: a process must not end while one of them is in the database. SQLCipher frees at the process's end what they
/// work with.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    jobs: writer::Queue,
    /// `None` once closed.
    reads: Mutex<Option<Sender<Read>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    readers: Mutex<Vec<JoinHandle<()>>>,
    counts: Arc<writer::Counts>,
    retention: chores::Retention,
    /// Log records deleted by the retention, in passes that are over.
    deleted: Arc<Mutex<Deleted>>,
}

impl Shared {
    fn close(&self) {
        locked(&self.reads).take();
        // Readers first: the writer's connection must be the last one, because the last one to close is
        // what moves the write-ahead log into the database.
        join(&self.path, std::mem::take(&mut *locked(&self.readers)));
        self.jobs.close();
        join(&self.path, locked(&self.writer).take());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits for the threads of a database to end.
fn join(path: &Path, threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        // The last handle of a store may be dropped by one of its own jobs; that thread ends behind it.
        if thread.thread().id() == std::thread::current().id() {
            continue;
        }
        let name = thread.thread().name().unwrap_or_default().to_owned();
        if thread.join().is_err() {
            tracing::error!(path = %path.display(), thread = %name, "a thread of the database had panicked");
        }
    }
}

/// What the writer of a store has done since the store was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Jobs waiting now.
    pub waiting: usize,
    /// Jobs taken up.
    pub jobs: u64,
    /// Transactions committed; fewer than jobs when callers come together.
    pub commits: u64,
    /// Transactions that failed.
    pub failures: u64,
    /// Those of them since something was written, but for jobs that could never be done: above zero the store cannot write
    /// at present.
    pub failed_in_a_row: u64,
    /// Log records deleted by the retention, in passes that are over.
    pub deleted: Deleted,
}

/// Something to do with a reading connection.
type Read = Box<dyn FnOnce(Result<&mut Reader, StoreError>) + Send>;

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Store").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database, making or migrating it if needed, and starts its threads. Blocks for some milliseconds.
    ///
    /// Safe with many processes on one empty directory, and when killed at any point. A database that
    /// cannot be opened is never changed.
    pub fn open(path: &Path, key: &DataKey, options: StoreOptions) -> Result<Self, StoreError> {
        let (connection, _) = prepare(path, key, migrate::MIGRATIONS)?;

        let retention = chores::Retention::new(Mutex::new(options.logs));
        let (counts, deleted) = (Arc::new(writer::Counts::default()), Arc::default());
        let chores = chores::Chores::new(&connection, Arc::clone(&retention), Arc::clone(&deleted));
        let hand = writer::Hand::new(path.to_owned(), Arc::new(key.clone()), connection, Arc::clone(&counts));
        let writer = writer::Writer::new(hand, chores);
        let (reads, waiting) = crossbeam_channel::bounded::<Read>(limits::QUEUE_READS);
        let mut readers = Vec::new();
        for number in 1..=limits::READ_THREADS {
            let (mut reader, waiting) = (Reader::open(path, key)?, waiting.clone());
            // Joined in `close`.
            readers.push(spawn(path, format!("store-reader-{number}"), move || {
                crate::log_transport::mark_thread();
                // One whose connection failed, or whose file was replaced, reads on a new one.
                waiting.iter().for_each(|read| read(reader.renew().map(|()| &mut reader)));
            })?);
        }
        let (jobs, commands) = writer::Queue::new(options.queue_jobs.max(1));
        // Joined in `close`.
        let thread = spawn(path, "store-writer".to_owned(), move || writer.run(commands.receiver()))?;
        let shared = Shared {
            path: path.to_owned(),
            jobs,
            reads: Mutex::new(Some(reads)),
            writer: Mutex::new(Some(thread)),
            readers: Mutex::new(readers),
            counts,
            retention,
            deleted,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Appends log records; those that are there already (by id) are left as they are. Returns after the commit.
    ///
    /// A refusal gives the records back.
    pub async fn append(&self, records: Vec<LogRecord>) -> Result<Appended, Refused<Vec<LogRecord>>> {
        let appended = self.shared.jobs.submit(logs::Append(records)).await;
        appended.map_err(|refused| refused.map(|work| work.0))
    }

    /// As [`append`](Store::append), but waits for a place in the writer's queue instead of being refused for want of one.
    pub async fn append_waiting(&self, records: Vec<LogRecord>) -> Result<Appended, Refused<Vec<LogRecord>>> {
        let appended = self.shared.jobs.submit_waiting(logs::Append(records)).await;
        appended.map_err(|refused| refused.map(|work| work.0))
    }

    /// What is kept of the log records from now on; what is too much then goes at once.
    pub fn keep_logs(&self, retention: LogRetention) {
        *locked(&self.shared.retention) = retention;
        self.shared.jobs.trim();
    }

    /// What is kept of the log records.
    pub fn log_retention(&self) -> LogRetention {
        *locked(&self.shared.retention)
    }

    /// Creates a conversation; `false` if it was there already.
    pub async fn create_conversation(&self, id: &str, title: &str) -> Result<bool, StoreError> {
        let work = conversations::Create { id: id.to_owned(), title: title.to_owned() };
        self.shared.jobs.submit(work).await.map_err(|refused| refused.error)
    }

    /// Saves a message at the end of its conversation; `false` if it was there already (by id). Returns after the commit.
    ///
    /// A refusal gives the message back.
    pub async fn append_message(&self, message: NewMessage) -> Result<bool, Refused<NewMessage>> {
        let said = self.shared.jobs.submit(conversations::Say(message)).await;
        said.map_err(|refused| refused.map(|work| work.0))
    }

    /// Gives a conversation another title; `false` if there is none.
    pub async fn rename_conversation(&self, id: &str, title: &str) -> Result<bool, StoreError> {
        let work = conversations::Rename { id: id.to_owned(), title: title.to_owned() };
        self.shared.jobs.submit(work).await.map_err(|refused| refused.error)
    }

    /// Deletes a conversation with all its messages; `false` if there was none.
    pub async fn delete_conversation(&self, id: &str) -> Result<bool, StoreError> {
        let work = conversations::Delete { id: id.to_owned() };
        self.shared.jobs.submit(work).await.map_err(|refused| refused.error)
    }

    /// The last `limit` messages of a conversation, in the order in which they were said.
    pub async fn history(&self, conversation: &str, limit: usize) -> Result<Vec<StoredMessage>, StoreError> {
        let conversation = conversation.to_owned();
        self.read(move |reader| reader.history(&conversation, limit)).await
    }

    /// Reads on one of the reading threads.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job: Read = Box::new(move |reader| {
            // Nobody waits any more: nothing was changed, so nothing is lost.
            let _ = reply.send(reader.and_then(read));
        });
        let sent = locked(&self.shared.reads).as_ref().map(|reads| reads.try_send(job));
        match sent {
            Some(Ok(())) => answer.await.unwrap_or(Err(StoreError::Closed)),
            Some(Err(TrySendError::Full(_))) => Err(StoreError::QueueFull { limit: limits::QUEUE_READS }),
            Some(Err(TrySendError::Disconnected(_))) | None => Err(StoreError::Closed),
        }
    }

    /// Writes what is queued, ends the threads and closes the file. Blocks until then; further calls,
    /// also those of clones, are `Closed`. Calling it again does nothing.
    pub fn close(&self) {
        self.shared.close();
    }

    /// The version of its tables: the one that this program knows, to which opening has brought them.
    pub fn schema_version(&self) -> u32 {
        migrate::known_version(migrate::MIGRATIONS)
    }

    /// What the writer has done since the store was opened.
    pub fn statistics(&self) -> Statistics {
        let counts = &self.shared.counts;
        Statistics {
            waiting: self.shared.jobs.waiting(),
            jobs: counts.jobs.load(Ordering::Relaxed),
            commits: counts.commits.load(Ordering::Relaxed),
            failures: counts.failures.load(Ordering::Relaxed),
            failed_in_a_row: counts.failed_in_a_row.load(Ordering::Relaxed),
            deleted: *locked(&self.shared.deleted),
        }
    }

    /// Waits while the store cannot write ([`Statistics::failed_in_a_row`]): until it has written again, which it tries
    /// each [`limits::PROBE_EVERY`] by itself, or until it is closed.
    pub async fn writable(&self) {
        self.shared.counts.writable().await;
    }

    /// Whether the writing thread still takes work.
    pub fn is_open(&self) -> bool {
        locked(&self.shared.writer).as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

/// The statements that make the schema, in order: for whoever compares our speed with that of SQLite alone.
pub fn schema_sql() -> impl Iterator<Item = &'static str> {
    migrate::MIGRATIONS.iter().map(|migration| migration.sql)
}

/// Indexes log records that are not, one block of them, on a connection of the caller's, and says how many are left: also
/// for whoever compares. Ours happens on the writing thread whenever no job waits.
#[doc(hidden)]
pub fn index_logs(connection: &rusqlite::Connection) -> rusqlite::Result<i64> {
    logs::index::step(connection)
}

/// A lock that a panic elsewhere does not take away: what it guards is whole at every instant.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What [`initialise`] has done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Initialised {
    /// Whether there was no database before.
    pub made: bool,
    /// The migrations that were applied; none if it was up to date.
    pub applied: Vec<u32>,
    /// The version of the schema now.
    pub schema_version: u32,
}

/// Makes or migrates the database, and leaves it closed. The same as the first thing that [`Store::open`] does.
///
/// # Errors
/// Those of [`Store::open`].
pub fn initialise(path: &Path, key: &DataKey) -> Result<Initialised, StoreError> {
    let made = connection::file_bytes(path)?.is_none_or(|bytes| bytes == 0);
    let (_, applied) = prepare(path, key, migrate::MIGRATIONS)?;
    let schema_version = migrate::known_version(migrate::MIGRATIONS);
    // Somebody else may have been faster.
    Ok(Initialised { made: made && !applied.is_empty(), applied, schema_version })
}

/// A database that is there, up to date and whole, and which migrations were applied.
fn prepare(
    path: &Path,
    key: &DataKey,
    migrations: &[migrate::Migration],
) -> Result<(rusqlite::Connection, Vec<u32>), StoreError> {
    connection::check_version()?;
    file_system::check(path)?;
    let recorded = match connection::file_bytes(path)? {
        None => {
            connection::refuse_left_wal(path)?;
            identity::forget(path);
            identity::Recorded::read(path, key)?
        }
        bytes => {
            let recorded = identity::Recorded::read(path, key)?;
            if bytes == Some(0) {
                recorded.refuse_empty(path)?;
            }
            recorded
        }
    };
    connection::create_private_file(path)?;
    let mut connection = connection::open(path, key, connection::Role::Writer)?;
    if migrate::check_history(&connection, path, migrations)? == SchemaVersion::Unknown {
        recorded.refuse_without_schema(&connection, path)?;
    }
    let applied = migrate::migrate(&mut connection, path, migrations)?;
    if !applied.is_empty() {
        // So that the schema does not hang on the write-ahead log alone. Others may be busy; then it is there later.
        let _ = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }
    identity::record(&connection, path, key)?;
    Ok((connection, applied))
}

fn spawn(
    path: &Path,
    name: String,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name)
        .spawn(work)
        .map_err(|error| StoreError::file(path, "start a thread for", error))
}
