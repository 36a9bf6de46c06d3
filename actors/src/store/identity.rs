//! Which key a database was made with: a small record beside it that tells a wrong key from damage.
//!
//! SQLCipher says the same of both. The record `<database>.id` holds the salt of the file (its
//! first 16 bytes, public) and the check value of the key; it is written once, after the schema. Where it does not settle
//! the matter the pages do: one that verifies with a key was written with it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};

use super::{
    connection::PAGE_BYTES,
    error::StoreError,
    key::{self, DataKey},
};

/// What a database that does not decrypt must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was made with this key, and its beginning is damaged.
    SameFileSameKey,
    /// It was made with another key, as far as anybody can tell.
    OtherKey,
    /// It is a plain SQLite database.
    Plain,
}

/// Judges a database whose first page does not decrypt.
pub(super) fn of(connection: &Connection, path: &Path, data_key: &DataKey) -> Verdict {
    let salt = salt(connection).unwrap_or_default();
    if salt == key::hex(b"SQLite format 3\0") {
        return Verdict::Plain;
    }
    let recorded = fs::read_to_string(record_path(path)).unwrap_or_default();
    let zeroed = !salt.is_empty() && salt.bytes().all(|digit| digit == b'0');
    let recorded = recorded.trim().split_once(' ').filter(|(_, check)| *check == data_key.check());
    let is_recorded = |recorded_salt: &str| recorded_salt == salt || zeroed;
    if recorded.is_some_and(|(recorded_salt, _)| is_recorded(recorded_salt))
        || any_page_verifies(path, &data_key.pragma())
        || recorded.is_some_and(|(salt, _)| any_page_verifies(path, &data_key.pragma_with_salt(salt)))
    {
        return Verdict::SameFileSameKey;
    }
    Verdict::OtherKey
}

/// Whether a page of the file was written with this key. Looks at every page: nobody waits for this in vain, because the
/// database does not open.
fn any_page_verifies(path: &Path, key: &str) -> bool {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let bad_pages = Connection::open_with_flags(path, flags).and_then(|connection| {
        connection.execute_batch("PRAGMA cipher_log_level = NONE")?;
        connection.execute_batch(key)?;
        let mut check = connection.prepare("PRAGMA cipher_integrity_check")?;
        let mut rows = check.query([])?;
        let mut bad = 0;
        while rows.next()?.is_some() {
            bad += 1;
        }
        Ok(bad)
    });
    let pages = fs::metadata(path).map_or(0, |about| about.len().div_ceil(PAGE_BYTES));
    bad_pages.is_ok_and(|bad| bad < pages)
}

/// What the record says, read before the database is: it is written after the schema, so that a database which has been
/// recorded and has no schema has lost it.
#[derive(Clone, Debug)]
pub(super) struct Recorded(Option<String>);

impl Recorded {
    /// The record of this database, if it is about this key.
    pub(super) fn read(path: &Path, data_key: &DataKey) -> Result<Self, StoreError> {
        let record = record_path(path);
        let text = match fs::read_to_string(&record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            // What is in it is no secret, and damage to it alone is none to the database.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
            text => text.map_err(|error| StoreError::file(&record, "read", error))?,
        };
        let salt = text.trim().split_once(' ').filter(|(_, check)| *check == data_key.check());
        Ok(Self(salt.map(|(salt, _)| salt.to_owned())))
    }

    /// Says that the file has been emptied.
    pub(super) fn refuse_empty(&self, path: &Path) -> Result<(), StoreError> {
        match &self.0 {
            Some(_) => Err(StoreError::Damaged {
                path: path.to_owned(),
                problem: "it is empty, and was not when it was recorded beside it".to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Says that the schema has been there and is not.
    pub(super) fn refuse_without_schema(
        &self,
        connection: &Connection,
        path: &Path,
    ) -> Result<(), StoreError> {
        match &self.0 {
            Some(recorded) if salt(connection).as_ref() == Some(recorded) => Err(StoreError::Damaged {
                path: path.to_owned(),
                problem: "its schema (`schema_migrations`) is gone, perhaps with its write-ahead log"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// Removes the record of a database that is gone; a new one will have its own.
pub(super) fn forget(path: &Path) {
    // If it stays, the next one is recorded over it.
    let _ = fs::remove_file(record_path(path));
}

/// Writes the record if it is missing or speaks of another file. Called with a connection that works.
pub(super) fn record(connection: &Connection, path: &Path, data_key: &DataKey) -> Result<(), StoreError> {
    let Some(salt) = salt(connection) else { return Ok(()) };
    let target = record_path(path);
    let content = format!("{salt} {}\n", data_key.check());
    if fs::read_to_string(&target).is_ok_and(|present| present == content) {
        return Ok(());
    }
    // Several processes write the same content; a name of one's own keeps them apart until the rename.
    let new = target.with_extension(format!("id.{}.new", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(content.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, &target));
    written.map_err(|error| StoreError::file(&target, "write", error))
}

/// The path of the record.
fn record_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".id");
    name.into()
}

fn salt(connection: &Connection) -> Option<String> {
    connection.query_row("PRAGMA cipher_salt", [], |row| row.get(0)).ok()
}
