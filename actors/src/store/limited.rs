//! A connection that may not be held up for long by one question.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::limits;

/// A reading connection with a clock: each time it is taken out, a question of [`limits::READ_LIMIT`] begins, after which
/// SQLite is interrupted. Nothing that reads can forget to start it.
pub(super) struct Limited {
    inner: Connection,
    limit: Duration,
    /// Milliseconds on our clock.
    until: Arc<AtomicU64>,
}

impl fmt::Debug for Limited {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

impl Limited {
    pub(super) fn new(inner: Connection) -> rusqlite::Result<Self> {
        Self::with_limit(inner, limits::READ_LIMIT)
    }

    fn with_limit(mut inner: Connection, limit: Duration) -> rusqlite::Result<Self> {
        let until = Arc::new(AtomicU64::new(u64::MAX));
        let clock = Arc::clone(&until);
        inner.progress_handler(limits::READ_STEPS, Some(move || now() > clock.load(Ordering::Relaxed)))?;
        Ok(Self { inner, limit, until })
    }

    /// Without the clock, for what a person asked for and which takes as long as the database is large.
    pub(super) fn unlimited(&self) -> &Connection {
        self.until.store(u64::MAX, Ordering::Relaxed);
        &self.inner
    }
}

impl Deref for Limited {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.until.store(now() + self.limit.as_millis() as u64, Ordering::Relaxed);
        &self.inner
    }
}

fn now() -> u64 {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::StoreError;

    const ENDLESS: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

    #[test]
    fn a_question_without_end_is_cut_and_the_next_one_has_its_own_time() {
        let limited =
            Limited::with_limit(Connection::open_in_memory().unwrap(), Duration::from_millis(50)).unwrap();
        for _ in 0..2 {
            let error = limited.query_row::<i64, _, _>(ENDLESS, [], |row| row.get(0)).unwrap_err();
            let error = StoreError::from_sqlite(Path::new("x"), "reading", error);
            assert!(matches!(error, StoreError::ReadTooLong { .. }) && error.exit_code() == 3, "{error}");
            assert!(!error.ends_connection());
            assert_eq!(limited.query_row::<i64, _, _>("SELECT 1", [], |row| row.get(0)).unwrap(), 1);
        }
    }
}
