//! One connection to the database, opened in one order, always.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

use super::{
    error::StoreError,
    file_system, identity,
    key::{self, DataKey},
    limits,
};

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Reads and writes.
    Writer,
    /// Reads only. It is opened for writing all the same, because a reader of a WAL database
    /// writes its shared memory; `query_only` keeps it from anything else.
    Reader,
    /// Reads and writes, and nobody else does: open anywhere else, it is `InUse`.
    Alone,
}

/// The oldest SQLite without the WAL-reset bug, which loses commits when two processes write.
const SQLITE_LEAST: i32 = 3_051_003;
/// A release that was withdrawn.
const SQLITE_WITHDRAWN: i32 = 3_052_000;
/// The smallest database SQLCipher writes is one page of this size.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Opens a connection, or says why not. The order matters:
///
/// | step | because |
/// |---|---|
/// | log level off | SQLCipher writes to standard error by default |
/// | key | nothing can be read before it |
/// | busy timeout | everything after it may meet another process |
/// | probe | a wrong key shows only when something is read |
/// | WAL | readers beside a writer; the switch itself ignores the busy timeout, so it is retried |
/// | foreign keys, read back | it is a setting of the connection, and silently ignored where it cannot be set |
/// | synchronous | an acknowledged commit is on the disk |
/// | who checkpoints | writers do; a reader neither does it by itself nor when it closes |
pub(super) fn open(path: &Path, data_key: &DataKey, role: Role) -> Result<Connection, StoreError> {
    file_system::check(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let fail = |doing| move |error| StoreError::from_sqlite(path, doing, error);
    let connection = Connection::open_with_flags(path, flags).map_err(fail("opening it"))?;
    #[cfg(test)]
    let connection = super::tests::opening::traced(connection);

    connection.execute_batch("PRAGMA cipher_log_level = NONE").map_err(fail("silencing the cipher"))?;
    // The error is replaced, not carried: it could quote the statement.
    connection.execute_batch(&data_key.pragma()).map_err(|_| StoreError::Setting {
        path: path.to_owned(),
        setting: "key",
        wanted: "the data key",
        found: "refused".to_owned(),
    })?;
    if role == Role::Alone {
        // Before the first read: then the write-ahead log needs no shared memory, and the lock is there from the start.
        connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE").map_err(fail("asking for it alone"))?;
    }
    let patience = if role == Role::Alone { limits::ALONE_TIMEOUT } else { limits::BUSY_TIMEOUT };
    connection.busy_timeout(patience).map_err(fail("setting the busy timeout"))?;
    // A connection that fails the probe is closed again, and closing would copy the write-ahead log
    // of a killed process into a database that we could not even read.
    let checkpoint_at_close = |on: bool| {
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !on)
            .map(|_| ())
            .map_err(fail("configuring the checkpoint"))
    };
    checkpoint_at_close(false)?;
    probe(&connection, path, data_key).map_err(|error| match error {
        StoreError::Busy { path, .. } if role == Role::Alone => StoreError::InUse { path },
        error => error,
    })?;
    checkpoint_at_close(role != Role::Reader)?;
    switch_to_wal(&connection, path)?;
    connection.execute_batch("PRAGMA foreign_keys = ON").map_err(fail("enabling foreign keys"))?;
    let foreign_keys: i64 = connection
        .query_row("PRAGMA foreign_keys", [], |row| row.get(0))
        .map_err(fail("reading foreign_keys"))?;
    if foreign_keys != 1 {
        return Err(StoreError::Setting {
            path: path.to_owned(),
            setting: "foreign_keys",
            wanted: "1",
            found: foreign_keys.to_string(),
        });
    }
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF; PRAGMA journal_size_limit = {}; \
             PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;",
            limits::WAL_BYTES
        ))
        .map_err(fail("setting synchronous"))?;
    let cache_kib = match role {
        Role::Writer | Role::Alone => limits::WRITER_CACHE_KIB,
        Role::Reader => limits::READER_CACHE_KIB,
    };
    connection
        .pragma_update(None, "cache_size", -i64::from(cache_kib))
        .map_err(fail("setting the size of the cache"))?;
    connection.set_prepared_statement_cache_capacity(limits::STATEMENTS_KEPT);
    if role == Role::Reader {
        connection
            .execute_batch("PRAGMA query_only = ON; PRAGMA wal_autocheckpoint = 0")
            .map_err(fail("making it read-only"))?;
    }
    Ok(connection)
}

/// Refuses a SQLite that loses commits.
pub(super) fn check_version() -> Result<(), StoreError> {
    match rusqlite::version_number() {
        number if number < SQLITE_LEAST || number == SQLITE_WITHDRAWN => {
            Err(StoreError::OldSqlite { found: rusqlite::version().to_owned() })
        }
        _ => Ok(()),
    }
}

