//! Saving what can still be read of a damaged database: row by row into a new one. The damaged one is kept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, config::DbConfig, params_from_iter, types::Value};

use super::{
    connection::{self, Role},
    error::StoreError,
    identity,
    key::{self, DataKey},
    migrate::{self, MIGRATIONS},
};

/// Tables with something in them that is nowhere else, in an order in which rows may refer to earlier ones. All others
/// are made from these.
pub(super) const ORIGINALS: [Original; 3] = [
    Original { table: "conversations", by: Order::Text("id") },
    Original { table: "messages", by: Order::Number("seq") },
    Original { table: "logs", by: Order::Number("seq") },
];

/// Questions about damaged places before the rest of a table is given up. Reached only when a page high up in the tree of
/// a table is gone, so that no number can be told to be beyond it.
const PROBES_MAX: u64 = 20_000;
/// Rows of one transaction.
const BATCH_ROWS: u64 = 1000;

/// A table, and how to find one's way in it.
pub(super) struct Original {
    pub(super) table: &'static str,
    by: Order,
}

enum Order {
    /// By a number, so that a damaged place can be stepped over.
    Number(&'static str),
    /// By a text: read from both ends.
    Text(&'static str),
}

/// What was saved.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Salvaged {
    /// Rows of each table that are in the new database.
    pub rows: BTreeMap<&'static str, u64>,
    /// Numbers of each table that could not be read; there may have been no row of some of them.
    pub unreadable: BTreeMap<&'static str, u64>,
    /// Tables of which not everything was tried.
    pub given_up: Vec<&'static str>,
    /// Conversations that were made again because messages of them were saved: without their title.
    pub conversations_remade: u64,
    /// The damaged database.
    pub kept: PathBuf,
}

/// Copies what can be read into a new database, which takes the place of the damaged one. That one is kept beside it,
/// under a name of its own, with its write-ahead log.
///
/// # Errors
/// `InUse` if anybody else has it open; `NewerSchema`, `ChangedChecksum` or `HistoryGap` if another program has to save it,
/// because this one would lose what it does not know; `Damaged` if its first page cannot be read, so that nothing can; and what keeps the
/// new one from being written. The damaged one is where it was then.
pub fn salvage(path: &Path, key: &DataKey) -> Result<Salvaged, StoreError> {
    if connection::file_bytes(path)?.is_none_or(|bytes| bytes == 0) {
        return Err(StoreError::NotInitialised { path: path.to_owned() });
    }
    let mut source = Source::open(path, key)?;
    source.check_history()?;
    let now = interlock_bus::envelope::now_ns() / 1_000_000_000;
    let (new, kept) = (
        connection::beside(path, &format!(".salvaged-{now}")),
        connection::beside(path, &format!(".damaged-{now}")),
    );
    let outcome = copy(&mut source, path, &new, key).and_then(|mut salvaged| {
        salvaged.kept.clone_from(&kept);
        exchange(path, &new, &kept)?;
        Ok(salvaged)
    });
    if outcome.is_err() {
        for suffix in ["", "-wal", "-shm", ".id"] {
            let _ = fs::remove_file(connection::beside(&new, suffix));
        }
    }
    outcome
}

/// The damaged database, which nobody else has open while it is being copied.
struct Source<'a> {
    connection: Option<Connection>,
    path: &'a Path,
    key: &'a DataKey,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path, key: &'a DataKey) -> Result<Self, StoreError> {
        let mut source = Self { connection: None, path, key };
        source.get()?;
        Ok(source)
    }

    fn get(&mut self) -> Result<&Connection, StoreError> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => {
                let connection = connection::open(self.path, self.key, Role::Alone)?;
                // What is in its write-ahead log stays there: the damaged file is not to be changed.
                checkpoint_at_close(&connection, self.path, false)?;
                Ok(none.insert(connection))
            }
        }
    }

    /// Refuses what is whole enough to say that it is not for this program; a history that cannot be read is damage.
    fn check_history(&mut self) -> Result<(), StoreError> {
        let path = self.path;
        match migrate::check_history(self.get()?, path, MIGRATIONS) {
            Ok(_) => Ok(()),
            Err(
                error @ (StoreError::NewerSchema { .. }
                | StoreError::ChangedChecksum { .. }
                | StoreError::HistoryGap { .. }),
            ) => {
                // Closing takes an empty write-ahead log away, which is the one that opening made.
                if connection::file_bytes(&connection::beside(path, "-wal"))? == Some(0) {
                    checkpoint_at_close(self.get()?, path, true)?;
                }
                Err(error)
            }
            Err(_) => {
                self.close();
                Ok(())
            }
        }
    }

    /// After a damaged page SQLCipher refuses every further one on the same connection.
    fn close(&mut self) {
        self.connection = None;
    }
}

