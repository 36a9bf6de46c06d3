//! What is in the log, all together.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::{
    filter::LogQuery,
    index::{self, Block, Counts},
    retention::{Deleted, LogRetention},
    search,
    words::TextQuery,
};
use crate::{
    log_record::Level,
    store::{connection::PAGE_BYTES, limits},
};

/// What is in the log, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSummary {
    /// Records.
    pub rows: u64,
    /// What they need in the database, about: rows, the index of ids, the index of terms.
    pub bytes: u64,
    /// Time of the oldest one, in nanoseconds since the Unix epoch.
    pub oldest_ns: Option<u64>,
    /// Time of the newest one.
    pub newest_ns: Option<u64>,
    /// Records of each component at each level, the least important first.
    pub counts: BTreeMap<String, [u64; 5]>,
    /// Records that are not indexed yet.
    pub unindexed: u64,
    /// What has been deleted since the database was made.
    pub deleted: Deleted,
    /// Records that never came here because a buffer was full, by what the log says of it.
    pub dropped: u64,
    /// Bytes of the database; what else is in it included.
    pub database_bytes: u64,
    /// Of them, bytes that are free for what comes next.
    pub free_bytes: u64,
}

impl LogSummary {
    /// All of it as one JSON object, with what is `kept`, whose age is written as `age`.
    pub fn as_json(&self, kept: &LogRetention, age: &str) -> Value {
        let levels = |counts: &[u64; 5]| -> Value {
            let each =
                Level::ALL.iter().zip(counts).map(|(level, count)| (level.to_string(), (*count).into()));
            each.collect::<serde_json::Map<_, _>>().into()
        };
        let components: serde_json::Map<_, _> =
            self.counts.iter().map(|(component, counts)| (component.clone(), levels(counts))).collect();
        json!({
            "rows": self.rows,
            "bytes": self.bytes,
            "oldest_ns": self.oldest_ns,
            "newest_ns": self.newest_ns,
            "unindexed": self.unindexed,
            "levels": levels(&self.sums()),
            "components": components,
            "dropped": self.dropped,
            "deleted": {
                "by_age": self.deleted.by_age,
                "by_rows": self.deleted.by_rows,
                "by_bytes": self.deleted.by_bytes,
                "by_hand": self.deleted.by_hand,
            },
            "kept": { "age": age, "rows": kept.rows_max, "bytes": kept.bytes_max },
            "database_bytes": self.database_bytes,
            "free_bytes": self.free_bytes,
        })
    }

    /// Records of all components at each level, the least important first.
    pub fn sums(&self) -> [u64; 5] {
        let mut sums = [0; 5];
        for counts in self.counts.values() {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        sums
    }
}

/// Looks at what is known of the blocks, and at each record that is not indexed.
pub(in crate::store) fn summary(connection: &Connection) -> rusqlite::Result<LogSummary> {
    let transaction = connection.unchecked_transaction()?;
    let mut blocks = index::blocks(&transaction)?;
    let mut rest = Block::empty(i64::MAX >> 10);
    index::each(&transaction, index::indexed_to(&transaction)? + 1, i64::MAX, |log| {
        rest.add(&log.record);
        Ok(true)
    })?;
    let unindexed = rest.rows.unsigned_abs();
    blocks.extend((rest.rows > 0).then_some(rest));
    let mut counts = Counts::new();
    for (component, levels) in blocks.iter().flat_map(|block| &block.counts) {
        let sums = counts.entry(component.clone()).or_default();
        sums.iter_mut().zip(levels).for_each(|(sum, count)| *sum += count);
    }
    let deleted =
        transaction.query_row("SELECT by_age, by_rows, by_bytes, by_hand FROM log_totals", [], |row| {
            let count = |column| row.get(column).map(i64::unsigned_abs);
            Ok(Deleted { by_age: count(0)?, by_rows: count(1)?, by_bytes: count(2)?, by_hand: count(3)? })
        })?;
    let pragma = |name: &str| -> rusqlite::Result<u64> {
        transaction.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).map(i64::unsigned_abs)
    };
    Ok(LogSummary {
        rows: blocks.iter().map(|block| block.rows.unsigned_abs()).sum(),
        bytes: blocks.iter().map(|block| block.bytes.unsigned_abs()).sum(),
        oldest_ns: blocks.iter().map(|block| block.oldest_ns.unsigned_abs()).min(),
        newest_ns: blocks.iter().map(|block| block.newest_ns.unsigned_abs()).max(),
        counts,
        unindexed,
        deleted,
        dropped: dropped(&transaction)?,
        database_bytes: pragma("page_count")? * PAGE_BYTES,
        free_bytes: pragma("freelist_count")? * PAGE_BYTES,
    })
}

/// The sum of what the summaries of the log buffers say, as far as they are still there.
fn dropped(connection: &Connection) -> rusqlite::Result<u64> {
    let query = LogQuery {
        text: Some(TextQuery::new("\"log records dropped between\"")),
        limit: limits::QUERY_ROWS_MAX,
        ..LogQuery::default()
    };
    let found = search::search_in(connection, &query)?;
    let counts = found.records.iter().flat_map(|log| &log.record.fields).filter_map(|(name, count)| {
        let level = name.strip_prefix("dropped_")?;
        level.parse::<Level>().ok()?;
        count.parse::<u64>().ok()
    });
    Ok(counts.sum())
}
