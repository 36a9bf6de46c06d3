//! A database as it is at one moment, copied while others use it: made, judged, and brought under another key.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rusqlite::{Connection, OpenFlags};

use super::{
    checkup, connection,
    error::StoreError,
    identity,
    key::DataKey,
    limits,
    migrate::{self, MIGRATIONS, Migration, SchemaVersion},
    outbox, status,
};
use crate::backup::DatabaseFacts;

/// The databases of an installation: the file in the data directory, and what makes its schema.
const DATABASES: [(&str, &[Migration]); 2] =
    [(super::DATABASE_FILE, MIGRATIONS), (outbox::OUTBOX_FILE, outbox::MIGRATIONS)];

/// Files of the databases of an installation, in the order in which they are copied. Not all of them need be there.
pub(crate) fn files() -> impl Iterator<Item = &'static str> {
    DATABASES.iter().map(|(file, _)| *file)
}

/// Whether a database of this name is one of ours.
pub(crate) fn is_known(file: &str) -> bool {
    files().any(|known| known == file)
}

fn migrations(file: &str) -> &'static [Migration] {
    DATABASES.iter().find(|(known, _)| *known == file).map_or(&[], |(_, migrations)| migrations)
}

/// Bytes of a database and its write-ahead log; `None` if it is not there. Opens nothing.
pub(crate) fn bytes(path: &Path) -> Result<Option<u64>, StoreError> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let wal = connection::file_bytes(Path::new(&wal))?.unwrap_or(0);
    Ok(connection::file_bytes(path)?.filter(|bytes| *bytes > 0).map(|bytes| bytes + wal))
}

/// Copies the database at `source`, as it is now, into the empty file `target`, encrypted with `key` from its first byte on.
/// Others go on reading and writing; the write-ahead log cannot begin anew meanwhile. Blocks for as long as the database is
/// large; `cancel` ends it.
pub(crate) fn take(
    source: &Path,
    data_key: &DataKey,
    target: &Path,
    key: &DataKey,
    cancel: &Arc<AtomicBool>,
) -> Result<(), StoreError> {
    let fail = |error| StoreError::from_sqlite(source, "copying it", error);
    let mut connection = connection::open(source, data_key, connection::Role::Writer)?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0").map_err(fail)?;
    let cancel = Arc::clone(cancel);
    connection
        .progress_handler(limits::READ_STEPS, Some(move || cancel.load(Ordering::Relaxed)))
        .map_err(fail)?;
    vacuum_into(&mut connection, source, target, key)
}

/// `VACUUM INTO`. Path and key travel as a bound value; the error is remade, because SQLite's own can quote them.
fn vacuum_into(
    connection: &mut Connection,
    source: &Path,
    target: &Path,
    key: &DataKey,
) -> Result<(), StoreError> {
    let digits = key.digits();
    let uri = zeroize::Zeroizing::new(format!(
        "file:{}?key=x%27{}%27",
        percent_encoded(target.as_os_str().as_encoded_bytes()),
        digits.as_str()
    ));
    connection.execute("VACUUM INTO ?1", [uri.as_str()]).map(drop).map_err(|error| {
        match StoreError::from_sqlite(source, "copying it", error) {
            StoreError::Disk { path, doing, source } => {
                StoreError::Disk { path, doing, source: Arc::new(without_text(&source)) }
            }
            StoreError::Sqlite { path, doing, source } => {
                StoreError::Sqlite { path, doing, source: Arc::new(without_text(&source)) }
            }
            StoreError::Rejected { path, doing, source } => {
                StoreError::Rejected { path, doing, source: Arc::new(without_text(&source)) }
            }
            StoreError::Damaged { path, .. } => {
                StoreError::Damaged { path, problem: "a page of it cannot be read".to_owned() }
            }
            other => other,
        }
    })
}

/// The same error without SQLite's own text.
fn without_text(error: &rusqlite::Error) -> rusqlite::Error {
    let code =
        error.sqlite_error().copied().unwrap_or(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR));
    rusqlite::Error::SqliteFailure(code, None)
}

/// A path as it stands in a URI, whatever bytes it has.
fn percent_encoded(path: &[u8]) -> String {
    use std::fmt::Write as _;
    path.iter().fold(String::with_capacity(path.len()), |mut text, byte| {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                text.push(char::from(*byte))
            }
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
        text
    })
}

/// How thorough a look is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Each page and its seal (`quick_check`), and references: enough for what was just written from a database.
    Quick,
    /// And whether each index agrees with its table (`integrity_check`): for what comes from outside.
    Full,
}

