//! Mending a database, because a person asked for it. Nothing here is ever done by itself.
//!
//! | damage | what mends it | loses |
//! |---|---|---|
//! | an index that contradicts its table | [`repair`] makes it anew | nothing |
//! | the full text index | [`repair`] empties it, and the writer fills it again | nothing |
//! | an index, trigger or view that is missing | [`repair`] with `recreate` | nothing |
//! | a table that is missing | [`repair`] with `recreate` makes it, empty | what was in it |
//! | damaged pages, other damaged structure | [`salvage`] | the rows on those pages |
//! | rows without the one they belong to, foreign and changed objects | a person | |

use std::path::Path;

use rusqlite::Connection;

pub use super::salvage::{Salvaged, salvage};
use super::{
    checkup::{self, Finding, FindingKind},
    connection::{self, Role},
    error::StoreError,
    key::DataKey,
    migrate::{self, MIGRATIONS, SchemaVersion},
};

/// What was mended, and what was not.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Repaired {
    /// What was done, a sentence each.
    pub done: Vec<String>,
    /// What is wrong after that.
    pub left: Vec<Finding>,
}

/// Mends what can be mended in place. With `recreate`, what is missing of the schema is made again: tables empty.
///
/// # Errors
/// `InUse` if anybody else has the database open; and whatever keeps it from being opened or written.
pub fn repair(path: &Path, key: &DataKey, recreate: bool) -> Result<Repaired, StoreError> {
    let fail = |error| StoreError::from_sqlite(path, "repairing it", error);
    if connection::file_bytes(path)?.is_none_or(|bytes| bytes == 0) {
        return Err(StoreError::NotInitialised { path: path.to_owned() });
    }
    let connection = connection::open(path, key, Role::Alone)?;
    let (known, found) =
        (migrate::known_version(MIGRATIONS), migrate::check_history(&connection, path, MIGRATIONS)?);
    match found {
        SchemaVersion::Unknown => return Err(StoreError::NotInitialised { path: path.to_owned() }),
        SchemaVersion::At(found) if found < known => {
            return Err(StoreError::OlderSchema { path: path.to_owned(), found, known });
        }
        SchemaVersion::At(_) => {}
    }
    let mut done = Vec::new();
    let before = checkup::run(&connection, path)?;
    if recreate && before.has(FindingKind::Missing) {
        done.extend(recreate_missing(&connection, path)?);
    }
    if before.has(FindingKind::Structure) && !before.has(FindingKind::Seal) {
        if before.findings.iter().any(|finding| finding.what.contains(" index ")) {
            connection.execute_batch("REINDEX").map_err(fail)?;
            done.push("made every index anew".to_owned());
        }
        if before.findings.iter().any(|finding| finding.what.contains("fts5")) {
            forget_text_index(&connection).map_err(fail)?;
            done.push("emptied the full text index; the runtime fills it again".to_owned());
        }
    }
    let left = if done.is_empty() { before } else { checkup::run(&connection, path)? }.findings;
    Ok(Repaired { done, left })
}

/// Runs SQL on a database that nobody else has open: for a person who mends what nothing here does, and for tests.
///
/// # Errors
/// `InUse`, whatever keeps it from being opened, and what SQLite says of the SQL.
pub fn execute(path: &Path, key: &DataKey, sql: &str) -> Result<(), StoreError> {
    let connection = connection::open(path, key, Role::Alone)?;
    connection
        .execute_batch(sql)
        .map_err(|error| StoreError::from_sqlite(path, "running the given SQL", error))
}

/// Makes what the migrations make and is not there.
fn recreate_missing(connection: &Connection, path: &Path) -> Result<Vec<String>, StoreError> {
    let fail = |error| StoreError::from_sqlite(path, "making what is missing", error);
    let reference = migrate::reference_database(path, MIGRATIONS)?;
    let is_there = |kind: &str, name: &str| -> rusqlite::Result<bool> {
        connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = ?1 AND name = ?2)",
            (kind, name),
            |row| row.get(0),
        )
    };
    // Tables first, and full text indexes before the tables that they make for themselves.
    let wanted: Vec<(String, String, String)> = reference
        .prepare(
            "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
             ORDER BY type <> 'table', sql NOT LIKE 'CREATE VIRTUAL%', rowid",
        )
        .and_then(|mut statement| {
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        })
        .map_err(fail)?;
    let mut made = Vec::new();
    connection.execute_batch("BEGIN IMMEDIATE").map_err(fail)?;
    let mut text_index = false;
    for (kind, name, sql) in wanted {
        if is_there(&kind, &name).map_err(fail)? {
            continue;
        }
        text_index |= name.starts_with("log_");
        connection.execute_batch(&sql).map_err(fail)?;
        made.push(match kind.as_str() {
            "table" => format!("made table {name}, empty"),
            _ => format!("made {kind} {name}"),
        });
    }
    if text_index {
        // Its parts belong together.
        forget_text_index(connection).map_err(fail)?;
        made.push("emptied the full text index; the runtime fills it again".to_owned());
    }
    connection.execute_batch("COMMIT").map_err(fail)?;
    Ok(made)
}

/// Empties the index of the log records; the writer fills it from the records, as it does after a migration.
fn forget_text_index(connection: &Connection) -> rusqlite::Result<()> {
    let parts: Vec<String> = connection
        .prepare("SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL TABLE%fts5%'")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for part in parts {
        connection.execute_batch(&format!("INSERT INTO {part} ({part}) VALUES ('delete-all')"))?;
    }
    connection.execute_batch(
        "DELETE FROM log_blocks; DELETE FROM log_parts; DELETE FROM log_totals WHERE only_one <> 1; \
         INSERT INTO log_totals VALUES (1, 0, 0, 0, 0, 0, 0) ON CONFLICT (only_one) DO UPDATE SET indexed_to = 0;",
    )
}
