//! The schema: numbered, named, checksummed migrations, each applied once, whoever starts first.

use std::{fmt, path::Path, sync::Arc};

use rusqlite::{Connection, TransactionBehavior};
use sha2::{Digest, Sha256};

use super::{error::StoreError, key};

/// One step of the schema. Its text never changes once released; a change is a new step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Migration {
    /// Counted from one, without holes.
    pub(super) version: u32,
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
}

/// Every migration, in order.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "logs_and_conversations",
        sql: include_str!("schema/001_logs_and_conversations.sql"),
    },
    Migration { version: 2, name: "log_search", sql: include_str!("schema/002_log_search.sql") },
];

/// "Intl": marks a database as ours (SQLite's `application_id`).
pub(super) const APPLICATION_ID: i32 = 0x496e_746c;

const BOOKKEEPING: &str = "CREATE TABLE schema_migrations (
    version       INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL,
    checksum      TEXT    NOT NULL,
    applied_at_ns INTEGER NOT NULL
) STRICT;";

/// The version of a database's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaVersion {
    /// No database, an empty file, or one without our schema.
    Unknown,
    /// The highest migration that was applied.
    At(u32),
}

impl fmt::Display for SchemaVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => formatter.write_str("unknown"),
            Self::At(version) => write!(formatter, "{version}"),
        }
    }
}

impl serde::Serialize for SchemaVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unknown => serializer.serialize_str("unknown"),
            Self::At(version) => serializer.serialize_u32(*version),
        }
    }
}

impl Migration {
    /// SHA-256 of the text, as `sha256sum` prints it for the file under `schema/`.
    fn checksum(&self) -> String {
        key::hex(&Sha256::digest(self.sql.as_bytes()))
    }
}

/// The newest version this program knows.
pub(super) fn known_version(migrations: &[Migration]) -> u32 {
    migrations.last().map_or(0, |migration| migration.version)
}

/// Brings the database up to the last of `migrations`; returns which were applied. A database that is up to date is only
/// read.
pub(super) fn migrate(
    connection: &mut Connection,
    path: &Path,
    migrations: &[Migration],
) -> Result<Vec<u32>, StoreError> {
    let fail = |doing| move |error| StoreError::from_sqlite(path, doing, error);
    if check_history(connection, path, migrations)? == SchemaVersion::At(known_version(migrations)) {
        return check_complete(connection, path, migrations).map(|()| Vec::new());
    }
    // IMMEDIATE before the decisive look: between a deferred look and the change another process
    // could have done it all, and the upgrade of the lock would fail at once, timeout or not.
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(fail("beginning the migration"))?;
    let applied = match check_history(&transaction, path, migrations)? {
        SchemaVersion::At(version) => version,
        SchemaVersion::Unknown => {
            let objects: i64 = transaction
                .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
                .map_err(fail("counting tables"))?;
            if objects != 0 {
                return Err(StoreError::NotOurs { path: path.to_owned() });
            }
            transaction.execute_batch(BOOKKEEPING).map_err(fail("creating schema_migrations"))?;
            transaction
                .pragma_update(None, "application_id", APPLICATION_ID)
                .map_err(fail("setting application_id"))?;
            0
        }
    };
    for migration in migrations.iter().filter(|migration| migration.version > applied) {
        apply(&transaction, migration).map_err(|source| {
            match StoreError::from_sqlite(path, "migrating", source) {
                StoreError::Sqlite { source, .. } | StoreError::Rejected { source, .. } => {
                    StoreError::Migration {
                        path: path.to_owned(),
                        version: migration.version,
                        name: migration.name,
                        source: Arc::clone(&source),
                    }
                }
                other => other,
            }
        })?;
    }
    transaction.commit().map_err(fail("committing the migration"))?;
    check_complete(connection, path, migrations)?;
    Ok(migrations.iter().map(|migration| migration.version).filter(|version| *version > applied).collect())
}

