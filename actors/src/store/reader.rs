//! Reading: a connection of its own, beside the writer, in this process or in another.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rusqlite::Connection;
use uuid::Uuid;

use super::{
    checkup::{self, Checkup},
    connection::{self, FileId, Role},
    conversations::{self, Conversation, StoredMessage},
    error::StoreError,
    identity,
    key::DataKey,
    limited::Limited,
    logs::{
        self, StoredLog,
        filter::LogQuery,
        search::{self, Found},
        summary::{self, LogSummary},
    },
    migrate::{self, MIGRATIONS, Migration, SchemaVersion},
};

/// A connection that reads. Its calls block for as long as the disk takes; asynchronous callers use
/// [`Store::read`](super::Store::read).
///
/// It neither creates nor migrates anything: a database that is not there is `NotInitialised`.
#[derive(Debug)]
pub struct Reader {
    connection: Limited,
    path: PathBuf,
    key: DataKey,
    /// The file that was opened.
    file: FileId,
    /// Whether the connection must not be used again.
    has_failed: Arc<AtomicBool>,
    /// What SQLite said last about changes by others; `None` before the first question.
    data_version: Option<i64>,
}

impl Reader {
    /// Opens the database for reading, beside whoever else has it open.
    pub fn open(path: &Path, key: &DataKey) -> Result<Self, StoreError> {
        let known = migrate::known_version(MIGRATIONS);
        // Before it is opened: if it is replaced meanwhile, the next call notices.
        let file = connection::file_id(path);
        let (connection, version) = look(path, key, MIGRATIONS)?;
        match (connection, version) {
            (Some(connection), SchemaVersion::At(found)) if found == known => {
                let connection = Limited::new(connection)
                    .map_err(|error| StoreError::from_sqlite(path, "limiting the time of reads", error))?;
                let (path, key) = (path.to_owned(), key.clone());
                Ok(Self { connection, path, key, file, has_failed: Arc::default(), data_version: None })
            }
            (Some(_), SchemaVersion::At(found)) => {
                Err(StoreError::OlderSchema { path: path.to_owned(), found, known })
            }
            _ => Err(StoreError::NotInitialised { path: path.to_owned() }),
        }
    }

    /// Opens the database anew if reading failed for a reason that ends a connection, or if another file has taken its
    /// place. Costs a look at the name otherwise.
    pub fn renew(&mut self) -> Result<(), StoreError> {
        if self.has_failed.load(Ordering::Relaxed) || connection::file_id(&self.path) != self.file {
            *self = Self::open(&self.path, &self.key)?;
        }
        Ok(())
    }

    /// The log records a query asks for.
    pub fn logs(&self, query: &LogQuery) -> Result<Vec<StoredLog>, StoreError> {
        self.search_logs(query).map(|found| found.records)
    }

    /// The log records a query asks for, where to go on, and whether the search was given up.
    pub fn search_logs(&self, query: &LogQuery) -> Result<Found, StoreError> {
        search::search(&self.connection, query).map_err(self.fail("reading log records"))
    }

    /// What is in the log, all together.
    pub fn log_summary(&self) -> Result<LogSummary, StoreError> {
        summary::summary(&self.connection).map_err(self.fail("reading log records"))
    }

    /// The number of the newest log record; zero if there has never been one.
    pub fn newest_log_seq(&self) -> Result<i64, StoreError> {
        logs::newest_seq(&self.connection).map_err(self.fail("reading log records"))
    }

    /// How many of the newest log records are not indexed yet; a query looks at them one by one.
    pub fn logs_not_indexed(&self) -> Result<i64, StoreError> {
        logs::index::unindexed(&self.connection).map_err(self.fail("reading log records"))
    }

    /// Rows that have lost what they belong to, one text for each: somebody wrote without foreign keys. Reads the tables that
    /// refer to others whole.
    pub fn orphans(&self) -> Result<Vec<String>, StoreError> {
        checkup::orphans(&self.connection).map_err(self.fail("looking for orphans"))
    }

    /// Which of these log records are in the store.
    pub fn logs_present(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, StoreError> {
        logs::present(&self.connection, ids).map_err(self.fail("looking for log records"))
    }

    /// Whether anybody has committed anything since the last call; the first call says yes. Costs a
    /// look into shared memory, so a follower can ask several times a second.
    pub fn has_changed(&mut self) -> Result<bool, StoreError> {
        self.renew()?;
        let version = self
            .connection
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(self.fail("asking for changes"))?;
        Ok(self.data_version.replace(version) != Some(version))
    }

    /// The conversations used last, the newest first.
    pub fn conversations(&self, limit: usize) -> Result<Vec<Conversation>, StoreError> {
        conversations::list(&self.connection, limit).map_err(self.fail("listing conversations"))
    }

    /// One conversation, if there is such a one.
    pub fn conversation(&self, id: &str) -> Result<Option<Conversation>, StoreError> {
        conversations::one(&self.connection, id).map_err(self.fail("reading a conversation"))
    }

    /// The last `limit` messages of a conversation, in the order in which they were said; none if
    /// there is no such conversation.
    pub fn history(&self, conversation: &str, limit: usize) -> Result<Vec<StoredMessage>, StoreError> {
        conversations::history(&self.connection, conversation, limit)
            .map_err(self.fail("reading a conversation"))
    }

    /// Reads every page, checks its seal, its structure, its references and the schema. Takes as long as the database is
    /// large, and has no limit.
    pub fn checkup(&self) -> Result<Checkup, StoreError> {
        checkup::run(self.connection.unlimited(), &self.path)
    }

    /// The same, for whoever only wants to know whether all is well.
    pub fn check(&self) -> Result<(), StoreError> {
        let checkup = self.checkup()?;
        match checkup.findings.first() {
            None => Ok(()),
            Some(first) => Err(StoreError::Damaged {
                path: self.path.clone(),
                problem: format!("{} problems found, the first: {first}", checkup.findings.len()),
            }),
        }
    }

    fn fail(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
        let path: Arc<Path> = self.path.as_path().into();
        let has_failed = Arc::clone(&self.has_failed);
        move |error| {
            let error = StoreError::from_sqlite(&path, doing, error);
            has_failed.fetch_or(error.ends_connection(), Ordering::Relaxed);
            error
        }
    }
}

/// The version of a database's schema. A file that is missing or empty is left so and is `unknown`;
/// a damaged, locked or foreign one is an error.
pub fn schema_version(path: &Path, key: &DataKey) -> Result<SchemaVersion, StoreError> {
    look(path, key, MIGRATIONS).map(|(_, version)| version)
}

/// A connection and the version behind it. A file without content is not touched.
pub(super) fn look(
    path: &Path,
    key: &DataKey,
    migrations: &[Migration],
) -> Result<(Option<Connection>, SchemaVersion), StoreError> {
    connection::check_version()?;
    let recorded = identity::Recorded::read(path, key)?;
    match connection::file_bytes(path)? {
        None => return Ok((None, SchemaVersion::Unknown)),
        Some(0) => return recorded.refuse_empty(path).map(|()| (None, SchemaVersion::Unknown)),
        Some(_) => {}
    }
    let connection = connection::open(path, key, Role::Reader)?;
    let version = migrate::check_history(&connection, path, migrations)?;
    if version == SchemaVersion::Unknown {
        recorded.refuse_without_schema(&connection, path)?;
    }
    Ok((Some(connection), version))
}
