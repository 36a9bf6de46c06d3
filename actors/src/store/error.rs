//! Why the store refused or failed, classified once so that callers can act on the kind.

use std::{path::PathBuf, sync::Arc};

use rusqlite::ErrorCode;

use super::{limits, passphrase::PassphraseError};

/// What went wrong in the store. Each message names the file and the way out.
///
/// | kind | again later? | exit code |
/// |---|---|---|
/// | `Busy` | yes: it has already waited its limit | 5 |
/// | `QueueFull` | yes: the caller has its work back | 7 |
/// | `Disk`, `ReadOnly`, `File` | after the cause is removed | 6 |
/// | `DiskFull` | after the cause is removed | 7 |
/// | `WrongKey`, `KeyMissing`, `WrappingKeyMissing`, `WrongWrappingKey`, `WrongPassphrase`, `PassphraseNeeded` | no | 4 |
/// | `Passphrase` | no | its own |
/// | `KeyExposed`, `NotOurs`, `NetworkFileSystem` | no: configuration | 2 |
/// | `KeyDamaged`, `Damaged`, `SchemaIncomplete` | no | 8 |
/// | `NewerSchema`, `OlderSchema`, `ChangedChecksum`, `HistoryGap`, `OldSqlite`, `KeyVersion` | no | 9 |
/// | `KeyChanged`, `InUse` | yes | 5 |
/// | `ReadTooLong` | with a smaller question | 3 |
/// | the rest | no | 1 |
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process holds the write lock, and went on holding it.
    #[error("database `{}` is locked by another process ({doing}); try again, or see who has it open", path.display())]
    Busy {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
    },
    /// The data key is not the one the database was made with.
    #[error("database `{}` does not open with the data key in `{}`: it was made with another key; put the key file that belongs to it back, or move the database away to begin with an empty one", path.display(), key.display())]
    WrongKey {
        /// The database.
        path: PathBuf,
        /// Where the key came from.
        key: PathBuf,
    },
    /// There is a database, but no key file. A new key would make the database unreadable for good.
    #[error("database `{}` exists but its data key `{}` does not; restore the key file, or move the database away to begin with an empty one", path.display(), key.display())]
    KeyMissing {
        /// The database.
        path: PathBuf,
        /// Where the key file belongs.
        key: PathBuf,
    },
    /// The key file can be read by others.
    #[error("key file `{}` has mode {mode:04o}, so others can read it; run `chmod 600` on it, and consider the key known if others had access", path.display())]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file is not one.
    #[error("key file `{}` is damaged: {problem}; restore it from a copy", path.display())]
    KeyDamaged {
        /// The key file.
        path: PathBuf,
        /// What is wrong; never a part of the content.
        problem: &'static str,
    },
    /// A passphrase was given, and the key is not sealed under one: whoever gave it would believe that it is.
    #[error("a passphrase was given, but the key in `{}` is not sealed under one; `interlock keys passphrase` does that, or leave the passphrase out", path.display())]
    PassphraseUnused {
        /// The key file.
        path: PathBuf,
    },
    /// The key file is one of a later version of the program.
    #[error("key file `{}` has version {found}, this program knows {known}; use the program that wrote it, or a newer one", path.display())]
    KeyVersion {
        /// The key file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version of this program.
        known: u32,
    },
    /// The key that opens the key file is gone.
    #[error("key file `{}` is sealed under the key in `{}`, which is missing; put both files back from one copy", path.display(), key.display())]
    WrappingKeyMissing {
        /// The key file.
        path: PathBuf,
        /// Where the wrapping key belongs.
        key: PathBuf,
    },
    /// The key file was sealed under another wrapping key.
    #[error("key file `{}` does not open with the key in `{}`: they do not belong together; put both files back from one copy", path.display(), key.display())]
    WrongWrappingKey {
        /// The key file.
        path: PathBuf,
        /// The wrapping key.
        key: PathBuf,
    },
    /// The key file is whole, and the passphrase is not the one it was sealed under.
    #[error("the passphrase does not open key file `{}`; nothing was changed", path.display())]
    WrongPassphrase {
        /// The key file.
        path: PathBuf,
    },
    /// The key file is sealed under a passphrase, and whoever opens it has no way to ask for one.
    #[error("key file `{}` is sealed under a passphrase, and none was given", path.display())]
    PassphraseNeeded {
        /// The key file.
        path: PathBuf,
    },
    /// There is no passphrase, or none that can be used.
    #[error(transparent)]
    Passphrase(Arc<PassphraseError>),
    /// The key file was changed by another process at the same time.
    #[error("key file `{}` was changed by another process meanwhile; try again", path.display())]
    KeyChanged {
        /// The key file.
        path: PathBuf,
    },
    /// The database file is damaged. It is never recreated or repaired without being told to.
    #[error("database `{}` is damaged ({problem}); it was left as it is: restore a copy, or move it away to begin with an empty one", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite or our own check says.
        problem: String,
    },
    /// Tables, indexes or views of the schema are not there. They are not recreated: an empty
    /// table would be taken for real data.
    #[error("database `{}` lacks {missing} of its own schema; it was left as it is: restore a copy", path.display())]
    SchemaIncomplete {
        /// The database.
        path: PathBuf,
        /// What is missing, as `table logs, index logs_by_time`.
        missing: String,
    },
    /// A database, but not one of ours.
    #[error("file `{}` is a database, but not one of Interlock; choose another data directory", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// The database would lie where several machines, or a program, have their hands on it.
    #[error("database `{}` would lie on {kind}, where a write-ahead log loses commits; choose a data directory on a local disk", path.display())]
    NetworkFileSystem {
        /// The file.
        path: PathBuf,
        /// What kind.
        kind: &'static str,
    },
    /// Something that needs the database for itself found it open elsewhere.
    #[error("database `{}` is open in another process; end it first (`interlock stop`), then try again", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// A reader held on to its snapshot for too long, so that the write-ahead log could only grow.
    #[error("reading database `{}` took longer than {} s ({doing}) and was cut; ask for less", path.display(), limits::READ_LIMIT.as_secs())]
    ReadTooLong {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
    },
    /// There is no database yet, or an empty one.
    #[error("database `{}` is not initialised; `interlock db init` or the first run makes it", path.display())]
    NotInitialised {
        /// Where it would be.
        path: PathBuf,
    },
    /// The schema is newer than this program.
    #[error("database `{}` has schema version {found}, this program knows {known}; use the program that wrote it, or a newer one", path.display())]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version of this program.
        known: u32,
    },
    /// The schema is older than this program, and a reader does not migrate.
    #[error("database `{}` has schema version {found}, this program needs {known}; start the runtime once to bring it up to date", path.display())]
    OlderSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version this program needs.
        known: u32,
    },
    /// A migration was applied whose text is not the one this program has.
    #[error("database `{}`: migration {version} `{name}` was applied with another text than this program has; use the program that applied it", path.display())]
    ChangedChecksum {
        /// The database.
        path: PathBuf,
        /// Number of the migration.
        version: u32,
        /// Its name.
        name: String,
    },
    /// A later migration is recorded, and an earlier one is not: the history was changed.
    #[error("database `{}`: its history was changed: migration {next} is recorded, but not migration {version} before it; it was left as it is: restore a copy", path.display())]
    HistoryGap {
        /// The database.
        path: PathBuf,
        /// The lowest one that is missing.
        version: u32,
        /// The one that is recorded in its place.
        next: u32,
    },
    /// A migration failed and was rolled back.
    #[error("database `{}`: migration {version} `{name}` failed and was rolled back: {source}", path.display())]
    Migration {
        /// The database.
        path: PathBuf,
        /// Number of the migration.
        version: u32,
        /// Its name.
        name: &'static str,
        /// What SQLite says.
        source: Arc<rusqlite::Error>,
    },
    /// The linked SQLite has a bug that loses commits of several processes.
    #[error(
        "SQLite {found} can lose commits when several processes write; 3.51.3 or newer is needed (3.52.0 was withdrawn)"
    )]
    OldSqlite {
        /// The version that is linked.
        found: String,
    },
    /// A setting that the store depends on did not take.
    #[error("database `{}`: `{setting}` is `{found}` although `{wanted}` was asked for", path.display())]
    Setting {
        /// The database.
        path: PathBuf,
        /// The pragma.
        setting: &'static str,
        /// What was asked for.
        wanted: &'static str,
        /// What was read back.
        found: String,
    },
    /// The disk is full.
    #[error("no space left for database `{}` ({doing}); free some space and try again", path.display())]
    DiskFull {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
    },
    /// The database cannot be written.
    #[error("database `{}` is read-only ({doing}); make the file and its directory writable", path.display())]
    ReadOnly {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
    },
    /// SQLite could not read, write or open a file.
    #[error("database `{}`: {doing} failed: {source}; check the disk, and the permissions of the directory", path.display())]
    Disk {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What SQLite says.
        source: Arc<rusqlite::Error>,
    },
    /// The operating system refused something about a file beside the database.
    #[error("cannot {doing} `{}`: {source}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: Arc<std::io::Error>,
    },
    /// The queue towards the store is full. Nothing was written; the caller has its work back.
    #[error("{limit} jobs are already waiting for the store; try again when it has caught up")]
    QueueFull {
        /// How many jobs may wait.
        limit: usize,
    },
    /// The store has been closed.
    #[error("the store is closed; nothing more is read or written in this run")]
    Closed,
    /// A message for a conversation that does not exist.
    #[error("conversation `{}` does not exist; create it first", id.escape_debug())]
    NoSuchConversation {
        /// The id that was asked for.
        id: String,
    },
    /// The content was refused by a rule of the schema, or is too big.
    #[error("database `{}` refused the content ({doing}): {source}", path.display())]
    Rejected {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What SQLite says.
        source: Arc<rusqlite::Error>,
    },
    /// Anything else SQLite says.
    #[error("database `{}`: {doing} failed: {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What SQLite says.
        source: Arc<rusqlite::Error>,
    },
}