/// Judges a copy of the database `file` that nobody else has open: seals, structure, references, whose it is, of which version.
/// Errors name it `label`.
pub(crate) fn judge(
    path: &Path,
    file: &str,
    key: &DataKey,
    depth: Depth,
    label: &Path,
    cancel: &Arc<AtomicBool>,
) -> Result<DatabaseFacts, StoreError> {
    let fail = |error| StoreError::from_sqlite(label, "checking it", error);
    let damaged = |problem| StoreError::Damaged { path: label.to_owned(), problem };
    let connection = open_copy(path, key, cancel).map_err(fail)?;
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .map_err(|_| damaged("its first page does not open with its key".to_owned()))?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(fail);
    let application_id = number("PRAGMA application_id")? as i32;
    let migrations = migrations(file);
    let schema_version = match migrate::check_history(&connection, label, migrations)? {
        SchemaVersion::At(version) if application_id == migrate::APPLICATION_ID => version,
        _ => return Err(StoreError::NotOurs { path: label.to_owned() }),
    };
    let pragma = match depth {
        Depth::Quick => "PRAGMA quick_check(1)",
        Depth::Full => "PRAGMA integrity_check(1)",
    };
    let found: String = connection.query_row(pragma, [], |row| row.get(0)).map_err(fail)?;
    if found != "ok" {
        return Err(damaged(found));
    }
    if let Some(orphan) = checkup::orphans(&connection).map_err(fail)?.into_iter().next() {
        return Err(damaged(orphan));
    }
    if schema_version == migrate::known_version(migrations) {
        migrate::check_complete(&connection, label, migrations)?;
    }
    let mut rows = std::collections::BTreeMap::new();
    for table in status::tables(&connection).map_err(fail)? {
        let count = number(&format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\"")))?;
        rows.insert(table, count.try_into().unwrap_or(0));
    }
    Ok(DatabaseFacts {
        schema_version,
        application_id,
        page_bytes: number("SELECT CAST(page_size AS INTEGER) FROM pragma_page_size")?
            .try_into()
            .unwrap_or(0),
        pages: number("PRAGMA page_count")?.try_into().unwrap_or(0),
        rows,
    })
}

/// Brings a copy that nobody else has open from one key under another, in place, and makes it as a database of ours is: in WAL
/// mode, with the record beside it. Nothing but the file itself and that record is left.
pub(crate) fn adopt(
    path: &Path,
    from: &DataKey,
    to: &DataKey,
    label: &Path,
    cancel: &Arc<AtomicBool>,
) -> Result<(), StoreError> {
    let fail = |error| StoreError::from_sqlite(label, "bringing it under the data key", error);
    let copy = open_copy(path, from, cancel).map_err(fail)?;
    // A copy that is lost meanwhile is made again from the backup: no journal, no waiting for the disk but once at the end.
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF").map_err(fail)?;
    // The error is replaced, not carried: it could quote the statement.
    copy.execute_batch(&to.pragma_rekey()).map_err(|error| match fail(error) {
        error @ (StoreError::DiskFull { .. } | StoreError::Disk { .. } | StoreError::ReadOnly { .. }) => {
            error
        }
        _ => StoreError::Setting {
            path: label.to_owned(),
            setting: "rekey",
            wanted: "the data key",
            found: "refused".to_owned(),
        },
    })?;
    copy.close().map_err(|(_, error)| fail(error))?;
    let connection = connection::open(path, to, connection::Role::Alone)?;
    identity::record(&connection, path, to)?;
    connection.close().map_err(|(_, error)| fail(error))?;
    let sync = std::fs::File::open(path).and_then(|file| file.sync_all());
    sync.map_err(|error| StoreError::file(path, "sync", error))
}

/// Opens a database that has just taken its place, as everybody will.
pub(crate) fn open_once(path: &Path, key: &DataKey) -> Result<(), StoreError> {
    connection::open(path, key, connection::Role::Writer).map(drop)
}

/// A copy in a place of our own, whose directory nobody else looks into.
fn open_copy(path: &Path, key: &DataKey, cancel: &Arc<AtomicBool>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.execute_batch("PRAGMA cipher_log_level = NONE")?;
    connection.execute_batch(&key.pragma()).map_err(|error| without_text(&error))?;
    connection.execute_batch(&format!(
        "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA cache_size = -{}",
        limits::READER_CACHE_KIB
    ))?;
    let cancel = Arc::clone(cancel);
    connection.progress_handler(limits::READ_STEPS, Some(move || cancel.load(Ordering::Relaxed)))?;
    Ok(connection)
}
