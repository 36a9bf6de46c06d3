//! Deleting log records by hand, beside a running service or without one: in steps, each committed, each a block.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::{
    index::{self, Block},
    newest_seq,
    retention::{self, Deleted},
    signed,
};
use crate::{
    log_record::Level,
    store::{
        DataKey, StoreError,
        connection::{self, Role},
        migrate::{self, MIGRATIONS, SchemaVersion},
    },
};

/// Which log records to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prune {
    /// Up to where.
    pub bound: PruneBound,
    /// Of them only those that matter less than this.
    pub below: Option<Level>,
}

/// Up to where log records are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneBound {
    /// Raised before this, in nanoseconds since the Unix epoch.
    Before(u64),
    /// All but the so many that arrived last.
    KeepRows(u64),
    /// All but those that arrived last and need so many bytes, by the measure of
    /// [`LogSummary::bytes`](super::summary::LogSummary::bytes).
    KeepBytes(u64),
}

/// Deletes log records, on a connection of its own.
#[derive(Debug)]
pub struct Pruner {
    connection: Connection,
    path: PathBuf,
    /// Records from this number on are kept; what comes while it works is not looked at.
    end: i64,
    before_ns: i64,
    below: i64,
    next: i64,
}

impl Pruner {
    /// Opens the database that is there, for writing, and finds out up to where to delete.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is created or migrated.
    pub fn open(path: &Path, key: &DataKey, prune: Prune) -> Result<Self, StoreError> {
        let not_initialised = || StoreError::NotInitialised { path: path.to_owned() };
        if connection::file_bytes(path)?.is_none_or(|bytes| bytes == 0) {
            return Err(not_initialised());
        }
        let connection = connection::open(path, key, Role::Writer)?;
        let known = migrate::known_version(MIGRATIONS);
        match migrate::check_history(&connection, path, MIGRATIONS)? {
            SchemaVersion::At(found) if found == known => {}
            SchemaVersion::At(found) => {
                return Err(StoreError::OlderSchema { path: path.to_owned(), found, known });
            }
            SchemaVersion::Unknown => return Err(not_initialised()),
        }
        let fail = |error| StoreError::from_sqlite(path, "reading log records", error);
        let end = bound(&connection, prune.bound).map_err(fail)?;
        let before_ns = match prune.bound {
            PruneBound::Before(time) => signed(time),
            PruneBound::KeepRows(_) | PruneBound::KeepBytes(_) => i64::MAX,
        };
        let below = prune.below.map_or(i64::MAX, |level| level as i64);
        Ok(Self { connection, path: path.to_owned(), end, before_ns, below, next: 0 })
    }

    /// How many records would be deleted. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn count(&self) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM logs WHERE seq < ?1 AND time_ns < ?2 AND level < ?3";
        self.connection
            .query_row(sql, (self.end, self.before_ns, self.below), |row| row.get(0))
            .map(i64::unsigned_abs)
            .map_err(|error| StoreError::from_sqlite(&self.path, "counting log records", error))
    }

    /// Deletes records of one block and commits that. Returns how many, or `None` when all is done.
    ///
    /// # Errors
    /// [`StoreError`]; what earlier steps deleted stays deleted.
    pub fn step(&mut self) -> Result<Option<u64>, StoreError> {
        let path = self.path.clone();
        let fail = |error| StoreError::from_sqlite(&path, "deleting log records", error);
        let Some(first) = self.first().map_err(fail)? else {
            return self.tidy().map_err(fail).map(|again| again.then_some(0));
        };
        let block = Block::of(first);
        let end = self.end.min(Block::last_seq(block) + 1);
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let deleted = delete(&transaction, block, (first, end), self.before_ns, self.below).map_err(fail)?;
        transaction.commit().map_err(fail)?;
        self.next = end;
        Ok(Some(deleted))
    }

    /// The first record to look at.
    fn first(&self) -> rusqlite::Result<Option<i64>> {
        self.connection
            .prepare_cached("SELECT min(seq) FROM logs WHERE seq >= ?1 AND seq < ?2")?
            .query_row((self.next, self.end), |row| row.get(0))
    }

    /// Makes one part of the index smaller; `false` if there is none to do.
    fn tidy(&mut self) -> rusqlite::Result<bool> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = index::release_part(&transaction)? || index::rebuild_part(&transaction)?;
        transaction.commit()?;
        Ok(done)
    }
}

fn delete(
    connection: &Connection,
    block: i64,
    (first, end): (i64, i64),
    before_ns: i64,
    below: i64,
) -> rusqlite::Result<u64> {
    let deleted = connection
        .prepare_cached("DELETE FROM logs WHERE seq >= ?1 AND seq < ?2 AND time_ns < ?3 AND level < ?4")?
        .execute((first, end, before_ns, below))? as u64;
    if deleted > 0 {
        index::refresh(connection, block)?;
        retention::reach(connection, end - 1)?;
        retention::account(connection, Deleted { by_hand: deleted, ..Deleted::default() })?;
    }
    Ok(deleted)
}

/// The number from which on everything is kept.
fn bound(connection: &Connection, bound: PruneBound) -> rusqlite::Result<i64> {
    let transaction = connection.unchecked_transaction()?;
    let beyond = newest_seq(&transaction)? + 1;
    let mut left = match bound {
        PruneBound::Before(_) => return Ok(beyond),
        PruneBound::KeepRows(rows) => {
            let oldest: Option<i64> = transaction.query_row(
                "SELECT min(seq) FROM (SELECT seq FROM logs ORDER BY seq DESC LIMIT ?1)",
                [signed(rows)],
                |row| row.get(0),
            )?;
            return Ok(oldest.unwrap_or(beyond));
        }
        PruneBound::KeepBytes(bytes) => signed(bytes),
    };
    let mut end = beyond;
    let mut statement =
        transaction.prepare(&format!("SELECT {} FROM logs ORDER BY seq DESC", super::COLUMNS))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let log = super::stored(row)?;
        left -= index::bytes(&log.record);
        if left < 0 {
            break;
        }
        end = log.seq;
    }
    Ok(end)
}
