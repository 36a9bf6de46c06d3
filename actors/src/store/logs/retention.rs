//! What of the log records is kept: by age, by number, by size. Deletes in small steps, each with a commit of its own,
//! and keeps account of what it deleted.

use rusqlite::Connection;

use super::{
    index::{self, Block},
    newest_seq, signed,
};
use crate::store::{
    error::StoreError,
    limits,
    writer::{Site, Work},
};

/// What is kept of the log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRetention {
    /// At most so many.
    pub rows_max: u64,
    /// At most so many bytes, by the measure of [`LogSummary::bytes`](crate::store::LogSummary::bytes).
    pub bytes_max: u64,
    /// None older than this.
    pub age_max: std::time::Duration,
}

impl Default for LogRetention {
    fn default() -> Self {
        Self {
            rows_max: limits::LOG_ROWS_MAX,
            bytes_max: limits::LOG_BYTES_MAX,
            age_max: limits::LOG_AGE_MAX,
        }
    }
}

/// How many log records have been deleted, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Older than is kept.
    pub by_age: u64,
    /// More than are kept.
    pub by_rows: u64,
    /// Larger, all together, than is kept.
    pub by_bytes: u64,
    /// By `interlock logs prune`.
    pub by_hand: u64,
}

impl Deleted {
    /// For whatever reason.
    pub fn all(&self) -> u64 {
        self.by_age + self.by_rows + self.by_bytes + self.by_hand
    }
}

impl std::ops::AddAssign for Deleted {
    fn add_assign(&mut self, other: Self) {
        self.by_age += other.by_age;
        self.by_rows += other.by_rows;
        self.by_bytes += other.by_bytes;
        self.by_hand += other.by_hand;
    }
}

/// One step of the retention: at most [`limits::TRIM_BATCH_ROWS`] records by each reason. What is deleted is the
/// oldest by arrival, but for age, which goes by the time of each record.
pub(in crate::store) struct Trim {
    pub(in crate::store) retention: LogRetention,
    pub(in crate::store) now_ns: u64,
}

impl Work for Trim {
    type Output = Deleted;

    fn apply(&self, site: &Site<'_>) -> Result<Deleted, StoreError> {
        let age_ns = u64::try_from(self.retention.age_max.as_nanos()).unwrap_or(u64::MAX);
        self.step(site.connection, signed(self.now_ns.saturating_sub(age_ns)))
            .map_err(site.fail("deleting log records"))
    }
}

impl Trim {
    fn step(&self, connection: &Connection, oldest_ns: i64) -> rusqlite::Result<Deleted> {
        let batch = limits::TRIM_BATCH_ROWS as i64;
        let mut deleted =
            Deleted { by_age: delete_before(connection, oldest_ns, batch)?, ..Deleted::default() };
        let stock = Stock::of(connection)?;
        let surplus = stock.rows - signed(self.retention.rows_max);
        if surplus > 0 {
            deleted.by_rows = delete_oldest(connection, surplus.min(batch))?;
        } else {
            let surplus = stock.bytes - signed(self.retention.bytes_max);
            if surplus > 0 {
                // By the mean of all; what it misses the next step sees.
                let rows = (surplus / (stock.bytes / stock.rows.max(1)).max(1)).clamp(1, batch);
                deleted.by_bytes = delete_oldest(connection, rows)?;
            }
        }
        account(connection, deleted)?;
        index::release_part(connection)?;
        Ok(deleted)
    }
}

/// What there is of log records.
struct Stock {
    rows: i64,
    bytes: i64,
}

impl Stock {
    /// Of what is not indexed yet the rows are counted by their numbers, which have few holes, and the bytes guessed by
    /// the mean: there are few of them, unless records come faster than they can be indexed.
    fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let (rows, bytes): (i64, i64) = connection
            .prepare_cached("SELECT coalesce(sum(rows), 0), coalesce(sum(bytes), 0) FROM log_blocks")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let indexed = index::indexed_to(connection)?;
        let first: Option<i64> = connection
            .prepare_cached("SELECT min(seq) FROM logs WHERE seq > ?1")?
            .query_row([indexed], |row| row.get(0))?;
        let more = first.map_or(Ok(0), |first| newest_seq(connection).map(|newest| newest - first + 1))?;
        let mean = if rows > 0 { bytes / rows } else { limits::LOG_ROW_BYTES };
        Ok(Self { rows: rows + more, bytes: bytes + more * mean })
    }
}

/// Deletes records that are older, of one block.
fn delete_before(connection: &Connection, oldest_ns: i64, batch: i64) -> rusqlite::Result<u64> {
    use rusqlite::OptionalExtension;
    let block: Option<i64> = connection
        .prepare_cached("SELECT block FROM log_blocks WHERE oldest_ns < ?1 ORDER BY block LIMIT 1")?
        .query_row([oldest_ns], |row| row.get(0))
        .optional()?;
    if let Some(block) = block {
        let rows = connection
            .prepare_cached("DELETE FROM logs WHERE seq BETWEEN ?1 AND ?2 AND time_ns < ?3")?
            .execute((Block::first_seq(block), Block::last_seq(block), oldest_ns))?;
        reach(connection, Block::last_seq(block))?;
        index::refresh(connection, block)?;
        return Ok(rows as u64);
    }
    let (indexed, newest) = (index::indexed_to(connection)?, newest_seq(connection)?);
    // Looked at one by one; if they are many they will be indexed soon.
    if newest - indexed > 2 * batch {
        return Ok(0);
    }
    let rows = connection
        .prepare_cached("DELETE FROM logs WHERE seq > ?1 AND time_ns < ?2")?
        .execute((indexed, oldest_ns))?;
    if rows > 0 {
        reach(connection, newest)?;
    }
    Ok(rows as u64)
}

/// Deletes the `rows` records that arrived first.
fn delete_oldest(connection: &Connection, rows: i64) -> rusqlite::Result<u64> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT max(seq) FROM (SELECT seq FROM logs ORDER BY seq LIMIT ?1)")?
        .query_row([rows], |row| row.get(0))?;
    let Some(last) = last else { return Ok(0) };
    let deleted = connection.prepare_cached("DELETE FROM logs WHERE seq <= ?1")?.execute([last])?;
    connection.prepare_cached("DELETE FROM log_blocks WHERE block < ?1")?.execute([Block::of(last)])?;
    index::refresh(connection, Block::of(last))?;
    reach(connection, last)?;
    Ok(deleted as u64)
}

/// Notes that records up to this number may be gone, for those who follow.
pub(super) fn reach(connection: &Connection, seq: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE log_totals SET deleted_to = max(deleted_to, ?1)")?
        .execute([seq])
        .map(drop)
}

pub(super) fn account(connection: &Connection, deleted: Deleted) -> rusqlite::Result<()> {
    if deleted.all() == 0 {
        return Ok(());
    }
    let Deleted { by_age, by_rows, by_bytes, by_hand } = deleted;
    connection
        .prepare_cached(
            "UPDATE log_totals SET by_age = by_age + ?1, by_rows = by_rows + ?2, by_bytes = by_bytes + ?3, \
             by_hand = by_hand + ?4",
        )?
        .execute([by_age, by_rows, by_bytes, by_hand].map(signed))
        .map(drop)
}

/// One step of the index: records of one block. Says how many numbers are left.
pub(in crate::store) struct Index;

impl Work for Index {
    type Output = i64;

    fn apply(&self, site: &Site<'_>) -> Result<i64, StoreError> {
        index::step(site.connection).map_err(site.fail("indexing log records"))
    }
}