fn checkpoint_at_close(connection: &Connection, path: &Path, on: bool) -> Result<(), StoreError> {
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !on)
        .map(drop)
        .map_err(|error| StoreError::from_sqlite(path, "configuring the checkpoint", error))
}

/// A second name for the damaged file, and then its own for the new one: at no instant is there no database.
fn exchange(path: &Path, new: &Path, kept: &Path) -> Result<(), StoreError> {
    let fail = |doing, path: &Path| {
        let path = path.to_owned();
        move |error| StoreError::file(&path, doing, error)
    };
    fs::hard_link(path, kept).map_err(fail("keep the damaged database as", kept))?;
    let wal = connection::beside(path, "-wal");
    if key::exists(&wal)? {
        fs::rename(&wal, connection::beside(kept, "-wal")).map_err(fail("move", &wal))?;
    }
    let _ = fs::remove_file(connection::beside(path, "-shm"));
    fs::rename(new, path).map_err(fail("put the new database at", path))?;
    let _ = fs::rename(connection::beside(new, ".id"), connection::beside(path, ".id"));
    key::sync_directory(path)
}

fn copy(source: &mut Source<'_>, path: &Path, new: &Path, key: &DataKey) -> Result<Salvaged, StoreError> {
    let fail = |error| StoreError::from_sqlite(new, "writing what was saved", error);
    connection::create_private_file(new)?;
    let mut target = connection::open(new, key, Role::Writer)?;
    migrate::migrate(&mut target, new, MIGRATIONS)?;
    // Rows come in whatever order they are found.
    target.execute_batch("PRAGMA foreign_keys = OFF").map_err(fail)?;
    let mut salvaged = Salvaged {
        rows: BTreeMap::new(),
        unreadable: BTreeMap::new(),
        given_up: Vec::new(),
        conversations_remade: 0,
        kept: PathBuf::new(),
    };
    for original in &ORIGINALS {
        let mut rescue = Rescue::new(source, &target, original, path)?;
        rescue.run()?;
        salvaged.rows.insert(original.table, rescue.rows);
        if rescue.unreadable > 0 {
            salvaged.unreadable.insert(original.table, rescue.unreadable);
        }
        if rescue.has_given_up {
            salvaged.given_up.push(original.table);
        }
    }
    salvaged.conversations_remade = target
        .execute(
            "INSERT INTO conversations (id, title, created_ns, updated_ns) SELECT conversation, '', min(time_ns), max(time_ns) \
             FROM messages WHERE conversation NOT IN (SELECT id FROM conversations) GROUP BY conversation",
            [],
        )
        .map_err(fail)? as u64;
    identity::record(&target, new, key)?;
    target.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).map_err(fail)?;
    target.close().map_err(|(_, error)| fail(error))?;
    fs::File::open(new)
        .and_then(|file| file.sync_all())
        .map_err(|error| StoreError::file(new, "sync", error))?;
    Ok(salvaged)
}

/// The rows of one table on their way.
struct Rescue<'a, 'b> {
    source: &'a mut Source<'b>,
    target: &'a Connection,
    original: &'a Original,
    path: &'a Path,
    /// Columns that both have.
    columns: String,
    insert: String,
    rows: u64,
    unreadable: u64,
    probes: u64,
    has_given_up: bool,
}

/// Why copying stopped: the source could not be read, or the target not written.
enum Stopped {
    Source,
    Target(StoreError),
}