/// The version of the schema, after its history has been compared with `migrations`.
pub(super) fn check_history(
    connection: &Connection,
    path: &Path,
    migrations: &[Migration],
) -> Result<SchemaVersion, StoreError> {
    let fail = |doing| move |error| StoreError::from_sqlite(path, doing, error);
    let is_ours: bool = connection
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations')",
            [],
            |row| row.get(0),
        )
        .map_err(fail("looking for the schema"))?;
    if !is_ours {
        return Ok(SchemaVersion::Unknown);
    }
    let mut statement = connection
        .prepare("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
        .map_err(fail("reading schema_migrations"))?;
    let rows: Vec<(u32, String, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .and_then(Iterator::collect)
        .map_err(fail("reading schema_migrations"))?;
    let stamped: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(fail("reading user_version"))?;
    // Either of them alone says that a newer program was here.
    let found = rows.last().map_or(0, |(version, ..)| *version);
    let newest = found.max(u32::try_from(stamped).unwrap_or(0));
    let known = known_version(migrations);
    if newest > known {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found: newest, known });
    }
    for (expected, (version, name, checksum)) in (1..).zip(&rows) {
        if *version > expected {
            return Err(StoreError::HistoryGap { path: path.to_owned(), version: expected, next: *version });
        }
        let ours = migrations.iter().find(|migration| migration.version == *version);
        if ours.is_none_or(|ours| ours.checksum() != *checksum) {
            return Err(StoreError::ChangedChecksum {
                path: path.to_owned(),
                version: *version,
                name: name.clone(),
            });
        }
    }
    Ok(SchemaVersion::At(found))
}

fn apply(connection: &Connection, migration: &Migration) -> rusqlite::Result<()> {
    connection.execute_batch(migration.sql)?;
    connection.execute(
        "INSERT INTO schema_migrations (version, name, checksum, applied_at_ns) VALUES (?1, ?2, ?3, ?4)",
        (migration.version, migration.name, migration.checksum(), interlock_bus::envelope::now_ns() as i64),
    )?;
    connection.pragma_update(None, "user_version", migration.version)
}

/// Compares what is in the database with what the migrations make. What they make is asked of
/// SQLite, in memory, so that there is no second list to keep.
pub(super) fn check_complete(
    connection: &Connection,
    path: &Path,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    let wanted = reference(path, migrations)?;
    let present =
        objects(connection).map_err(|error| StoreError::from_sqlite(path, "reading the schema", error))?;
    let missing: Vec<String> = wanted
        .iter()
        .filter(|object| !present.contains(object))
        .map(|(kind, name, _)| format!("{kind} {name}"))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(StoreError::SchemaIncomplete { path: path.to_owned(), missing: missing.join(", ") }),
    }
}

/// Something in a schema: kind, name and text.
pub(super) type Object = (String, String, Option<String>);

/// A database in memory with everything that `migrations` make.
pub(super) fn reference_database(path: &Path, migrations: &[Migration]) -> Result<Connection, StoreError> {
    let fail = |error| StoreError::from_sqlite(path, "making the reference schema", error);
    let reference = Connection::open_in_memory().map_err(fail)?;
    reference.execute_batch(BOOKKEEPING).map_err(fail)?;
    migrations.iter().try_for_each(|migration| reference.execute_batch(migration.sql)).map_err(fail)?;
    Ok(reference)
}

/// Everything that `migrations` make.
pub(super) fn reference(path: &Path, migrations: &[Migration]) -> Result<Vec<Object>, StoreError> {
    objects(&reference_database(path, migrations)?)
        .map_err(|error| StoreError::from_sqlite(path, "reading the reference schema", error))
}

