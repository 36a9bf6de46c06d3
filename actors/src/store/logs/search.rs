//! Finding log records: the index names candidates, newest first; each is read and compared with the query.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use rusqlite::{Connection, types::Value};

use super::{
    COLUMNS, StoredLog,
    filter::LogQuery,
    index::{self, Block, Part},
    newest_seq, signed, stored,
    terms::{self, Asked},
};
use crate::store::limits;

/// What a search came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The records.
    pub records: Vec<StoredLog>,
    /// Where to go on with `after_seq`: of what comes later in the order of arrival nothing was looked at.
    pub seen_to: i64,
    /// Records at most that were deleted after `after_seq` and before anybody could ask for them.
    pub missed: u64,
    /// Whether it was given up after [`limits::SCAN_ROWS_MAX`] records that did not match: there may be more.
    pub cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Rising,
    Falling,
}

/// What to do after a record.
enum Then {
    Next,
    /// No more of this stretch.
    Enough,
}

/// One search in one snapshot of the database.
struct Search<'a> {
    connection: &'a Connection,
    query: &'a LogQuery,
    asked: Asked,
    /// Beyond it nothing is indexed.
    indexed_to: i64,
    parts: Vec<Part>,
    /// Records looked at that did not match.
    passed: usize,
    /// The number of the record looked at last.
    seen_to: i64,
    cut: bool,
}

/// The records a query asks for.
pub(in crate::store) fn search(connection: &Connection, query: &LogQuery) -> rusqlite::Result<Found> {
    // One snapshot for blocks, index and records.
    let transaction = connection.unchecked_transaction()?;
    search_in(&transaction, query)
}

/// The same, in a snapshot that somebody else has taken.
pub(super) fn search_in(transaction: &Connection, query: &LogQuery) -> rusqlite::Result<Found> {
    let blocks = index::blocks(transaction)?;
    let components: BTreeSet<&String> = blocks.iter().flat_map(|block| block.counts.keys()).collect();
    let components: Vec<String> = components.into_iter().cloned().collect();
    let mut search = Search {
        connection: transaction,
        query,
        asked: terms::ask(query, &components),
        indexed_to: index::indexed_to(transaction)?,
        parts: index::parts(transaction)?,
        passed: 0,
        seen_to: query.after_seq.unwrap_or(0),
        cut: false,
    };
    let limit = query.limit.min(limits::QUERY_ROWS_MAX);
    let records = match query.after_seq {
        _ if limit == 0 => Vec::new(),
        Some(after) => search.first_after(&blocks, after, limit)?,
        None => search.newest(&blocks, limit)?,
    };
    let Some(after) = query.after_seq else {
        return Ok(Found { records, seen_to: newest_seq(transaction)?, missed: 0, cut: search.cut });
    };
    let seen_to = match records.len() == limit || search.cut {
        true => search.seen_to,
        false => newest_seq(transaction)?.max(after),
    };
    let missed = index::deleted_between(transaction, after)?;
    Ok(Found { records, seen_to, missed, cut: search.cut })
}

/// Numbers in a row whose records may be in the time that is asked for, with the time of the newest one.
struct Stretch {
    first: i64,
    last: i64,
    newest_ns: i64,
    /// Whether between it and the one before, in the order of numbers, something is left out.
    after_gap: bool,
}

