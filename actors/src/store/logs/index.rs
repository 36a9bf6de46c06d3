//! The index of the log records: filled behind the records, a block at a time, and forgotten a part at a time.
//!
//! Records are stored without it, as fast as a table takes them. When a block of 1024 numbers has filled, the writer
//! reads it back and indexes it in a transaction of its own; what is not indexed yet is looked at record by record. So
//! the index never delays an acknowledgement, is always written in batches that are large enough, whatever the size of
//! the commits, and a database without an index (of an earlier version) needs nothing else to get one.
//!
//! Nothing is ever deleted from within a part: what is found of a record that is gone is skipped, and a part is emptied
//! whole when its last record is. Deleting single rows from FTS5 made commits of two seconds.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension};

use super::{COLUMNS, StoredLog, newest_seq, stored, terms};
use crate::{log_record::LogRecord, store::limits};

/// Numbers in a block are equal but for so many bits.
const BLOCK_BITS: u32 = 10;
/// Parts of the index; each is a table of the schema.
const PARTS: i64 = 8;
/// Blocks at which a part is full, however few there are in all.
const PART_BLOCKS_LEAST: i64 = 64;
/// Of all blocks one in so many makes a part full. With those that are being filled and forgotten no more than
/// [`PARTS`] are in use while as much is deleted as comes.
const PARTS_FULL: i64 = 5;

/// What is known of the records of one block that are indexed.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) block: i64,
    pub(super) rows: i64,
    pub(super) bytes: i64,
    pub(super) oldest_ns: i64,
    pub(super) newest_ns: i64,
    pub(super) counts: Counts,
}

/// Records of each component and level, trace first.
pub(super) type Counts = BTreeMap<String, [u64; 5]>;

impl Block {
    pub(super) fn empty(block: i64) -> Self {
        Self { block, rows: 0, bytes: 0, oldest_ns: i64::MAX, newest_ns: 0, counts: Counts::new() }
    }

    pub(super) fn of(seq: i64) -> i64 {
        seq >> BLOCK_BITS
    }

    pub(super) fn first_seq(block: i64) -> i64 {
        block << BLOCK_BITS
    }

    pub(super) fn last_seq(block: i64) -> i64 {
        ((block + 1) << BLOCK_BITS) - 1
    }

    pub(super) fn add(&mut self, record: &LogRecord) {
        let time_ns = super::signed(record.time_ns);
        self.rows += 1;
        self.bytes += bytes(record);
        self.oldest_ns = self.oldest_ns.min(time_ns);
        self.newest_ns = self.newest_ns.max(time_ns);
        self.counts.entry(record.component.clone()).or_default()[record.level as usize - 1] += 1;
    }

    fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        if self.rows == 0 {
            return connection
                .prepare_cached("DELETE FROM log_blocks WHERE block = ?1")?
                .execute([self.block])
                .map(drop);
        }
        let counts = serde_json::to_string(&self.counts).unwrap_or_default();
        connection
            .prepare_cached(
                "INSERT INTO log_blocks (block, rows, bytes, oldest_ns, newest_ns, counts) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                 ON CONFLICT (block) DO UPDATE SET rows = excluded.rows, bytes = excluded.bytes, \
                 oldest_ns = excluded.oldest_ns, newest_ns = excluded.newest_ns, counts = excluded.counts",
            )?
            .execute((self.block, self.rows, self.bytes, self.oldest_ns, self.newest_ns, counts))
            .map(drop)
    }
}

/// What a record takes in the database, about: its row, its place in the index of ids, and its terms. Measured with
/// records of 40 to 400 bytes of text: the sum is within a tenth of the pages in use.
pub(super) fn bytes(record: &LogRecord) -> i64 {
    let texts = record.target.len() + record.component.len() + record.message.len();
    let fields: usize = record.fields.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    let spans: usize = record.spans.iter().map(|span| span.len() + 3).sum();
    let options = [&record.file, &record.trace_id, &record.conversation, &record.origin];
    let options: usize = options.into_iter().flatten().map(String::len).sum();
    let row = 80 + texts + fields + spans + options;
    let terms = 60 + (record.message.len() + fields) / 2;
    (row + terms) as i64
}

/// Up to which number records are indexed.
pub(super) fn indexed_to(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT indexed_to FROM log_totals")?.query_row([], |row| row.get(0))
}

