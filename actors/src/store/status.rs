//! What there is to say of a database without changing it: where it is, how large, of which version.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rusqlite::Connection;

use super::{
    connection,
    error::StoreError,
    key::DataKey,
    migrate::{self, MIGRATIONS, SchemaVersion},
};

/// One database, as it is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DatabaseStatus {
    /// Where it is, or would be.
    pub path: PathBuf,
    /// Whether there is a file.
    pub exists: bool,
    /// Its schema: a number, or `unknown` before it is initialised.
    pub schema_version: SchemaVersion,
    /// The newest schema of this program.
    pub known_version: u32,
    /// The SQLite that is linked.
    pub sqlite: String,
    /// The SQLCipher that is linked.
    pub sqlcipher: String,
    /// What the data key is sealed under: `keystore`, `passphrase`, `none`; absent if there is no key.
    pub wrap: Option<&'static str>,
    /// What is inside, if there is something.
    pub content: Option<Content>,
}

/// The inside of a database.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Content {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the write-ahead log.
    pub wal_bytes: u64,
    /// `wal`.
    pub journal_mode: String,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages of the file.
    pub pages: u64,
    /// Those of them that are free.
    pub free_pages: u64,
    /// Bytes mapped into memory; always zero.
    pub mmap_bytes: u64,
    /// When the last migration was applied, in nanoseconds since the Unix epoch.
    pub migrated_ns: u64,
    /// Rows of each table.
    pub rows: BTreeMap<String, u64>,
}

impl DatabaseStatus {
    /// Looks. A database that is not initialised is left as it is, and no key is asked for.
    ///
    /// # Errors
    /// It is damaged, locked, foreign or newer than this program; or what `key` says.
    pub fn of(
        path: &Path,
        keys: &Path,
        key: impl FnOnce() -> Result<DataKey, StoreError>,
    ) -> Result<Self, StoreError> {
        let bytes = connection::file_bytes(path)?;
        let (schema_version, content) = match bytes {
            None | Some(0) => (SchemaVersion::Unknown, None),
            Some(bytes) => look(path, bytes, &key()?)?,
        };
        Ok(Self {
            path: path.to_owned(),
            exists: bytes.is_some(),
            schema_version,
            known_version: migrate::known_version(MIGRATIONS),
            sqlite: rusqlite::version().to_owned(),
            sqlcipher: cipher_version(path)?,
            wrap: DataKey::wrap(keys)?.map(|wrap| wrap.as_str()),
            content,
        })
    }
}

fn look(path: &Path, bytes: u64, key: &DataKey) -> Result<(SchemaVersion, Option<Content>), StoreError> {
    let fail = |error| StoreError::from_sqlite(path, "looking at it", error);
    let connection = connection::open(path, key, connection::Role::Reader)?;
    let version = migrate::check_history(&connection, path, MIGRATIONS)?;
    if version == SchemaVersion::Unknown {
        return Ok((version, None));
    }
    let number = |sql: &str| {
        let number = connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        number.map(|number| number.try_into().unwrap_or(0)).map_err(fail)
    };
    let mut rows = BTreeMap::new();
    for table in tables(&connection).map_err(fail)? {
        let count = number(&format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\"")))?;
        rows.insert(table, count);
    }
    let content = Content {
        bytes,
        wal_bytes: connection::wal_bytes(path)?,
        journal_mode: connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(fail)?,
        page_bytes: number("SELECT CAST(page_size AS INTEGER) FROM pragma_page_size")?,
        pages: number("PRAGMA page_count")?,
        free_pages: number("PRAGMA freelist_count")?,
        mmap_bytes: number("PRAGMA mmap_size")?,
        migrated_ns: number("SELECT coalesce(max(applied_at_ns), 0) FROM schema_migrations")?,
        rows,
    };
    Ok((version, Some(content)))
}

/// Ordinary tables of ours, by name: not those that SQLite or a full text index keeps for itself.
pub(super) fn tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' \
             AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name",
        )?
        .query_map([], |row| row.get(0))?
        .collect()
}

fn cipher_version(path: &Path) -> Result<String, StoreError> {
    Connection::open_in_memory()
        .and_then(|connection| connection.query_row("PRAGMA cipher_version", [], |row| row.get(0)))
        .map_err(|error| StoreError::from_sqlite(path, "asking for the cipher's version", error))
}