impl StoreError {
    /// The exit code of a program that ends because of it; the numbers are those of the table in ARCHITECTURE.md.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::KeyExposed { .. }
            | Self::NotOurs { .. }
            | Self::NetworkFileSystem { .. }
            | Self::PassphraseUnused { .. } => 2,
            Self::WrongKey { .. }
            | Self::KeyMissing { .. }
            | Self::WrappingKeyMissing { .. }
            | Self::WrongWrappingKey { .. }
            | Self::WrongPassphrase { .. }
            | Self::PassphraseNeeded { .. } => 4,
            Self::Passphrase(error) => error.exit_code(),
            Self::ReadTooLong { .. } => 3,
            Self::Busy { .. } | Self::InUse { .. } | Self::KeyChanged { .. } => 5,
            Self::ReadOnly { .. } | Self::Disk { .. } | Self::File { .. } => 6,
            Self::QueueFull { .. } | Self::DiskFull { .. } => 7,
            Self::KeyDamaged { .. } | Self::Damaged { .. } | Self::SchemaIncomplete { .. } => 8,
            Self::NewerSchema { .. }
            | Self::OlderSchema { .. }
            | Self::ChangedChecksum { .. }
            | Self::HistoryGap { .. }
            | Self::KeyVersion { .. }
            | Self::OldSqlite { .. } => 9,
            _ => 1,
        }
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::QueueFull { .. })
    }

    /// Whether it is about the content of one job only, so that other jobs are worth trying.
    pub(super) fn is_about_content(&self) -> bool {
        matches!(self, Self::Rejected { .. } | Self::NoSuchConversation { .. } | Self::Sqlite { .. })
    }

    /// Whether it is about a page that cannot be read, which other jobs may not need.
    pub(super) fn is_about_a_page(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    /// Whether the connection it happened on must not be used again.
    pub(super) fn ends_connection(&self) -> bool {
        matches!(self, Self::Disk { .. } | Self::Damaged { .. } | Self::WrongKey { .. })
    }

    /// Classifies what SQLite said. Not for the statement that sets the key: an error can quote its SQL.
    pub(super) fn from_sqlite(path: &std::path::Path, doing: &'static str, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => Self::ReadTooLong { path, doing },
            // The last one is several processes in the way of each other while they open the write-ahead log.
            Some(
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed,
            ) => Self::Busy { path, doing },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path, problem: source.to_string() }
            }
            Some(ErrorCode::DiskFull) => Self::DiskFull { path, doing },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path, doing },
            Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure | ErrorCode::PermissionDenied) => {
                Self::Disk { path, doing, source: Arc::new(source) }
            }
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
                Self::Rejected { path, doing, source: Arc::new(source) }
            }
            _ => Self::Sqlite { path, doing, source: Arc::new(source) },
        }
    }

    pub(super) fn file(path: &std::path::Path, doing: &'static str, source: std::io::Error) -> Self {
        Self::File { path: path.to_owned(), doing, source: Arc::new(source) }
    }
}