impl Search<'_> {
    /// The stretches to look at, in rising order: blocks, and the end that is not indexed yet.
    fn stretches(&self, blocks: &[Block]) -> Vec<Stretch> {
        let since = self.query.since_ns.unwrap_or(0);
        let until = self.query.until_ns.unwrap_or(u64::MAX);
        let mut stretches = Vec::with_capacity(blocks.len() + 1);
        let mut after_gap = false;
        for block in blocks {
            if block.newest_ns.unsigned_abs() < since || block.oldest_ns.unsigned_abs() >= until {
                after_gap = true;
                continue;
            }
            stretches.push(Stretch {
                first: Block::first_seq(block.block),
                last: Block::last_seq(block.block).min(self.indexed_to),
                newest_ns: block.newest_ns,
                after_gap: std::mem::take(&mut after_gap),
            });
        }
        stretches.push(Stretch {
            first: self.indexed_to + 1,
            last: i64::MAX,
            newest_ns: i64::MAX,
            after_gap,
        });
        stretches
    }

    /// The newest by time. They nearly are by number, so numbers are gone through from the end, and a block is left
    /// out when all of it is older than what has been found.
    fn newest(&mut self, blocks: &[Block], limit: usize) -> rusqlite::Result<Vec<StoredLog>> {
        let stretches = self.stretches(blocks);
        let mut found: BinaryHeap<Reverse<ByTime>> = BinaryHeap::new();
        let is_too_old = |found: &BinaryHeap<Reverse<ByTime>>, newest_ns: i64| {
            found.len() == limit
                && found.peek().is_some_and(|Reverse(oldest)| signed(oldest.0.record.time_ns) > newest_ns)
        };
        // Those from here on have been seen to.
        let mut done = stretches.len();
        while done > 0 && !self.cut {
            let top = done - 1;
            if is_too_old(&found, stretches[top].newest_ns) {
                done = top;
                continue;
            }
            // As far as nothing is left out it is one way through the index.
            let mut bottom = top;
            while bottom > 0
                && !stretches[bottom].after_gap
                && !is_too_old(&found, stretches[bottom - 1].newest_ns)
            {
                bottom -= 1;
            }
            done = bottom;
            let mut at = top;
            self.visit(stretches[bottom].first, stretches[top].last, Direction::Falling, &mut |log| {
                while at > bottom && log.seq < stretches[at].first {
                    at -= 1;
                }
                if is_too_old(&found, stretches[at].newest_ns) {
                    done = at + 1;
                    return Then::Enough;
                }
                found.push(Reverse(ByTime(log)));
                if found.len() > limit {
                    found.pop();
                }
                Then::Next
            })?;
        }
        let mut records: Vec<ByTime> = found.into_iter().map(|Reverse(log)| log).collect();
        records.sort_unstable();
        Ok(records.into_iter().map(|ByTime(log)| log).collect())
    }

    fn first_after(
        &mut self,
        blocks: &[Block],
        after: i64,
        limit: usize,
    ) -> rusqlite::Result<Vec<StoredLog>> {
        let mut records = Vec::new();
        let stretches = self.stretches(blocks);
        let mut at = 0;
        while at < stretches.len() && records.len() < limit && !self.cut {
            let mut to = at;
            while to + 1 < stretches.len() && !stretches[to + 1].after_gap {
                to += 1;
            }
            let (first, last) = (stretches[at].first.max(after.saturating_add(1)), stretches[to].last);
            self.visit(first, last, Direction::Rising, &mut |log| {
                records.push(log);
                if records.len() == limit { Then::Enough } else { Then::Next }
            })?;
            at = to + 1;
        }
        Ok(records)
    }

    /// Hands out the matching records between two numbers, both included.
    fn visit(
        &mut self,
        first: i64,
        last: i64,
        direction: Direction,
        each: &mut dyn FnMut(StoredLog) -> Then,
    ) -> rusqlite::Result<()> {
        // A part of the index and its numbers, or none for those that are not indexed.
        let mut ways: Vec<(Option<i64>, i64, i64)> = match &self.asked {
            Asked::All => vec![(None, i64::MIN, i64::MAX)],
            Asked::Nothing => vec![(None, self.indexed_to + 1, i64::MAX)],
            Asked::Records(_) => {
                let parts = self.parts.iter().map(|part| {
                    let last = Block::last_seq(part.last_block).min(self.indexed_to);
                    (Some(part.part), Block::first_seq(part.first_block), last)
                });
                parts.chain([(None, self.indexed_to + 1, i64::MAX)]).collect()
            }
        };
        if direction == Direction::Falling {
            ways.reverse();
        }
        for (part, from, to) in ways {
            let (from, to) = (from.max(first), to.min(last));
            if from <= to && matches!(self.visit_way(part, from, to, direction, each)?, Then::Enough) {
                break;
            }
        }
        Ok(())
    }

    fn visit_way(
        &mut self,
        part: Option<i64>,
        from: i64,
        to: i64,
        direction: Direction,
        each: &mut dyn FnMut(StoredLog) -> Then,
    ) -> rusqlite::Result<Then> {
        let order = if direction == Direction::Falling { "DESC" } else { "ASC" };
        let mut values = vec![Value::from(from), Value::from(to)];
        let sql = match (part, &self.asked) {
            (Some(part), Asked::Records(expression)) => {
                values.push(Value::from(expression.clone()));
                // CROSS: the index leads, whatever the planner thinks.
                format!(
                    "SELECT {COLUMNS} FROM log_terms_{part} AS term CROSS JOIN logs ON seq = term.rowid \
                     WHERE term.rowid BETWEEN ?1 AND ?2 AND log_terms_{part} MATCH ?3 ORDER BY term.rowid {order}"
                )
            }
            _ => format!("SELECT {COLUMNS} FROM logs WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq {order}"),
        };
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            self.seen_to = row.get(0)?;
            let matching = match self.query.is_in_time(row.get::<_, i64>(2)?.unsigned_abs()) {
                true => Some(stored(row)?).filter(|log| self.query.matches(&log.record)),
                false => None,
            };
            let Some(log) = matching else {
                self.passed += 1;
                if self.passed >= limits::SCAN_ROWS_MAX {
                    self.cut = true;
                    return Ok(Then::Enough);
                }
                continue;
            };
            if matches!(each(log), Then::Enough) {
                return Ok(Then::Enough);
            }
        }
        Ok(Then::Next)
    }
}

/// Ordered by time, then by arrival.
struct ByTime(StoredLog);

impl ByTime {
    fn key(&self) -> (u64, i64) {
        (self.0.record.time_ns, self.0.seq)
    }
}

impl PartialEq for ByTime {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ByTime {}

impl PartialOrd for ByTime {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByTime {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