/// How many records at most have been deleted of those that came after this number and before the oldest one there is.
pub(super) fn deleted_between(connection: &Connection, after: i64) -> rusqlite::Result<u64> {
    let (deleted_to, oldest): (i64, i64) = connection
        .prepare_cached(
            "SELECT deleted_to, (SELECT coalesce(min(seq), deleted_to + 1) FROM logs) FROM log_totals",
        )?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(u64::try_from(deleted_to.min(oldest - 1) - after).unwrap_or(0))
}

/// Every block, the oldest first.
pub(super) fn blocks(connection: &Connection) -> rusqlite::Result<Vec<Block>> {
    connection
        .prepare_cached(
            "SELECT block, rows, bytes, oldest_ns, newest_ns, counts FROM log_blocks ORDER BY block",
        )?
        .query_map([], |row| {
            Ok(Block {
                block: row.get(0)?,
                rows: row.get(1)?,
                bytes: row.get(2)?,
                oldest_ns: row.get(3)?,
                newest_ns: row.get(4)?,
                counts: serde_json::from_str(row.get_ref(5)?.as_str()?).unwrap_or_default(),
            })
        })?
        .collect()
}

/// A part in use: its number, and the blocks it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) part: i64,
    pub(super) first_block: i64,
    pub(super) last_block: i64,
}

/// The parts in use, the oldest first.
pub(super) fn parts(connection: &Connection) -> rusqlite::Result<Vec<Part>> {
    connection
        .prepare_cached("SELECT part, first_block, last_block FROM log_parts ORDER BY first_block")?
        .query_map([], |row| {
            Ok(Part { part: row.get(0)?, first_block: row.get(1)?, last_block: row.get(2)? })
        })?
        .collect()
}

/// Indexes records that are not: of one block, and no more than [`limits::INDEX_STEP_BYTES`]. Returns how many numbers
/// are left.
pub(in crate::store) fn step(connection: &Connection) -> rusqlite::Result<i64> {
    let (indexed, newest) = (indexed_to(connection)?, newest_seq(connection)?);
    let first: Option<i64> = connection
        .prepare_cached("SELECT min(seq) FROM logs WHERE seq > ?1")?
        .query_row([indexed], |row| row.get(0))?;
    let Some(first) = first else { return Ok(0) };
    let number = Block::of(first);
    let mut end = newest.min(Block::last_seq(number));
    let part = part_for(connection, number)?;
    let mut block = one_block(connection, number)?.unwrap_or_else(|| Block::empty(number));
    {
        let mut insert = connection
            .prepare_cached(&format!("INSERT INTO log_terms_{part} (rowid, terms) VALUES (?1, ?2)"))?;
        let (mut text, mut bytes) = (String::new(), 0);
        each(connection, first, end, |log| {
            terms::write_terms(&mut text, &log.record);
            insert.execute((log.seq, &text))?;
            block.add(&log.record);
            bytes += super::index::bytes(&log.record);
            let enough = bytes >= limits::INDEX_STEP_BYTES;
            if enough {
                end = log.seq;
            }
            Ok(!enough)
        })?;
    }
    block.save(connection)?;
    connection.prepare_cached("UPDATE log_totals SET indexed_to = ?1")?.execute([end])?;
    Ok(newest - end)
}

/// Reads records in the order of arrival while `each` says so.
pub(super) fn each(
    connection: &Connection,
    first: i64,
    last: i64,
    mut each: impl FnMut(StoredLog) -> rusqlite::Result<bool>,
) -> rusqlite::Result<()> {
    let mut statement = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM logs WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq"))?;
    let mut rows = statement.query((first, last))?;
    while let Some(row) = rows.next()? {
        if !each(stored(row)?)? {
            break;
        }
    }
    Ok(())
}

fn one_block(connection: &Connection, block: i64) -> rusqlite::Result<Option<Block>> {
    connection
        .prepare_cached("SELECT rows, bytes, oldest_ns, newest_ns, counts FROM log_blocks WHERE block = ?1")?
        .query_row([block], |row| {
            Ok(Block {
                block,
                rows: row.get(0)?,
                bytes: row.get(1)?,
                oldest_ns: row.get(2)?,
                newest_ns: row.get(3)?,
                counts: serde_json::from_str(row.get_ref(4)?.as_str()?).unwrap_or_default(),
            })
        })
        .optional()
}