/// Kind, name and text of everything in the schema. The tables that a virtual table keeps for itself have no text here:
/// SQLite writes it, and another version of it may write another one.
pub(super) fn objects(connection: &Connection) -> rusqlite::Result<Vec<Object>> {
    connection
        .prepare(
            "SELECT type, name, iif(own, NULL, sql) FROM (SELECT type, name, sql, EXISTS (SELECT 1 FROM sqlite_schema AS v \
             WHERE v.sql LIKE 'CREATE VIRTUAL TABLE%' AND instr(o.name, v.name || '_') = 1) AS own \
             FROM sqlite_schema AS o) ORDER BY type, name",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Migration =
        Migration { version: 1, name: "first", sql: "CREATE TABLE a (n INTEGER); INSERT INTO a VALUES (0);" };
    const SECOND: Migration =
        Migration { version: 2, name: "second", sql: "UPDATE a SET n = n + 1; CREATE TABLE b (n);" };
    const BROKEN: Migration =
        Migration { version: 2, name: "broken", sql: "CREATE TABLE b (n); CREATE TABLE a (n);" };

    fn memory() -> (Connection, &'static Path) {
        (Connection::open_in_memory().unwrap(), Path::new("memory"))
    }

    #[test]
    fn each_migration_is_applied_once_and_recorded() {
        let (mut connection, path) = memory();
        assert_eq!(check_history(&connection, path, &[FIRST]).unwrap(), SchemaVersion::Unknown);
        for _ in 0..3 {
            migrate(&mut connection, path, &[FIRST]).unwrap();
        }
        for _ in 0..3 {
            migrate(&mut connection, path, &[FIRST, SECOND]).unwrap();
        }
        let count = |sql| connection.query_row::<i64, _, _>(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(count("SELECT n FROM a"), 1);
        assert_eq!(count("SELECT count(*) FROM schema_migrations"), 2);
        assert_eq!(count("PRAGMA user_version"), 2);
    }

    #[test]
    fn a_newer_a_changed_and_a_foreign_schema_are_refused() {
        let (mut connection, path) = memory();
        migrate(&mut connection, path, &[FIRST, SECOND]).unwrap();
        let error = migrate(&mut connection, path, &[FIRST]).unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { found: 2, known: 1, .. }), "{error}");
        let error = migrate(&mut connection, path, &[FIRST, BROKEN]).unwrap_err();
        assert!(matches!(error, StoreError::ChangedChecksum { version: 2, .. }), "{error}");

        let (mut connection, path) = memory();
        connection.execute_batch("CREATE TABLE theirs (n)").unwrap();
        assert!(matches!(migrate(&mut connection, path, &[FIRST]), Err(StoreError::NotOurs { .. })));
    }

    #[test]
    fn a_user_version_above_the_known_one_is_a_newer_schema_whatever_is_recorded() {
        for recorded in ["", "DELETE FROM schema_migrations"] {
            let (mut connection, path) = memory();
            migrate(&mut connection, path, &[FIRST, SECOND]).unwrap();
            connection.execute_batch(recorded).unwrap();
            connection.pragma_update(None, "user_version", 999).unwrap();
            let error = migrate(&mut connection, path, &[FIRST, SECOND]).unwrap_err();
            assert!(matches!(error, StoreError::NewerSchema { found: 999, known: 2, .. }), "{error}");
            assert_eq!(error.exit_code(), 9);
        }
        // Of somebody else's database the number says nothing.
        let (mut connection, path) = memory();
        connection.execute_batch("CREATE TABLE theirs (n); PRAGMA user_version = 999").unwrap();
        assert!(matches!(migrate(&mut connection, path, &[FIRST]), Err(StoreError::NotOurs { .. })));
    }

    #[test]
    fn a_history_with_a_hole_is_refused_and_the_missing_version_named() {
        let (mut connection, path) = memory();
        migrate(&mut connection, path, &[FIRST, SECOND]).unwrap();
        connection.execute_batch("DELETE FROM schema_migrations WHERE version = 1").unwrap();
        for _ in 0..2 {
            let error = migrate(&mut connection, path, &[FIRST, SECOND]).unwrap_err();
            assert!(matches!(error, StoreError::HistoryGap { version: 1, next: 2, .. }), "{error}");
            assert!(error.exit_code() == 9 && error.to_string().contains("migration 1"), "{error}");
        }
    }

    #[test]
    fn a_failed_migration_leaves_nothing_behind() {
        let (mut connection, path) = memory();
        migrate(&mut connection, path, &[FIRST]).unwrap();
        let error = migrate(&mut connection, path, &[FIRST, BROKEN]).unwrap_err();
        assert!(matches!(error, StoreError::Migration { version: 2, name: "broken", .. }), "{error}");
        assert_eq!(check_history(&connection, path, &[FIRST]).unwrap(), SchemaVersion::At(1));
        migrate(&mut connection, path, &[FIRST, SECOND]).unwrap();
    }

    #[test]
    fn a_missing_table_is_named_and_not_recreated() {
        let (mut connection, path) = memory();
        migrate(&mut connection, path, MIGRATIONS).unwrap();
        connection.execute_batch("DROP TABLE messages").unwrap();
        for _ in 0..2 {
            let error = migrate(&mut connection, path, MIGRATIONS).unwrap_err().to_string();
            assert!(
                error.contains("table messages") && error.contains("index messages_by_conversation"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_missing_table_of_the_index_is_named_and_its_text_is_sqlites_own() {
        let (mut connection, path) = memory();
        migrate(&mut connection, path, MIGRATIONS).unwrap();
        let change = |sql: &str| connection.execute_batch(sql).unwrap();
        change("DROP TABLE log_terms_7_idx; CREATE TABLE log_terms_7_idx (another, text)");
        check_complete(&connection, path, MIGRATIONS).unwrap();
        change("DROP TABLE log_terms_7_idx");
        let error = check_complete(&connection, path, MIGRATIONS).unwrap_err().to_string();
        assert!(error.contains("table log_terms_7_idx"), "{error}");
    }

    #[test]
    fn versions_count_from_one_without_holes() {
        let versions: Vec<u32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=MIGRATIONS.len() as u32).collect::<Vec<_>>());
    }
}