/// Makes sure that there is a file, for the owner only, and that its directory exists.
///
/// An existing file is never opened here: closing any handle of a file that this process also has
/// open in SQLite drops SQLite's locks on it (POSIX).
pub(super) fn create_private_file(path: &Path) -> Result<(), StoreError> {
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        key::create_private_directory(directory)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            drop(file);
            key::sync_directory(path)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let about = std::fs::metadata(path).map_err(|error| StoreError::file(path, "look at", error))?;
            if about.permissions().mode() & 0o077 != 0 {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                    .map_err(|error| StoreError::file(path, "protect", error))?;
            }
            Ok(())
        }
        Err(error) => Err(StoreError::file(path, "create database", error)),
    }
}

/// Size of the file, or `None` if there is none. Does not open it.
pub(super) fn file_bytes(path: &Path) -> Result<Option<u64>, StoreError> {
    match std::fs::metadata(path) {
        Ok(about) => Ok(Some(about.len())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(StoreError::file(path, "look at", error)),
    }
}

/// The file beside the database whose name is its own and `suffix`: `-wal`, `-shm`, `.id`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Bytes of the write-ahead log, zero if there is none. Does not open it.
pub(super) fn wal_bytes(path: &Path) -> Result<u64, StoreError> {
    Ok(file_bytes(&beside(path, "-wal"))?.unwrap_or(0))
}

/// Refuses to begin a database where the write-ahead log of another lies: it would be emptied, and what was committed to it
/// lost.
pub(super) fn refuse_left_wal(path: &Path) -> Result<(), StoreError> {
    let bytes = wal_bytes(path)?;
    if bytes == 0 {
        return Ok(());
    }
    let problem = format!(
        "it is gone, and its write-ahead log `{}` ({bytes} bytes) is still there; put the database back, or move the log to where it is",
        beside(path, "-wal").display()
    );
    Err(StoreError::Damaged { path: path.to_owned(), problem })
}

/// Which file stands under a name: its device and number. `None` if there is none.
pub(super) type FileId = Option<(u64, u64)>;

/// The file that stands under this name now. Does not open it.
pub(super) fn file_id(path: &Path) -> FileId {
    std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

/// The first read: this is where a wrong key or a damaged first page shows. SQLCipher says "not a
/// database" to both, so what stands beside the database decides.
fn probe(connection: &Connection, path: &Path, data_key: &DataKey) -> Result<(), StoreError> {
    let first_read =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
    let Err(error) = first_read else { return Ok(()) };
    if error.sqlite_error_code() != Some(ErrorCode::NotADatabase) {
        return Err(StoreError::from_sqlite(path, "reading its first page", error));
    }
    let damaged = |problem: &str| StoreError::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    if file_bytes(path)?.is_some_and(|bytes| bytes < PAGE_BYTES) {
        return Err(damaged("it is shorter than one page"));
    }
    match identity::of(connection, path, data_key) {
        identity::Verdict::Plain => Err(StoreError::NotOurs { path: path.to_owned() }),
        identity::Verdict::SameFileSameKey => {
            Err(damaged("its beginning does not decrypt with the key it was made with"))
        }
        identity::Verdict::OtherKey => {
            Err(StoreError::WrongKey { path: path.to_owned(), key: data_key.origin().to_owned() })
        }
    }
}

/// Switches to WAL unless it is on. Reading the mode first spares the switch, which fails within a
/// millisecond when another process is at the same point, whatever the busy timeout says.
fn switch_to_wal(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let began = Instant::now();
    let mut attempt = 0;
    loop {
        let switched = connection
            .query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0))
            .and_then(|mode| match mode.as_str() {
                "wal" => Ok(mode),
                _ => connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)),
            });
        match switched {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(StoreError::Setting {
                    path: path.to_owned(),
                    setting: "journal_mode",
                    wanted: "wal",
                    found: mode,
                });
            }
            Err(error) => {
                let error = StoreError::from_sqlite(path, "switching to WAL", error);
                if !error.is_transient() || began.elapsed() > limits::BUSY_LIMIT {
                    return Err(error);
                }
                std::thread::sleep(backoff(attempt));
                attempt += 1;
            }
        }
    }
}

/// How long to wait before another attempt: doubling from 1 ms to 128 ms, full jitter.
pub(super) fn backoff(attempt: u32) -> Duration {
    let ceiling_us = 1_000u64 << attempt.min(7);
    let random = u64::from_le_bytes(interlock_bus::crypto::random());
    Duration::from_micros(1 + random % ceiling_us)
}
