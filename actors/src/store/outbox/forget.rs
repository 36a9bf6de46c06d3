//! Forgetting messages that are finished: by age and by number, in small steps while nobody asks for anything.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rusqlite::params;

use super::{book::Book, checkpoint::Checkpoints, limits, now_ms};
use crate::store::{
    self,
    error::StoreError,
    locked,
    logs::signed,
    writer::{self, Hand, Site, Work},
};

/// Which finished messages are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepFinished {
    /// None that were finished longer ago than this.
    pub age_max: Duration,
    /// At most so many.
    pub messages_max: u64,
}

impl Default for KeepFinished {
    fn default() -> Self {
        Self { age_max: limits::KEEP_FINISHED, messages_max: limits::KEEP_FINISHED_MAX }
    }
}

/// One step: the oldest that are too old or too many. Returns how many there were.
struct Forget(KeepFinished);

impl Work for Forget {
    type Output = u64;

    fn apply(&self, site: &Site<'_>) -> Result<u64, StoreError> {
        self.forget(site).map_err(site.fail("forgetting finished messages"))
    }
}

impl Forget {
    fn forget(&self, site: &Site<'_>) -> rusqlite::Result<u64> {
        let connection = site.connection;
        let KeepFinished { age_max, messages_max } = self.0;
        let mut book = Book::open(site, now_ms())?;
        let age_ms = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
        let delete = |before_ms: u64, most: u64| {
            connection
                .prepare_cached(
                    "DELETE FROM entries WHERE number IN (SELECT number FROM entries WHERE finished_ms IS NOT NULL \
                     AND finished_ms < ?1 ORDER BY finished_ms LIMIT ?2)",
                )?
                .execute(params![signed(before_ms), signed(most.min(limits::FORGET_BATCH))])
                .map(|rows| rows as u64)
        };
        let too_many = book.totals.finished.saturating_sub(messages_max);
        let mut forgotten = delete(u64::MAX, too_many)?;
        forgotten += delete(now_ms().saturating_sub(age_ms), limits::FORGET_BATCH - forgotten)?;
        if forgotten > 0 {
            book.totals.finished = book.totals.finished.saturating_sub(forgotten);
            book.close()?;
        }
        Ok(forgotten)
    }
}

/// What the writer of an outbox does while nobody asks.
pub(super) struct Chores {
    keep: Arc<Mutex<KeepFinished>>,
    /// Messages accepted since the last look that found nothing: what finishes was accepted before.
    accepted: usize,
    looked_at: Instant,
    busy_at: Instant,
    /// Whether a look is due.
    is_due: bool,
    /// The last step could not be done: nothing is tried before jobs, or the next look.
    stalled: bool,
    checkpoints: Checkpoints,
}

impl Chores {
    /// Beginning with a look.
    pub(super) fn new(keep: Arc<Mutex<KeepFinished>>, checkpoints: Checkpoints) -> Self {
        let now = Instant::now();
        Self { keep, accepted: 0, looked_at: now, busy_at: now, is_due: true, stalled: false, checkpoints }
    }
}

impl writer::Chores for Chores {
    fn pause(&self) -> Duration {
        match self.is_due && !self.stalled {
            true => store::limits::QUIET.saturating_sub(self.busy_at.elapsed()),
            false => limits::FORGET_AFTER.saturating_sub(self.looked_at.elapsed()),
        }
    }

    fn added(&mut self, rows: usize) {
        self.stalled = false;
        self.busy_at = Instant::now();
        self.accepted += rows;
        self.checkpoints.committed(rows);
        self.is_due |= self.accepted >= limits::FORGET_EVERY;
    }

    /// Each message is a job of its own here, and its publisher waits for the answer before the next.
    fn gathers(&self) -> bool {
        true
    }

    fn is_overdue(&self) -> bool {
        self.accepted >= limits::FORGET_EVERY && !self.stalled
    }

    fn begin_trim(&mut self) {
        self.is_due = true;
    }

    fn step(&mut self, hand: &mut Hand) {
        let keep = *locked(&self.keep);
        self.looked_at = Instant::now();
        let forgotten = hand.alone(Forget(keep));
        self.stalled = forgotten.is_none();
        // A step forgets more than is accepted between two, so this catches up.
        self.accepted = self.accepted.saturating_sub(limits::FORGET_EVERY);
        if forgotten == Some(0) {
            (self.accepted, self.is_due) = (0, false);
        }
    }
}
