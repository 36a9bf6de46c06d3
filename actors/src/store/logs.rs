//! Log records in the store: appended once by id, indexed, read by what a person asks for, deleted when too many or old.

use std::collections::HashSet;

use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::{
    error::StoreError,
    writer::{Site, Work},
};
use crate::log_record::{Level, LogRecord};

pub mod filter;
pub(super) mod index;
pub mod prune;
pub mod retention;
pub mod search;
pub mod summary;
mod terms;
#[cfg(test)]
mod tests;
pub mod words;

/// A log record as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLog {
    /// Order of arrival; rises, and is never used twice.
    pub seq: i64,
    /// The record.
    pub record: LogRecord,
}

/// What became of appended records, after the commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Rows that are new.
    pub stored: usize,
    /// Records that were there already.
    pub duplicates: usize,
    /// Records that the store can never take, and why. The others were stored.
    pub refused: Vec<(Uuid, String)>,
}

const COLUMNS: &str = "seq, id, time_ns, level, target, component, process, incarnation, message, fields, spans, \
     file, line, trace_id, conversation, origin, run, number";

const INSERT: &str = "INSERT INTO logs (id, time_ns, level, target, component, process, incarnation, message, fields, \
     spans, file, line, trace_id, conversation, origin, run, number) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17) ON CONFLICT (id) DO NOTHING";

/// Appends records; one that is there already is left as it is.
pub(super) struct Append(pub(super) Vec<LogRecord>);

impl Work for Append {
    type Output = Appended;

    fn apply(&self, site: &Site<'_>) -> Result<Appended, StoreError> {
        let mut appended = Appended::default();
        for record in &self.0 {
            match self.insert(site, record) {
                Ok(0) => appended.duplicates += 1,
                Ok(_) => appended.stored += 1,
                // A failed INSERT undoes itself and leaves the transaction standing, so the others go on.
                Err(error) if site.alone && error.is_about_content() => {
                    appended.refused.push((record.id, error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(appended)
    }

    fn rows(&self) -> usize {
        self.0.len()
    }
}

impl Append {
    fn insert(&self, site: &Site<'_>, record: &LogRecord) -> Result<usize, StoreError> {
        let json = |list: &[String]| serde_json::to_string(list).unwrap_or_default();
        let fields = serde_json::to_string(&record.fields).unwrap_or_default();
        site.connection
            .prepare_cached(INSERT)
            .and_then(|mut statement| {
                statement.execute(rusqlite::params![
                    record.id.as_bytes().as_slice(),
                    signed(record.time_ns),
                    record.level as i64,
                    record.target,
                    record.component,
                    record.process,
                    signed(record.incarnation),
                    record.message,
                    fields,
                    json(&record.spans),
                    record.file,
                    record.line,
                    record.trace_id,
                    record.conversation,
                    record.origin,
                    record.run.cast_signed(),
                    record.number.cast_signed(),
                ])
            })
            .map_err(site.fail("appending a log record"))
    }
}

/// Which of `ids` are in the store.
pub(super) fn present(connection: &Connection, ids: &[Uuid]) -> rusqlite::Result<HashSet<Uuid>> {
    let mut statement = connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM logs WHERE id = ?1)")?;
    let mut found = HashSet::new();
    for id in ids {
        if statement.query_row([id.as_bytes().as_slice()], |row| row.get::<_, bool>(0))? {
            found.insert(*id);
        }
    }
    Ok(found)
}

/// The number of the newest record; zero if there has never been one.
pub(super) fn newest_seq(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT coalesce(max(seq), 0) FROM logs")?.query_row([], |row| row.get(0))
}

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredLog> {
    let fields: String = row.get(9)?;
    let spans: String = row.get(10)?;
    Ok(StoredLog {
        seq: row.get(0)?,
        record: LogRecord {
            id: Uuid::from_bytes(row.get(1)?),
            time_ns: row.get::<_, i64>(2)?.unsigned_abs(),
            level: Level::from_number(row.get(3)?).unwrap_or(Level::Info),
            target: row.get(4)?,
            component: row.get(5)?,
            process: row.get(6)?,
            incarnation: row.get::<_, i64>(7)?.unsigned_abs(),
            message: row.get(8)?,
            // What we wrote parses; of what somebody else wrote into the table the rest is still shown.
            fields: serde_json::from_str(&fields).unwrap_or_default(),
            spans: serde_json::from_str(&spans).unwrap_or_default(),
            file: row.get(11)?,
            line: row.get(12)?,
            trace_id: row.get(13)?,
            conversation: row.get(14)?,
            origin: row.get(15)?,
            run: row.get::<_, i64>(16)?.cast_unsigned(),
            number: row.get::<_, i64>(17)?.cast_unsigned(),
        },
    })
}

/// SQLite's integers are signed; 2^63 ns is the year 2262.
pub(in crate::store) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
