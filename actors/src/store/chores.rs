//! What the writer does of itself while nobody asks: index log records, and delete those that are not kept.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use interlock_bus::envelope::now_ns;
use rusqlite::Connection;

use super::{
    limits, locked,
    logs::{
        self,
        retention::{Deleted, Index, LogRetention, Trim},
    },
    writer::{self, Hand},
};

/// What is kept of the logs; may be changed while the store is open.
pub(super) type Retention = Arc<Mutex<LogRetention>>;

/// A step of work, short enough for jobs to wait for it.
enum Chore {
    Index,
    Trim(Trim),
}

/// What is to be done, and when it was last.
pub(super) struct Chores {
    retention: Retention,
    /// Log records deleted by the retention, in passes that are over.
    deleted_in_all: Arc<Mutex<Deleted>>,
    /// Log records that are not indexed, about.
    unindexed: usize,
    rows_since_trim: usize,
    trimmed_at: Instant,
    /// When jobs were done last.
    busy_at: Instant,
    /// What the pass that is under way has deleted; a pass ends with a step that finds nothing.
    pass: Option<Deleted>,
    /// The last step could not be done: nothing is tried before jobs, or the next look.
    stalled: bool,
}

impl Chores {
    /// Counting as if a trim were due: what an earlier run left too much goes first.
    pub(super) fn new(
        connection: &Connection,
        retention: Retention,
        deleted_in_all: Arc<Mutex<Deleted>>,
    ) -> Self {
        // An error here meets every step too, and is told there.
        let unindexed = logs::index::unindexed(connection).unwrap_or(0);
        Self {
            retention,
            deleted_in_all,
            unindexed: usize::try_from(unindexed).unwrap_or(0),
            rows_since_trim: 0,
            trimmed_at: Instant::now(),
            busy_at: Instant::now(),
            pass: Some(Deleted::default()),
            stalled: false,
        }
    }

    fn is_due(&self) -> bool {
        self.pass.is_some() || self.unindexed >= limits::INDEX_AT_ROWS
    }

    /// The next step: what is overdue, then a pass that has begun, then the index.
    fn next(&mut self) -> Chore {
        let must_trim = self.rows_since_trim >= limits::TRIM_EVERY_ROWS;
        let must_index = self.unindexed >= limits::INDEX_LAG_ROWS_MAX;
        let may_index = self.unindexed >= limits::INDEX_AT_ROWS && self.pass.is_none();
        if !must_trim && (must_index || may_index) {
            return Chore::Index;
        }
        self.pass.get_or_insert_default();
        let retention = *locked(&self.retention);
        Chore::Trim(Trim { retention, now_ns: now_ns() })
    }

    /// What a step of trimming came to; `None` if it failed.
    fn trimmed(&mut self, deleted: Option<Deleted>) {
        self.trimmed_at = Instant::now();
        self.stalled = deleted.is_none();
        let Some(deleted) = deleted else { return };
        let Some(pass) = &mut self.pass else { return };
        *pass += deleted;
        // A step deletes more than comes between two, so this catches up.
        self.rows_since_trim = self.rows_since_trim.saturating_sub(limits::TRIM_EVERY_ROWS);
        if deleted.all() == 0 {
            self.rows_since_trim = 0;
            *locked(&self.deleted_in_all) += *pass;
            self.pass = None;
        }
    }

    /// How many records a step of indexing has left; `None` if it failed.
    fn indexed(&mut self, left: Option<i64>) {
        self.stalled = left.is_none();
        if let Some(left) = left {
            self.unindexed = usize::try_from(left).unwrap_or(0);
        }
    }
}

impl writer::Chores for Chores {
    fn pause(&self) -> Duration {
        match self.is_due() && !self.stalled {
            true => limits::QUIET.saturating_sub(self.busy_at.elapsed()),
            false => limits::TRIM_EVERY.saturating_sub(self.trimmed_at.elapsed()),
        }
    }

    fn added(&mut self, rows: usize) {
        self.stalled = false;
        self.busy_at = Instant::now();
        self.unindexed += rows;
        self.rows_since_trim += rows;
        if self.rows_since_trim >= limits::TRIM_EVERY_ROWS {
            self.pass.get_or_insert_default();
        }
    }

    fn is_overdue(&self) -> bool {
        let behind =
            self.rows_since_trim >= limits::TRIM_EVERY_ROWS || self.unindexed >= limits::INDEX_LAG_ROWS_MAX;
        behind && !self.stalled
    }

    fn begin_trim(&mut self) {
        self.pass.get_or_insert_default();
    }

    fn step(&mut self, hand: &mut Hand) {
        match self.next() {
            Chore::Trim(trim) => self.trimmed(hand.alone(trim)),
            Chore::Index => self.indexed(hand.alone(Index)),
        }
    }
}