impl<'a, 'b> Rescue<'a, 'b> {
    fn new(
        source: &'a mut Source<'b>,
        target: &'a Connection,
        original: &'a Original,
        path: &'a Path,
    ) -> Result<Self, StoreError> {
        let columns = |connection: &Connection| -> rusqlite::Result<Vec<String>> {
            connection
                .prepare("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?
                .query_map([original.table], |row| row.get(0))?
                .collect()
        };
        let fail = |error| StoreError::from_sqlite(path, "reading its schema", error);
        let there = columns(source.get()?).map_err(fail)?;
        let mut both = columns(target).map_err(fail)?;
        both.retain(|column| there.contains(column));
        let places = vec!["?"; both.len()].join(", ");
        let columns = both.join(", ");
        let insert = format!("INSERT OR IGNORE INTO {} ({columns}) VALUES ({places})", original.table);
        let (rows, unreadable, probes, has_given_up) = (0, 0, 0, both.is_empty());
        Ok(Self { source, target, original, path, columns, insert, rows, unreadable, probes, has_given_up })
    }

    fn run(&mut self) -> Result<(), StoreError> {
        if self.has_given_up {
            return Ok(());
        }
        match self.original.by {
            Order::Number(column) => self.by_number(column),
            Order::Text(column) => self.by_text(column),
        }
    }

    /// Reads on; where that fails, halves what is left until the damaged place is found, and goes on behind it.
    fn by_number(&mut self, column: &str) -> Result<(), StoreError> {
        let newest = format!("SELECT coalesce(max({column}), 0) FROM {}", self.original.table);
        let newest = self.source.get()?.query_row(&newest, [], |row| row.get(0)).unwrap_or_else(|_| {
            self.source.close();
            i64::MAX
        });
        let sql = format!(
            "SELECT {}, {column} FROM {} WHERE {column} BETWEEN ?1 AND ?2 ORDER BY {column}",
            self.columns, self.original.table
        );
        let mut left = vec![(i64::MIN, newest)];
        while let Some((first, last)) = left.pop() {
            let mut reached = None;
            match self.copy(&sql, &[Value::Integer(first), Value::Integer(last)], &mut reached) {
                Ok(()) => continue,
                Err(Stopped::Target(error)) => return Err(error),
                Err(Stopped::Source) => self.source.close(),
            }
            self.probes += 1;
            let first = match reached {
                Some(Value::Integer(reached)) if reached >= last => continue,
                Some(Value::Integer(reached)) => reached + 1,
                _ => first,
            };
            if first == last {
                self.unreadable += 1;
            } else if self.probes > PROBES_MAX {
                self.has_given_up = true;
                return Ok(());
            } else {
                let middle = first + (last.abs_diff(first) / 2) as i64;
                left.push((middle + 1, last));
                left.push((first, middle));
            }
        }
        Ok(())
    }

    /// Reads from the beginning up to a damaged place, and from the end down to one.
    fn by_text(&mut self, column: &str) -> Result<(), StoreError> {
        for direction in ["ASC", "DESC"] {
            let sql = format!(
                "SELECT {}, {column} FROM {} ORDER BY {column} {direction}",
                self.columns, self.original.table
            );
            match self.copy(&sql, &[], &mut None) {
                Ok(()) => return Ok(()),
                Err(Stopped::Target(error)) => return Err(error),
                Err(Stopped::Source) => {
                    self.source.close();
                    self.has_given_up = true;
                }
            }
        }
        Ok(())
    }

    /// Copies what `sql` finds. `reached` is the last column of the last row that was read.
    fn copy(&mut self, sql: &str, bounds: &[Value], reached: &mut Option<Value>) -> Result<(), Stopped> {
        let write =
            |error| Stopped::Target(StoreError::from_sqlite(self.path, "writing what was saved", error));
        let mut insert = self.target.prepare_cached(&self.insert).map_err(write)?;
        let mut begin = self.target.prepare_cached("BEGIN").map_err(write)?;
        let mut commit = self.target.prepare_cached("COMMIT").map_err(write)?;
        let mut select =
            self.source.get().map_err(Stopped::Target)?.prepare_cached(sql).map_err(|_| Stopped::Source)?;
        let values = select.column_count() - 1;
        let mut rows = select.query(params_from_iter(bounds)).map_err(|_| Stopped::Source)?;
        begin.execute([]).map_err(write)?;
        let outcome = loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break Ok(()),
                Err(_) => break Err(Stopped::Source),
            };
            let read: rusqlite::Result<Vec<Value>> = (0..=values).map(|column| row.get(column)).collect();
            let Ok(mut read) = read else { break Err(Stopped::Source) };
            *reached = read.pop();
            // A value that the schema does not take is damage too.
            match insert.execute(params_from_iter(read)) {
                Ok(added) => self.rows += added as u64,
                Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
                    self.unreadable += 1;
                }
                Err(error) => break Err(write(error)),
            }
            if self.rows.is_multiple_of(BATCH_ROWS) {
                commit.execute([]).map_err(write)?;
                begin.execute([]).map_err(write)?;
            }
        };
        commit.execute([]).map_err(write)?;
        outcome
    }
}
