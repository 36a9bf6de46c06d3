//! Log records in the store: appended once by id, read by what a person asks for, trimmed.

use std::collections::HashSet;

use rusqlite::{Connection, Row, params_from_iter, types::Value};
use uuid::Uuid;

use super::{
    error::StoreError,
    limits,
    writer::{Site, Work},
};
use crate::log_record::{Level, LogRecord};

/// A log record as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLog {
    /// Order of arrival; rises, and is never used twice.
    pub seq: i64,
    /// The record.
    pub record: LogRecord,
}

/// Which log records to read. The default is the newest 1000 of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// This level and above.
    pub min_level: Option<Level>,
    /// Raised at or after, in nanoseconds since the Unix epoch.
    pub since_ns: Option<u64>,
    /// Raised before, in nanoseconds since the Unix epoch.
    pub until_ns: Option<u64>,
    /// Of this component.
    pub component: Option<String>,
    /// With this text in message or fields; the case of ASCII letters does not matter.
    pub text: Option<String>,
    /// Of this conversation.
    pub conversation: Option<String>,
    /// At most so many; never more than [`limits::QUERY_ROWS_MAX`].
    pub limit: usize,
    /// `None`: the newest `limit`, in the order of time. `Some(n)`: the first `limit` that arrived
    /// after `n`, in the order of arrival; this is how a reader follows.
    pub after_seq: Option<i64>,
}

impl Default for LogQuery {
    fn default() -> Self {
        Self {
            min_level: None,
            since_ns: None,
            until_ns: None,
            component: None,
            text: None,
            conversation: None,
            limit: 1000,
            after_seq: None,
        }
    }
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
     file, line, trace_id, conversation, origin";

const INSERT: &str = "INSERT INTO logs (id, time_ns, level, target, component, process, incarnation, message, fields, \
     spans, file, line, trace_id, conversation, origin) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) ON CONFLICT (id) DO NOTHING";

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

    fn log_rows(&self) -> usize {
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
                ])
            })
            .map_err(site.fail("appending a log record"))
    }
}

/// Deletes the oldest records, a batch by count and a batch by age.
pub(super) struct Trim {
    pub(super) rows_max: u64,
    pub(super) oldest_ns: i64,
    pub(super) batch_rows: usize,
}

impl Work for Trim {
    type Output = usize;

    fn apply(&self, site: &Site<'_>) -> Result<usize, StoreError> {
        // `seq` has few holes, so the newest `rows_max` numbers hold at most that many rows; counting
        // a million rows before each trim would cost more than the trim.
        let by_count = site.connection.execute(
            "DELETE FROM logs WHERE seq IN (SELECT seq FROM logs \
             WHERE seq <= (SELECT max(seq) FROM logs) - ?1 ORDER BY seq LIMIT ?2)",
            (signed(self.rows_max), self.batch_rows as i64),
        );
        let by_age = site.connection.execute(
            "DELETE FROM logs WHERE seq IN (SELECT seq FROM logs WHERE time_ns < ?1 ORDER BY time_ns LIMIT ?2)",
            (self.oldest_ns, self.batch_rows as i64),
        );
        let fail = site.fail("trimming log records");
        Ok(by_count.map_err(&fail)? + by_age.map_err(&fail)?)
    }
}

/// The records a query asks for.
pub(super) fn query(connection: &Connection, query: &LogQuery) -> rusqlite::Result<Vec<StoredLog>> {
    let mut conditions: Vec<&str> = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    let mut demand = |condition, value: Option<Value>| {
        if let Some(value) = value {
            conditions.push(condition);
            values.push(value);
        }
    };
    let level = query.min_level.unwrap_or(Level::Trace);
    if level >= Level::Warn {
        // Said in so many words, so that SQLite may use the index of the levels that matter.
        demand("level >= 4 AND level >= ?", Some((level as i64).into()));
    } else if level > Level::Trace {
        demand("level >= ?", Some((level as i64).into()));
    }
    demand("time_ns >= ?", query.since_ns.map(|time| signed(time).into()));
    demand("time_ns < ?", query.until_ns.map(|time| signed(time).into()));
    demand("component = ?", query.component.clone().map(Value::from));
    demand("conversation = ?", query.conversation.clone().map(Value::from));
    demand(
        "(message || char(10) || fields) LIKE ? ESCAPE '\\'",
        query.text.as_deref().map(|text| like(text).into()),
    );
    demand("seq > ?", query.after_seq.map(Value::from));
    let place =
        if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
    values.push((query.limit.min(limits::QUERY_ROWS_MAX) as i64).into());
    let sql = match query.after_seq {
        Some(_) => format!("SELECT {COLUMNS} FROM logs {place} ORDER BY seq LIMIT ?"),
        None => format!(
            "SELECT * FROM (SELECT {COLUMNS} FROM logs {place} ORDER BY time_ns DESC, seq DESC LIMIT ?) \
             ORDER BY time_ns, seq"
        ),
    };
    connection.prepare_cached(&sql)?.query_map(params_from_iter(values), stored)?.collect()
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
            run: 0,
            number: 0,
        },
    })
}

/// SQLite's integers are signed; 2^63 ns is the year 2262.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn like(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for character in text.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}