/// Says again what is known of a block of which records have been deleted.
pub(super) fn refresh(connection: &Connection, number: i64) -> rusqlite::Result<()> {
    let mut block = Block::empty(number);
    let last = Block::last_seq(number).min(indexed_to(connection)?);
    each(connection, Block::first_seq(number), last, |log| {
        block.add(&log.record);
        Ok(true)
    })?;
    block.save(connection)
}

/// The part that takes the records of this block; a new one if the newest is full.
fn part_for(connection: &Connection, block: i64) -> rusqlite::Result<i64> {
    let parts = parts(connection)?;
    let newest = parts.last().copied();
    if let Some(newest) = newest.filter(|newest| newest.last_block == block) {
        return Ok(newest.part);
    }
    let count = |sql: &str, first: i64| -> rusqlite::Result<i64> {
        connection.prepare_cached(sql)?.query_row([first], |row| row.get(0))
    };
    let free = (0..PARTS).find(|number| parts.iter().all(|part| part.part != *number));
    let next = match (newest, free) {
        (None, _) => Some(0),
        (Some(newest), Some(free)) => {
            let all = count("SELECT count(*) FROM log_blocks WHERE block >= ?1", 0)?;
            let own = count("SELECT count(*) FROM log_blocks WHERE block >= ?1", newest.first_block)?;
            (own >= PART_BLOCKS_LEAST.max(all / PARTS_FULL)).then_some(free)
        }
        // All are in use, while the number of records grows: the newest one grows too.
        (Some(_), None) => None,
    };
    match (next, newest) {
        (Some(part), _) => {
            connection
                .prepare_cached("INSERT INTO log_parts (part, first_block, last_block) VALUES (?1, ?2, ?2)")?
                .execute((part, block))?;
            Ok(part)
        }
        (None, Some(newest)) => {
            connection
                .prepare_cached("UPDATE log_parts SET last_block = ?2, rebuilt = 0 WHERE part = ?1")?
                .execute((newest.part, block))?;
            Ok(newest.part)
        }
        (None, None) => unreachable!("without any part the first one is taken"),
    }
}

/// Indexes anew one part most of whose records are gone: a search would go over their terms in vain. `false` if there is
/// none.
pub(super) fn rebuild_part(connection: &Connection) -> rusqlite::Result<bool> {
    let sparse: Option<(i64, i64, i64)> = connection
        .prepare_cached(
            "SELECT part, first_block, last_block FROM log_parts AS p WHERE NOT rebuilt AND \
             (SELECT sum(rows) FROM log_blocks WHERE block BETWEEN p.first_block AND p.last_block) \
             < (last_block - first_block + 1) * 512 LIMIT 1",
        )?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((part, first, last)) = sparse else { return Ok(false) };
    empty(connection, part)?;
    let mut insert =
        connection.prepare_cached(&format!("INSERT INTO log_terms_{part} (rowid, terms) VALUES (?1, ?2)"))?;
    let mut text = String::new();
    let last = Block::last_seq(last).min(indexed_to(connection)?);
    each(connection, Block::first_seq(first), last, |log| {
        terms::write_terms(&mut text, &log.record);
        insert.execute((log.seq, &text)).map(|_| true)
    })?;
    connection.prepare_cached("UPDATE log_parts SET rebuilt = 1 WHERE part = ?1")?.execute([part])?;
    Ok(true)
}

fn empty(connection: &Connection, part: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(&format!("INSERT INTO log_terms_{part} (log_terms_{part}) VALUES ('delete-all')"))?
        .execute([])
        .map(drop)
}

/// Empties one part of which no record is left; `false` if there is none.
pub(super) fn release_part(connection: &Connection) -> rusqlite::Result<bool> {
    let unused: Option<i64> = connection
        .prepare_cached(
            "SELECT part FROM log_parts WHERE NOT EXISTS \
             (SELECT 1 FROM log_blocks WHERE block BETWEEN first_block AND last_block) LIMIT 1",
        )?
        .query_row([], |row| row.get(0))
        .optional()?;
    let Some(part) = unused else { return Ok(false) };
    empty(connection, part)?;
    connection.prepare_cached("DELETE FROM log_parts WHERE part = ?1")?.execute([part])?;
    Ok(true)
}

/// How many numbers are not indexed.
pub(in crate::store) fn unindexed(connection: &Connection) -> rusqlite::Result<i64> {
    Ok((newest_seq(connection)? - indexed_to(connection)?).max(0))
}
